//! Products of 2-bit codes and int8 activations in 256-bit registers.
//!
//! A block of 32 bytes gives four registers of codes by shifts and masks: `vpsrlw` and `vpand`, seven operations for 128
//! weights, amortised over the activation rows of the tile. What meets them is
//!
//! * AVX2: `vpmaddubsw` (codes unsigned, activations signed, pairs to i16: magnitude at most 2 * 2 * 128 = 512) and
//!   `vpaddw`, two operations for 32 products. 64 such sums reach -32,768, the end of i16; a lane takes four a block, so
//!   it is widened to i32 (`vpmaddwd` with ones) every 16 blocks = 64 sums = 2,048 weights: at most 64 * 512 = 32,768 in
//!   magnitude, reached only with activations of -128, on the negative side, where i16 holds it.
//! * AVX-VNNI: `vpdpbusd`, one operation for 32 products straight into i32.
//!
//! The tile is rows of weights x rows of activations held in accumulators: 4 x 1 for one row of activations (each
//! activation load serves four weight rows), 2 x 4 otherwise (8 accumulators, 2 code registers, 4 activations).

use std::arch::x86_64::*;

use crate::arch::{cover, entry};
use crate::backend::Tile;
use crate::isa::{Avx2, AvxVnni, Simd};
use crate::lanes::Lanes;
use crate::pack::{BLOCK, BLOCK_BYTES};

/// Weight x activation rows of the one-row tile, for kernel names.
pub const GEMV_TILE: &str = "4x1";
/// The same for more rows.
pub const GEMM_TILE: &str = "2x4";

/// Blocks after which i16 sums are widened.
const WIDEN_EVERY: usize = 16;

/// One way to add 32 products to an accumulator.
trait Dot {
    /// Adds code x activation.
    ///
    /// # Safety
    /// The caller runs where the implementation's ISA is enabled.
    unsafe fn add(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i;

    /// Widens an accumulator to eight i32.
    ///
    /// # Safety
    /// As for `add`.
    unsafe fn widen(acc: __m256i) -> __m256i;
}

struct Madd;

impl Dot for Madd {
    #[inline(always)]
    unsafe fn add(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: AVX2 is enabled by the caller's contract.
        unsafe { _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, x)) }
    }

    #[inline(always)]
    unsafe fn widen(acc: __m256i) -> __m256i {
        // SAFETY: AVX2 is enabled by the caller's contract.
        unsafe { _mm256_madd_epi16(acc, _mm256_set1_epi16(1)) }
    }
}

struct Vnni;

impl Dot for Vnni {
    #[inline(always)]
    unsafe fn add(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: AVX-VNNI is enabled by the caller's contract.
        unsafe { _mm256_dpbusd_avx_epi32(acc, codes, x) }
    }

    #[inline(always)]
    unsafe fn widen(acc: __m256i) -> __m256i {
        acc
    }
}

/// The tile of R weight rows and C activation rows, over whole rows of blocks.
///
/// # Safety
/// AVX2 and the ISA of `D` must be enabled in the caller; `w` must have R rows of `row_bytes` bytes and `x` C rows of
/// `4 * row_bytes` elements.
#[inline(always)]
unsafe fn block_rows<D: Dot, const R: usize, const C: usize>(
    w: *const u8,
    row_bytes: usize,
    x: *const i8,
) -> [[i32; C]; R] {
    let stride = 4 * row_bytes;
    let blocks = row_bytes / BLOCK_BYTES;
    let mut result = [[0; C]; R];
    // SAFETY: all loads stay within the rows that the contract gives, block by block.
    unsafe {
        let mask = _mm256_set1_epi8(3);
        let mut total = [[_mm256_setzero_si256(); C]; R];
        let mut first = 0;
        while first < blocks {
            let end = blocks.min(first + WIDEN_EVERY);
            let mut acc = [[_mm256_setzero_si256(); C]; R];
            for b in first..end {
                let mut packed = [_mm256_setzero_si256(); R];
                for r in 0..R {
                    packed[r] = _mm256_loadu_si256(w.add(r * row_bytes + b * BLOCK_BYTES).cast());
                }
                // The quarters of a block, from the high bits down; shifts are of 16-bit lanes, the mask cuts what a
                // neighbouring byte shifted in.
                macro_rules! quarter {
                    ($q:literal, $shift:literal) => {
                        let mut codes = [_mm256_setzero_si256(); R];
                        for r in 0..R {
                            codes[r] = _mm256_and_si256(_mm256_srli_epi16::<$shift>(packed[r]), mask);
                        }
                        for c in 0..C {
                            let x = _mm256_loadu_si256(x.add(c * stride + b * BLOCK + 32 * $q).cast());
                            for r in 0..R {
                                acc[r][c] = D::add(acc[r][c], codes[r], x);
                            }
                        }
                    };
                }
                quarter!(0, 6);
                quarter!(1, 4);
                quarter!(2, 2);
                quarter!(3, 0);
            }
            for r in 0..R {
                for c in 0..C {
                    total[r][c] = _mm256_add_epi32(total[r][c], D::widen(acc[r][c]));
                }
            }
            first = end;
        }
        for r in 0..R {
            for c in 0..C {
                let sum =
                    _mm_add_epi32(_mm256_castsi256_si128(total[r][c]), _mm256_extracti128_si256::<1>(total[r][c]));
                let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
                let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
                result[r][c] = _mm_cvtsi128_si32(sum);
            }
        }
    }
    result
}

cover!(block_rows, 2);

entry!(
    /// [`crate::Kernels::dots`] with AVX2.
    dots_avx2, Avx2, Madd, "avx2");
entry!(
    /// [`crate::Kernels::dots`] with AVX-VNNI.
    dots_avx_vnni, AvxVnni, Vnni, "avx2,avxvnni");

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
