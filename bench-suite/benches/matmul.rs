//! Ternary products at the shapes of BitNet b1.58 2B-4T: `cargo bench -p tersor-bench --bench matmul`.
//!
//! Weights rotate through 64 MB of packed copies. Where the last-level cache is larger they are warm: `tersor bench` has the
//! figures for cold weights, these are for finding out what a change did.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tersor_bench::material::{Material, int8_activations};
use tersor_core::{
    Activations, Buffer, Bytes, Epilogue, Format, Op, Output, PackedWeight, QuantBackend, Shape, Weight,
};

const ROTATE: usize = 64 << 20;

fn copies(backend: &dyn QuantBackend, weight: &Weight, bytes: usize) -> Vec<PackedWeight> {
    let copy = |_| {
        let codes = Bytes::copy_from_slice(weight.codes());
        let own = Weight::new(weight.format(), weight.shape(), codes, weight.scales()).expect("a valid weight");
        backend.pack(&own).expect("it packs")
    };
    (0..bytes.div_ceil(weight.bytes())).map(copy).collect()
}

fn products(c: &mut Criterion, op: &str, m: usize, shapes: &[(usize, usize)], formats: &[Format]) {
    let material: Material = common::material();
    let mut group = c.benchmark_group(op);
    for &(n, k) in shapes {
        let shape = Shape::new(n, k).expect("a shape");
        let (q, scales) = int8_activations(m, k);
        group.throughput(Throughput::Elements((m * n * k) as u64));
        for &format in formats {
            let weight = material.weight(shape, format).expect("the format holds the shape");
            for candidate in common::candidates() {
                let backend = &*candidate.backend;
                let packed = copies(backend, &weight, if m == 1 { ROTATE } else { 1 });
                let mut stream = backend.open_stream().expect("a stream");
                let mut xq = Buffer::<i8>::alloc(backend, m * k).expect("memory");
                let mut xs = Buffer::<f32>::alloc(backend, m).expect("memory");
                let mut y = Buffer::<f32>::alloc(backend, m * n).expect("memory");
                xq.write(&mut *stream, &q).expect("a copy");
                xs.write(&mut *stream, &scales).expect("a copy");
                let mut turn = packed.iter().cycle();
                let id = BenchmarkId::new(format!("{format}/{}", common::name(&candidate)), format!("{m}x{n}x{k}"));
                group.bench_function(id, |b| {
                    b.iter(|| {
                        let w = turn.next().expect("at least one copy");
                        let x = Activations::Int8 { q: xq.input(), scales: xs.input() };
                        let y = Output::F32(y.output());
                        let op = Op::MatMul { w, x, y, epilogue: Epilogue::Store }.check().expect("a valid product");
                        let ran = stream.submit(op).expect("it multiplies");
                        stream.synchronize().expect("it ends");
                        ran
                    });
                });
            }
        }
    }
    group.finish();
}

fn gemv(c: &mut Criterion) {
    let formats = [Format::I2S, Format::TL2, Format::TQ1_0, Format::TQ2_0];
    products(c, "gemv", 1, &[(2560, 2560)], &formats);
    products(c, "gemv", 1, &[(13824, 2560), (2560, 6912)], &[Format::I2S]);
}

fn gemm(c: &mut Criterion) {
    products(c, "gemm", 128, &[(512, 512), (640, 2560)], &[Format::I2S]);
}

criterion_group! { name = benches; config = common::criterion(); targets = gemv, gemm }
criterion_main!(benches);
