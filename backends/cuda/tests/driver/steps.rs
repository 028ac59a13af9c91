//! What decoding asks of the driver, step by step: the ids that were drawn come down, and nothing else crosses.

use std::ops::ControlFlow;
use std::sync::Arc;

use tersor_core::{Error, QuantBackend, Result, SampleParams};
use tersor_model::generate::{Options, continue_ids};
use tersor_model::{Batch, BatchOptions, Model, Session, SessionOptions, embedded};

use crate::{log, logged};

const GREEDY: SampleParams = SampleParams { temperature: 0.0, top_k: None, seed: 0 };
const DRAWN: SampleParams = SampleParams { temperature: 0.8, top_k: Some(40), seed: 7 };
/// Steps of each kind, and those of them before the sequences of launches have been seen twice.
const STEPS: usize = 12;
const FIRST: usize = 4;
const SEQUENCES: usize = 3;

/// A prompt and steps of the embedded model, a line in the log before each; of several sequences likewise.
pub(crate) fn work(backend: &Arc<dyn QuantBackend>) -> Result<()> {
    let device = |e: tersor_model::Error| match e {
        tersor_model::Error::Core(e) => e,
        other => Error::Device { backend: "test".into(), message: other.to_string() },
    };
    decode(backend).map_err(device)
}

fn decode(backend: &Arc<dyn QuantBackend>) -> tersor_model::Result<()> {
    let file = embedded::fable_26m()?;
    let model = Model::load(backend.clone(), &file, |_| {})?;
    // More rows than one block of the kernels for few has.
    let ids: Vec<u32> = (0..70).collect();
    let mut session = Session::new(&model, SessionOptions { capacity: Some(110), ..SessionOptions::default() })?;
    session.prefill(&ids)?;
    session.sample(GREEDY)?;
    for (name, params) in [("greedy", GREEDY), ("drawn", DRAWN)] {
        for i in 0..STEPS {
            log(&format!("step {name} {i}"));
            session.step(params)?;
        }
        log("end");
    }
    // The same as users have it: from one token to the next.
    session.reset();
    let (mut step, tokens) = (0, STEPS + 2);
    continue_ids(&mut session, &ids, &Options { tokens, stop_at_eos: false, ..Options::default() }, |_| {
        log(&if step < STEPS { format!("step ahead {step}") } else { "end".to_owned() });
        step += 1;
        ControlFlow::Continue(())
    })?;
    let options = BatchOptions { sequences: SEQUENCES, capacity: Some(90), ..BatchOptions::default() };
    let mut batch = Batch::new(&model, options)?;
    batch.add(&[&ids[..3], &ids[..9], &ids], DRAWN)?;
    for i in 0..STEPS {
        log(&format!("step batch {i}"));
        batch.step()?;
    }
    log("end");
    Ok(())
}

/// The calls of each step of a kind.
fn steps<'a>(calls: &'a [String], kind: &str) -> Vec<Vec<&'a str>> {
    let of = |i: usize| {
        let begins = format!("step {kind} {i}");
        let step = calls.iter().skip_while(|line| **line != begins).skip(1);
        step.take_while(|line| !line.starts_with("step ") && *line != "end").map(String::as_str).collect()
    };
    (0..STEPS).map(of).collect()
}

/// The kernel that draws brings the id to the host.
const PUBLISHED: &str = "published 4 by sample";

#[test]
fn a_step_brings_down_the_ids_that_were_drawn_and_nothing_else_crosses() {
    let calls = logged("steps", &[]);
    for (kind, ids) in [("greedy", 1), ("drawn", 1), ("ahead", 1), ("batch", SEQUENCES)] {
        for (i, step) in steps(&calls, kind).into_iter().enumerate() {
            let copy = |c: &&str| c.starts_with("cuMemcpy") || c.starts_with("published ");
            let copies: Vec<&str> = step.iter().copied().filter(copy).collect();
            let down = if kind == "batch" { format!("cuMemcpyDtoHAsync_v2 {}", 4 * ids) } else { PUBLISHED.to_owned() };
            // The first step of a batch takes the tables of positions with it, some steps ahead.
            let tables = kind == "batch" && i == 0;
            let outside = |call: &&&str| !(call.starts_with("cuMemcpyDtoD") || tables && call.contains("HtoD"));
            let crossed: Vec<&str> = copies.iter().filter(outside).copied().collect();
            // Between the first two tokens, two steps are begun.
            let begun = 1 + usize::from(kind == "ahead" && i == 0);
            assert_eq!(crossed, vec![down.as_str(); begun], "{kind} {i}: {step:?}");
            // Memory that drawing alone needs is made when it is first needed.
            if i == 0 {
                continue;
            }
            let makes = ["cuMemAlloc", "cuMemHostAlloc", "cuMemFree", "cuStreamCreate", "cuModule"];
            assert!(!step.iter().any(|call| makes.iter().any(|m| call.starts_with(m))), "{kind} {i}: {step:?}");
            // And waits once.
            let waits = |name: &str| step.iter().filter(|call| **call == name).count();
            let waits = (waits("cuStreamSynchronize"), waits("cuEventSynchronize"));
            assert_eq!(waits, if kind == "batch" { (1, 0) } else { (0, 1) }, "{kind} {i}: {step:?}");
        }
    }
}

#[test]
fn steps_are_replayed_as_graphs() {
    // A setting that changes nothing, so that the log is another.
    let calls = logged("steps", &[("FAKE_MEMORY", "2000000000")]);
    let layers = embedded::fable_26m().unwrap().config().layers;
    // A row alone has its norms in the products; so few rows together have not.
    for (kind, a_layer) in [("greedy", 5), ("drawn", 5), ("batch", 13)] {
        for (i, step) in steps(&calls, kind).into_iter().enumerate().skip(FIRST) {
            let lone = step.iter().filter(|call| call.starts_with("cuLaunchKernelEx")).count();
            let graphs = step.iter().filter_map(|call| call.strip_prefix("cuGraphLaunch ")?.parse::<usize>().ok());
            let graphs: Vec<usize> = graphs.collect();
            let kernels = lone + graphs.iter().sum::<usize>();
            let told = format!("{kind} {i}: {lone} kernels alone, graphs of {graphs:?}: {step:?}");
            // A few more than those of the layers: embedding, norm, head, drawing.
            assert!((layers..=a_layer * layers + 10).contains(&kernels), "{told}");
            assert!(lone < 8 && (1..=4).contains(&graphs.len()), "{told}");
            assert!(!step.iter().any(|call| call.contains("Capture") || call.contains("Instantiate")), "{told}");
        }
    }
}

#[test]
fn the_next_step_is_on_its_way_before_a_token_is_waited_for() {
    let calls = logged("steps", &[("FAKE_MEMORY", "2000000001")]);
    let layers = embedded::fable_26m().unwrap().config().layers;
    let place = |step: &[&str], what: &str| step.iter().position(|call| call.starts_with(what)).unwrap();
    for (i, step) in steps(&calls, "ahead").into_iter().enumerate() {
        // The last call of each is the wait, whether the launches are alone or a graph already.
        assert!(place(&step, "published") < place(&step, "cuEventSynchronize"), "{i}: {step:?}");
        if i < FIRST {
            continue;
        }
        let launches = ["cuGraphLaunch", "cuLaunchKernelEx"];
        let launched: Vec<&&str> = step.iter().filter(|call| launches.iter().any(|l| call.starts_with(l))).collect();
        // Five kernels a layer; embedding, norm, head, drawing.
        assert_eq!(launched, [&&*format!("cuGraphLaunch {}", 5 * layers + 4)], "{i}: {step:?}");
        // What names a position changes, and what names the row of the logits or a slot of the host's; the numbers of faults do
        // not, or it were all.
        let set = |call: &&str| call.strip_prefix("cuGraphExecKernelNodeSetParams_v2 ").map(str::to_owned);
        let changed: Vec<String> = step.iter().filter_map(set).collect();
        let (of_layers, others): (Vec<_>, Vec<_>) = changed
            .iter()
            .partition(|k| ["norm_qkv", "attention_cluster", "rope_kv_write", "attention"].contains(&k.as_str()));
        assert!(of_layers.len() <= 2 * layers, "{i}: {changed:?}");
        assert!(others.len() <= 3 && others.iter().any(|k| *k == "sample"), "{i}: {changed:?}");
    }
}
