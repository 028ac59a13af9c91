//! The operations on rows, one formula each.

use super::sums;

/// "mean = sum(x*x) / n; r = 1 / sqrt(mean + eps); y = (x * r) * w"
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mean = sums::dot(x, x) / x.len() as f32;
    let r = 1.0f32 / (mean + eps).sqrt();
    x.iter().zip(w).map(|(x, w)| (x * r) * w).collect()
}

/// "(a, b) -> (a*c - b*s, b*c + a*s)", element i with element i + d/2 of each head.
pub fn rope(row: &[f32], head_dim: usize, cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let mut out = row.to_vec();
    for head in (0..row.len()).step_by(head_dim) {
        for i in 0..head_dim / 2 {
            let (at, other) = (head + i, head + i + head_dim / 2);
            let (ac, bs) = (row[at] * cos[i], row[other] * sin[i]);
            let (bc, as_) = (row[other] * cos[i], row[at] * sin[i]);
            (out[at], out[other]) = (ac - bs, bc + as_);
        }
    }
    out
}

/// "r = max(gate, 0); y = (r * r) * up"
pub fn gate(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let one = |(g, u): (&f32, &f32)| {
        let r = if *g > 0.0 { *g } else { 0.0 };
        (r * r) * u
    };
    gate.iter().zip(up).map(one).collect()
}
