//! The link between host and device: what copies reach, and what quantizing weights of the host reaches of that.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tersor_backend_cuda::{CudaBackend, open_device};
use tersor_core::{Buffer, Error, Floats, Format, GroupSize, HostContext, QuantBackend, RawBuffer, Shape, bf16, codec};
use tersor_pool::Pool;

use crate::bench::noise;
use crate::spread;

const ROUNDS: usize = 5;

pub(crate) fn run() -> bool {
    let threads = Pool::available();
    let gpu = open_device(0, &HostContext::new(Arc::new(Pool::new(threads).unwrap()))).unwrap();
    let ok = equal(&gpu);
    let elements = 1 << 28;
    let shape = Shape::new(16_384, 16_384).unwrap();
    let data = noise(elements);
    let mut pinned = Buffer::<f32>::pinned(&gpu, elements).unwrap();
    pinned.as_host_mut().unwrap().copy_from_slice(&data);
    let mut results = Vec::new();
    let [up, pageable_up] = [pinned.as_host().unwrap(), &data].map(|source| copy_up(&gpu, source));
    let [down, pageable_down] = [true, false].map(|pinned| copy_down(&gpu, 4 * elements, pinned));
    println!(
        "{threads} threads; to the device {up:.1} GB/s from pinned memory, {pageable_up:.1} from pageable; to the host {down:.1} and {pageable_down:.1}"
    );
    results.push(json!({ "host_threads": threads, "bytes": 4 * elements, "pinned_up_gb_per_s": up, "pageable_up_gb_per_s": pageable_up,
                         "pinned_down_gb_per_s": down, "pageable_down_gb_per_s": pageable_down }));
    let halves: Vec<bf16> = data.iter().map(|v| bf16::from_f32(*v)).collect();
    let mut pinned_halves = Buffer::<bf16>::pinned(&gpu, elements).unwrap();
    pinned_halves.as_host_mut().unwrap().copy_from_slice(&halves);
    for format in [Format::I2S, Format::I2SGroup(GroupSize::G128), Format::TQ2_0] {
        let sources = [
            ("f32", true, Floats::F32(pinned.as_host().unwrap())),
            ("f32", false, Floats::F32(&data)),
            ("bf16", true, Floats::BF16(pinned_halves.as_host().unwrap())),
            ("bf16", false, Floats::BF16(&halves)),
        ];
        for (ty, is_pinned, w) in sources {
            results.push(quantize(&gpu, (format, shape), (ty, is_pinned), w, up));
        }
    }
    for streams in [1, 2, 4] {
        for is_pinned in [true, false] {
            let source = if is_pinned { pinned.as_host().unwrap() } else { &data };
            results.push(several(&gpu, source, streams, is_pinned, up));
        }
    }
    crate::save("cuda-link", &gpu, json!(results));
    ok
}

/// Tensors that go in pieces are quantized as the reference does, the last piece short, and the first of two NaN is found.
fn equal(gpu: &CudaBackend) -> bool {
    let shape = Shape::new(4099, 4096).unwrap();
    let mut w = noise(shape.len());
    let mut pinned = Buffer::<f32>::pinned(gpu, w.len()).unwrap();
    pinned.as_host_mut().unwrap().copy_from_slice(&w);
    let halves: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
    let mut ok = true;
    for format in Format::TERNARY.into_iter().chain(Format::GROUPED) {
        for (ty, source) in [
            ("f32", Floats::F32(&w)),
            ("pinned f32", Floats::F32(pinned.as_host().unwrap())),
            ("bf16", Floats::BF16(&halves)),
        ] {
            let want = codec::quantize(source, shape, format).unwrap();
            let (mut codes, mut scales) = (vec![0x5a; want.codes().len()], vec![f32::NAN; want.scales().len()]);
            let ran = gpu.quantize(source, shape, format, &mut codes, &mut scales);
            let same = ran.is_ok() && codes == want.codes() && scales == want.scales();
            if !same {
                println!("{ty} -> {format}: DIFFERENT {ran:?}");
            }
            ok &= same;
        }
    }
    (w[16_000_001], w[9_000_001]) = (f32::NAN, f32::NAN);
    for format in [Format::I2S, Format::TQ1_0, Format::I2SGroup(GroupSize::G64)] {
        let len = format.encoded_len(shape).unwrap();
        let (mut codes, mut scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
        let found = gpu.quantize(Floats::F32(&w), shape, format, &mut codes, &mut scales);
        let right = matches!(found, Err(Error::NotFinite { index: 9_000_001, .. }));
        if !right {
            println!("{format}: the NaN was NOT FOUND: {found:?}");
        }
        ok &= right;
    }
    println!("in pieces: {}", if ok { "equal to the reference" } else { "FAILED" });
    ok
}

/// Gigabytes a second of `work` on `bytes`, the median of some rounds after one that warms up.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..=ROUNDS)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        })
        .collect();
    bytes as f64 / spread(&mut seconds[1..]).0 / 1e9
}

fn copy_up(gpu: &CudaBackend, source: &[f32]) -> f64 {
    let mut stream = gpu.open_stream().unwrap();
    let mut buffer = Buffer::<f32>::alloc(gpu, source.len()).unwrap();
    rate(4 * source.len(), || {
        buffer.write(&mut *stream, source).unwrap();
        stream.synchronize().unwrap();
    })
}

fn copy_down(gpu: &CudaBackend, bytes: usize, pinned: bool) -> f64 {
    let mut stream = gpu.open_stream().unwrap();
    let buffer = gpu.alloc(bytes).unwrap();
    let mut target = if pinned { gpu.alloc_pinned(bytes).unwrap() } else { RawBuffer::host(bytes) };
    rate(bytes, || stream.download(&buffer, 0, target.as_host_mut().unwrap()).unwrap())
}

fn quantize(gpu: &CudaBackend, what: (Format, Shape), from: (&str, bool), w: Floats<'_>, link: f64) -> Value {
    let ((format, shape), (ty, pinned)) = (what, from);
    let len = format.encoded_len(shape).unwrap();
    let mut codes = if pinned { gpu.alloc_pinned(len.bytes).unwrap() } else { RawBuffer::host(len.bytes) };
    let mut scales = vec![0.0; len.scales];
    let bytes = shape.len() * if ty == "f32" { 4 } else { 2 };
    let gbs = rate(bytes, || {
        gpu.quantize(w, shape, format, codes.as_host_mut().unwrap(), &mut scales).unwrap();
    });
    let (share, memory) = (gbs / link, if pinned { "pinned" } else { "pageable" });
    println!(
        "quantize {shape} {ty} -> {format} from {memory} memory: {gbs:.1} GB/s, {:.1} % of the link",
        100.0 * share
    );
    json!({ "quantize": format.id(), "from": ty, "memory": memory, "elements": shape.len(), "gb_per_s": gbs, "of_link": share })
}

/// Tensors of 32 million elements, `streams` at once.
fn several(gpu: &CudaBackend, source: &[f32], streams: usize, pinned: bool, link: f64) -> Value {
    let shape = Shape::new(8192, 4096).unwrap();
    let len = Format::I2S.encoded_len(shape).unwrap();
    let tensors: Vec<&[f32]> = source.chunks_exact(shape.len()).collect();
    let target = || if pinned { gpu.alloc_pinned(len.bytes).unwrap() } else { RawBuffer::host(len.bytes) };
    let mut targets: Vec<RawBuffer> = (0..streams).map(|_| target()).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let gbs = rate(4 * source.len(), || {
        next.store(0, std::sync::atomic::Ordering::Relaxed);
        std::thread::scope(|scope| {
            for codes in &mut targets {
                let (tensors, next) = (&tensors, &next);
                scope.spawn(move || {
                    let codes = codes.as_host_mut().unwrap();
                    while let Some(w) = tensors.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                        gpu.quantize(Floats::F32(w), shape, Format::I2S, codes, &mut []).unwrap();
                    }
                });
            }
        });
    });
    let (share, memory) = (gbs / link, if pinned { "pinned" } else { "pageable" });
    println!(
        "{} tensors {shape} f32 -> i2_s, {streams} at once, from {memory} memory: {gbs:.1} GB/s, {:.1} % of the link",
        tensors.len(),
        100.0 * share
    );
    json!({ "tensors": tensors.len(), "shape": shape.to_string(), "streams": streams, "memory": memory, "gb_per_s": gbs, "of_link": share })
}
