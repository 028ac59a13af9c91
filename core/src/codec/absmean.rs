//! The BitNet b1.58 rule (Ma et al., 2024, "The Era of 1-bit LLMs"): scale `s = max(mean |w|, 1e-5)`, code
//! `clamp(round_half_even(w / s), -1, 1)`. Weights that are ternary already, `{-s, 0, +s}`, keep their own s, so that
//! they survive bit for bit.
//!
//! **Order of the sum.** |w| is summed in f32 in 64 lanes inside each chunk of 4,096 elements; the chunk sums are
//! converted to f64 and added in a fixed binary tree over the chunk index. The mean is the f64 sum divided by the count,
//! rounded to f32. Chunks may thus be summed on any thread, in any order.
//!
//! **No division.** For a positive normal s, the rounded quotient `fl(w / s)` exceeds 0.5 exactly when `w > s / 2`:
//! `s / 2` is exact, and the next f32 above it is at least `s/2 * (1 + 2^-24)` away, the point from which the quotient
//! rounds to more than 0.5. The comparison replaces the division in every kernel.

use crate::reference::lanes::{LANES, fold};
use crate::{Floats, Result};

/// Elements whose absolute values are summed in f32.
pub const CHUNK: usize = 4096;

/// The smallest scale of weights that are not ternary already.
pub const MIN_SCALE: f32 = 1e-5;

/// What one chunk contributes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChunkStats {
    /// Sum of absolute values, in lanes.
    pub sum: f32,
    /// Bit pattern of the largest absolute value; above that of infinity for a NaN.
    pub max_bits: u32,
    /// Bit pattern of the smallest absolute value that is not zero; `u32::MAX` if there is none.
    pub min_bits: u32,
}

/// Statistics of at most [`CHUNK`] elements.
#[inline(always)]
pub fn chunk_stats(w: &[f32]) -> ChunkStats {
    let mut sum = [0.0f32; LANES];
    let mut max = [0u32; LANES];
    let mut min = [u32::MAX; LANES];
    // Absolute values of floats order like their bit patterns. Zero minus one wraps to the largest pattern, so that
    // zeros never are the smallest.
    let mut add = |j: usize, v: f32| {
        let a = v.to_bits() & 0x7fff_ffff;
        sum[j] += f32::from_bits(a);
        max[j] = max[j].max(a);
        min[j] = min[j].min(a.wrapping_sub(1));
    };
    let mut chunks = w.chunks_exact(LANES);
    for chunk in &mut chunks {
        for j in 0..LANES {
            add(j, chunk[j]);
        }
    }
    for (j, v) in chunks.remainder().iter().enumerate() {
        add(j, *v);
    }
    ChunkStats {
        sum: fold(&mut sum),
        max_bits: max.into_iter().fold(0, u32::max),
        min_bits: min.into_iter().fold(u32::MAX, u32::min).saturating_add(1),
    }
}

impl ChunkStats {
    /// The scale of `count` elements that are one chunk, such as a group; as [`Stats::scale`] gives it.
    #[inline(always)]
    pub fn scale(self, count: usize) -> Option<f32> {
        scale(self.max_bits, self.min_bits, f64::from(self.sum), count)
    }
}

/// The scale, from the largest and smallest magnitudes and the sum of all.
#[inline(always)]
fn scale(max_bits: u32, min_bits: u32, sum: f64, count: usize) -> Option<f32> {
    if max_bits >= f32::INFINITY.to_bits() {
        return None;
    }
    if max_bits == min_bits {
        return Some(f32::from_bits(max_bits));
    }
    let mean = (sum / count.max(1) as f64) as f32;
    mean.is_finite().then_some(mean.max(MIN_SCALE))
}

/// The chunks' statistics put together, in chunk order.
#[derive(Debug, Clone)]
pub struct Stats {
    // Partial sums of complete subtrees, largest first, with their heights: a binary counter, so that chunks can be
    // added one by one and the tree is that of adding neighbours level by level.
    partial: Vec<(f64, u32)>,
    max_bits: u32,
    min_bits: u32,
    count: usize,
}

impl Default for Stats {
    fn default() -> Self {
        Stats { partial: Vec::new(), max_bits: 0, min_bits: u32::MAX, count: 0 }
    }
}

impl Stats {
    /// Adds the next chunk, of `len` elements.
    pub fn push(&mut self, chunk: ChunkStats, len: usize) {
        let (mut sum, mut height) = (f64::from(chunk.sum), 0);
        while let Some(&(left, h)) = self.partial.last().filter(|(_, h)| *h == height) {
            self.partial.pop();
            (sum, height) = (left + sum, h + 1);
        }
        self.partial.push((sum, height));
        self.max_bits = self.max_bits.max(chunk.max_bits);
        self.min_bits = self.min_bits.min(chunk.min_bits);
        self.count += len;
    }

    /// The scale; `None` if an element was NaN or infinite, or the sum overflowed.
    pub fn scale(&self) -> Option<f32> {
        let mut partial = self.partial.iter().rev().map(|p| p.0);
        let last = partial.next().unwrap_or(0.0);
        scale(self.max_bits, self.min_bits, partial.fold(last, |right, left| left + right), self.count)
    }
}

/// The scale of a tensor or a group.
///
/// # Errors
/// [`crate::Error::NotFinite`] with the index of the first NaN or infinity.
pub fn scale_of(w: Floats<'_>) -> Result<f32> {
    let mut stats = Stats::default();
    let mut buffer = [0.0; CHUNK];
    for start in (0..w.len()).step_by(CHUNK) {
        let chunk = &mut buffer[..CHUNK.min(w.len() - start)];
        w.read(start, chunk);
        stats.push(chunk_stats(chunk), chunk.len());
    }
    stats.scale().ok_or_else(|| super::non_finite(w))
}

/// Codes of finite weights at scale `s`.
#[inline(always)]
pub fn ternarize(w: &[f32], s: f32, codes: &mut [i8]) {
    let half = 0.5 * s;
    for (t, &v) in codes.iter_mut().zip(w) {
        *t = i8::from(v > half) - i8::from(v < -half);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_with_half_the_scale_equals_the_rounded_quotient() {
        let mut bits = 0x3f80_0000u32;
        for i in 0..20_000u32 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let s = f32::from_bits(0x3727_c5ac + bits % 0x1000_0000);
            let base = 0.5 * s;
            let w = f32::from_bits(base.to_bits().wrapping_add(i % 5).wrapping_sub(2));
            let by_rule = (w / s).round_ties_even().clamp(-1.0, 1.0) as i8;
            let mut t = [0, 0];
            ternarize(&[w, -w], s, &mut t);
            assert_eq!(t, [by_rule, -by_rule], "w = {w:e}, s = {s:e}");
        }
    }

    #[test]
    fn the_tree_adds_neighbours_level_by_level() {
        for n in 1..40usize {
            let sums: Vec<f32> = (0..n).map(|i| 1.0 + (i as f32).powi(7) * 1e-3).collect();
            let mut stats = Stats::default();
            sums.iter().for_each(|&sum| stats.push(ChunkStats { sum, max_bits: 2, min_bits: 1 }, 1));
            let mut level: Vec<f64> = sums.iter().map(|&s| f64::from(s)).collect();
            while level.len() > 1 {
                level = level.chunks(2).map(|p| if p.len() == 2 { p[0] + p[1] } else { p[0] }).collect();
            }
            assert_eq!(stats.scale().unwrap(), ((level[0] / n as f64) as f32).max(MIN_SCALE), "{n} chunks");
        }
    }

    #[test]
    fn ternary_weights_keep_their_own_scale() {
        let w: Vec<f32> = (0..5000).map(|i| [0.0371, 0.0, -0.0371, -0.0][i % 4]).collect();
        assert_eq!(scale_of(Floats::F32(&w)).unwrap(), 0.0371);
        assert_eq!(scale_of(Floats::F32(&[0.0; 7])).unwrap(), MIN_SCALE);
        assert_eq!(scale_of(Floats::F32(&[0.0, f32::from_bits(1)])).unwrap(), f32::from_bits(1));
    }

    #[test]
    fn a_nan_or_infinity_is_named_by_its_index() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut w = vec![0.5; 9000];
            w[8191] = bad;
            let e = scale_of(Floats::F32(&w)).unwrap_err().to_string();
            assert!(e.contains("element 8191"), "{e}");
        }
    }

    #[test]
    fn sums_beyond_f32_are_errors_not_infinite_scales() {
        let w: Vec<f32> = (0..4096).map(|i| f32::MAX / (1.0 + (i % 2) as f32)).collect();
        assert!(scale_of(Floats::F32(&w)).is_err());
    }
}
