//! One result, whatever computes it: logits and text are equal bit for bit on every backend and tier of this machine, in
//! every ternary format, with any number of threads, and however a prompt is cut into chunks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::ops::ControlFlow;

use support::{GREEDY, backends, fable, golden, load, load_as};
use tersor_core::{Format, SampleParams};
use tersor_model::generate::{Options, continue_ids, generate, prompt_logits};
use tersor_model::{Model, Session, SessionOptions, Tokenizer};

/// Logits at every position of every golden prompt as bits, and a greedy and a sampled continuation of the first.
#[derive(PartialEq)]
struct Outcome {
    logits: Vec<u32>,
    ids: Vec<u32>,
}

fn outcome(model: &Model, tokens: usize) -> Outcome {
    let golden = golden();
    let logits = golden.iter().flat_map(|g| prompt_logits(model, &g.ids).unwrap().values).map(f32::to_bits).collect();
    let mut session = Session::new(model, SessionOptions::default()).unwrap();
    let mut ids = Vec::new();
    for sampling in [GREEDY, SampleParams { temperature: 0.9, top_k: Some(40), seed: 11 }] {
        session.reset();
        let options = Options { tokens, sampling, stop_at_eos: false, ..Options::default() };
        ids.extend(continue_ids(&mut session, &golden[0].ids, &options, |_| ControlFlow::Continue(())).unwrap().ids);
    }
    Outcome { logits, ids }
}

fn assert_same(got: &Outcome, want: &Outcome, what: &str) {
    let first = got.logits.iter().zip(&want.logits).position(|(a, b)| a != b);
    assert_eq!(first, None, "{what}: the first logit that differs");
    assert!(got.logits.len() == want.logits.len() && got.ids == want.ids, "{what}: the texts differ");
}

#[test]
fn every_backend_and_format_computes_the_same_bits() {
    let backends = backends(2);
    let want = outcome(&load(&backends[0].1), 64);
    for (name, backend) in &backends {
        for format in Format::TERNARY {
            let got = outcome(&load_as(backend, format), 64);
            assert_same(&got, &want, &format!("{name}, {format}"));
        }
    }
}

#[test]
fn every_number_of_threads_computes_the_same_bits() {
    let want = outcome(&load(&backends(1)[0].1), 24);
    for threads in [2, 3, 7] {
        for (name, backend) in backends(threads) {
            assert_same(&outcome(&load(&backend), 24), &want, &format!("{name}, {threads} threads"));
        }
    }
}

#[test]
fn a_prompt_gives_the_same_bits_however_it_is_cut() {
    let model = load(&backends(2)[0].1);
    let ids = &golden()[2].ids;
    let want = prompt_logits(&model, ids).unwrap().values;
    let vocab = model.config().vocab_size;
    for (batch, logit_rows) in [(1, 1), (3, 2), (5, 5), (14, 4), (128, 128)] {
        let options = SessionOptions { batch, logit_rows, capacity: Some(ids.len() + 2), profile: true };
        let mut session = Session::new(&model, options).unwrap();
        let mut got = Vec::new();
        let each = |position: usize, row: &[f32]| {
            assert_eq!(position * vocab, got.len());
            got.extend_from_slice(row);
        };
        session.prefill_logits(ids, each).unwrap();
        assert!(got == want, "all logits with batch {batch}, {logit_rows} rows of logits");
        let last = &want[want.len() - vocab..];
        assert!(session.logits().unwrap() == last, "the last logits stay readable");
        session.reset();
        session.prefill(&ids[..4]).unwrap();
        session.prefill(&ids[4..]).unwrap();
        assert!(session.logits().unwrap() == last, "in two calls with batch {batch}");
    }
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let tokenizer = Tokenizer::of(&fable()).unwrap();
    let model = load(&backends(2)[0].1);
    let text = |seed| {
        let sampling = SampleParams { temperature: 0.8, top_k: Some(50), seed };
        let options = Options { tokens: 40, sampling, ..Options::default() };
        let mut told = String::new();
        let g = generate(&model, &tokenizer, "The old king", &options, |token| {
            told.push_str(token.text);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(told, g.text, "the pieces that the callback saw");
        g.text
    };
    let (a, b) = (text(1), text(1));
    assert_eq!(a, b);
    assert_ne!(a, text(2));
}
