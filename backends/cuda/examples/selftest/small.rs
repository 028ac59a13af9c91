//! What a model does, on little data: short enough for compute-sanitizer, whose racecheck slows kernels a thousandfold.
//! `kernels` has every kernel.

use std::sync::Arc;

use tersor_backend_cuda::CudaBackend;
use tersor_core::codec::blocks;
use tersor_core::{
    Activations, Buffer, Bytes, Epilogue, Floats, FloatsMut, Format, Op, Output, QuantBackend, SampleParams, Shape,
    Span, Weight, codec,
};
use tersor_model::{Model, Session, SessionOptions, embedded};

use crate::bench::{i2s, noise};
use crate::{chains, errors};

pub(crate) fn run(gpu: &Arc<CudaBackend>) -> bool {
    let formats = weights(gpu);
    products(gpu);
    chains::chains(gpu, 1, 1);
    let attended = attention(gpu);
    model(gpu);
    formats && attended && errors::works(&**gpu).is_ok()
}

/// Quantizes to every format and back.
fn weights(gpu: &CudaBackend) -> bool {
    let shape = Shape::new(3, 4096).unwrap();
    let w = noise(shape.len());
    Format::TERNARY.into_iter().chain(Format::GROUPED).all(|format| {
        let want = codec::quantize(Floats::F32(&w), shape, format).unwrap();
        let (mut codes, mut scales) = (vec![0x5a; want.codes().len()], vec![f32::NAN; want.scales().len()]);
        gpu.quantize(Floats::F32(&w), shape, format, &mut codes, &mut scales).unwrap();
        let mut y = vec![f32::NAN; shape.len()];
        gpu.dequantize(&want, FloatsMut::F32(&mut y)).unwrap();
        let same = codes == want.codes() && scales == want.scales() && y == codec::dequantize(&want).unwrap();
        println!("{format}: {}", if same { "equal" } else { "DIFFERENT" });
        same
    })
}

/// Every tile of products, and the products of several scales a row.
pub(crate) fn products(gpu: &CudaBackend) -> bool {
    let shape = Shape::new(160, 512).unwrap();
    let grouped = Format::I2SGroup(tersor_core::GroupSize::G128);
    let grouped = codec::quantize(Floats::F32(&noise(shape.len())), shape, grouped).unwrap();
    let mut stream = gpu.open_stream().unwrap();
    for (format, bytes) in [(Format::F16, 2), (Format::BF16, 2), (Format::F32, 4)] {
        let raw = vec![0x11; shape.len() * bytes];
        let w = gpu.pack(&Weight::dense(format, shape, Bytes::from(raw)).unwrap()).unwrap();
        for m in [1, 2, 16, 40] {
            let mut x = Buffer::<f32>::alloc(gpu, m * shape.cols()).unwrap();
            let mut y = Buffer::<f32>::alloc(gpu, m * shape.rows()).unwrap();
            x.write(&mut *stream, &noise(m * shape.cols())).unwrap();
            let (x, y) = (Activations::F32(x.input()), Output::F32(y.output()));
            let op = Op::MatMul { w: &w, x, y, epilogue: Epilogue::Store };
            let ran = stream.submit(op.check().unwrap()).unwrap();
            stream.synchronize().unwrap();
            println!("{}", ran.kernel);
        }
    }
    let heads = Format::BLOCK.map(|format| blocks::quantize(Floats::F32(&noise(shape.len())), shape, format).unwrap());
    for weight in [i2s(shape, 5), grouped].into_iter().chain(heads) {
        let w = gpu.pack(&weight).unwrap();
        for m in [1, 2, 4, 8, 16, 32, 65] {
            let mut q = Buffer::<i8>::alloc(gpu, m * shape.cols()).unwrap();
            let mut scales = Buffer::<f32>::alloc(gpu, m).unwrap();
            let mut y = Buffer::<f32>::alloc(gpu, m * shape.rows()).unwrap();
            q.write(&mut *stream, &vec![3; m * shape.cols()]).unwrap();
            scales.write(&mut *stream, &vec![1.0; m]).unwrap();
            // A norm before many rows leaves them staged.
            if m == 65 {
                let mut floats = Buffer::<f32>::alloc(gpu, (m + 1) * shape.cols()).unwrap();
                floats.write(&mut *stream, &noise((m + 1) * shape.cols())).unwrap();
                let (rows, w) = (0..m * shape.cols(), m * shape.cols()..(m + 1) * shape.cols());
                let (x, w) = (floats.input_range(rows), floats.input_range(w));
                let op = Op::RmsNormQuantize { x, w, eps: 1e-5, q: q.output(), scales: scales.output() };
                stream.submit(op.check().unwrap()).unwrap();
            }
            let x = Activations::Int8 { q: q.input(), scales: scales.input() };
            let op = Op::MatMul { w: &w, x, y: Output::F32(y.output()), epilogue: Epilogue::Add };
            let ran = stream.submit(op.check().unwrap()).unwrap();
            stream.synchronize().unwrap();
            println!("{}", ran.kernel);
        }
    }
    true
}

/// Attention of as many rows as are taken in tiles, over three chunks of positions.
pub(crate) fn attention(gpu: &CudaBackend) -> bool {
    let (rows, capacity) = (70, 150);
    let mut stream = gpu.open_stream().unwrap();
    let s = &mut *stream;
    let mut floats = |n: usize| {
        let mut b = Buffer::<f32>::alloc(gpu, n).unwrap();
        b.write(s, &noise(n)).unwrap();
        b
    };
    let (q, k, v) = (floats(rows * 2560), floats(capacity * 640), floats(capacity * 640));
    let mut y = Buffer::<f32>::alloc(gpu, rows * 2560).unwrap();
    let mut positions = Buffer::<u32>::alloc(gpu, rows).unwrap();
    positions.write(s, &(0..rows as u32).map(|r| 70 + r).collect::<Vec<_>>()).unwrap();
    let mut first = Buffer::<u32>::alloc(gpu, rows).unwrap();
    first.write(s, &(0..rows as u32).map(|r| r % 3).collect::<Vec<_>>()).unwrap();
    // In tiles, and as rows of sequences that share a cache.
    for span in [None, Some(Span { first: first.input(), longest: capacity })] {
        let op = Op::Attention {
            q: q.input(),
            heads: 20,
            kv_heads: 5,
            head_dim: 128,
            positions: positions.input(),
            span,
            k_cache: k.input(),
            v_cache: v.input(),
            y: y.output(),
        };
        println!("{}", s.submit(op.check().unwrap()).unwrap().kernel);
    }
    s.synchronize().is_ok()
}

/// A prompt of some rows, then steps, drawn in every way.
fn model(gpu: &Arc<CudaBackend>) {
    let file = embedded::fable_26m().unwrap();
    let model = Model::load(gpu.clone(), &file, |_| {}).unwrap();
    let mut session = Session::new(&model, SessionOptions { capacity: Some(64), ..SessionOptions::default() }).unwrap();
    let ids: Vec<u32> = (0..40).map(|i| i * 7 + 3).collect();
    session.prefill(&ids).unwrap();
    for (temperature, top_k) in [(0.0, None), (0.8, None), (0.7, Some(40))] {
        println!("{}", session.sample(SampleParams { temperature, top_k, seed: 3 }).unwrap());
    }
    for _ in 0..2 {
        session.step(SampleParams { temperature: 0.0, top_k: None, seed: 0 }).unwrap();
    }
    println!("{:?}", session.kernels());
}
