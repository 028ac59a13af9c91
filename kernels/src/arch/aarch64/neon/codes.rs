//! Codes and table indices in 128-bit registers.
//!
//! 64 codes take 16 loads, 32 comparisons, 16 subtractions, 28 narrowings and 4 additions. Loads that deinterleave (`ld4`, `ld3`) bring pairs and
//! triples side by side: 64 codes of `tl1` are one `ld4`, a multiplication, two `mla` and an addition; 192 of `tl2` four times `ld3`, two `mla`, a subtraction, `abs`, a
//! shift, a multiplication and three additions of pairs for the sign bits, and for two of them `uzp1`, `uzp2`, a shift and `orr`.

use std::arch::aarch64::*;

use tersor_core::reference::lanes::LANES;

use crate::codes::{Codes, ThreeCodes};

use super::lanes::{F32x64, HasNeon};

// SAFETY (all blocks): the registers are used with a token, which is proof of NEON; loads and stores are within the arrays,
// whose lengths are in their types.
impl<S: HasNeon> Codes<S> for F32x64 {
    #[inline(always)]
    fn codes(_: S, w: &[f32; LANES], half: f32) -> [u8; LANES] {
        // SAFETY: as above.
        unsafe { codes(w, half) }
    }
    #[inline(always)]
    fn pairs(_: S, codes: &[u8; LANES]) -> [u8; 16] {
        // SAFETY: as above.
        unsafe { pairs(codes) }
    }
    #[inline(always)]
    fn triples(_: S, codes: &ThreeCodes) -> ([u8; 32], [u8; 8]) {
        // SAFETY: as above.
        unsafe { triples(codes) }
    }
}

/// [`Codes::codes`].
///
/// # Safety
/// NEON must be enabled in the caller.
#[inline(always)]
unsafe fn codes(w: &[f32; LANES], half: f32) -> [u8; LANES] {
    let mut out = [0; LANES];
    // SAFETY: the caller's contract; loads are within 64 values, stores within 64 bytes.
    unsafe {
        let (high, low) = (vdupq_n_f32(half), vdupq_n_f32(-half));
        for q in 0..4 {
            // Comparisons give -1 where they hold: below - above is the ternary value.
            macro_rules! ternary {
                ($i:literal) => {{
                    let v = vld1q_f32(w.as_ptr().add(16 * q + 4 * $i));
                    vmovn_u32(vsubq_u32(vcltq_f32(v, low), vcgtq_f32(v, high)))
                }};
            }
            let first = vmovn_u16(vcombine_u16(ternary!(0), ternary!(1)));
            let second = vmovn_u16(vcombine_u16(ternary!(2), ternary!(3)));
            vst1q_u8(out.as_mut_ptr().add(16 * q), vaddq_u8(vcombine_u8(first, second), vdupq_n_u8(1)));
        }
    }
    out
}

/// [`Codes::pairs`].
///
/// # Safety
/// NEON must be enabled in the caller.
#[inline(always)]
unsafe fn pairs(codes: &[u8; LANES]) -> [u8; 16] {
    let mut out = [0; 16];
    // SAFETY: the caller's contract; the load is of 64 bytes, the store of 16.
    unsafe {
        let quads = vld4q_u8(codes.as_ptr());
        let index = vmlaq_u8(vaddq_u8(quads.3, vmulq_u8(quads.0, vdupq_n_u8(48))), quads.1, vdupq_n_u8(16));
        vst1q_u8(out.as_mut_ptr(), vmlaq_u8(index, quads.2, vdupq_n_u8(3)));
    }
    out
}

/// [`Codes::triples`].
///
/// # Safety
/// NEON must be enabled in the caller.
#[inline(always)]
unsafe fn triples(codes: &ThreeCodes) -> ([u8; 32], [u8; 8]) {
    let (mut nibbles, mut signs) = ([0; 32], [0; 8]);
    // SAFETY: the caller's contract; loads are within 192 bytes, stores within 32.
    unsafe {
        let codes = codes.as_flattened().as_ptr();
        let bits = vld1q_u8([1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128].as_ptr());
        // The magnitudes of sixteen triples; their signs are written on the way.
        macro_rules! magnitudes {
            ($i:expr) => {{
                let t = vld3q_u8(codes.add(48 * $i));
                let value = vmlaq_u8(vmlaq_u8(t.2, t.0, vdupq_n_u8(9)), t.1, vdupq_n_u8(3));
                let value = vreinterpretq_s8_u8(vsubq_u8(value, vdupq_n_u8(13)));
                let set = vandq_u8(vreinterpretq_u8_s8(vshrq_n_s8::<7>(value)), bits);
                let pairs = vpaddq_u8(set, set);
                let fours = vpaddq_u8(pairs, pairs);
                let eights = vpaddq_u8(fours, fours);
                signs[2 * $i] = vgetq_lane_u8::<0>(eights);
                signs[2 * $i + 1] = vgetq_lane_u8::<1>(eights);
                vreinterpretq_u8_s8(vabsq_s8(value))
            }};
        }
        for half in 0..2 {
            let (a, b) = (magnitudes!(2 * half), magnitudes!(2 * half + 1));
            let bytes = vorrq_u8(vshlq_n_u8::<4>(vuzp1q_u8(a, b)), vuzp2q_u8(a, b));
            vst1q_u8(nibbles.as_mut_ptr().add(16 * half), bytes);
        }
    }
    (nibbles, signs)
}
