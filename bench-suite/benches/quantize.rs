//! Quantizing and dequantizing a million real weights in every format: `cargo bench -p tersor-bench --bench quantize`.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tersor_core::{Floats, FloatsMut, Format, Shape, Weight};

fn formats() -> impl Iterator<Item = Format> {
    Format::TERNARY.into_iter().chain(Format::GROUPED)
}

fn quantize(c: &mut Criterion) {
    let shape = Shape::new(256, 4096).expect("a shape");
    let values = common::material().tiled_values(shape).values;
    let mut group = c.benchmark_group("quantize");
    group.throughput(Throughput::Elements(shape.len() as u64));
    for format in formats() {
        let len = format.encoded_len(shape).expect("the format holds the shape");
        let (mut codes, mut scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
        for candidate in common::candidates() {
            let id = BenchmarkId::new(format!("{format}/{}", common::name(&candidate)), shape);
            group.bench_function(id, |b| {
                b.iter(|| {
                    let w = Floats::F32(&values);
                    candidate.backend.quantize(w, shape, format, &mut codes, &mut scales).expect("it quantizes")
                });
            });
        }
    }
    group.finish();
}

fn dequantize(c: &mut Criterion) {
    let shape = Shape::new(256, 4096).expect("a shape");
    let material = common::material();
    let mut group = c.benchmark_group("dequantize");
    group.throughput(Throughput::Elements(shape.len() as u64));
    let mut y = vec![0.0; shape.len()];
    for format in Format::TERNARY {
        let weight: Weight = material.weight(shape, format).expect("the format holds the shape");
        for candidate in common::candidates() {
            let id = BenchmarkId::new(format!("{format}/{}", common::name(&candidate)), shape);
            group.bench_function(id, |b| {
                b.iter(|| candidate.backend.dequantize(&weight, FloatsMut::F32(&mut y)).expect("it dequantizes"));
            });
        }
    }
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = quantize, dequantize }
criterion_main!(benches);
