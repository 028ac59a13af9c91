//! 256-bit registers: what panel kernels need of them.
//!
//! A panel has eight rows. What meets a register of codes is
//!
//! * AVX2: `vpmaddubsw` (codes unsigned, activations signed, pairs to i16: magnitude at most 2 * 2 * 128 = 512) and `vpaddw`,
//!   two operations for 32 products. 64 such sums reach -32,768, the end of i16, with activations of -128, and 32,512 on
//!   the other side: after 64 a lane is widened (`vpmaddwd` with ones).
//! * AVX-VNNI: `vpdpbusd`, one operation for 32 products straight into i32. Codes may stay where they lie in their byte: a
//!   product is at most 192 * 128 in magnitude, and four of them for each of 1,728 steps (K = 27,648) are below 2^28.
//!
//! For 128 weights and one row of activations: a load, seven shifts and masks (four masks with VNNI), four broadcasts, and
//! eight (four) operations to multiply and add.

use std::arch::x86_64::*;

use crate::arch::panels::{self, PanelTile, Registers, ScaledTile, entry};
use crate::isa::{Avx2, AvxVnni};

/// Rows of a panel.
pub const ROWS: usize = 8;

/// Defines [`Registers`] for a way to add products.
macro_rules! registers {
    ($name:ident, $adds:expr, $loose:expr, |$acc:ident, $codes:ident, $x:ident| $dot:expr, |$wide:ident| $widen:expr) => {
        pub(crate) struct $name;

        // SAFETY (all blocks): AVX2, and what `dot` uses, are enabled by the trait's contract.
        impl Registers for $name {
            type V = __m256i;
            type F = __m256;
            const ROWS: usize = ROWS;
            const TILE: usize = 4;
            const ADDS: usize = $adds;
            const LOOSE: bool = $loose;

            #[inline(always)]
            unsafe fn zero() -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_setzero_si256() }
            }
            #[inline(always)]
            unsafe fn load(from: *const u8) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_loadu_si256(from.cast()) }
            }
            #[inline(always)]
            unsafe fn quad(from: *const i8) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn dot($acc: __m256i, $codes: __m256i, $x: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { $dot }
            }
            #[inline(always)]
            unsafe fn widen($wide: __m256i) -> __m256i {
                // SAFETY: as above.
                #[allow(unused_unsafe, reason = "i32 lanes are wide already")]
                unsafe {
                    $widen
                }
            }
            #[inline(always)]
            unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_add_epi32(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_sub_epi32(a, b) }
            }
            #[inline(always)]
            unsafe fn splat(value: i32) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_set1_epi32(value) }
            }
            #[inline(always)]
            unsafe fn shift(v: __m256i, by: i32) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_sra_epi32(v, _mm_cvtsi32_si128(by)) }
            }
            #[inline(always)]
            unsafe fn bits<const Q: i32>(v: __m256i) -> __m256i {
                // SAFETY: as above. Shifts are of 16-bit lanes; the mask cuts what the neighbouring byte shifted in.
                unsafe {
                    let v = match Q {
                        0 => v,
                        1 => _mm256_srli_epi16::<2>(v),
                        2 => _mm256_srli_epi16::<4>(v),
                        _ => _mm256_srli_epi16::<6>(v),
                    };
                    _mm256_and_si256(v, _mm256_set1_epi8(3))
                }
            }
            #[inline(always)]
            unsafe fn masked<const Q: i32>(v: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_and_si256(v, _mm256_set1_epi8((3u8 << (2 * Q)) as i8)) }
            }
            #[inline(always)]
            unsafe fn store(v: __m256i, to: *mut i32) {
                // SAFETY: as above.
                unsafe { _mm256_storeu_si256(to.cast(), v) }
            }
            #[inline(always)]
            unsafe fn prefetch(at: *const u8) {
                // SAFETY: as above; a prefetch reads no memory that the program could miss.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }
            #[inline(always)]
            unsafe fn to_f32(v: __m256i) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_cvtepi32_ps(v) }
            }
            #[inline(always)]
            unsafe fn load_f32(from: *const f32) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_loadu_ps(from) }
            }
            #[inline(always)]
            unsafe fn store_f32(v: __m256, to: *mut f32) {
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(to, v) }
            }
            #[inline(always)]
            unsafe fn zero_f32() -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn add_f32(a: __m256, b: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_add_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn mul_f32(a: __m256, b: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_mul_ps(a, b) }
            }
        }
    };
}

registers!(Madd, 64, false, |acc, codes, x| _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, x)), |acc| {
    _mm256_madd_epi16(acc, _mm256_set1_epi16(1))
});
registers!(Vnni, usize::MAX, true, |acc, codes, x| _mm256_dpbusd_avx_epi32(acc, codes, x), |acc| acc);

entry!(
    /// Sums of 2-bit panels with AVX2.
    sums_avx2, Avx2, "avx2", PanelTile, i32, panels::sums::<Madd, panels::Bits2, 4, 1>);
entry!(
    /// Scaled sums of 2-bit panels with AVX2.
    scaled_avx2, Avx2, "avx2", ScaledTile, f32, panels::scaled::<Madd>);
entry!(
    /// Sums of 2-bit panels with AVX-VNNI.
    sums_avx_vnni, AvxVnni, "avx2,avxvnni", PanelTile, i32, panels::sums::<Vnni, panels::Bits2, 4, 2>);
entry!(
    /// Scaled sums of 2-bit panels with AVX-VNNI.
    scaled_avx_vnni, AvxVnni, "avx2,avxvnni", ScaledTile, f32, panels::scaled::<Vnni>);
