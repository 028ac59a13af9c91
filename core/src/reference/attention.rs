//! Attention of one query head over the cache of its key/value head, softmax in two passes.

use super::lanes::{self, LANES};
use super::math::exp;

/// Rows of one head in a cache: position p is `data[p * stride + offset ..][..head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct HeadRows<'a> {
    /// The cache of the layer, position after position.
    pub data: &'a [f32],
    /// Elements from one position to the next.
    pub stride: usize,
    /// First element of the head.
    pub offset: usize,
}

impl<'a> HeadRows<'a> {
    /// The row of a position, `len` elements.
    #[inline(always)]
    pub fn row(&self, position: usize, len: usize) -> &'a [f32] {
        let at = position * self.stride + self.offset;
        &self.data[at..at + len]
    }
}

/// Attends over the first `scores.len()` positions, with `scores` as scratch.
///
/// * score_j = dot(q, k_j) * (1 / sqrt(head_dim)); e_j = exp(score_j - max_j score_j);
/// * the sum of the e_j by lanes over j;
/// * for each output element, e_j * v_j is summed ascending within chunks of 64 positions, and the chunk sums ascending;
/// * the division by the sum of the e_j comes last.
#[inline(always)]
pub fn attend(q: &[f32], k: HeadRows<'_>, v: HeadRows<'_>, scores: &mut [f32], y: &mut [f32]) {
    let scale = 1.0 / (q.len() as f32).sqrt();
    let mut max = f32::NEG_INFINITY;
    for (j, s) in scores.iter_mut().enumerate() {
        *s = lanes::dot(q, k.row(j, q.len())) * scale;
        max = max.max(*s);
    }
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    let total = lanes::sum(scores, |e| e);
    y.fill(0.0);
    // Output elements in tiles that fit in registers; the tile does not change any element's order.
    for (tile, y) in y.chunks_mut(LANES).enumerate() {
        for (c, chunk) in scores.chunks(LANES).enumerate() {
            let mut sums = [0.0; LANES];
            let sums = &mut sums[..y.len()];
            for (j, &e) in chunk.iter().enumerate() {
                let row = &v.row(c * LANES + j, q.len())[tile * LANES..][..sums.len()];
                sums.iter_mut().zip(row).for_each(|(s, v)| *s += e * v);
            }
            y.iter_mut().zip(&*sums).for_each(|(y, s)| *y += s);
        }
        y.iter_mut().for_each(|y| *y /= total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_follow_the_scores() {
        // Two positions, head_dim 4: scores (2, 0) after the factor 1/2, weights e^0 : e^-2.
        let k = [4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let v = [1.0, 0.0, 5.0, 0.0, 0.0, 1.0, 5.0, 0.0];
        let rows = |data| HeadRows { data, stride: 4, offset: 0 };
        let (mut scores, mut y) = ([0.0; 2], [0.0; 4]);
        attend(&[1.0, 1.0, 1.0, 1.0], rows(&k), rows(&v), &mut scores, &mut y);
        let p = 1.0 / (1.0 + (-2.0f32).exp());
        for (got, want) in y.iter().zip([p, 1.0 - p, 5.0, 0.0]) {
            assert!((got - want).abs() < 1e-6, "{y:?}");
        }
    }
}
