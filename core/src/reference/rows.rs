//! Operations on single rows: activation quantization, RMSNorm, the squared-ReLU gate.

use super::lanes;
use super::math::round_to_i32;

/// Quantizes a row of activations to int8: `s = 127 / max(max |x|, 1e-5)`, `q = round_half_even(x * s)`. The product
/// cannot round beyond 127, so no clamp is needed. Returns s, by which the result of a product is divided; `None` if an
/// element is NaN or infinite, `q` then being unspecified.
#[inline(always)]
pub fn quantize(x: &[f32], q: &mut [i8]) -> Option<f32> {
    let largest = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    if largest >= f32::INFINITY.to_bits() {
        return None;
    }
    let s = 127.0 / f32::from_bits(largest).max(1e-5);
    for (q, &v) in q.iter_mut().zip(x) {
        *q = round_to_i32(v * s) as i8;
    }
    Some(s)
}

/// RMSNorm: `y = (x * (1 / sqrt(mean(x^2) + eps))) * w`.
#[inline(always)]
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let mean = lanes::sum(x, |v| v * v) / x.len() as f32;
    let r = 1.0 / (mean + eps).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = (x * r) * w;
    }
}

/// The gate of the feed-forward block: `y = max(gate, 0)^2 * up`, the square first.
#[inline(always)]
pub fn relu_squared_mul(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
        let r = g.max(0.0);
        *y = (r * r) * u;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_round_half_to_even_at_127_over_the_absmax() {
        let mut q = [0; 5];
        let s = quantize(&[127.0, 0.5, 1.5, -2.5, -127.0], &mut q).unwrap();
        assert_eq!((s, q), (1.0, [127, 0, 2, -2, -127]));
    }

    #[test]
    fn no_row_rounds_beyond_127() {
        let mut q = [0; 1];
        for i in 0..200_000u32 {
            let x = f32::from_bits(0x3000_0000 + i * 2711);
            quantize(&[x], &mut q).unwrap();
            assert!(q[0] == 127 || x < 1e-5, "{x:e} became {}", q[0]);
        }
    }

    #[test]
    fn zeros_and_non_finite_rows() {
        let mut q = [1; 2];
        assert_eq!((quantize(&[0.0, -0.0], &mut q), q), (Some(127.0 / 1e-5), [0, 0]));
        assert_eq!(quantize(&[0.0, f32::NAN], &mut q), None);
        assert_eq!(quantize(&[f32::NEG_INFINITY, 0.0], &mut q), None);
    }

    #[test]
    fn norm_of_a_hand_worked_row() {
        // mean of squares (9 + 16) / 2 = 12.5; with eps 3.5: 1 / sqrt(16) = 0.25.
        let mut y = [0.0; 2];
        rms_norm(&[3.0, -4.0], &[2.0, 1.0], 3.5, &mut y);
        assert_eq!(y, [1.5, -1.0]);
    }

    #[test]
    fn gate_is_zero_for_negative_inputs() {
        let mut y = [9.0; 3];
        relu_squared_mul(&[-3.0, 0.5, 2.0], &[1.0, 4.0, -1.0], &mut y);
        assert_eq!(y, [0.0, 1.0, -4.0]);
    }
}
