//! Attention of one query head.

use tersor_core::reference::math::exp;

use super::sums;

/// "score = dot(q, k_j) * (1 / sqrt(d)); e_j = exp(score_j - max); y = (sum e_j v_j) / (sum e_j)", the sum over v in
/// chunks of 64 positions. `k` and `v` are the rows of the visible positions.
pub fn head(q: &[f32], k: &[&[f32]], v: &[&[f32]]) -> Vec<f32> {
    let scale = 1.0f32 / (q.len() as f32).sqrt();
    let scores: Vec<f32> = k.iter().map(|k| sums::dot(q, k) * scale).collect();
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f32> = scores.iter().map(|s| exp(s - largest)).collect();
    let total = sums::sum(e.iter().copied());
    let element = |i: usize| {
        let mut y = 0.0f32;
        for (e, v) in e.chunks(64).zip(v.chunks(64)) {
            let mut chunk = 0.0f32;
            for (e, v) in e.iter().zip(v) {
                chunk += e * v[i];
            }
            y += chunk;
        }
        y / total
    };
    (0..q.len()).map(element).collect()
}
