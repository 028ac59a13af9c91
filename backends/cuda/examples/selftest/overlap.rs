//! Tensors that cross the link while kernels work on others, in memory that was given back a moment before: what is quantized
//! is what was sent, whoever is faster.

use std::sync::Arc;

use tersor_backend_cuda::CudaBackend;
use tersor_core::{Floats, Format, GroupSize, QuantBackend, Shape, Weight, codec};

use crate::bench::noise;

const THREADS: usize = 4;
const ROUNDS: usize = 100;
/// Tensors of different contents, each with what the reference makes of it.
const TENSORS: usize = 6;

pub(crate) fn run(gpu: &Arc<CudaBackend>) -> bool {
    // Both are large enough to go through slots, the second in more than one.
    let shapes = [Shape::new(256, 1024).unwrap(), Shape::new(4352, 1024).unwrap()];
    let all = noise(shapes[1].len() + TENSORS);
    let formats = [Format::I2S, Format::I2SGroup(GroupSize::G64)];
    let tensors: Vec<(&[f32], Vec<Weight>)> = (0..TENSORS)
        .map(|i| {
            let shape = shapes[i % 2];
            // Each begins an element further on: no two have a code byte in common for long.
            let values = &all[i..i + shape.len()];
            let want = |f: &Format| codec::quantize(Floats::F32(values), shape, *f).unwrap();
            (values, formats.iter().map(want).collect())
        })
        .collect();
    let wrong = &|thread: usize| {
        let mut wrong = 0;
        for round in 0..ROUNDS {
            let (values, wants) = &tensors[(thread + round) % TENSORS];
            let want = &wants[round % 2];
            // One thread sends from page-locked memory, which is a copy of its own kind.
            let pinned = (thread == 0).then(|| gpu.alloc_pinned(4 * values.len()).unwrap());
            let pinned = pinned.map(|mut raw| {
                let bytes: &[u8] = bytemuck::cast_slice(values);
                raw.as_host_mut().unwrap().copy_from_slice(bytes);
                raw
            });
            let source = pinned.as_ref().map_or(*values, |raw| bytemuck::cast_slice(raw.as_host().unwrap()));
            let (mut codes, mut scales) = (vec![0x5a; want.codes().len()], vec![f32::NAN; want.scales().len()]);
            let w = Floats::F32(source);
            gpu.quantize(w, want.shape(), want.format(), &mut codes, &mut scales).unwrap();
            wrong += usize::from(codes != want.codes() || scales != want.scales());
        }
        wrong
    };
    let wrong: usize = std::thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS).map(|t| s.spawn(move || wrong(t))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    println!("{THREADS} threads, {} tensors, {wrong} of them wrong", THREADS * ROUNDS);
    wrong == 0
}
