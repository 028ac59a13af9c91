//! Matrix products: exact sums, and the sequence of roundings that follows them.

use tersor_core::{Format, Shape};

use super::{layout, sums};

/// Codes times int8 activations, exact.
pub fn exact(codes: &[i8], x: &[i8]) -> i64 {
    codes.iter().zip(x).map(|(t, x)| i64::from(*t) * i64::from(*x)).sum()
}

/// A ternary weight as the oracle sees it: codes, and one scale for each block.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Its format, which sets the blocks.
    pub format: Format,
    /// Rows (N) and columns (K).
    pub shape: Shape,
    /// The codes, row-major.
    pub codes: Vec<i8>,
    /// `ceil(len / block)` scales, as the format stores them.
    pub scales: Vec<f32>,
}

impl Matrix {
    fn row(&self, r: usize) -> &[i8] {
        &self.codes[r * self.shape.cols()..(r + 1) * self.shape.cols()]
    }

    /// The one scale of all blocks that have a code other than zero, if they agree bit for bit; of a block of zeros the
    /// scale has no meaning.
    fn single_scale(&self) -> Option<f32> {
        let blocks = self.codes.chunks(layout::block(self.format, self.shape)).zip(&self.scales);
        let mut used = blocks.filter(|(codes, _)| codes.iter().any(|t| *t != 0)).map(|(_, s)| *s);
        let first = used.next().unwrap_or(self.scales[0]);
        used.all(|s| s.to_bits() == first.to_bits()).then_some(first)
    }

    /// `m x n` exact sums of `m x k` activations.
    pub fn sums(&self, x: &[i8]) -> Vec<i64> {
        let rows = x.chunks(self.shape.cols());
        rows.flat_map(|x| (0..self.shape.rows()).map(|r| exact(self.row(r), x))).collect()
    }

    /// `m x n` real results.
    pub fn scaled(&self, x: &[i8], x_scales: &[f32]) -> Vec<f32> {
        let k = self.shape.cols();
        let single = self.single_scale();
        let one = |r: usize, x: &[i8], x_scale: f32| {
            if let Some(s) = single {
                return (exact(self.row(r), x) as f32 * s) / x_scale;
            }
            let block = layout::block(self.format, self.shape);
            let scales = &self.scales[r * k / block..];
            let parts = self.row(r).chunks(block).zip(x.chunks(block)).zip(scales);
            sums::sum(parts.map(|((t, x), s)| exact(t, x) as f32 * s)) / x_scale
        };
        let rows = x.chunks(k).zip(x_scales);
        rows.flat_map(|(x, s)| (0..self.shape.rows()).map(move |r| one(r, x, *s))).collect()
    }
}

/// `m x n` results of a dense `n x k` weight.
pub fn dense(w: &[f32], k: usize, x: &[f32]) -> Vec<f32> {
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| sums::dot(w, x))).collect()
}
