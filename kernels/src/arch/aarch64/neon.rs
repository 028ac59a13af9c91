//! Products of 2-bit codes and int8 activations in 128-bit registers.
//!
//! A block of 32 bytes is two registers; four shifts and masks of each give eight registers of codes for 128 weights. What
//! meets them is
//!
//! * NEON: `smull`, `smlal2` of signed bytes to i16 and `sadalp` to i32. A lane of i16 takes two products of magnitude at
//!   most 2 * 128 = 256 before it is widened, so 512 at most.
//! * DotProd: `sdot`, one instruction for 16 products straight into i32, in inline assembly because its intrinsic is not
//!   stable in Rust.
//!
//! Per 128 weights and one activation row: 14 instructions to unpack, 8 loads of activations, and 8 x 3 (NEON) or 8
//! (DotProd) to multiply and add; AVX2 needs 7, 4 and 8 on registers twice as wide. Unpacked codes serve all activation
//! rows of the tile, 2 x 4.

use std::arch::aarch64::*;

use crate::arch::{cover, entry};
use crate::backend::Tile;
use crate::isa::{Neon, NeonDot, Simd};
use crate::lanes::Lanes;
use crate::pack::{BLOCK, BLOCK_BYTES};

/// Weight x activation rows of the one-row tile, for kernel names.
pub const GEMV_TILE: &str = "4x1";
/// The same for more rows.
pub const GEMM_TILE: &str = "2x4";

/// One way to add 16 products to an accumulator of four i32.
trait Dot {
    /// Adds code x activation.
    ///
    /// # Safety
    /// The caller runs where the implementation's ISA is enabled.
    unsafe fn add(acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t;
}

struct Widening;

impl Dot for Widening {
    #[inline(always)]
    unsafe fn add(acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is enabled by the caller's contract.
        unsafe {
            let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
            vpadalq_s16(acc, vmlal_high_s8(low, codes, x))
        }
    }
}

struct Sdot;

impl Dot for Sdot {
    #[inline(always)]
    unsafe fn add(acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        let mut acc = acc;
        // SAFETY: the dot product instructions are enabled by the caller's contract; registers only.
        unsafe {
            std::arch::asm!(
                ".arch_extension dotprod",
                "sdot {acc:v}.4s, {codes:v}.16b, {x:v}.16b",
                acc = inout(vreg) acc,
                codes = in(vreg) codes,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        acc
    }
}

/// The tile of R weight rows and C activation rows, over whole rows of blocks.
///
/// # Safety
/// NEON and the ISA of `D` must be enabled in the caller; `w` must have R rows of `row_bytes` bytes and `x` C rows of
/// `4 * row_bytes` elements.
#[inline(always)]
unsafe fn block_rows<D: Dot, const R: usize, const C: usize>(
    w: *const u8,
    row_bytes: usize,
    x: *const i8,
) -> [[i32; C]; R] {
    let stride = 4 * row_bytes;
    let mut result = [[0; C]; R];
    // SAFETY: all loads stay within the rows that the contract gives, block by block.
    unsafe {
        let mask = vdupq_n_u8(3);
        let mut acc = [[vdupq_n_s32(0); C]; R];
        for b in 0..row_bytes / BLOCK_BYTES {
            for half in 0..2 {
                let mut packed = [vdupq_n_u8(0); R];
                for r in 0..R {
                    packed[r] = vld1q_u8(w.add(r * row_bytes + b * BLOCK_BYTES + 16 * half));
                }
                macro_rules! quarter {
                    ($q:literal, $codes:expr) => {
                        let mut codes = [vdupq_n_s8(0); R];
                        for r in 0..R {
                            codes[r] = vreinterpretq_s8_u8(vandq_u8($codes(packed[r]), mask));
                        }
                        for c in 0..C {
                            let x = vld1q_s8(x.add(c * stride + b * BLOCK + 32 * $q + 16 * half));
                            for r in 0..R {
                                acc[r][c] = D::add(acc[r][c], codes[r], x);
                            }
                        }
                    };
                }
                quarter!(0, |p| vshrq_n_u8::<6>(p));
                quarter!(1, |p| vshrq_n_u8::<4>(p));
                quarter!(2, |p| vshrq_n_u8::<2>(p));
                quarter!(3, |p| p);
            }
        }
        for r in 0..R {
            for c in 0..C {
                result[r][c] = vaddvq_s32(acc[r][c]);
            }
        }
    }
    result
}

cover!(block_rows, 2);

entry!(
    /// [`crate::Kernels::dots`] with NEON.
    dots_neon, Neon, Widening, "neon");
entry!(
    /// [`crate::Kernels::dots`] with the dot product instructions.
    dots_neon_dotprod, NeonDot, Sdot, "neon,dotprod");

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
    fn load_f16(simd: S, from: &[u8; 128]) -> Self {
        // The vector conversion is not stable in Rust.
        let (pairs, _) = from.as_chunks::<2>();
        Self::load(simd, &std::array::from_fn(|j| tersor_core::f16::from_le_bytes(pairs[j]).to_f32()))
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
}
