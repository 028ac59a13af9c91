//! What may not follow the order of `docs/numerics.md`, on the embedded model: perplexity near that of the order, the same
//! text up to a near tie, and the same bits from run to run.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::json;
use tersor_backend_cuda::CudaBackend;
use tersor_core::{Format, SampleParams};
use tersor_model::generate::{Options, continue_ids};
use tersor_model::perplexity::perplexity;
use tersor_model::{Batch, BatchOptions, Model, Session, SessionOptions, Tokenizer, embedded};

use crate::large::GREEDY;
use crate::model::WithHead;

const PROMPTS: [&str; 6] =
    ["Once upon a time", "The old king had three daughters, and", "A", "In the forest", "Then she said", "There was"];
const TOKENS: usize = 160;
/// A difference of logits, of the best one's magnitude, that sums in another order can turn round.
const TIE: f32 = 1e-5;

pub(crate) fn run(exact: &Arc<CudaBackend>, fast: &Arc<CudaBackend>) -> bool {
    let file = embedded::fable_26m().unwrap();
    let tokenizer = Tokenizer::of(&file).unwrap();
    let prompts: Vec<Vec<u32>> = PROMPTS.iter().map(|p| tokenizer.encode(p).unwrap()).collect();
    let (mut ok, mut results) = (true, Vec::new());
    for format in [Format::BF16, Format::F16] {
        let source = WithHead { source: &file, format: Some(format) };
        let (there, here) =
            (Model::load(exact.clone(), &source, |_| {}).unwrap(), Model::load(fast.clone(), &source, |_| {}).unwrap());
        let windows: Vec<Vec<u32>> = prompts.iter().map(|ids| drawn(&there, ids)).collect();
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let [p, q, again] = [&there, &here, &here].map(|m| perplexity(m, &windows, |_, _| {}).unwrap());
        let off = q.value() / p.value() - 1.0;
        let (first, kernels) = several(&here, &prompts);
        let same = q == again && first == several(&here, &prompts).0;
        let (mut equal, mut ties) = (0, 0);
        for (prompt, ids) in prompts.iter().zip(&first) {
            match compare(&there, prompt, ids) {
                Same::Equal => equal += 1,
                Same::Tie => ties += 1,
                Same::Different(gap) => println!("DIFFERENT where logits are {gap:e} of the best apart"),
            }
        }
        println!(
            "head {format}: perplexity {} instead of {} ({off:+.2e}); of {} texts {equal} equal, {ties} up to a near tie; again the same bits: {same}; kernels {kernels:?}",
            q.value(),
            p.value(),
            prompts.len(),
        );
        ok &= off.abs() < 1e-3 && same && equal + ties == prompts.len() && kernels.iter().any(|k| k.contains("mma-"));
        results.push(json!({ "head": format.id(), "perplexity_in_order": p.value(), "perplexity": q.value(),
            "texts": prompts.len(), "tokens": TOKENS, "texts_equal": equal, "texts_up_to_a_near_tie": ties,
            "same_bits_again": same, "kernels": kernels }));
    }
    crate::save("cuda-fast", fast, json!(results));
    ok
}

/// Text of the model's own.
fn drawn(model: &Model, prompt: &[u32]) -> Vec<u32> {
    let sampling = SampleParams { temperature: 0.9, top_k: None, seed: 5 };
    let options = Options { tokens: 200, sampling, stop_at_eos: false, ..Options::default() };
    let mut session = Session::new(model, SessionOptions::default()).unwrap();
    let run = continue_ids(&mut session, prompt, &options, |_| ControlFlow::Continue(())).unwrap();
    [prompt, &run.ids].concat()
}

/// Greedy continuations of all prompts together.
fn several(model: &Model, prompts: &[Vec<u32>]) -> (Vec<Vec<u32>>, Vec<&'static str>) {
    let options = BatchOptions { sequences: prompts.len(), capacity: Some(200), rows: 64, profile: false };
    let mut batch = Batch::new(model, options).unwrap();
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut ids: Vec<Vec<u32>> = batch.add(&all, GREEDY).unwrap().iter().map(|d| vec![d.id]).collect();
    for _ in 1..TOKENS {
        batch.step().unwrap().iter().for_each(|d| ids[d.slot].push(d.id));
    }
    (ids, batch.kernels().to_vec())
}

enum Same {
    Equal,
    Tie,
    /// How far apart the logits are, of the best one's magnitude.
    Different(f32),
}

/// Follows `ids` to the first that the model would not have chosen.
fn compare(model: &Model, prompt: &[u32], ids: &[u32]) -> Same {
    let mut session = Session::new(model, SessionOptions::default()).unwrap();
    session.prefill(prompt).unwrap();
    let mut want = session.sample(GREEDY).unwrap();
    for &id in ids {
        if id != want {
            let logits = session.logits().unwrap();
            let best = logits[want as usize];
            let gap = (best - logits[id as usize]) / best.abs();
            return if gap < TIE { Same::Tie } else { Same::Different(gap) };
        }
        want = session.step(GREEDY).unwrap();
    }
    Same::Equal
}
