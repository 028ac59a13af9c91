//! Single kernels: products with cold weights, quantization of resident and of host weights, copies.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tersor_backend_cuda::CudaBackend;
use tersor_core::{
    Activations, Buffer, Bytes, Epilogue, FloatIn, Floats, Format, GroupSize, Op, Output, QuantBackend, Shape, Stream,
    Weight, codec,
};

use crate::spread;

/// Random canonical i2_s bytes without code 3.
pub(crate) fn i2s(shape: Shape, seed: u64) -> Weight {
    let mut state = seed;
    let n = shape.len() / 4;
    let mut bytes = Vec::with_capacity(n + 32);
    while bytes.len() < n {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let b = (state >> 33) as u32;
        // Where both bits of a code are set, clear the upper one.
        let both = b & (b >> 1) & 0x5555_5555;
        bytes.extend_from_slice(&(b & !(both << 1)).to_le_bytes());
    }
    bytes.truncate(n);
    bytes.extend_from_slice(&0.04f32.to_le_bytes());
    bytes.extend_from_slice(&[0; 28]);
    Weight::new(Format::I2S, shape, Bytes::from(bytes), Vec::new()).unwrap()
}

pub(crate) fn noise(n: usize) -> Vec<f32> {
    let mut state = 7u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// Seconds for one of `count` calls of `work`, over several rounds.
fn time(
    stream: &mut dyn Stream,
    rounds: usize,
    count: usize,
    mut work: impl FnMut(&mut dyn Stream, usize),
) -> Vec<f64> {
    (0..rounds + 1)
        .map(|_| {
            let started = Instant::now();
            (0..count).for_each(|i| work(stream, i));
            stream.synchronize().unwrap();
            started.elapsed().as_secs_f64() / count as f64
        })
        .skip(1)
        .collect()
}

pub(crate) fn run(gpu: &Arc<CudaBackend>) -> bool {
    let mut results = Vec::new();
    for (n, k) in [(2560, 2560), (3840, 2560), (13_824, 2560), (2560, 6912), (20_480, 3200), (55_296, 5120)] {
        for m in [1, 4, 8, 16, 32, 128, 512] {
            results.push(product(gpu, &i2s(Shape::new(n, k).unwrap(), 3), m));
        }
    }
    results.push(copy(gpu));
    for format in [
        Format::I2S,
        Format::I2SGroup(GroupSize::G64),
        Format::I2SGroup(GroupSize::G128),
        Format::I2SGroup(GroupSize::G256),
        Format::TL1,
        Format::TL2,
        Format::TQ1_0,
        Format::TQ2_0,
    ] {
        results.push(quantize(gpu, format));
    }
    crate::save("cuda-kernels", gpu, json!(results));
    true
}

/// Products of weights whose rows have several scales.
pub(crate) fn scales(gpu: &Arc<CudaBackend>) -> bool {
    let mut results = Vec::new();
    for group in [GroupSize::G64, GroupSize::G128, GroupSize::G256] {
        for (n, k) in [(2560, 2560), (13_824, 2560), (2560, 6912)] {
            let shape = Shape::new(n, k).unwrap();
            let weight = codec::quantize(Floats::F32(&noise(n * k)), shape, Format::I2SGroup(group)).unwrap();
            for m in [1, 4, 8, 16, 32, 128, 512] {
                results.push(product(gpu, &weight, m));
            }
        }
    }
    crate::save("cuda-scales", gpu, json!(results));
    true
}

/// `m` rows of activations times `weight`, of which more copies take turns than the last-level cache holds.
pub(crate) fn product(gpu: &CudaBackend, weight: &Weight, m: usize) -> Value {
    let (format, shape) = (weight.format(), weight.shape());
    let (n, k) = (shape.rows(), shape.cols());
    let bytes = gpu.packed_size(format, shape).unwrap();
    let copies: Vec<_> = (0..(200 << 20) / bytes + 1).map(|_| gpu.pack(weight).unwrap()).collect();
    let mut stream = gpu.open_stream().unwrap();
    let stream = &mut *stream;
    let mut q = Buffer::<i8>::alloc(gpu, m * k).unwrap();
    let codes: Vec<i8> = noise(m * k).iter().map(|v| (v * 127.0) as i8).collect();
    q.write(stream, &codes).unwrap();
    let mut scales = Buffer::<f32>::alloc(gpu, m).unwrap();
    scales.write(stream, &vec![30.0; m]).unwrap();
    let mut y = Buffer::<f32>::alloc(gpu, m * n).unwrap();
    let mut kernel = "";
    let count = if m == 512 { 20 } else { 200 };
    let mut samples = time(stream, 9, count, |stream, i| {
        let x = Activations::Int8 { q: q.input(), scales: scales.input() };
        let op = Op::MatMul { w: &copies[i % copies.len()], x, y: Output::F32(y.output()), epilogue: Epilogue::Store };
        kernel = stream.submit(op.check().unwrap()).unwrap().kernel;
    });
    let (median, least, most) = spread(&mut samples);
    let gbs = bytes as f64 / median / 1e9;
    let tmacs = (m * n * k) as f64 / median / 1e12;
    println!(
        "{kernel} m={m} {n}x{k}: {:.2} us ({:.2}..{:.2}), {gbs:.0} GB/s of weights, {tmacs:.1} TMAC/s",
        median * 1e6,
        least * 1e6,
        most * 1e6
    );
    json!({ "kernel": kernel, "m": m, "n": n, "k": k, "median_s": median, "least_s": least, "most_s": most,
            "weight_bytes": bytes, "weights_gb_per_s": gbs, "tmac_per_s": tmacs, "timed": "host clock over many launches" })
}

/// A head times `m` rows of the activations that its format takes.
pub(crate) fn head(gpu: &CudaBackend, weight: &Weight, m: usize) -> Value {
    let (n, k) = (weight.shape().rows(), weight.shape().cols());
    let bytes = gpu.packed_size(weight.format(), weight.shape()).unwrap();
    let w = gpu.pack(weight).unwrap();
    let mut stream = gpu.open_stream().unwrap();
    let stream = &mut *stream;
    let (mut x, mut q) = (Buffer::<f32>::alloc(gpu, m * k).unwrap(), Buffer::<i8>::alloc(gpu, m * k).unwrap());
    let (mut scales, mut y) = (Buffer::<f32>::alloc(gpu, m).unwrap(), Buffer::<f32>::alloc(gpu, m * n).unwrap());
    let values = noise(m * k);
    x.write(stream, &values).unwrap();
    q.write(stream, &values.iter().map(|v| (v * 127.0) as i8).collect::<Vec<_>>()).unwrap();
    scales.write(stream, &vec![30.0; m]).unwrap();
    let mut kernel = "";
    let mut samples = time(stream, 9, 20, |stream, _| {
        let int8 = Activations::Int8 { q: q.input(), scales: scales.input() };
        let x = if weight.format().is_block() { int8 } else { Activations::F32(x.input()) };
        let op = Op::MatMul { w: &w, x, y: Output::F32(y.output()), epilogue: Epilogue::Store };
        kernel = stream.submit(op.check().unwrap()).unwrap().kernel;
    });
    let (median, least, most) = spread(&mut samples);
    let gbs = bytes as f64 / median / 1e9;
    println!(
        "{kernel} m={m} {n}x{k}: {:.1} us ({:.1}..{:.1}), {gbs:.0} GB/s of weights",
        median * 1e6,
        least * 1e6,
        most * 1e6
    );
    json!({ "kernel": kernel, "m": m, "n": n, "k": k, "median_s": median, "least_s": least, "most_s": most,
            "weight_bytes": bytes, "weights_gb_per_s": gbs, "timed": "host clock over many launches" })
}

fn copy(gpu: &CudaBackend) -> Value {
    let n = 1 << 28;
    let (x, mut y) = (Buffer::<f32>::alloc(gpu, n).unwrap(), Buffer::<f32>::alloc(gpu, n).unwrap());
    let mut stream = gpu.open_stream().unwrap();
    let mut samples = time(&mut *stream, 9, 5, |stream, _| {
        stream.submit(Op::Copy { x: x.input(), y: y.output() }.check().unwrap()).unwrap();
    });
    let (median, ..) = spread(&mut samples);
    let gbs = 8.0 * n as f64 / median / 1e9;
    println!("copy of {n} f32: {gbs:.0} GB/s read and written");
    json!({ "copy_bytes": 4 * n, "median_s": median, "gb_per_s": gbs })
}

fn quantize(gpu: &CudaBackend, format: Format) -> Value {
    let shape = Shape::new(16_384, 16_384).unwrap();
    let mut stream = gpu.open_stream().unwrap();
    let stream = &mut *stream;
    let data = noise(shape.len());
    let mut w = Buffer::<f32>::alloc(gpu, shape.len()).unwrap();
    let started = Instant::now();
    w.write(stream, &data).unwrap();
    stream.synchronize().unwrap();
    let upload = 4.0 * data.len() as f64 / started.elapsed().as_secs_f64() / 1e9;
    let len = format.encoded_len(shape).unwrap();
    let mut codes = Buffer::<u8>::alloc(gpu, len.bytes).unwrap();
    let mut scales = Buffer::<f32>::alloc(gpu, len.scales).unwrap();
    let mut kernel = "";
    let mut samples = time(stream, 9, 5, |stream, _| {
        let w = FloatIn::F32(w.input());
        let op = Op::Quantize { w, shape, format, codes: codes.output(), scales: scales.output() };
        kernel = stream.submit(op.check().unwrap()).unwrap().kernel;
    });
    let (median, least, most) = spread(&mut samples);
    let rate = shape.len() as f64 / median / 1e9;
    println!(
        "{kernel} {shape}: {rate:.0} Gelem/s ({:.0} us); upload of pageable memory {upload:.1} GB/s",
        median * 1e6
    );
    json!({ "kernel": kernel, "elements": shape.len(), "median_s": median, "least_s": least, "most_s": most,
            "gelem_per_s": rate, "pageable_upload_gb_per_s": upload })
}
