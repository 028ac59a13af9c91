//! exp and ln in f32 with a fixed sequence of operations, and the tables of sines and cosines.
//!
//! The polynomials are those of Cephes (Moshier, `expf.c` and `logf.c`), which hold to about 2 units in the last place.
//! Steps that other libraries may contract or reorder are written one by one.

/// Adding and subtracting this rounds an f32 of magnitude below 2^22 to an integer, half to even; the sum's low bits are
/// that integer.
const ROUND: f32 = 12_582_912.0;

/// Rounds to an integer, half to even. For `|x| < 2^22`.
#[inline(always)]
pub fn round_to_i32(x: f32) -> i32 {
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// e^x for `x <= 0`. Below -87 the result is 0 (f32 would be close to subnormal); NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with trailing zeros, so that n * LN2_HI is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const P: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut p = P[0];
    p = p * r + P[1];
    p = p * r + P[2];
    p = p * r + P[3];
    p = p * r + P[4];
    p = p * r + P[5];
    let y = (p * (r * r) + r) + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let scaled = y * f32::from_bits(exponent << 23);
    if x < -87.0 { 0.0 } else { scaled }
}

/// Natural logarithm of a positive normal f32.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    let half_to_one = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    let low = half_to_one < std::f32::consts::FRAC_1_SQRT_2;
    let e = ((bits >> 23) as i32 - 126 - i32::from(low)) as f32;
    let m = if low { (half_to_one + half_to_one) - 1.0 } else { half_to_one - 1.0 };
    let z = m * m;
    let mut p = P[0];
    for c in &P[1..] {
        p = p * m + c;
    }
    let y = (p * m) * z + e * -2.121_944_4e-4;
    (m + (y - 0.5 * z)) + e * 0.693_359_4
}

/// Cosines and sines of rotary embeddings, `positions x head_dim/2` each.
///
/// `p_i = theta^(2i/head_dim)` in f64, rounded to f32; the angle at position t is `f32(t) * (1 / p_i)`; its cosine and sine
/// are computed in f64 by the `libm` crate (the same code on every platform) and rounded to f32.
pub fn rope_tables(theta: f32, head_dim: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let inverse: Vec<f32> = (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / libm::pow(f64::from(theta), f64::from(exponent)) as f32
        })
        .collect();
    let angles = (0..positions).flat_map(|t| inverse.iter().map(move |f| f64::from(t as f32 * f)));
    angles.map(|a| (libm::cos(a) as f32, libm::sin(a) as f32)).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_of_the_f64_value() {
        for i in 0..870_000u32 {
            let x = -(i as f32) * 1e-4;
            let exact = libm::exp(f64::from(x));
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_within_two_units_of_the_f64_value() {
        for i in 1..500_000u32 {
            let x = i as f32 * 3.7e-6;
            let exact = libm::log(f64::from(x));
            let error = (f64::from(ln(x)) - exact).abs();
            assert!(error <= 2.4e-7 * exact.abs().max(0.05), "ln({x}) is off by {error:e}");
        }
    }

    #[test]
    fn rounding_is_half_to_even() {
        for (x, n) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126), (-127.49, -127), (3.0, 3)] {
            assert_eq!(round_to_i32(x), n, "{x}");
        }
    }

    #[test]
    fn table_angles_follow_the_published_formula() {
        let (cos, sin) = rope_tables(10_000.0, 64, 3);
        assert_eq!((cos.len(), cos[0], sin[0]), (96, 1.0, 0.0));
        assert_eq!(cos[32], 1.0f64.cos() as f32);
        let angle = 2.0 * (1.0 / 10_000f64.powf(2.0 / 64.0));
        assert!((f64::from(sin[65]) - angle.sin()).abs() < 1e-7);
    }
}
