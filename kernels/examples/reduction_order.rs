//! What the one order of float sums (`docs/numerics.md`) costs on this CPU: dot products of vectors in the first-level cache, in
//! 64 lanes with separate multiplication and addition, against fused multiply-adds folded as the instruction set likes best.
//!
//! `cargo run --release -p tersor-kernels --example reduction_order`

use std::hint::black_box;
use std::time::Instant;

use tersor_kernels::{Body, Simd, lanes};

/// Dot products timed together.
const TIMES: usize = 2000;

struct Defined<'a>(&'a [f32], &'a [f32]);

impl Body for Defined<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        lanes::dot(simd, self.0, self.1)
    }
}

/// The median of 51 rounds, in nanoseconds a product.
fn time(mut dot: impl FnMut(&[f32], &[f32]) -> f32, a: &[f32], b: &[f32]) -> f64 {
    let mut rounds: Vec<f64> = (0..51)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..TIMES {
                black_box(dot(black_box(a), black_box(b)));
            }
            start.elapsed().as_secs_f64() * 1e9 / TIMES as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

#[cfg(target_arch = "x86_64")]
mod free {
    use std::arch::x86_64::*;

    macro_rules! dot {
        ($name:ident, $features:literal, $lanes:literal, $zero:expr, $load:ident, $fma:ident, $add:ident, |$v:ident| $sum:expr) => {
            #[target_feature(enable = $features)]
            fn $name(a: &[f32], b: &[f32]) -> f32 {
                let mut sums = [$zero; 4];
                for (a, b) in a.as_chunks::<{ 4 * $lanes }>().0.iter().zip(b.as_chunks::<{ 4 * $lanes }>().0) {
                    for i in 0..4 {
                        // SAFETY: the four registers lie within the chunks.
                        let (a, b) = unsafe { ($load(a.as_ptr().add($lanes * i)), $load(b.as_ptr().add($lanes * i))) };
                        sums[i] = $fma(a, b, sums[i]);
                    }
                }
                let $v = $add($add(sums[0], sums[1]), $add(sums[2], sums[3]));
                $sum
            }
        };
    }

    dot!(wide, "avx512f", 16, _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_fmadd_ps, _mm512_add_ps, |v| {
        _mm512_reduce_add_ps(v)
    });
    dot!(narrow, "avx2,fma", 8, _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_fmadd_ps, _mm256_add_ps, |v| {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    });

    type Dot = fn(&[f32], &[f32]) -> f32;

    /// For whole chunks of 64 values.
    pub(super) fn dots() -> Vec<(&'static str, Dot)> {
        let mut dots: Vec<(&'static str, Dot)> = Vec::new();
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU and the operating system have just said that they support it.
            dots.push(("512 bits", |a, b| unsafe { wide(a, b) }));
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            dots.push(("256 bits", |a, b| unsafe { narrow(a, b) }));
        }
        dots
    }
}

fn main() {
    #[cfg(target_arch = "x86_64")]
    for len in [128, 2560, 6912] {
        let value = |i: usize| (i * 7919 % 1013) as f32 * 1e-3 - 0.5;
        let (a, b): (Vec<f32>, Vec<f32>) = ((0..len).map(value).collect(), (0..len).map(|i| value(i + 1)).collect());
        for (name, free) in free::dots() {
            let defined = match name {
                "512 bits" => tersor_kernels::isa::Avx512::detect().map(|s| time(|a, b| s.run(Defined(a, b)), &a, &b)),
                _ => tersor_kernels::isa::Avx2::detect().map(|s| time(|a, b| s.run(Defined(a, b)), &a, &b)),
            };
            if let Some(defined) = defined {
                println!("{len} values, {name}: defined {defined:.1} ns, free {:.1} ns", time(free, &a, &b));
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    println!("no free order is written for {}", std::env::consts::ARCH);
}
