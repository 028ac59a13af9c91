//! The operations of a pass of many rows: products bit by bit those of the CPU, and what each part of a layer costs.

use std::time::Instant;

use serde_json::{Value, json};
use tersor_backend_cuda::CudaBackend;
use tersor_core::{Activations, Buffer, Epilogue, In, Op, Out, Output, PackedWeight, QuantBackend, Shape, Stream};

use crate::bench::{i2s, noise};
use crate::{model, spread};

/// Products of many rows, bit by bit those of the CPU: every tail of tiles, stored and added, and sums as they are.
pub(crate) fn products_equal(gpu: &CudaBackend) -> bool {
    let cpu = model::cpu();
    let mut streams = [gpu.open_stream().unwrap(), cpu.open_stream().unwrap()];
    let mut ok = true;
    for (n, k) in [(200, 384), (640, 2560), (2560, 2560), (1000, 6912), (130, 128)] {
        let weight = i2s(Shape::new(n, k).unwrap(), 17);
        let weights = [gpu.pack(&weight).unwrap(), cpu.pack(&weight).unwrap()];
        for m in [65, 128, 200, 513] {
            let same = product_equal(gpu, &mut streams, &weights, m);
            if !same {
                println!("{m} rows times {n}x{k}: DIFFERENT");
            }
            ok &= same;
        }
    }
    println!("products of many rows: {}", if ok { "all equal the CPU's" } else { "DIFFERENT" });
    ok
}

fn product_equal(
    gpu: &CudaBackend,
    [a, b]: &mut [Box<dyn Stream>; 2],
    [here, there]: &[PackedWeight; 2],
    m: usize,
) -> bool {
    let (n, k) = (here.shape().rows(), here.shape().cols());
    let q: Vec<i8> = noise(m * k).iter().map(|v| (v * 127.5).floor() as i8).collect();
    let mut scales: Vec<f32> = noise(m).iter().map(|v| (20.0 * v).exp()).collect();
    // What the quick division is not for, among the tokens of one tile.
    if m == 200 {
        scales[150] = 1e30;
    }
    let before = noise(m * n);
    let ints: Vec<i32> = before.iter().map(|v| (v * 1e6) as i32).collect();
    let mut x = Buffer::<i8>::alloc(gpu, m * k).unwrap();
    let mut s = Buffer::<f32>::alloc(gpu, m).unwrap();
    let (mut y, mut sums) = (Buffer::<f32>::alloc(gpu, m * n).unwrap(), Buffer::<i32>::alloc(gpu, m * n).unwrap());
    x.write(&mut **a, &q).unwrap();
    s.write(&mut **a, &scales).unwrap();
    [Epilogue::Store, Epilogue::Add].into_iter().all(|epilogue| {
        y.write(&mut **a, &before).unwrap();
        sums.write(&mut **a, &ints).unwrap();
        let (mut want, mut want_sums) = (before.clone(), ints.clone());
        let resident = || Activations::Int8 { q: x.input(), scales: s.input() };
        let host = || Activations::Int8 { q: In::Host(&q), scales: In::Host(&scales) };
        run(&mut **a, Op::MatMul { w: here, x: resident(), y: Output::F32(y.output()), epilogue });
        run(&mut **a, Op::MatMul { w: here, x: resident(), y: Output::I32(sums.output()), epilogue });
        run(&mut **b, Op::MatMul { w: there, x: host(), y: Output::F32(Out::Host(&mut want)), epilogue });
        run(&mut **b, Op::MatMul { w: there, x: host(), y: Output::I32(Out::Host(&mut want_sums)), epilogue });
        b.synchronize().unwrap();
        let (mut got, mut got_sums) = (vec![f32::NAN; m * n], vec![0; m * n]);
        y.read(&mut **a, 0, &mut got).unwrap();
        sums.read(&mut **a, 0, &mut got_sums).unwrap();
        got_sums == want_sums && got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits())
    })
}

fn run(s: &mut dyn Stream, op: Op<'_>) {
    s.submit(op.check().unwrap()).unwrap();
}

fn normed(s: &mut dyn Stream, x: In<'_, f32>, w: &Buffer<f32>, q: &mut Buffer<i8>, scales: &mut Buffer<f32>) {
    let (q, scales) = (q.output_range(0..x.len()), scales.output());
    run(s, Op::RmsNormQuantize { x, w: w.input(), eps: 1e-5, q, scales });
}

/// What the parts of a layer cost for so many rows, each in a chain of equal ones with weights of their own.
pub(crate) fn operations(gpu: &CudaBackend, m: usize) -> Value {
    const LAYERS: usize = 30;
    let pack = |n, k| -> Vec<PackedWeight> {
        let weight = i2s(Shape::new(n, k).unwrap(), 3);
        (0..LAYERS).map(|_| gpu.pack(&weight).unwrap()).collect()
    };
    let mut stream = gpu.open_stream().unwrap();
    let s = &mut *stream;
    let mut floats = |n: usize| {
        let mut b = Buffer::<f32>::alloc(gpu, n).unwrap();
        b.write(s, &noise(n)).unwrap();
        b
    };
    let (mut x, normal, w, wide) = (floats(m * 2560), floats(m * 2560), floats(2560), floats(6912));
    let (mut q, mut k, mut v, mut y) = (floats(m * 2560), floats(m * 640), floats(m * 640), floats(m * 2560));
    let (mut gate, mut up, mut gated) = (floats(m * 6912), floats(m * 6912), floats(m * 6912));
    let (mut k_cache, mut v_cache) = (floats(m * 640), floats(m * 640));
    let (cos, sin) = (floats(m * 64), floats(m * 64));
    let mut int8 = Buffer::<i8>::alloc(gpu, m * 6912).unwrap();
    let mut scales = Buffer::<f32>::alloc(gpu, m).unwrap();
    let mut positions = Buffer::<u32>::alloc(gpu, m).unwrap();
    positions.write(s, &(0..m as u32).collect::<Vec<_>>()).unwrap();
    let (square, narrow) = (pack(2560, 2560), pack(640, 2560));
    let (gates, down) = (pack(6912, 2560), pack(2560, 6912));
    let mut results = Vec::new();
    let mut measure = |name: &str, s: &mut dyn Stream, work: &mut dyn FnMut(&mut dyn Stream, usize)| {
        let mut times = Vec::new();
        for _ in 0..12 {
            let started = Instant::now();
            (0..LAYERS).for_each(|l| work(s, l));
            s.synchronize().unwrap();
            times.push(started.elapsed().as_secs_f64() / LAYERS as f64);
        }
        let (median, least, _) = spread(&mut times[2..]);
        println!("m={m} {name}: {:.2} us ({:.2}..), {:.3} ms for 30", median * 1e6, least * 1e6, median * 3e4);
        results.push(json!({ "m": m, "operations": name, "median_s": median, "least_s": least }));
    };
    let multiplied =
        |s: &mut dyn Stream, w: &PackedWeight, q: &Buffer<i8>, scales: &Buffer<f32>, y: &mut Buffer<f32>, e| {
            let x = Activations::Int8 { q: q.input_range(0..m * w.shape().cols()), scales: scales.input() };
            run(s, Op::MatMul { w, x, y: Output::F32(y.output_range(0..m * w.shape().rows())), epilogue: e });
        };
    measure("norm of 2560", s, &mut |s, _| normed(s, x.input(), &w, &mut int8, &mut scales));
    measure("norm of 6912", s, &mut |s, _| normed(s, gate.input(), &wide, &mut int8, &mut scales));
    measure("gate, norm of 6912", s, &mut |s, _| {
        run(s, Op::ReluSquaredMul { gate: gate.input(), up: up.input(), y: gated.output() });
        normed(s, gated.input(), &wide, &mut int8, &mut scales);
    });
    measure("q, k, v", s, &mut |s, l| {
        for (w, y) in [(&square, &mut q), (&narrow, &mut k), (&narrow, &mut v)] {
            multiplied(s, &w[l], &int8, &scales, y, Epilogue::Store);
        }
    });
    measure("rotation and cache", s, &mut |s, _| {
        for x in [&mut q, &mut k] {
            let positions = positions.input();
            run(s, Op::Rope { x: x.output(), head_dim: 128, positions, cos: cos.input(), sin: sin.input() });
        }
        let (positions, k_cache, v_cache) = (positions.input(), k_cache.output(), v_cache.output());
        run(s, Op::KvWrite { k: k.input(), v: v.input(), width: 640, positions, k_cache, v_cache });
    });
    measure("attention", s, &mut |s, _| {
        let (k_cache, v_cache, positions) = (k_cache.input(), v_cache.input(), positions.input());
        let (q, y) = (q.input(), y.output());
        run(s, Op::Attention { q, heads: 20, kv_heads: 5, head_dim: 128, positions, span: None, k_cache, v_cache, y });
    });
    measure("attention's output", s, &mut |s, l| {
        multiplied(s, &square[l], &int8, &scales, &mut x, Epilogue::Add);
    });
    measure("gate and up", s, &mut |s, l| {
        multiplied(s, &gates[l], &int8, &scales, &mut gate, Epilogue::Store);
        multiplied(s, &gates[(l + 1) % LAYERS], &int8, &scales, &mut up, Epilogue::Store);
    });
    measure("norm, attention's output", s, &mut |s, l| {
        normed(s, normal.input(), &w, &mut int8, &mut scales);
        multiplied(s, &square[l], &int8, &scales, &mut x, Epilogue::Add);
    });
    measure("gate, norm, down", s, &mut |s, l| {
        run(s, Op::ReluSquaredMul { gate: gate.input(), up: up.input(), y: gated.output() });
        normed(s, gated.input(), &wide, &mut int8, &mut scales);
        multiplied(s, &down[l], &int8, &scales, &mut x, Epilogue::Add);
    });
    measure("down", s, &mut |s, l| multiplied(s, &down[l], &int8, &scales, &mut x, Epilogue::Add));
    json!(results)
}
