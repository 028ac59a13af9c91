//! Several sequences at once: each gets the tokens that it gets alone, whoever shares the batch with it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use support::{GREEDY, Without, backends, fable, golden, load};
use tersor_core::{OpSpec, SampleParams};
use tersor_model::generate::{Options, Stop, continue_ids};
use tersor_model::{Batch, BatchOptions, Error, Model, Session, SessionOptions, Text, continue_many};

const SAMPLED: SampleParams = SampleParams { temperature: 0.9, top_k: Some(40), seed: 11 };

/// The golden prompts, and parts of them: lengths from one to that of the longest, and equal prompts too.
fn prompts() -> Vec<Vec<u32>> {
    let golden = golden();
    let whole = golden.iter().map(|g| g.ids.clone());
    let parts = golden.iter().enumerate().map(|(i, g)| g.ids[..1 + (i % g.ids.len())].to_vec());
    whole.chain(parts).collect()
}

fn alone(model: &Model, prompt: &[u32], options: &Options) -> Text {
    let mut session = Session::new(model, SessionOptions { capacity: Some(120), ..Default::default() }).unwrap();
    let run = continue_ids(&mut session, prompt, options, |_| ControlFlow::Continue(())).unwrap();
    Text { ids: run.ids, stop: run.stop }
}

fn batch(model: &Model, sequences: usize, capacity: usize, rows: usize) -> Batch {
    Batch::new(model, BatchOptions { sequences, capacity: Some(capacity), rows, profile: false }).unwrap()
}

fn together(batch: &mut Batch, prompts: &[Vec<u32>], options: &Options) -> Vec<Text> {
    continue_many(batch, prompts, options, |_, _| ControlFlow::Continue(())).unwrap().texts
}

#[test]
fn every_sequence_gets_the_tokens_that_it_gets_alone() {
    let prompts = prompts();
    for (name, backend) in backends(2) {
        let model = load(&backend);
        for sampling in [GREEDY, SAMPLED] {
            let options = Options { tokens: 20, sampling, ..Options::default() };
            let want: Vec<Text> = prompts.iter().map(|p| alone(&model, p, &options)).collect();
            // All at once; and in fewer slots than prompts, where each that ends makes room for the next.
            for (slots, rows) in [(prompts.len(), 128), (3, 7)] {
                let got = together(&mut batch(&model, slots, 120, rows), &prompts, &options);
                assert_eq!(got, want, "{name}, {slots} slots, {sampling:?}");
            }
        }
    }
}

#[test]
fn golden_texts_come_out_of_a_batch_too() {
    let model = load(&backends(1)[0].1);
    let golden = golden();
    let prompts: Vec<_> = golden.iter().map(|g| g.ids.clone()).collect();
    let options = Options { tokens: 16, stop_at_eos: false, ..Options::default() };
    let got = together(&mut batch(&model, 4, 120, 128), &prompts, &options);
    for (got, want) in got.iter().zip(&golden) {
        // Up to the first near tie, behind which another implementation may go on differently.
        let sure = want.gaps.iter().position(|gap| *gap < support::NEAR_TIE).unwrap_or(16).min(16);
        assert_eq!(got.ids[..sure], want.greedy[..sure], "{}", want.text);
    }
}

#[test]
fn sequences_come_and_go_and_are_drawn_each_in_its_way() {
    let model = load(&backends(1)[0].1);
    let prompts = prompts();
    // Longer than the tables reach ahead, in one slot; the others change meanwhile.
    let long = alone(&model, &prompts[0], &Options { tokens: 90, stop_at_eos: false, ..Options::default() });
    let sampled = Options { tokens: 30, sampling: SAMPLED, stop_at_eos: false, ..Options::default() };
    let mut batch = batch(&model, 3, 120, 16);
    let first = batch.add(&[&prompts[0]], GREEDY).unwrap()[0];
    let (mut ids, mut others) = (vec![first.id], Vec::new());
    for step in 1..90 {
        if step % 31 == 10 {
            others = batch.add(&[&prompts[2], &prompts[1]], SAMPLED).unwrap().iter().map(|d| vec![d.id]).collect();
        }
        for drawn in batch.step().unwrap() {
            match drawn.slot {
                0 => ids.push(drawn.id),
                slot => others[slot - 1].push(drawn.id),
            }
        }
        if others.first().is_some_and(|o| o.len() == 30) {
            for (prompt, got) in [&prompts[2], &prompts[1]].into_iter().zip(&others) {
                assert_eq!(*got, alone(&model, prompt, &sampled).ids, "from step {step} on");
            }
            batch.remove(1);
            batch.remove(2);
            others.clear();
        }
    }
    assert_eq!(ids, long.ids);
}

#[test]
fn texts_end_each_for_its_own_reason() {
    let model = load(&backends(1)[0].1);
    let prompts = [golden()[0].ids.clone(), golden()[1].ids[..2].to_vec()];
    let options = Options { tokens: 12, stop_at_eos: false, ..Options::default() };
    let capacity = prompts[0].len() + 4;
    let all = together(&mut batch(&model, 2, 120, 128), &prompts, &options);
    let full = together(&mut batch(&model, 2, capacity, 128), &prompts, &options);
    assert_eq!((full[0].stop, &full[0].ids[..]), (Stop::Context, &all[0].ids[..5]));
    assert_eq!(full[1], all[1]);
    assert_eq!(all[1].stop, Stop::Tokens);
    let many = continue_many(&mut batch(&model, 2, 120, 128), &prompts, &options, |prompt, _| {
        if prompt == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let many = many.unwrap();
    assert_eq!((many.texts[1].stop, many.texts[1].ids.len(), &many.texts[0]), (Stop::Caller, 1, &all[0]));
    assert_eq!((many.prefill.tokens, many.decode.tokens, many.steps), (prompts[0].len() + 2, 11, 11));
}

#[test]
fn what_does_not_fit_is_an_error_before_anything_is_computed() {
    let model = load(&backends(1)[0].1);
    let prompt = &golden()[0].ids[..];
    let mut batch = batch(&model, 2, 12, 128);
    assert!(matches!(batch.step(), Err(Error::Order { call: "step", .. })));
    assert!(matches!(batch.add(&[prompt, prompt, prompt], GREEDY), Err(Error::Argument { what: "prompts", .. })));
    assert!(matches!(batch.add(&[&[]], GREEDY), Err(Error::Argument { .. })));
    assert!(batch.add(&[&[u32::MAX]], GREEDY).unwrap_err().to_string().contains("token ids"));
    assert!(matches!(batch.add(&[&[1; 13]], GREEDY), Err(Error::ContextFull { capacity: 12, wanted: 13, .. })));
    assert_eq!((batch.free(), batch.room(0)), (2, None));
    batch.add(&[prompt, &[1; 12]], GREEDY).unwrap();
    assert_eq!((batch.free(), batch.room(0), batch.room(1)), (0, Some(2), Some(0)));
    assert!(matches!(batch.step(), Err(Error::ContextFull { used: 12, wanted: 1, .. })));
    batch.remove(1);
    let two: Vec<usize> = (0..2).map(|_| batch.step().unwrap().len()).collect();
    assert_eq!(two, [1, 1]);
    assert!(matches!(batch.step(), Err(Error::ContextFull { .. })));
    let long = continue_many(&mut batch, &[vec![1]], &Options::default(), |_, _| ControlFlow::Continue(()));
    assert!(matches!(long, Err(Error::Argument { what: "free slots", .. })));
    for options in [
        BatchOptions { sequences: 0, ..Default::default() },
        BatchOptions { sequences: usize::MAX / 2, ..Default::default() },
        BatchOptions { rows: 0, ..Default::default() },
        BatchOptions { capacity: Some(513), ..Default::default() },
    ] {
        assert!(matches!(Batch::new(&model, options), Err(Error::Argument { .. })), "{options:?}");
    }
}

#[test]
fn a_backend_without_spans_is_refused_with_its_reason() {
    let backend = backends(1)[0].1.clone();
    let spans = |spec: &OpSpec| matches!(spec, OpSpec::Attention { span: Some(_), .. });
    let model = Model::load(Arc::new(Without(spans, backend)), &fable(), |_| {}).unwrap();
    let e = Batch::new(&model, BatchOptions::default()).unwrap_err().to_string();
    assert!(e.contains("Attention") && e.contains("left out for this test"), "{e}");
    // One sequence needs none.
    Session::new(&model, SessionOptions::default()).unwrap();
}
