//! The order of every float sum: 64 lanes, then a fold in halves.

/// Number of lanes.
pub const LANES: usize = 64;

/// Adds the upper half of the lanes to the lower until one is left.
#[inline(always)]
pub fn fold(lanes: &mut [f32; LANES]) -> f32 {
    // Written out, because a loop over `h` keeps the array in memory.
    macro_rules! halve {
        ($($h:literal),*) => { $( for j in 0..$h { lanes[j] += lanes[j + $h]; } )* };
    }
    halve!(32, 16, 8, 4, 2, 1);
    lanes[0]
}

/// Sum of `f(x)` over a slice.
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for j in 0..LANES {
            lanes[j] += f(chunk[j]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(v);
    }
    fold(&mut lanes)
}

/// Sum of `a[i] * b[i]`; the shorter slice sets the length.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (mut a, mut b) = (a[..n].chunks_exact(LANES), b[..n].chunks_exact(LANES));
    let mut lanes = [0.0; LANES];
    for (a, b) in (&mut a).zip(&mut b) {
        for j in 0..LANES {
            lanes[j] += a[j] * b[j];
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a.remainder()).zip(b.remainder()) {
        *lane += a * b;
    }
    fold(&mut lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word for word.
    fn by_definition(terms: &[f32]) -> f32 {
        let mut lane = vec![0.0f32; 64];
        for (i, t) in terms.iter().enumerate() {
            lane[i % 64] += t;
        }
        for h in [32, 16, 8, 4, 2, 1] {
            for j in 0..h {
                lane[j] += lane[j + h];
            }
        }
        lane[0]
    }

    #[test]
    fn sums_follow_the_definition_at_every_length() {
        for n in (0..300).chain([2560, 6912]) {
            let a: Vec<f32> = (0..n).map(|i| ((i * 7919 % 1013) as f32 - 500.0) * 1.37e-3).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 104_729 % 997) as f32 - 450.0) * 2.11e-2).collect();
            let products: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
            assert_eq!(dot(&a, &b).to_bits(), by_definition(&products).to_bits(), "dot of {n}");
            assert_eq!(sum(&a, |v| v).to_bits(), by_definition(&a).to_bits(), "sum of {n}");
        }
    }
}
