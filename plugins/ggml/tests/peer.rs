//! Cross-validation: ggml's own functions against Tersor's codecs and definitions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tersor_core::{Floats, Format, Shape, codec, reference};
use tersor_ggml::NATIVE_NMSE;
use tersor_ggml::ffi::{BLOCK, Type, bytes, quantize_activations, words};

/// Numbers that are about Gaussian: sums of four uniform ones from a generator of 64 bits.
fn gaussian(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
}

/// -s, 0 and s with no block of zeros only.
fn ternary(seed: u64, n: usize, s: f32) -> Vec<f32> {
    gaussian(seed, n)
        .into_iter()
        .map(|v| {
            if v > 0.3 {
                s
            } else if v < -0.3 {
                -s
            } else {
                0.0
            }
        })
        .collect()
}

#[test]
fn what_is_ternary_already_is_quantized_to_the_same_bytes_by_ggml_alone() {
    for format in [Format::TQ1_0, Format::TQ2_0] {
        let ggml = Type::of(format).unwrap();
        let shape = Shape::new(7, 1024).unwrap();
        let w = ternary(3, shape.len(), 0.0625);
        let ours = codec::quantize(Floats::F32(&w), shape, format).unwrap();
        let mut blocks = vec![0; shape.len() / BLOCK * ggml.words];
        ggml.quantize(&w, &mut blocks);
        let mut theirs = vec![0; ours.codes().len()];
        bytes(&blocks, &mut theirs);
        assert!(ours.codes() == theirs, "{format}");
        let mut values = vec![0.0; shape.len()];
        ggml.dequantize(&blocks, &mut values);
        assert!(values == w, "{format}");
    }
}

/// ggml from f32 activations to f32 results by its own rules, which this backend does not offer.
#[test]
fn the_native_product_of_ggml_is_as_near_as_declared_and_not_the_same() {
    let (n, k) = (64, 2560);
    for format in [Format::TQ1_0, Format::TQ2_0] {
        let ggml = Type::of(format).unwrap();
        let shape = Shape::new(n, k).unwrap();
        let weight = codec::quantize(Floats::F32(&ternary(5, n * k, 0.0625)), shape, format).unwrap();
        let codes = codec::decode(&weight).unwrap().codes;
        let mut blocks = Vec::new();
        words(weight.codes(), &mut blocks);
        let x = gaussian(9, k);
        let mut q = vec![0; k];
        let x_scale = reference::rows::quantize(&x, &mut q).unwrap();
        let native = quantize_activations(&x);
        let (mut error, mut norm) = (0.0, 0.0);
        for (codes, row) in codes.chunks(k).zip(blocks.chunks(k / BLOCK * ggml.words)) {
            let ours = reference::matmul::scaled(reference::matmul::ternary(codes, &q), 0.0625, x_scale);
            let theirs = ggml.dot(row, &native);
            error += f64::from(ours - theirs).powi(2);
            norm += f64::from(ours).powi(2);
        }
        let nmse = error / norm;
        println!("{format}: NMSE of ggml's native product against Tersor's definition: {nmse:.2e}");
        assert!(nmse < NATIVE_NMSE && nmse > 0.0, "{format}: {nmse:e}");
    }
}
