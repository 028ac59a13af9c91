//! Epilogues of integer products, and dense products.

use super::lanes::{self, LANES, fold};

/// The result of a single-scale row: `(f32(acc) * w_scale) / x_scale`.
#[inline(always)]
pub fn scaled(acc: i32, w_scale: f32, x_scale: f32) -> f32 {
    acc as f32 * w_scale / x_scale
}

/// The result of a row with several scales, and of every row of `q8_0` (blocks of 32) and `q6_k` (blocks of 16, whose
/// scale is `f32(d) * f32(sc)`, exact): block b contributes `f32(acc_b) * scale_b` to lane `b mod 64`; the lanes are
/// folded and divided by the activation scale. Ternary weights whose scales are all equal bit for bit are single-scale
/// instead.
#[inline(always)]
pub fn scaled_blocks(blocks: impl Iterator<Item = (i32, f32)>, x_scale: f32) -> f32 {
    let mut sums = [0.0; LANES];
    for (b, (acc, scale)) in blocks.enumerate() {
        sums[b % LANES] += acc as f32 * scale;
    }
    fold(&mut sums) / x_scale
}

/// A dense row times f32 activations, the weights widened exactly.
#[inline(always)]
pub fn dense(w: &[f32], x: &[f32]) -> f32 {
    lanes::dot(w, x)
}

/// Integer codes times int8 activations, exact up to 65,536 of them.
#[inline(always)]
pub fn ternary(codes: &[i8], x: &[i8]) -> i32 {
    codes.iter().zip(x).map(|(&t, &x)| i32::from(t) * i32::from(x)).sum()
}
