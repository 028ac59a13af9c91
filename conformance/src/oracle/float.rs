//! Float types other than f32, and rounding.

/// Rounds to an integer, half to even.
pub fn half_even(x: f64) -> f64 {
    let below = x.floor();
    let part = x - below;
    if part > 0.5 || (part == 0.5 && below % 2.0 != 0.0) { below + 1.0 } else { below }
}

/// The binary16 nearest to `v`, half to even, as bits.
pub fn f16_bits(v: f32) -> u16 {
    let sign = if v.is_sign_negative() { 0x8000 } else { 0 };
    let a = f64::from(v.abs());
    let magnitude = if v.is_nan() {
        0x7e00
    } else if a >= 65520.0 {
        // Halfway between the largest number and the one that would follow it; the larger is the even one.
        0x7c00
    } else if a < 2f64.powi(-14) {
        half_even(a * 2f64.powi(24)) as u16
    } else {
        let exponent = ((a.to_bits() >> 52) as i32) - 1023;
        let mantissa = half_even(a * 2f64.powi(10 - exponent)) as i32;
        // A mantissa that rounded up to 2048 carries into the exponent.
        (((exponent + 15) << 10) + (mantissa - 1024)) as u16
    };
    sign | magnitude
}

/// The value of a binary16.
pub fn f16_value(bits: u16) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1024.0 + mantissa) * 2f64.powi(e - 25),
    };
    (if bits >> 15 == 1 { -magnitude } else { magnitude }) as f32
}

/// The bfloat16 nearest to `v`, half to even, as bits.
pub fn bf16_bits(v: f32) -> u16 {
    let (upper, lower) = ((v.to_bits() >> 16) as u16, v.to_bits() & 0xffff);
    if v.is_nan() {
        return upper | 0x40;
    }
    upper + u16::from(lower > 0x8000 || (lower == 0x8000 && upper & 1 == 1))
}

/// The value of a bfloat16: the upper half of the same f32.
pub fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// How many f32 steps lie between a value and an exact result, in units of the result's last place.
pub fn ulps(got: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    let magnitude = nearest.abs().max(f32::MIN_POSITIVE);
    let unit = f64::from(f32::from_bits(magnitude.to_bits() + 1)) - f64::from(magnitude);
    (f64::from(got) - exact).abs() / unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_binary16_and_the_midpoints_beside_it_round_as_the_half_crate_says() {
        for bits in 0..=u16::MAX {
            let value = f16_value(bits);
            if value.is_nan() {
                continue;
            }
            assert_eq!(value.to_bits(), f16::from_bits(bits).to_f32().to_bits(), "{bits:#06x}");
            for near in [value, value * 1.000_488_3, value * 1.000_488_2, f32::from_bits(value.to_bits() ^ 0x1000)] {
                assert_eq!(f16_bits(near), f16::from_f32(near).to_bits(), "{near:e}");
                assert_eq!(bf16_bits(near), bf16::from_f32(near).to_bits(), "{near:e}");
            }
            let wide = f32::from_bits(u32::from(bits) << 16 | 0x8000);
            if !wide.is_nan() {
                assert_eq!(bf16_bits(wide), bf16::from_f32(wide).to_bits(), "{wide:e}");
            }
        }
    }

    #[test]
    fn ties_go_to_even() {
        let got = [0.5, 1.5, 2.5, -0.5, -1.5, 0.499_999, 126.5].map(half_even);
        assert_eq!(got, [0.0, 2.0, 2.0, 0.0, -2.0, 0.0, 126.0]);
    }
}
