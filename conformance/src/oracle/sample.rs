//! Drawing a token.

use tersor_core::SampleParams;
use tersor_core::reference::sample::gumbel;

/// "argmax(logits / T + g)", the lowest index among equals; only the k largest logits take part, the lower index being the
/// larger among equals.
pub fn sample(logits: &[f32], params: &SampleParams, step: u32) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    if params.temperature == 0.0 {
        return first_largest(&order, |i| logits[i]);
    }
    // A stable sort keeps the lower index first among equals.
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.truncate(params.top_k.map_or(logits.len(), |k| k as usize));
    order.sort_unstable();
    first_largest(&order, |i| logits[i] / params.temperature + gumbel(params.seed, u64::from(step), i as u32))
}

fn first_largest(indices: &[usize], score: impl Fn(usize) -> f32) -> u32 {
    let mut best = indices[0];
    for &i in &indices[1..] {
        if score(i) > score(best) {
            best = i;
        }
    }
    best as u32
}
