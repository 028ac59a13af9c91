//! Conversions of a real model: nothing is lost between formats, and the rule gives the codes that training published.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use safetensors::tensor::TensorView;
use tersor_core::{Error as CoreError, Format};
use tersor_model::checkpoint::Dtype;
use tersor_model::convert::TensorReport;
use tersor_model::verify::Difference;
use tersor_model::{
    Checkpoint, ConvertOptions, ConvertReport, Error, LayerPart, Linear, ModelFile, OpenOptions, Role, convert, verify,
};

fn here(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn packed() -> ModelFile {
    ModelFile::open(&here("assets/fable-26m/packed")).unwrap()
}

fn convert_to(model: &ModelFile, out: &Path, format: Format) -> ConvertReport {
    convert(model, out, &ConvertOptions::new(format), &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Embedding and final norm of the packed model around the bf16 master weights of its first layer: a model of one layer.
fn master_layer() -> ModelFile {
    let layer = Checkpoint::open(&here("tests/data/master-layer0.safetensors")).unwrap();
    let around = Checkpoint::open(&here("assets/fable-26m/packed")).unwrap();
    let rest = ["model.embed_tokens.weight", "model.norm.weight"].map(|n| (n, around.tensor(n).unwrap()));
    let views: Vec<(&str, TensorView<'_>)> = layer
        .tensors()
        .chain(rest)
        .map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()))
        .collect();
    one_layer(Bytes::from(safetensors::serialize(views, None).unwrap()), "tests/data/master-layer0.config.json")
}

/// The packed model cut down to its first layer.
fn packed_layer(change: impl Fn(&str, &[u8]) -> Option<Vec<u8>>) -> ModelFile {
    let whole = Checkpoint::open(&here("assets/fable-26m/packed")).unwrap();
    let kept: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = whole
        .tensors()
        .filter(|(name, _)| !name.contains("layers.") || name.contains("layers.0."))
        .map(|(name, t)| (name, t.dtype, t.shape.clone(), change(name, &t.data).unwrap_or_else(|| t.data.to_vec())))
        .collect();
    let views =
        kept.iter().map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    one_layer(Bytes::from(bytes), "assets/fable-26m/packed/config.json")
}

fn one_layer(bytes: Bytes, config: &str) -> ModelFile {
    let config = std::fs::read_to_string(here(config)).unwrap();
    let config = config.replace("\"num_hidden_layers\": 8", "\"num_hidden_layers\": 1");
    ModelFile::from_checkpoint(Checkpoint::from_bytes(bytes).unwrap(), &config, &OpenOptions::default()).unwrap()
}

fn linear_reports(report: &ConvertReport) -> impl Iterator<Item = &TensorReport> {
    report.tensors.iter().filter(|t| t.ternary.is_some())
}

#[test]
fn a_chain_through_all_five_formats_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = packed();
    assert!(source.tokenizer_json().is_some_and(|t| t.contains("<|bos|>")));
    let mut current = source.clone();
    let chain = [Format::I2S, Format::TL1, Format::TL2, Format::TQ1_0, Format::TQ2_0, Format::I2S];
    for (i, format) in chain.into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.gguf"));
        let report = convert_to(&current, &path, format);
        assert_eq!(report.tensors.len(), 2 + 8 * 11);
        assert_eq!(report.linear_elements(), source.config().linear_elements());
        assert!(linear_reports(&report).all(|t| t.ternary.unwrap().rounded_from.is_none()));
        current = ModelFile::open(&path).unwrap();
        let found = verify(&source, &current).unwrap();
        assert!(found.identical(), "{format}: {found}");
        assert_eq!((found.linear, found.dense, found.quantized), (56, 34, 0));
        assert_eq!(current.tokenizer_json(), source.tokenizer_json());
        assert!(current.tokenizer_path().is_none());
    }
    // The same model in the same format is the same file, whatever it came through.
    assert_eq!(std::fs::read(dir.path().join("0.gguf")).unwrap(), std::fs::read(dir.path().join("5.gguf")).unwrap());
}

#[test]
fn the_rule_gives_the_published_codes_from_the_master_weights() {
    let (master, packed) = (master_layer(), packed_layer(|_, _| None));
    for part in LayerPart::all().filter(|p| p.is_linear()) {
        assert!(matches!(master.linear(Role::Layer(0, part)).unwrap(), Linear::Master(_)));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer.gguf");
    let report = convert_to(&master, &path, Format::I2S);
    let found = verify(&packed, &ModelFile::open(&path).unwrap()).unwrap();
    let codes = found.differences.iter().filter(|d| matches!(d, Difference::Codes { .. })).count();
    assert_eq!((codes, found.linear, found.elements), (0, 7, packed.config().linear_elements()));
    // The packed model rounds the mean to bf16, the rule keeps f32: seven scales differ, and nothing else.
    assert!(found.differences.iter().all(|d| matches!(d, Difference::Scale { f16_rounding: false, .. })), "{found}");
    let query = report.tensors.iter().find(|t| t.name == "blk.0.attn_q.weight").unwrap().ternary.unwrap();
    assert_eq!((query.scale, query.rounded_from), (Some(0.07435626), None));
    // What ternarizing costs, against NumPy in float64: name, cosine, SNR in dB, share of zeros.
    let expected = [
        ("attn_q", 0.8245878308392328, 4.226028748773609, 0.3718719482421875),
        ("attn_k", 0.8066012972772991, 4.043046777247071, 0.34210205078125),
        ("attn_v", 0.8414029981990249, 4.950036644644889, 0.25787353515625),
        ("attn_output", 0.7862293232641101, 3.64673238505885, 0.3722801208496094),
        ("ffn_gate", 0.8532978105617429, 4.915940196136285, 0.33289210001627606),
        ("ffn_up", 0.8563007956009698, 4.952221687056141, 0.3356793721516927),
        ("ffn_down", 0.8113375649836532, 4.061869050150392, 0.3593559265136719),
    ];
    for (stem, cosine, snr_db, zeros) in expected {
        let name = format!("blk.0.{stem}.weight");
        let t = report.tensors.iter().find(|t| t.name == name).unwrap();
        let ternary = t.ternary.unwrap();
        let fidelity = ternary.fidelity.unwrap();
        // The scale's own rounding differs by an ulp or so between the two means.
        assert!((fidelity.cosine - cosine).abs() < 1e-9, "{name}: {fidelity:?}");
        assert!((fidelity.snr_db - snr_db).abs() < 1e-6, "{name}: {fidelity:?}");
        assert_eq!(ternary.shares()[1], zeros, "{name}");
        assert_eq!(ternary.minus + ternary.zero + ternary.plus, (t.shape.0 * t.shape.1) as u64);
    }
    // Master weights against their own quantization: quantized for the comparison, equal.
    let own = verify(&master, &ModelFile::open(&path).unwrap()).unwrap();
    assert!(own.identical(), "{own}");
    assert_eq!(own.quantized, 7);
}

#[test]
fn scales_that_f16_cannot_hold_are_told_apart_from_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (exact, rounded) = (dir.path().join("i2_s.gguf"), dir.path().join("tq2_0.gguf"));
    convert_to(&master_layer(), &exact, Format::I2S);
    let report = convert_to(&ModelFile::open(&exact).unwrap(), &rounded, Format::TQ2_0);
    assert!(linear_reports(&report).all(|t| t.ternary.unwrap().rounded_from.is_some()));
    let found = verify(&ModelFile::open(&exact).unwrap(), &ModelFile::open(&rounded).unwrap()).unwrap();
    assert!(!found.identical() && found.ternary_preserved(), "{found}");
    assert_eq!(found.differences.len(), 7);
    assert!(found.to_string().contains("the same but for rounding to f16"), "{found}");
    // Straight from the master weights the same bytes result.
    let direct = dir.path().join("direct.gguf");
    let report = convert_to(&master_layer(), &direct, Format::TQ2_0);
    assert!(linear_reports(&report).all(|t| t.ternary.unwrap().rounded_from.is_some()));
    assert_eq!(std::fs::read(direct).unwrap(), std::fs::read(rounded).unwrap());
}

#[test]
fn verify_finds_a_single_changed_code_scale_and_norm() {
    let original = packed_layer(|_, _| None);
    let changed = packed_layer(|name, data| {
        let mut data = data.to_vec();
        match name {
            // Byte (r = 2, c = 5) of 128 rows a quarter; bits 2-3 are row 128 + 2.
            "model.layers.0.self_attn.q_proj.weight" => {
                let code = data[2 * 512 + 5] >> 2 & 3;
                data[2 * 512 + 5] ^= (code ^ if code == 1 { 2 } else { 1 }) << 2;
            }
            "model.layers.0.self_attn.k_proj.weight_scale" => data[0] ^= 1,
            "model.norm.weight" => data[2 * 7] ^= 1,
            _ => return None,
        }
        Some(data)
    });
    let found = verify(&original, &changed).unwrap();
    let [
        Difference::Codes { tensor, count: 1, at: (130, 5), .. },
        Difference::Scale { count: 1, .. },
        Difference::Dense { count: 1, .. },
    ] = &found.differences[..]
    else {
        panic!("{found}")
    };
    assert_eq!(tensor, "blk.0.attn_q.weight");
    assert!(!found.ternary_preserved());
    let text = found.to_string();
    assert!(text.contains("blk.0.attn_k.weight: 1 scales differ") && text.contains("row 0, column 7"), "{text}");
    assert!(verify(&original, &packed_layer(|_, _| None)).unwrap().identical());
}

#[test]
fn models_of_different_shape_compare_without_failing() {
    let found = verify(&packed(), &packed_layer(|_, _| None)).unwrap();
    let missing =
        found.differences.iter().filter(|d| matches!(d, Difference::Missing { from_first: false, .. })).count();
    assert_eq!(missing, 7 * 11);
    assert!(found.differences.iter().any(|d| matches!(d, Difference::Config { key: "layers", .. })));
    assert_eq!(found.tokenizers, (true, false));
    let other = packed().with_tokenizer("{}");
    assert_eq!(verify(&packed(), &other).unwrap().differences, [Difference::Tokenizer]);
}

#[test]
fn a_layer_of_zeros_is_refused_unless_allowed() {
    // Code 1 is zero: 0b01010101.
    let zeros = |name: &str, data: &[u8]| name.ends_with("up_proj.weight").then(|| vec![0x55; data.len()]);
    let model = packed_layer(zeros);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zeros.gguf");
    let mut options = ConvertOptions::new(Format::TQ1_0);
    let error = convert(&model, &path, &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(&error, Error::AllZero { name } if name == "model.layers.0.mlp.up_proj.weight"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    options.allow_all_zero = true;
    let report = convert(&model, &path, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let up = report.tensors.iter().find(|t| t.name == "blk.0.ffn_up.weight").unwrap();
    assert_eq!(up.ternary.unwrap().shares(), [0.0, 1.0, 0.0]);
    assert!(verify(&model, &ModelFile::open(&path).unwrap()).unwrap().identical());
}

#[test]
fn rows_that_do_not_fit_are_refused_before_anything_is_written() {
    // Rows of 64 fit tl1 and tl2 only.
    let config = r#"{"model_type": "bitnet", "vocab_size": 4, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 8, "rope_theta": 1e4,
        "rms_norm_eps": 1e-5, "hidden_act": "relu2", "tie_word_embeddings": true}"#;
    let values: Vec<u8> = (0..64 * 64).flat_map(|i: i32| ((i % 3 - 1) as f32).to_le_bytes()).collect();
    let parsed = tersor_model::ModelConfig::from_hf_json(config, false).unwrap();
    let views: Vec<(String, TensorView<'_>)> = Role::all(&parsed)
        .map(|role| {
            let (rows, cols) = role.shape(&parsed);
            let dims = if role.is_norm() { vec![cols] } else { vec![rows, cols] };
            (role.hf_name(), TensorView::new(Dtype::F32, dims, &values[..4 * rows * cols]).unwrap())
        })
        .collect();
    let checkpoint = Checkpoint::from_bytes(Bytes::from(safetensors::serialize(views, None).unwrap())).unwrap();
    let model = ModelFile::from_checkpoint(checkpoint, config, &OpenOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.gguf");
    let mut options = ConvertOptions::new(Format::I2S);
    let error = convert(&model, &path, &options, &mut |_| panic!("a tensor was written")).unwrap_err();
    let text = error.to_string();
    let Error::InTensor { source, .. } = error else { panic!("{text}") };
    assert!(matches!(*source, Error::Core(CoreError::Unit { cols: 64, .. })));
    assert!(text.contains("q_proj") && text.contains("tl1, tl2"), "{text}");

    // {-1, 0, +1} as f32 master weights: already ternary, so nothing is lost and the scale is its own.
    options.format = Format::TL2;
    let report = convert(&model, &path, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    for t in linear_reports(&report) {
        let ternary = t.ternary.unwrap();
        assert_eq!((ternary.scale, ternary.fidelity.unwrap().snr_db), (Some(1.0), f64::INFINITY));
    }
    assert!(verify(&model, &ModelFile::open(&path).unwrap()).unwrap().identical());
    options.format = Format::F16;
    let error = convert(&model, &path, &options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("files hold i2_s"), "{error}");
}

#[test]
fn a_stopped_conversion_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stopped.gguf");
    let mut seen = 0;
    let options = ConvertOptions { name: Some("renamed"), ..ConvertOptions::new(Format::I2S) };
    let stop = convert(&packed(), &path, &options, &mut |p| {
        seen = p.done;
        if p.done == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stop, Err(Error::Core(CoreError::Cancelled))));
    assert_eq!((seen, std::fs::read_dir(dir.path()).unwrap().count()), (5, 0));
    convert(&packed(), &path, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(ModelFile::open(&path).unwrap().config().name.as_deref(), Some("renamed"));
}

#[test]
fn several_tensors_at_once_give_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    for (name, model) in [("packed", packed()), ("master", master_layer())] {
        let files = [1, 3].map(|streams| {
            let path = dir.path().join(format!("{name}-{streams}.gguf"));
            let options = ConvertOptions { streams, ..ConvertOptions::new(Format::TL2) };
            let mut order = Vec::new();
            let report = convert(&model, &path, &options, &mut |p| {
                order.push(p.done);
                ControlFlow::Continue(())
            });
            assert_eq!(order, (1..=report.unwrap().tensors.len()).collect::<Vec<_>>());
            std::fs::read(path).unwrap()
        });
        assert_eq!(files[0], files[1], "{name}");
    }
    // And one that cannot be converted stops all of them.
    let zeros = packed_layer(|name, data| name.contains("up_proj.weight").then(|| vec![0x55; data.len()]));
    let options = ConvertOptions { streams: 3, ..ConvertOptions::new(Format::I2S) };
    let path = dir.path().join("zeros.gguf");
    let stopped = convert(&zeros, &path, &options, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(stopped, Err(Error::AllZero { .. })), "{stopped:?}");
    assert!(!path.exists());
}

#[test]
fn files_of_bitnet_cpp_convert_and_keep_their_vocabulary() {
    let source = ModelFile::open(&here("tests/data/i2_s.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for format in Format::TERNARY {
        let path = dir.path().join(format!("{format}.gguf"));
        convert_to(&source, &path, format);
        let converted = ModelFile::open(&path).unwrap();
        let found = verify(&source, &converted).unwrap();
        assert!(found.ternary_preserved(), "{format}: {found}");
        assert!(found.identical() || format.id().starts_with("tq"), "{format}: {found}");
        let tokens = |m: &ModelFile| m.gguf().unwrap().metadata().get("tokenizer.ggml.tokens").cloned();
        assert_eq!(tokens(&converted), tokens(&source));
    }
}
