//! The operations of a pass besides ternary products, at the widths of BitNet b1.58 2B-4T, for one token and for 128:
//! `cargo bench -p tersor-bench --bench ops`.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tersor_bench::candidates::Candidate;
use tersor_bench::material::activations;
use tersor_core::{
    Activations, Buffer, Element, Epilogue, Format, Op, Output, SampleParams, Shape, Stream, Weight, bf16,
    reference::math::rope_tables,
};

const HIDDEN: usize = 2560;
const FFN: usize = 6912;
const HEADS: usize = 20;
const KV_HEADS: usize = 5;
const HEAD_DIM: usize = 128;
const CAPACITY: usize = 512;
const VOCAB: usize = 8192;

/// Measures an op again and again; says so where the backend does not do it.
macro_rules! bench {
    ($c:expr, $candidate:expr, $stream:expr, $name:literal, $format:literal, $shape:expr, $elements:expr, $op:expr) => {{
        let id = BenchmarkId::new(format!("{}/{}", $format, common::name($candidate)), $shape);
        match $stream.submit($op.check().expect("a valid op")) {
            Err(e) => eprintln!("{}/{}: not measured: {e}", $name, common::name($candidate)),
            Ok(_) => {
                let mut group = $c.benchmark_group($name);
                group.throughput(Throughput::Elements($elements as u64));
                group.bench_function(id, |b| {
                    b.iter(|| {
                        $stream.submit($op.check().expect("a valid op")).expect("it runs");
                        $stream.synchronize().expect("it ends");
                    });
                });
            }
        }
    }};
}

fn buffer<T: Element>(candidate: &Candidate, stream: &mut dyn Stream, data: &[T]) -> Buffer<T> {
    let mut buffer = Buffer::alloc(&*candidate.backend, data.len()).expect("memory");
    buffer.write(stream, data).expect("a copy");
    buffer
}

/// Norms, activation quantization, the gate, sums: what each token passes through between the products.
fn rows(c: &mut Criterion) {
    for candidate in &common::candidates() {
        let mut stream = candidate.backend.open_stream().expect("a stream");
        let stream = &mut *stream;
        for rows in [1, 128] {
            let floats = |stream: &mut dyn Stream, n| buffer(candidate, stream, &activations(rows, n));
            let (x, w) = (floats(stream, HIDDEN), buffer(candidate, stream, &activations(1, HIDDEN)));
            let (gate, up) = (floats(stream, FFN), floats(stream, FFN));
            let (mut y, mut q) = (floats(stream, FFN), buffer(candidate, stream, &vec![0i8; rows * FFN]));
            let mut scales = buffer(candidate, stream, &vec![0f32; rows]);
            let (n, wide) = (rows * HIDDEN, rows * FFN);
            let (hidden, ffn) = (format!("{rows}x{HIDDEN}"), format!("{rows}x{FFN}"));
            bench!(
                c,
                candidate,
                stream,
                "rms_norm",
                "f32",
                &hidden,
                n,
                Op::RmsNorm { x: x.input(), w: w.input(), eps: 1e-5, y: y.output_range(0..n) }
            );
            bench!(
                c,
                candidate,
                stream,
                "rms_norm_quantize",
                "i8",
                &hidden,
                n,
                Op::RmsNormQuantize {
                    x: x.input(),
                    w: w.input(),
                    eps: 1e-5,
                    q: q.output_range(0..n),
                    scales: scales.output()
                }
            );
            bench!(
                c,
                candidate,
                stream,
                "quantize_rows",
                "i8",
                &ffn,
                wide,
                Op::QuantizeRows { x: gate.input(), cols: FFN, q: q.output(), scales: scales.output() }
            );
            bench!(
                c,
                candidate,
                stream,
                "relu_squared_mul",
                "f32",
                &ffn,
                wide,
                Op::ReluSquaredMul { gate: gate.input(), up: up.input(), y: y.output() }
            );
            bench!(c, candidate, stream, "copy", "f32", &ffn, wide, Op::Copy { x: gate.input(), y: y.output() });
        }
    }
}

/// Rotation and attention at the end of 512 positions.
fn attention(c: &mut Criterion) {
    let (cos, sin) = rope_tables(500_000.0, HEAD_DIM, CAPACITY);
    for candidate in &common::candidates() {
        let mut stream = candidate.backend.open_stream().expect("a stream");
        let stream = &mut *stream;
        let keys = buffer(candidate, stream, &activations(CAPACITY, KV_HEADS * HEAD_DIM));
        let values = buffer(candidate, stream, &activations(CAPACITY, KV_HEADS * HEAD_DIM));
        let (cos, sin) = (buffer(candidate, stream, &cos), buffer(candidate, stream, &sin));
        for rows in [1, 128] {
            let positions: Vec<u32> = (CAPACITY - rows..CAPACITY).map(|p| p as u32).collect();
            let positions = buffer(candidate, stream, &positions);
            let width = HEADS * HEAD_DIM;
            let q = buffer(candidate, stream, &activations(rows, width));
            let mut y = buffer(candidate, stream, &activations(rows, width));
            let shape = format!("{rows}x{HEADS}x{HEAD_DIM}");
            bench!(
                c,
                candidate,
                stream,
                "rope",
                "f32",
                &shape,
                rows * width,
                Op::Rope {
                    x: y.output(),
                    head_dim: HEAD_DIM,
                    positions: positions.input(),
                    cos: cos.input(),
                    sin: sin.input()
                }
            );
            bench!(
                c,
                candidate,
                stream,
                "attention",
                "f32",
                format!("{shape} of {CAPACITY}"),
                rows * width,
                Op::Attention {
                    q: q.input(),
                    heads: HEADS,
                    kv_heads: KV_HEADS,
                    head_dim: HEAD_DIM,
                    positions: positions.input(),
                    span: None,
                    k_cache: keys.input(),
                    v_cache: values.input(),
                    y: y.output()
                }
            );
        }
    }
}

/// The head (8,192 of the vocabulary's 128,256 rows, in bf16), and drawing from its logits.
fn head(c: &mut Criterion) {
    let values = activations(VOCAB, HIDDEN);
    let bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let shape = Shape::new(VOCAB, HIDDEN).expect("a shape");
    let weight = Weight::dense(Format::BF16, shape, bytes).expect("a valid weight");
    for candidate in &common::candidates() {
        let packed = candidate.backend.pack(&weight).expect("it packs");
        let mut stream = candidate.backend.open_stream().expect("a stream");
        let stream = &mut *stream;
        let x = buffer(candidate, stream, &activations(1, HIDDEN));
        let mut logits = buffer(candidate, stream, &activations(1, VOCAB));
        let (mut ids, steps) = (buffer(candidate, stream, &[0u32]), buffer(candidate, stream, &[7u32]));
        bench!(
            c,
            candidate,
            stream,
            "head",
            "bf16",
            format!("1x{VOCAB}x{HIDDEN}"),
            VOCAB * HIDDEN,
            Op::MatMul {
                w: &packed,
                x: Activations::F32(x.input()),
                y: Output::F32(logits.output()),
                epilogue: Epilogue::Store
            }
        );
        for (name, temperature, top_k) in [("greedy", 0.0, None), ("top-40", 0.8, Some(40))] {
            let params = SampleParams { temperature, top_k, seed: 1 };
            bench!(
                c,
                candidate,
                stream,
                "sample",
                "f32",
                format!("{name} of {VOCAB}"),
                VOCAB,
                Op::Sample { logits: logits.input(), params, steps: steps.input(), ids: ids.output() }
            );
        }
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = rows, attention, head }
criterion_main!(benches);
