//! Choosing the next token, free of order, so that any device can do it with the same result.
//!
//! Sampling from `softmax(logits / T)` is `argmax(logits / T + g)` with independent Gumbel noise g (the Gumbel-max trick;
//! Gumbel 1954, Maddison et al. 2014). The noise is a function of seed, step and index alone.

use super::math::ln;
use crate::op::SampleParams;

/// Index of the largest logit, the lowest one among equals; `None` if there is none or one is NaN.
#[inline(always)]
pub fn argmax(logits: &[f32]) -> Option<u32> {
    // The largest value first, in lanes, then where it stands: max is free of order, and +0 equals -0 in both steps.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut nan = [false; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for j in 0..16 {
            lanes[j] = if chunk[j] > lanes[j] { chunk[j] } else { lanes[j] };
            nan[j] |= chunk[j].is_nan();
        }
    }
    if nan.contains(&true) || rest.iter().any(|l| l.is_nan()) {
        return None;
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&l| l == max).map(|i| i as u32)
}

fn best(scores: impl Iterator<Item = (usize, f32)>) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (i, s) in scores {
        if s.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, b)| s > b) {
            best = Some((i, s));
        }
    }
    best.map(|(i, _)| i as u32)
}

/// Standard Gumbel noise of element `index` at `step`.
#[inline(always)]
pub fn gumbel(seed: u64, step: u64, index: u32) -> f32 {
    // SplitMix64's finalizer (Steele et al. 2014) over a Weyl sequence of the three.
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    const WEYL: u64 = 0x9e37_79b9_7f4a_7c15;
    let stream = mix(seed.wrapping_add(step.wrapping_add(1).wrapping_mul(WEYL)));
    let bits = mix(stream.wrapping_add((u64::from(index) + 1).wrapping_mul(WEYL)));
    // 23 bits and a half: never 0 or 1, and exact.
    let u = ((bits >> 41) as f32 + 0.5) * (1.0 / 8_388_608.0);
    -ln(-ln(u))
}

/// Draws a token at `step` (the number of tokens before it in the sequence). Temperature 0 is [`argmax`]. With `top_k`,
/// only the k largest logits take part; among equals the lower index is the larger. `None` as for [`argmax`].
pub fn sample(logits: &[f32], params: &SampleParams, step: u64) -> Option<u32> {
    if params.temperature == 0.0 {
        return argmax(logits);
    }
    if logits.iter().any(|l| l.is_nan()) {
        return None;
    }
    let score = |i: usize| (i, logits[i] / params.temperature + gumbel(params.seed, step, i as u32));
    match params.top_k {
        Some(k) if (k as usize) < logits.len() => {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            let descending = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
            order.select_nth_unstable_by(k as usize - 1, descending);
            order.truncate(k as usize);
            // Equal scores go to the lowest index, whatever order the selection left.
            order.sort_unstable();
            best(order.into_iter().map(score))
        }
        _ => best((0..logits.len()).map(score)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(temperature: f32, top_k: Option<u32>) -> SampleParams {
        SampleParams { temperature, top_k, seed: 7 }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -30.0];
        let t = 0.8f32;
        let mut counts = [0u32; 4];
        let n = 40_000;
        (0..n).for_each(|step| counts[sample(&logits, &params(t, None), step).unwrap() as usize] += 1);
        let z: f32 = logits.iter().map(|l| (l / t).exp()).sum();
        for (l, c) in logits.iter().zip(counts) {
            let p = (l / t).exp() / z;
            assert!((c as f32 / n as f32 - p).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn top_k_never_leaves_the_k_largest() {
        let logits = [3.0, 1.0, 3.0, 2.9, 3.0];
        let drawn: std::collections::BTreeSet<_> =
            (0..500).map(|s| sample(&logits, &params(5.0, Some(2)), s).unwrap()).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_refuses_nan() {
        assert_eq!(argmax(&[1.0, 4.0, 4.0]), Some(1));
        assert_eq!(argmax(&[1.0, f32::NAN]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 40]), Some(0));
        for at in 0..50 {
            let mut logits = vec![-1.0; 50];
            (logits[at], logits[49]) = (2.0, 2.0);
            assert_eq!(argmax(&logits), Some(at as u32));
            logits[at] = f32::NAN;
            assert_eq!(argmax(&logits), None);
        }
        assert_eq!(argmax(&[-0.0, 0.0]), Some(0));
        assert_eq!(argmax(&[]), None);
        assert_eq!(sample(&[f32::NAN, 1.0], &params(1.0, None), 0), None);
    }
}
