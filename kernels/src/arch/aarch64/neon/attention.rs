//! Scores of attention in 128-bit registers: four keys at a time, so that a lane of the result is a position.
//!
//! Disassembled, four keys of 64 elements are 65 `fmul`, 62 `fadd`, 4 `zip`, a `faddp` and 48 `ldp` or `ldr` of two or one registers,
//! a query's register once for four keys: 33 arithmetic instructions a key on registers half as wide as AVX2's, which has 18.

use std::arch::aarch64::*;

use crate::positions::{Rows, TILE};

/// [`crate::lanes::Lanes::scores`].
///
/// # Safety
/// NEON must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn scores(q: &[[f32; 64]], keys: Rows<'_>, scale: f32, scores: &mut [[f32; TILE]]) {
    // SAFETY: the caller's contract.
    unsafe {
        for (quarter, scores) in scores.as_flattened_mut().as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let at = Rows::opaque(4 * quarter);
            let dots = match (q.len(), at + 4 <= keys.count()) {
                (1, true) => tile::<1, true>(q, keys, at),
                (1, false) => tile::<1, false>(q, keys, at),
                (2, true) => tile::<2, true>(q, keys, at),
                (2, false) => tile::<2, false>(q, keys, at),
                (_, true) => tile::<0, true>(q, keys, at),
                (_, false) => tile::<0, false>(q, keys, at),
            };
            vst1q_f32(scores.as_mut_ptr(), vmulq_n_f32(dots, scale));
        }
    }
}

/// [`crate::lanes::Lanes::largest`].
///
/// # Safety
/// NEON must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn largest(scores: &[[f32; TILE]]) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let mut largest = vdupq_n_f32(f32::NEG_INFINITY);
        for scores in scores.as_flattened().as_chunks::<4>().0 {
            // A NaN is not the larger one, as for `f32::max`.
            largest = vmaxnmq_f32(vld1q_f32(scores.as_ptr()), largest);
        }
        vmaxnmvq_f32(largest)
    }
}

/// The dots of four keys, in order, of `CHUNKS` chunks, or as many as the query has if 0; `FULL`: there are four.
///
/// # Safety
/// As for [`scores`]; the query must be as long as the keys.
#[inline(always)]
unsafe fn tile<const CHUNKS: usize, const FULL: bool>(q: &[[f32; 64]], keys: Rows<'_>, at: usize) -> float32x4_t {
    // SAFETY: the caller's contract; positions are below `keys.count()`, or the last.
    unsafe {
        macro_rules! one {
            ($p:expr) => {
                if FULL { keys.row(at + $p) } else { keys.row_or_last(at + $p) }
            };
        }
        // Pairs of four lanes of two keys; single lanes of four.
        macro_rules! two {
            ($a:expr, $b:expr) => {{
                let (a, b) = (vreinterpretq_f64_f32($a), vreinterpretq_f64_f32($b));
                let (low, high) = (vzip1q_f64(a, b), vzip2q_f64(a, b));
                vaddq_f32(vreinterpretq_f32_f64(low), vreinterpretq_f32_f64(high))
            }};
        }
        let [a, b, c, d] = fours::<CHUNKS>(q, [one!(0), one!(1), one!(2), one!(3)]);
        vpaddq_f32(two!(a, b), two!(c, d))
    }
}

/// The products of a query and four keys, the 64 lanes of each folded to four.
/// Lanes begin with the first product instead of at +0, which differs in the sign of a zero, and a score's sign of zero changes
/// nothing: exp of both is 1.
///
/// # Safety
/// As for [`tile`]; a key must begin at each of `keys`.
#[inline(always)]
unsafe fn fours<const CHUNKS: usize>(q: &[[f32; 64]], keys: [*const f32; 4]) -> [float32x4_t; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        // Lanes 4i..4i + 4 with those 32 above; with those 16 above both; with those 8 above all four.
        macro_rules! pair {
            ($i:expr) => {{
                let (low, high) = (register::<CHUNKS>(q, keys, $i), register::<CHUNKS>(q, keys, $i + 8));
                add(low, high)
            }};
        }
        macro_rules! quad {
            ($i:expr) => {
                add(pair!($i), pair!($i + 4))
            };
        }
        add(add(quad!(0), quad!(2)), add(quad!(1), quad!(3)))
    }
}

/// Key by key.
///
/// # Safety
/// NEON must be enabled in the caller.
#[inline(always)]
unsafe fn add(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let [a0, a1, a2, a3] = a;
    let [b0, b1, b2, b3] = b;
    // SAFETY: the caller's contract.
    unsafe { [vaddq_f32(a0, b0), vaddq_f32(a1, b1), vaddq_f32(a2, b2), vaddq_f32(a3, b3)] }
}

/// Lanes `4 * i..4 * i + 4` of the dots of a query and four keys.
///
/// # Safety
/// As for [`fours`].
#[inline(always)]
unsafe fn register<const CHUNKS: usize>(q: &[[f32; 64]], keys: [*const f32; 4], i: usize) -> [float32x4_t; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        macro_rules! products {
            ($c:expr) => {{
                let at = 64 * $c + 4 * i;
                let q = vld1q_f32(q.as_ptr().cast::<f32>().add(at));
                [
                    vmulq_f32(q, vld1q_f32(keys[0].add(at))),
                    vmulq_f32(q, vld1q_f32(keys[1].add(at))),
                    vmulq_f32(q, vld1q_f32(keys[2].add(at))),
                    vmulq_f32(q, vld1q_f32(keys[3].add(at))),
                ]
            }};
        }
        let mut lanes = products!(0);
        for c in 1..if CHUNKS == 0 { q.len() } else { CHUNKS } {
            lanes = add(lanes, products!(c));
        }
        lanes
    }
}
