//! Several sequences at once on the shape of BitNet b1.58 2B-4T: tokens equal those of each sequence alone, and figures.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tersor_backend_cuda::CudaBackend;
use tersor_core::{
    Activations, Buffer, Bytes, Epilogue, Format, In, Op, Output, PackedWeight, QuantBackend, Shape, Span, Stream,
    Weight,
};
use tersor_model::{Batch, BatchOptions, Model, Session, SessionOptions, embedded};

use crate::bench::{i2s, noise};
use crate::large::{GREEDY, Random};
use crate::spread;

const PROMPT: usize = 128;
const TOKENS: usize = 128;

pub(crate) fn run(gpu: &Arc<CudaBackend>) -> bool {
    let source = Random::new(embedded::fable_26m().unwrap().config().clone());
    let model = Model::load(gpu.clone(), &source, |_| {}).unwrap();
    let mut ok = equals_alone(&model);
    let mut results = Vec::new();
    for sequences in [1, 8, 32, 64] {
        let (figures, transfers) = sequences_at_once(gpu, &model, sequences);
        ok &= transfers;
        results.push(figures);
    }
    let parts: Vec<Value> = [8, 32, 64].into_iter().map(|m| parts(gpu, m)).collect();
    crate::save("cuda-batch", gpu, json!({ "2b-4t": results, "operations": parts }));
    ok
}

/// As many sequences at once, and nothing else: for profilers.
pub(crate) fn alone(gpu: &Arc<CudaBackend>, sequences: usize) -> bool {
    let source = Random::new(embedded::fable_26m().unwrap().config().clone());
    let model = Model::load(gpu.clone(), &source, |_| {}).unwrap();
    sequences_at_once(gpu, &model, sequences).1
}

/// The operations of a step of as many sequences.
pub(crate) fn parts_alone(gpu: &Arc<CudaBackend>, sequences: usize) -> bool {
    parts(gpu, sequences);
    true
}

/// Prompts of different lengths and contents.
fn prompts(sequences: usize, longest: usize) -> Vec<Vec<u32>> {
    let length = |s: usize| if longest == PROMPT { PROMPT } else { 1 + s * 37 % longest };
    (0..sequences).map(|s| (0..length(s) as u32).map(|i| (i * 97 + 13 * s as u32) % 128_000).collect()).collect()
}

fn equals_alone(model: &Model) -> bool {
    let mut ok = true;
    for sequences in [2, 5, 9, 20, 40] {
        let prompts = prompts(sequences, 150);
        let options = BatchOptions { sequences, capacity: Some(170), rows: 256, profile: false };
        let mut batch = Batch::new(model, options).unwrap();
        let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let mut ids: Vec<Vec<u32>> = batch.add(&all, GREEDY).unwrap().iter().map(|d| vec![d.id]).collect();
        for _ in 0..12 {
            batch.step().unwrap().iter().for_each(|d| ids[d.slot].push(d.id));
        }
        let options = SessionOptions { capacity: Some(170), ..SessionOptions::default() };
        let mut session = Session::new(model, options).unwrap();
        let same = prompts.iter().zip(&ids).filter(|(prompt, ids)| {
            session.reset();
            session.prefill(prompt).unwrap();
            let mut alone = vec![session.sample(GREEDY).unwrap()];
            (0..12).for_each(|_| alone.push(session.step(GREEDY).unwrap()));
            alone == **ids
        });
        let same = same.count();
        println!("{sequences} sequences: {same} have the tokens that they have alone");
        ok &= same == sequences;
    }
    ok
}

fn sequences_at_once(gpu: &CudaBackend, model: &Model, sequences: usize) -> (Value, bool) {
    let capacity = Some(PROMPT + TOKENS + 1);
    let mut batch = Batch::new(model, BatchOptions { sequences, capacity, rows: 512, profile: false }).unwrap();
    let prompts = prompts(sequences, PROMPT);
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let (mut prefill, mut decode, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    let (mut before, mut after) = (gpu.counters(), gpu.counters());
    for _ in 0..4 {
        (0..sequences).for_each(|slot| batch.remove(slot));
        let started = Instant::now();
        batch.add(&all, GREEDY).unwrap();
        prefill.push((PROMPT * sequences) as f64 / started.elapsed().as_secs_f64());
        before = gpu.counters();
        let started = Instant::now();
        for _ in 0..TOKENS {
            let one = Instant::now();
            batch.step().unwrap();
            steps.push(one.elapsed().as_secs_f64());
        }
        decode.push((TOKENS * sequences) as f64 / started.elapsed().as_secs_f64());
        after = gpu.counters();
    }
    let (p, ..) = spread(&mut prefill[1..]);
    let (d, least, most) = spread(&mut decode[1..]);
    let (step, ..) = spread(&mut steps[TOKENS..]);
    let (ups, downs) = (after.uploads - before.uploads, after.downloads - before.downloads);
    let launches = (after.launches - before.launches) as f64 / TOKENS as f64;
    println!(
        "{sequences} sequences, prompts of {PROMPT}: prefill {p:.0} tok/s; {TOKENS} steps: {d:.0} tok/s in sum ({least:.0}..{most:.0}), {:.1} each; a step {:.0} us (median), {launches} launches; {ups} uploads and {downs} downloads in {TOKENS} steps; kernels {:?}",
        d / sequences as f64,
        step * 1e6,
        batch.kernels()
    );
    // Tables of 64 steps: three uploads, and one of the ids to begin with.
    let tables = TOKENS.div_ceil(64) as u64;
    let figures = json!({ "sequences": sequences, "prompt": PROMPT, "tokens": TOKENS, "prefill_tokens_per_second": p,
        "decode_tokens_per_second": d, "decode_least": least, "decode_most": most, "step_median_s": step, "head": "bf16",
        "cache": "f32", "launches_per_step": launches, "uploads": ups, "downloads": downs, "kernels": batch.kernels() });
    (figures, ups == 4 * tables && downs == TOKENS as u64)
}

/// What the operations of a step cost, each in a row of equal ones over different weights and caches.
fn parts(gpu: &CudaBackend, m: usize) -> Value {
    let mut stream = gpu.open_stream().unwrap();
    let s = &mut *stream;
    let mut floats = |n: usize| {
        let mut b = Buffer::<f32>::alloc(gpu, n).unwrap();
        b.write(s, &noise(n)).unwrap();
        b
    };
    let (x, mut y, wide) = (floats(m * 6912), floats(m * 13824), floats(6912));
    let (span, kv, layers) = (256, 640, 8);
    let caches: Vec<_> = (0..layers).map(|_| [floats(m * span * kv), floats(m * span * kv)]).collect();
    let mut q = Buffer::<i8>::alloc(gpu, m * 6912).unwrap();
    let codes: Vec<i8> = noise(m * 6912).iter().map(|v| (v * 127.0) as i8).collect();
    q.write(s, &codes).unwrap();
    let mut scales = Buffer::<f32>::alloc(gpu, m).unwrap();
    scales.write(s, &vec![30.0; m]).unwrap();
    let mut tables = [0, 191].map(|at| {
        let mut b = Buffer::<u32>::alloc(gpu, m).unwrap();
        b.write(s, &(0..m).map(|r| (r * span + at) as u32).collect::<Vec<_>>()).unwrap();
        b
    });
    let [first, last] = &mut tables;
    let mut results = Vec::new();
    let mut measure = |name: String, count: usize, s: &mut dyn Stream, work: &mut dyn FnMut(&mut dyn Stream, usize)| {
        let mut whole = Vec::new();
        for _ in 0..8 {
            let started = Instant::now();
            (0..count).for_each(|i| work(s, i));
            s.synchronize().unwrap();
            whole.push(started.elapsed().as_secs_f64() / count as f64);
        }
        let (median, least, _) = spread(&mut whole[2..]);
        println!("m={m} {name}: {:.2} us ({:.2}..)", median * 1e6, least * 1e6);
        results.push(json!({ "m": m, "operation": name, "median_s": median, "least_s": least }));
    };
    let run = |s: &mut dyn Stream, op: Op<'_>| {
        s.submit(op.check().unwrap()).unwrap();
    };
    for (n, k, e) in [(2560, 2560, Epilogue::Add), (2560, 6912, Epilogue::Add), (6912, 2560, Epilogue::Add)] {
        let weight = i2s(Shape::new(n, k).unwrap(), 3);
        let copies: Vec<PackedWeight> = (0..(150 << 20) / (n * k / 4)).map(|_| gpu.pack(&weight).unwrap()).collect();
        measure(format!("product {n}x{k}, added"), 60, s, &mut |s, i| {
            let x = Activations::Int8 { q: q.input_range(0..m * k), scales: scales.input() };
            let y = Output::F32(y.output_range(0..m * n));
            run(s, Op::MatMul { w: &copies[i % copies.len()], x, y, epilogue: e });
        });
    }
    for cols in [2560, 6912] {
        measure(format!("norm of {cols}"), 100, s, &mut |s, _| {
            let (q, scales) = (q.output_range(0..m * cols), scales.output());
            let (x, w) = (x.input_range(0..m * cols), wide.input_range(0..cols));
            run(s, Op::RmsNormQuantize { x, w, eps: 1e-5, q, scales });
        });
    }
    measure("attention over 192".to_owned(), 64, s, &mut |s, i| {
        let (k_cache, v_cache) = (caches[i % layers][0].input(), caches[i % layers][1].input());
        let span = Some(Span { first: first.input(), longest: span });
        let (q, positions) = (x.input_range(0..m * 2560), last.input());
        let y = y.output_range(0..m * 2560);
        run(s, Op::Attention { q, heads: 20, kv_heads: 5, head_dim: 128, positions, span, k_cache, v_cache, y });
    });
    let shape = Shape::new(128_256, 2560).unwrap();
    let values = noise(1 << 20);
    let bytes: Vec<u8> =
        values.iter().cycle().take(shape.len()).flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let head = gpu.pack(&Weight::dense(Format::BF16, shape, Bytes::from(bytes)).unwrap()).unwrap();
    let mut logits = Buffer::<f32>::alloc(gpu, m * 128_256).unwrap();
    measure("head, bf16".to_owned(), 10, s, &mut |s, _| {
        let (x, y) = (Activations::F32(x.input_range(0..m * 2560)), Output::F32(logits.output()));
        run(s, Op::MatMul { w: &head, x, y, epilogue: Epilogue::Store });
    });
    let mut ids = Buffer::<u32>::alloc(gpu, m).unwrap();
    measure("sampling, greedy".to_owned(), 50, s, &mut |s, _| {
        let steps: In<'_, u32> = first.input();
        run(s, Op::Sample { logits: logits.input(), params: GREEDY, steps, ids: ids.output() });
    });
    json!(results)
}
