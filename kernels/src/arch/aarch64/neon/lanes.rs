//! The lanes of float sums in 128-bit registers.

use std::arch::aarch64::*;

use crate::isa::{Neon, NeonDot, NeonI8mm, Simd};
use crate::lanes::Lanes;
use crate::positions::{Rows, TILE};

use super::attention;

/// The 64 lanes of a float sum in sixteen registers.
#[derive(Debug, Clone, Copy)]
pub struct F32x64([float32x4_t; 16]);

/// Applies an expression to each of the sixteen registers.
macro_rules! each {
    (|$i:ident| $value:expr) => {{
        let mut out = [zero(); 16];
        let mut $i = 0;
        while $i < 16 {
            out[$i] = $value;
            $i += 1;
        }
        F32x64(out)
    }};
}

#[inline(always)]
fn zero() -> float32x4_t {
    // SAFETY: called by `F32x64` alone, which is made with a token.
    unsafe { vdupq_n_f32(0.0) }
}

/// Tokens that are proof of NEON.
///
/// # Safety
/// The token exists only where CPU and OS support it.
pub unsafe trait HasNeon: Simd {}
// SAFETY: `detect` asks for it.
unsafe impl HasNeon for Neon {}
// SAFETY: `detect` asks for it.
unsafe impl HasNeon for NeonDot {}
// SAFETY: `detect` asks for it.
unsafe impl HasNeon for NeonI8mm {}

// SAFETY (all blocks): the lanes are made with a token, which is proof of NEON; loads and stores are within the arrays,
// whose lengths are in their types.
impl<S: HasNeon> Lanes<S> for F32x64 {
    #[inline(always)]
    fn splat(_: S, value: f32) -> Self {
        // SAFETY: as above.
        each!(|_i| unsafe { vdupq_n_f32(value) })
    }
    #[inline(always)]
    fn load(_: S, from: &[f32; 64]) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { vld1q_f32(from.as_ptr().add(4 * i)) })
    }
    #[inline(always)]
    fn load_bf16(_: S, from: &[u8; 128]) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe {
            let half = vreinterpret_u16_u8(vld1_u8(from.as_ptr().add(8 * i)));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(half))
        })
    }
    #[inline(always)]
    fn load_f16(_: S, from: &[u8; 128]) -> Self {
        // SAFETY: as above; `fcvtl` is part of NEON. In assembly, because its intrinsic is not stable in Rust.
        each!(|i| unsafe {
            let half = vld1_u8(from.as_ptr().add(8 * i));
            let wide: float32x4_t;
            std::arch::asm!(
                "fcvtl {wide:v}.4s, {half:v}.4h",
                wide = lateout(vreg) wide,
                half = in(vreg) half,
                options(pure, nomem, nostack, preserves_flags)
            );
            wide
        })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 64]) {
        for i in 0..16 {
            // SAFETY: as above.
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), self.0[i]) };
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { vaddq_f32(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { vmulq_f32(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    fn fold(self) -> f32 {
        let mut r = self.0;
        // SAFETY: as above.
        unsafe {
            // Lanes j and j + 32, 16, 8, 4 are registers 8, 4, 2, 1 apart.
            for h in [8, 4, 2, 1] {
                for i in 0..h {
                    r[i] = vaddq_f32(r[i], r[i + h]);
                }
            }
            let two = vadd_f32(vget_low_f32(r[0]), vget_high_f32(r[0]));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    unsafe fn scores(_: S, q: &[[f32; 64]], keys: Rows<'_>, scale: f32, scores: &mut [[f32; TILE]]) {
        // SAFETY: as above, and the caller's contract.
        unsafe { attention::scores(q, keys, scale, scores) }
    }
    #[inline(always)]
    fn largest(_: S, scores: &[[f32; TILE]]) -> f32 {
        // SAFETY: as above.
        unsafe { attention::largest(scores) }
    }
}
