//! What the fused groups of a decode step cost, one behind the other.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tersor_backend_cuda::CudaBackend;
use tersor_core::{Activations, Buffer, Epilogue, Op, Output, PackedWeight, QuantBackend, Shape, Stream};

use crate::bench::{i2s, noise};
use crate::spread;

/// Chains of the groups of a decode step, each round with weights of its own: microseconds for one of them, and of those
/// what the host needed to submit it.
pub(crate) fn run(gpu: &Arc<CudaBackend>) -> bool {
    let results = chains(gpu, 30, 10);
    crate::save("cuda-chains", gpu, results);
    true
}

/// So many layers, so many times.
pub(crate) fn chains(gpu: &CudaBackend, layers: usize, steps: usize) -> Value {
    let pack = |n, k, count: usize| -> Vec<PackedWeight> {
        let weight = i2s(Shape::new(n, k).unwrap(), 3);
        (0..count).map(|_| gpu.pack(&weight).unwrap()).collect()
    };
    let mut stream = gpu.open_stream().unwrap();
    let stream = &mut *stream;
    let mut results = Vec::new();
    let (hidden, ffn, kv, capacity) = (2560, 6912, 640, 1024);
    let mut b = Rows::new(gpu, stream, hidden, ffn, kv, capacity);
    let (o, down) = (pack(hidden, hidden, layers), pack(hidden, ffn, layers));
    let (gate, up) = (pack(ffn, hidden, layers), pack(ffn, hidden, layers));
    let (q, k, v) = (pack(hidden, hidden, layers), pack(kv, hidden, layers), pack(kv, hidden, layers));
    let mut measure = |name: &str, work: &mut dyn FnMut(&mut dyn Stream, usize)| {
        let (mut whole, mut host) = (Vec::new(), Vec::new());
        for _ in 0..steps {
            let started = Instant::now();
            (0..layers).for_each(|l| work(stream, l));
            host.push(started.elapsed().as_secs_f64() / layers as f64);
            stream.synchronize().unwrap();
            whole.push(started.elapsed().as_secs_f64() / layers as f64);
        }
        let (whole, host) = (spread(&mut whole[steps / 5..]), spread(&mut host[steps / 5..]));
        println!("{name}: {:.2} us ({:.2}..), host {:.2} us", whole.0 * 1e6, whole.1 * 1e6, host.0 * 1e6);
        results.push(json!({ "chain": name, "median_s": whole.0, "least_s": whole.1, "host_s": host.0 }));
    };
    measure("norm, q, k, v, rotation, cache", &mut |s, l| b.attention_input(s, [&q[l], &k[l], &v[l]], 200));
    for at in [16, 200, 1000] {
        measure(&format!("attention over {at}"), &mut |s, _| b.attend(s, at));
    }
    measure("norm, product 2560x2560, added", &mut |s, l| b.output(s, &o[l]));
    measure("norm, gate, up", &mut |s, l| b.gate_up(s, &gate[l], &up[l]));
    measure("norm, product 2560x6912, added", &mut |s, l| b.down(s, &down[l]));
    measure("a layer", &mut |s, l| {
        b.attention_input(s, [&q[l], &k[l], &v[l]], 200);
        b.attend(s, 200);
        b.output(s, &o[l]);
        b.gate_up(s, &gate[l], &up[l]);
        b.down(s, &down[l]);
    });
    json!(results)
}

/// The activations of one row.
struct Rows {
    x: Buffer<f32>,
    norm: Buffer<f32>,
    wide_norm: Buffer<f32>,
    int8: Buffer<i8>,
    scale: Buffer<f32>,
    q: Buffer<f32>,
    kv: [Buffer<f32>; 2],
    caches: [Buffer<f32>; 2],
    attended: Buffer<f32>,
    gate: Buffer<f32>,
    up: Buffer<f32>,
    gated: Buffer<f32>,
    positions: Buffer<u32>,
    turns: [Buffer<f32>; 2],
}

impl Rows {
    fn new(gpu: &CudaBackend, s: &mut dyn Stream, hidden: usize, ffn: usize, kv: usize, capacity: usize) -> Self {
        let mut floats = |n: usize| {
            let mut b = Buffer::alloc(gpu, n).unwrap();
            b.write(s, &noise(n)).unwrap();
            b
        };
        let mut rows = Rows {
            x: floats(hidden),
            norm: floats(hidden),
            wide_norm: floats(ffn),
            int8: Buffer::alloc(gpu, ffn).unwrap(),
            scale: Buffer::alloc(gpu, 1).unwrap(),
            q: floats(hidden),
            kv: [floats(kv), floats(kv)],
            caches: [floats(kv * capacity), floats(kv * capacity)],
            attended: floats(hidden),
            gate: floats(ffn),
            up: floats(ffn),
            gated: floats(ffn),
            positions: Buffer::alloc(gpu, capacity).unwrap(),
            turns: [floats(64 * capacity), floats(64 * capacity)],
        };
        rows.positions.write(s, &(0..capacity as u32).collect::<Vec<_>>()).unwrap();
        rows
    }

    fn attention_input(&mut self, s: &mut dyn Stream, w: [&PackedWeight; 3], at: usize) {
        let [k, v] = &mut self.kv;
        normed(s, &self.x, &self.norm, &mut self.int8, &mut self.scale);
        for (w, y) in w.into_iter().zip([&mut self.q, &mut *k, &mut *v]) {
            multiplied(s, w, &self.int8, &self.scale, y, Epilogue::Store);
        }
        for x in [&mut self.q, &mut *k] {
            let (positions, cos, sin) =
                (self.positions.input_range(at..at + 1), self.turns[0].input(), self.turns[1].input());
            run_op(s, Op::Rope { x: x.output(), head_dim: 128, positions, cos, sin });
        }
        let [k_cache, v_cache] = &mut self.caches;
        let positions = self.positions.input_range(at..at + 1);
        let (width, k_cache, v_cache) = (k.len(), k_cache.output(), v_cache.output());
        run_op(s, Op::KvWrite { k: k.input(), v: v.input(), width, positions, k_cache, v_cache });
    }

    fn attend(&mut self, s: &mut dyn Stream, at: usize) {
        let (k_cache, v_cache) = (self.caches[0].input(), self.caches[1].input());
        let positions = self.positions.input_range(at..at + 1);
        let (q, y) = (self.q.input(), self.attended.output());
        run_op(
            s,
            Op::Attention { q, heads: 20, kv_heads: 5, head_dim: 128, positions, span: None, k_cache, v_cache, y },
        );
    }

    fn output(&mut self, s: &mut dyn Stream, w: &PackedWeight) {
        normed(s, &self.attended, &self.norm, &mut self.int8, &mut self.scale);
        multiplied(s, w, &self.int8, &self.scale, &mut self.x, Epilogue::Add);
    }

    fn gate_up(&mut self, s: &mut dyn Stream, gate: &PackedWeight, up: &PackedWeight) {
        normed(s, &self.x, &self.norm, &mut self.int8, &mut self.scale);
        multiplied(s, gate, &self.int8, &self.scale, &mut self.gate, Epilogue::Store);
        multiplied(s, up, &self.int8, &self.scale, &mut self.up, Epilogue::Store);
        run_op(s, Op::ReluSquaredMul { gate: self.gate.input(), up: self.up.input(), y: self.gated.output() });
    }

    fn down(&mut self, s: &mut dyn Stream, w: &PackedWeight) {
        normed(s, &self.gated, &self.wide_norm, &mut self.int8, &mut self.scale);
        multiplied(s, w, &self.int8, &self.scale, &mut self.x, Epilogue::Add);
    }
}

fn run_op(s: &mut dyn Stream, op: Op<'_>) {
    s.submit(op.check().unwrap()).unwrap();
}

fn normed(s: &mut dyn Stream, x: &Buffer<f32>, w: &Buffer<f32>, q: &mut Buffer<i8>, scales: &mut Buffer<f32>) {
    let (q, scales) = (q.output_range(0..w.len()), scales.output());
    run_op(s, Op::RmsNormQuantize { x: x.input(), w: w.input(), eps: 1e-5, q, scales });
}

fn multiplied(
    s: &mut dyn Stream,
    w: &PackedWeight,
    q: &Buffer<i8>,
    scales: &Buffer<f32>,
    y: &mut Buffer<f32>,
    e: Epilogue,
) {
    let x = Activations::Int8 { q: q.input_range(0..w.shape().cols()), scales: scales.input() };
    run_op(s, Op::MatMul { w, x, y: Output::F32(y.output()), epilogue: e });
}
