//! 128-bit registers: what panel kernels need of them.
//!
//! A panel has four rows. What meets a register of codes is
//!
//! * NEON: `smull`, `smull2` of signed bytes to i16, `addp` to the sums of neighbours and `sadalp` to i32. A lane of i16 takes two
//!   products of magnitude at most 2 * 128 = 256 before it is widened, so 512 at most.
//! * DotProd: `sdot`, one instruction for 16 products straight into i32, in inline assembly because its intrinsic is not
//!   stable in Rust.
//!
//! For 64 weights and one row of activations: a load, seven shifts and masks, four `ld1r` broadcasts, and 16 (NEON) or four
//! (DotProd) to multiply and add; AVX2 needs 1, 7, 4 and 8 on registers twice as wide, AVX-VNNI 1, 4, 4 and 4. Codes are not
//! left shifted as with VNNI, whose codes are unsigned: 2 << 6 is -128 to `sdot`.

use std::arch::aarch64::*;

use crate::arch::panels::{self, PanelTile, Registers, ScaledTile, entry};
use crate::isa::{Neon, NeonDot};

/// Rows of a panel.
pub const ROWS: usize = 4;

/// Defines [`Registers`] for a way to add products.
macro_rules! registers {
    ($name:ident, |$acc:ident, $codes:ident, $x:ident| $dot:expr) => {
        pub(crate) struct $name;

        // SAFETY (all blocks): NEON, and what `dot` uses, are enabled by the trait's contract.
        impl Registers for $name {
            type V = int32x4_t;
            type F = float32x4_t;
            const ROWS: usize = ROWS;
            const TILE: usize = 8;
            const ADDS: usize = usize::MAX;
            const LOOSE: bool = false;

            #[inline(always)]
            unsafe fn zero() -> int32x4_t {
                // SAFETY: as above.
                unsafe { vdupq_n_s32(0) }
            }
            #[inline(always)]
            unsafe fn load(from: *const u8) -> int32x4_t {
                // SAFETY: as above.
                unsafe { vreinterpretq_s32_u8(vld1q_u8(from)) }
            }
            #[inline(always)]
            unsafe fn quad(from: *const i8) -> int32x4_t {
                // SAFETY: as above.
                unsafe { vdupq_n_s32(from.cast::<i32>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn dot($acc: int32x4_t, codes: int32x4_t, x: int32x4_t) -> int32x4_t {
                // SAFETY: as above.
                unsafe {
                    let ($codes, $x) = (vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x));
                    $dot
                }
            }
            #[inline(always)]
            unsafe fn widen(acc: int32x4_t) -> int32x4_t {
                acc
            }
            #[inline(always)]
            unsafe fn add(a: int32x4_t, b: int32x4_t) -> int32x4_t {
                // SAFETY: as above.
                unsafe { vaddq_s32(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: int32x4_t, b: int32x4_t) -> int32x4_t {
                // SAFETY: as above.
                unsafe { vsubq_s32(a, b) }
            }
            #[inline(always)]
            unsafe fn splat(value: i32) -> int32x4_t {
                // SAFETY: as above.
                unsafe { vdupq_n_s32(value) }
            }
            #[inline(always)]
            unsafe fn shift(v: int32x4_t, by: i32) -> int32x4_t {
                // SAFETY: as above.
                unsafe { vshlq_s32(v, vdupq_n_s32(-by)) }
            }
            #[inline(always)]
            unsafe fn bits<const Q: i32>(v: int32x4_t) -> int32x4_t {
                // SAFETY: as above.
                unsafe {
                    let v = vreinterpretq_u8_s32(v);
                    let mask = vdupq_n_u8(3);
                    vreinterpretq_s32_u8(match Q {
                        0 => vandq_u8(v, mask),
                        1 => vandq_u8(vshrq_n_u8::<2>(v), mask),
                        2 => vandq_u8(vshrq_n_u8::<4>(v), mask),
                        _ => vshrq_n_u8::<6>(v),
                    })
                }
            }
            #[inline(always)]
            unsafe fn masked<const Q: i32>(v: int32x4_t) -> int32x4_t {
                // SAFETY: as above.
                unsafe { vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(3 << (2 * Q)))) }
            }
            #[inline(always)]
            unsafe fn store(v: int32x4_t, to: *mut i32) {
                // SAFETY: as above.
                unsafe { vst1q_s32(to, v) }
            }
            /// No stable intrinsic, and hardware prefetchers of AArch64 cores were not measured.
            #[inline(always)]
            unsafe fn prefetch(_: *const u8) {}
            #[inline(always)]
            unsafe fn to_f32(v: int32x4_t) -> float32x4_t {
                // SAFETY: as above.
                unsafe { vcvtq_f32_s32(v) }
            }
            #[inline(always)]
            unsafe fn load_f32(from: *const f32) -> float32x4_t {
                // SAFETY: as above.
                unsafe { vld1q_f32(from) }
            }
            #[inline(always)]
            unsafe fn store_f32(v: float32x4_t, to: *mut f32) {
                // SAFETY: as above.
                unsafe { vst1q_f32(to, v) }
            }
            #[inline(always)]
            unsafe fn zero_f32() -> float32x4_t {
                // SAFETY: as above.
                unsafe { vdupq_n_f32(0.0) }
            }
            #[inline(always)]
            unsafe fn add_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t {
                // SAFETY: as above.
                unsafe { vaddq_f32(a, b) }
            }
            #[inline(always)]
            unsafe fn mul_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t {
                // SAFETY: as above.
                unsafe { vmulq_f32(a, b) }
            }
        }
    };
}

registers!(Widening, |acc, codes, x| {
    let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
    vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(codes, x)))
});
registers!(Sdot, |acc, codes, x| {
    let mut acc = acc;
    std::arch::asm!(
        ".arch_extension dotprod",
        "sdot {acc:v}.4s, {codes:v}.16b, {x:v}.16b",
        acc = inout(vreg) acc,
        codes = in(vreg) codes,
        x = in(vreg) x,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
});

entry!(
    /// Sums of 2-bit panels with NEON.
    sums_neon, Neon, "neon", PanelTile, i32, panels::sums::<Widening, panels::Bits2, 4, 1>);
entry!(
    /// Scaled sums of 2-bit panels with NEON.
    scaled_neon, Neon, "neon", ScaledTile, f32, panels::scaled::<Widening>);
entry!(
    /// Sums of 2-bit panels with the dot product instructions.
    sums_neon_dotprod, NeonDot, "neon,dotprod", PanelTile, i32, panels::sums::<Sdot, panels::Bits2, 4, 2>);
entry!(
    /// Scaled sums of 2-bit panels with the dot product instructions.
    scaled_neon_dotprod, NeonDot, "neon,dotprod", ScaledTile, f32, panels::scaled::<Sdot>);
