//! The embedded model against the golden outputs of an independent reference, compared as tests/data/README.md explains.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::ops::ControlFlow;

use support::{GREEDY, NEAR_TIE, backends, fable, golden, load};
use tersor_model::generate::{Options, continue_ids, prompt_logits};
use tersor_model::{Session, SessionOptions, Tokenizer};

#[test]
fn each_block_fed_with_the_reference_s_input_gives_the_reference_s_output() {
    for (name, backend) in backends(2) {
        let model = load(&backend);
        let width = model.config().hidden_size;
        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        let (mut rows, mut beyond, mut worst_within) = (0, Vec::new(), 0f32);
        for (i, g) in golden().iter().enumerate() {
            let streams: Vec<&[f32]> = g.hidden.chunks(g.ids.len() * width).collect();
            for (layer, pair) in streams.windows(2).enumerate() {
                let got = session.forward_from_hidden(layer, pair[0]).unwrap();
                for (row, (got, want)) in got.chunks(width).zip(pair[1].chunks(width)).enumerate() {
                    rows += 1;
                    match relative(got, want) {
                        e if e <= 1e-5 => worst_within = worst_within.max(e),
                        e => beyond.push(format!("prompt {i} layer {layer} row {row}: {e:e}")),
                    }
                }
            }
        }
        println!("{name}: {rows} rows, the largest difference within tolerance {worst_within:e}, beyond: {beyond:?}");
        assert_eq!(rows, 280);
        assert!(beyond.len() * 100 <= rows, "{name}: more than 1 % of the rows differ: {beyond:?}");
    }
}

/// The largest difference in a row, relative to the row's largest value.
fn relative(got: &[f32], want: &[f32]) -> f32 {
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let difference = got.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    difference / largest
}

#[test]
fn the_likeliest_token_after_each_position_is_the_reference_s() {
    let model = load(&backends(2)[0].1);
    for (i, g) in golden().iter().enumerate() {
        let got = prompt_logits(&model, &g.ids).unwrap();
        assert_eq!((got.positions, got.values.len()), (g.ids.len(), g.logits.len()));
        let rows = got.values.chunks(got.vocab).zip(g.logits.chunks(got.vocab));
        for (position, (got, want)) in rows.enumerate() {
            let (best, gap) = best_and_gap(want);
            println!("prompt {i} position {position}: logits differ by {:e}", relative(got, want));
            assert!(best_and_gap(got).0 == best || gap < NEAR_TIE, "prompt {i} position {position}, gap {gap}");
        }
    }
}

fn best_and_gap(logits: &[f32]) -> (usize, f64) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    (order[0], f64::from(logits[order[0]]) - f64::from(logits[order[1]]))
}

#[test]
fn greedy_ids_are_the_reference_s_up_to_the_first_near_tie() {
    let model = load(&backends(2)[0].1);
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    for (i, g) in golden().iter().enumerate() {
        session.reset();
        let options = Options { tokens: g.greedy.len(), sampling: GREEDY, ..Options::default() };
        let run = continue_ids(&mut session, &g.ids, &options, |_| ControlFlow::Continue(())).unwrap();
        let near_tie = g.gaps.iter().position(|gap| *gap < NEAR_TIE).unwrap_or(g.gaps.len());
        let equal = run.ids.iter().zip(&g.greedy).take_while(|(a, b)| a == b).count();
        println!("prompt {i}: {equal} of {} greedy ids equal; the first near tie is at {near_tie}", g.greedy.len());
        assert!(equal >= near_tie, "prompt {i}: parted at step {equal}, but the first near tie is at step {near_tie}");
    }
}

#[test]
fn golden_texts_stream_as_they_decode() {
    let tokenizer = Tokenizer::of(&fable()).unwrap();
    for g in golden() {
        assert_eq!(tokenizer.encode(&g.text).unwrap(), g.ids);
        assert_eq!(tokenizer.decode(&g.ids).unwrap(), g.text);
        assert_eq!(tokenizer.decode(&g.greedy).unwrap(), g.greedy_text);
        let mut stream = tokenizer.stream();
        let mut text: String = g.greedy.iter().map(|id| stream.push(*id).unwrap()).collect();
        text.push_str(&stream.finish().unwrap());
        assert_eq!(text, g.greedy_text);
    }
}
