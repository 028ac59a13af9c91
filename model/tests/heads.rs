//! The embedded model with its embedding, which is the head too, in other formats.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use support::{GREEDY, backends, fable, golden, held_out, load};
use tersor_core::{Format, QuantBackend, codec};
use tersor_model::perplexity::perplexity;
use tersor_model::verify::Difference;
use tersor_model::{ConvertOptions, Error, Model, ModelFile, Role, Session, SessionOptions, convert, verify};

fn with_head(dir: &Path, head: Format) -> ModelFile {
    let out = dir.join(format!("{head}.gguf"));
    let options = ConvertOptions { head: Some(head), ..ConvertOptions::new(Format::I2S) };
    let report = convert(&fable(), &out, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(report.tensors[0].stored, head.id());
    ModelFile::open(&out).unwrap()
}

fn loaded(file: &ModelFile, backend: &Arc<dyn QuantBackend>) -> Model {
    Model::load(backend.clone(), file, |_| {}).unwrap()
}

/// Measured on these twelve windows: 21.7195 with the model's own head (bf16), 21.7035 with q8_0 (-0.07 %), 21.7126 with
/// q6_k (-0.03 %). The bound is that of noise of this size in either direction.
#[test]
fn integer_heads_predict_as_well_as_the_model_s_own() {
    let dir = tempfile::tempdir().unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let backend = &backends(threads)[0].1;
    let held_out = held_out();
    let windows: Vec<&[u32]> = held_out.windows.iter().take(12).map(Vec::as_slice).collect();
    let own = perplexity(&load(backend), &windows, |_, _| {}).unwrap();
    for (head, bound) in [(Format::F32, 0.0), (Format::F16, 1e-4), (Format::Q8_0, 2e-3), (Format::Q6K, 2e-3)] {
        let got = perplexity(&loaded(&with_head(dir.path(), head), backend), &windows, |_, _| {}).unwrap();
        let off = got.value() / own.value() - 1.0;
        println!("{head}: {:.5} against {:.5}, {:+.4} %", got.value(), own.value(), 100.0 * off);
        assert!(off.abs() <= bound, "{head}: perplexity {} against {}", got.value(), own.value());
    }
}

#[test]
fn logits_and_text_are_the_same_on_every_backend() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = &golden()[0].ids;
    for head in Format::BLOCK {
        let file = with_head(dir.path(), head);
        let mut first: Option<(Vec<u32>, Vec<u32>)> = None;
        for (name, backend) in backends(2) {
            let model = loaded(&file, &backend);
            let options = SessionOptions { capacity: Some(32), batch: 7, logit_rows: 3, profile: false };
            let mut session = Session::new(&model, options).unwrap();
            let mut bits = Vec::new();
            session.prefill_logits(prompt, |_, logits| bits.extend(logits.iter().map(|v| v.to_bits()))).unwrap();
            let mut ids = vec![session.sample(GREEDY).unwrap()];
            (0..8).for_each(|_| ids.push(session.step(GREEDY).unwrap()));
            let (bits_of_first, ids_of_first) = first.get_or_insert_with(|| (bits.clone(), ids.clone()));
            assert!(*bits_of_first == bits && *ids_of_first == ids, "{head}: {name} differs");
        }
    }
}

#[test]
fn files_with_integer_heads_are_read_compared_and_converted_on() {
    let dir = tempfile::tempdir().unwrap();
    for head in Format::BLOCK {
        let file = with_head(dir.path(), head);
        let dense = file.dense(Role::TokenEmbedding).unwrap();
        assert_eq!(dense.weight().unwrap().format(), head);
        let report = verify(&fable(), &file).unwrap();
        assert!(report.ternary_preserved() && report.differences.len() == 1, "{report}");
        assert!(matches!(&report.differences[0], Difference::Dense { tensor, .. } if tensor == "token_embd.weight"));
        // As it is, and widened: the values stay.
        let again = dir.path().join("again.gguf");
        convert(&file, &again, &ConvertOptions::new(Format::TL2), &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(verify(&file, &ModelFile::open(&again).unwrap()).unwrap().identical());
        let options = ConvertOptions { head: Some(Format::F32), ..ConvertOptions::new(Format::I2S) };
        convert(&file, &again, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        let wide = ModelFile::open(&again).unwrap().dense(Role::TokenEmbedding).unwrap();
        assert_eq!(wide.to_f32().unwrap(), codec::dequantize(&dense.weight().unwrap()).unwrap());
    }
    let options = ConvertOptions { head: Some(Format::TQ1_0), ..ConvertOptions::new(Format::I2S) };
    let out = dir.path().join("none.gguf");
    let e = convert(&fable(), &out, &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(&e, Error::Config { key, .. } if key == "head") && !out.exists(), "{e}");
}
