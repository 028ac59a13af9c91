//! 256-bit registers: what panel kernels need of them, and the lanes of float sums.
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
use crate::isa::{Avx2, AvxVnni, Simd};
use crate::lanes::Lanes;

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

/// The 64 lanes of a float sum in eight registers.
#[derive(Debug, Clone, Copy)]
pub struct F32x64([__m256; 8]);

/// Applies an expression to each of the eight registers.
macro_rules! each {
    (|$i:ident| $value:expr) => {{
        let mut out = [zero(); 8];
        let mut $i = 0;
        while $i < 8 {
            out[$i] = $value;
            $i += 1;
        }
        F32x64(out)
    }};
}

#[inline(always)]
fn zero() -> __m256 {
    // SAFETY: called by `F32x64` alone, which is made with a token.
    unsafe { _mm256_setzero_ps() }
}

/// Tokens that are proof of AVX2 and F16C.
///
/// # Safety
/// The token exists only where CPU and OS support both.
pub unsafe trait HasAvx2: Simd {}
// SAFETY: `detect` asks for both.
unsafe impl HasAvx2 for Avx2 {}
// SAFETY: `detect` asks for both.
unsafe impl HasAvx2 for AvxVnni {}

// SAFETY (all blocks): the lanes are made with a token, which is proof of AVX2 and F16C; loads and stores are within the
// arrays, whose lengths are in their types.
impl<S: HasAvx2> Lanes<S> for F32x64 {
    #[inline(always)]
    fn splat(_: S, value: f32) -> Self {
        // SAFETY: as above.
        each!(|_i| unsafe { _mm256_set1_ps(value) })
    }
    #[inline(always)]
    fn load(_: S, from: &[f32; 64]) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { _mm256_loadu_ps(from.as_ptr().add(8 * i)) })
    }
    #[inline(always)]
    fn load_bf16(_: S, from: &[u8; 128]) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe {
            let half = _mm_loadu_si128(from.as_ptr().add(16 * i).cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
        })
    }
    #[inline(always)]
    fn load_f16(_: S, from: &[u8; 128]) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(16 * i).cast())) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 64]) {
        for i in 0..8 {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr().add(8 * i), self.0[i]) };
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { _mm256_add_ps(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { _mm256_mul_ps(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    fn fold(self) -> f32 {
        let r = self.0;
        // SAFETY: as above.
        unsafe {
            let add = |a, b| _mm256_add_ps(a, b);
            let (a, b, c, d) = (add(r[0], r[4]), add(r[1], r[5]), add(r[2], r[6]), add(r[3], r[7]));
            fold8(add(add(a, c), add(b, d)))
        }
    }
}

/// Folds eight lanes: 4, 2, 1.
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn fold8(v: __m256) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}
