//! What is encoded in one read against the definition.

use super::*;
use crate::backend::Kernels;
use crate::isa::Portable;
use crate::ops::Scratch;
use tersor_core::codec::rows_of;
use tersor_core::{Executor, Inline, Shape};

/// Tasks one after another, as if there were three threads.
struct Three;
impl Executor for Three {
    fn threads(&self) -> usize {
        3
    }
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).rev().for_each(task);
    }
}

fn bell(n: usize) -> Vec<f32> {
    let mut state = 7u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.02 * (uniform() + uniform() + uniform())).collect()
}

const COLS: usize = 768;

/// Encodes with a guess, or with the sample's, and compares with the definition whatever was encoded.
fn encode<S: Simd>(isa: S, executor: &dyn Executor, w: &[f32], format: Format, guess: Option<Guess>) -> Outcome {
    let shape = Shape::new(w.len() / COLS, COLS).expect("a shape");
    let want = codec::quantize(Floats::F32(w), shape, format).expect("it quantizes");
    let rows = rows_of(format, shape);
    let mut codes = vec![0xee; rows.count * rows.bytes];
    let context = Context { kernels: Kernels::shared("test", isa), executor, scratch: &mut Scratch::default() };
    let guess = guess.or_else(|| context.guess(w)).expect("a guess");
    let outcome = context.with_guess(w, format, guess, &mut codes).expect("it encodes");
    if let Outcome::Encoded(scale) = outcome {
        assert_eq!(scale, codec::absmean::scale_of(Floats::F32(w)).expect("a scale"));
        assert!(codes == want.codes()[..codes.len()], "{format} with {isa:?}");
    }
    outcome
}

fn check<S: Simd>(isa: S) {
    // Whole chunks and a part of one; at least 64 samples.
    let mut w = bell(2100 * COLS);
    let scale = codec::absmean::scale_of(Floats::F32(&w)).expect("a scale");
    // On the threshold, and next to it on both sides.
    for (i, by) in (-2..=2).enumerate() {
        w[9000 + i] = f32::from_bits((0.5 * scale).to_bits().wrapping_add_signed(by));
        w[9100 + i] = -w[9000 + i];
    }
    let scale = codec::absmean::scale_of(Floats::F32(&w)).expect("a scale");
    let around = |by: f32| Guess { low: 0.5 * scale * (1.0 - by), high: 0.5 * scale * (1.0 + by) };
    for format in [Format::I2S, Format::TL1, Format::TQ2_0] {
        for executor in [&Inline as &dyn Executor, &Three] {
            let run = |guess| encode(isa, executor, &w, format, guess);
            assert_eq!(run(None), Outcome::Encoded(scale), "the sample is right about bell-shaped weights");
            assert_eq!(run(Some(around(0.01))), Outcome::Encoded(scale));
            assert_eq!(run(Some(around(0.0))), Outcome::Encoded(scale));
            let beside = Guess { low: 0.501 * scale, high: 0.502 * scale };
            assert_eq!(run(Some(beside)), Outcome::Missed(scale));
            assert_eq!(run(Some(around(0.5))), Outcome::Unknown, "too much is near");
            let ternary: Vec<f32> =
                w.iter().map(|v| if v.abs() > scale { 0.03f32.copysign(*v) } else { 0.0 }).collect();
            assert_eq!(encode(isa, executor, &ternary, format, None), Outcome::Encoded(0.03));
            // One weight that no sample sees makes all the difference.
            let mut almost = ternary.clone();
            almost[sample_at(0) + SAMPLE] = 0.01;
            assert!(matches!(encode(isa, executor, &almost, format, None), Outcome::Missed(_)));
        }
    }
}

#[test]
fn what_is_encoded_in_one_read_is_what_the_definition_says() {
    check(Portable);
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::{Avx2, Avx512};
        if let Some(simd) = Avx2::detect() {
            check(simd);
        }
        if let Some(simd) = Avx512::detect() {
            check(simd);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = crate::isa::Neon::detect() {
        check(simd);
    }
}

#[test]
fn nothing_is_guessed_from_zeros_few_samples_or_what_is_not_finite() {
    let sample = ChunkStats { sum: 64.0, max_bits: 2f32.to_bits(), min_bits: 1 };
    assert!(Guess::of(&[sample; 64]).is_some());
    assert_eq!(Guess::of(&[sample; 63]), None);
    assert_eq!(Guess::of(&[]), None);
    assert_eq!(Guess::of(&[NOTHING; 64]), None);
    for max in [f32::INFINITY, f32::NAN, f32::MAX, 1e-38] {
        let mut samples = [sample; 64];
        samples.fill(ChunkStats { max_bits: max.to_bits(), ..sample });
        assert_eq!(Guess::of(&samples), None, "{max:e}");
    }
}
