//! Products of 2-bit codes and int8 activations in 512-bit registers.
//!
//! Two blocks of 32 bytes make a register; an odd last block is loaded alone, its upper half zero. The activations that
//! meet a quarter of two blocks lie 128 apart and are put together by `vinserti64x4` from memory. Shifts and masks give four
//! registers of codes, seven operations for 256 weights. What meets them is
//!
//! * AVX-512 BW: `vpmaddubsw` and `vpaddw`, with the bound of the AVX2 kernel: a lane of i16 takes four sums of magnitude at
//!   most 512 a step and is widened every 16 steps, at 32,768, which i16 holds on the only side where it is reached.
//! * VNNI: `vpdpbusd`, one operation for 64 products straight into i32.
//!
//! The tile is 4 x 1 for one row of activations, 4 x 4 otherwise: 16 accumulators, 4 registers of codes, 1 of activations.

use std::arch::x86_64::*;

use crate::arch::{cover, entry};
use crate::backend::Tile;
use crate::isa::{Avx512, Avx512Vnni, Simd};
use crate::lanes::Lanes;
use crate::pack::{BLOCK, BLOCK_BYTES};

/// Weight x activation rows of the one-row tile, for kernel names.
pub const GEMV_TILE: &str = "4x1";
/// The same for more rows.
pub const GEMM_TILE: &str = "4x4";

/// Pairs of blocks after which i16 sums are widened.
const WIDEN_EVERY: usize = 16;

/// One way to add 64 products to an accumulator.
trait Dot {
    /// Adds code x activation.
    ///
    /// # Safety
    /// The caller runs where the implementation's ISA is enabled.
    unsafe fn add(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i;

    /// Widens an accumulator to sixteen i32.
    ///
    /// # Safety
    /// As for `add`.
    unsafe fn widen(acc: __m512i) -> __m512i;
}

struct Madd;

impl Dot for Madd {
    #[inline(always)]
    unsafe fn add(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: AVX-512 BW is enabled by the caller's contract.
        unsafe { _mm512_add_epi16(acc, _mm512_maddubs_epi16(codes, x)) }
    }

    #[inline(always)]
    unsafe fn widen(acc: __m512i) -> __m512i {
        // SAFETY: AVX-512 BW is enabled by the caller's contract.
        unsafe { _mm512_madd_epi16(acc, _mm512_set1_epi16(1)) }
    }
}

struct Vnni;

impl Dot for Vnni {
    #[inline(always)]
    unsafe fn add(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: AVX-512 VNNI is enabled by the caller's contract.
        unsafe { _mm512_dpbusd_epi32(acc, codes, x) }
    }

    #[inline(always)]
    unsafe fn widen(acc: __m512i) -> __m512i {
        acc
    }
}

/// The tile of R weight rows and C activation rows, over whole rows of blocks.
///
/// # Safety
/// AVX-512 BW and the ISA of `D` must be enabled in the caller; `w` must have R rows of `row_bytes` bytes and `x` C rows of
/// `4 * row_bytes` elements.
#[inline(always)]
unsafe fn block_rows<D: Dot, const R: usize, const C: usize>(
    w: *const u8,
    row_bytes: usize,
    x: *const i8,
) -> [[i32; C]; R] {
    let stride = 4 * row_bytes;
    let pairs = row_bytes / (2 * BLOCK_BYTES);
    let mut result = [[0; C]; R];
    // SAFETY: all loads stay within the rows that the contract gives: 64 bytes for a pair of blocks, 32 for an odd last one.
    unsafe {
        let mask = _mm512_set1_epi8(3);
        let mut total = [[_mm512_setzero_si512(); C]; R];
        let mut acc = [[_mm512_setzero_si512(); C]; R];
        // The quarters of a block, from the high bits down; shifts are of 16-bit lanes, the mask cuts what a neighbouring
        // byte shifted in.
        macro_rules! quarter {
            ($packed:ident, $shift:literal, $x:expr) => {
                let mut codes = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    codes[r] = _mm512_and_si512(_mm512_srli_epi16::<$shift>($packed[r]), mask);
                }
                for c in 0..C {
                    let x = $x(x.add(c * stride));
                    for r in 0..R {
                        acc[r][c] = D::add(acc[r][c], codes[r], x);
                    }
                }
            };
        }
        macro_rules! widen {
            () => {
                for r in 0..R {
                    for c in 0..C {
                        total[r][c] = _mm512_add_epi32(total[r][c], D::widen(acc[r][c]));
                        acc[r][c] = _mm512_setzero_si512();
                    }
                }
            };
        }
        let mut first = 0;
        while first < pairs {
            let end = pairs.min(first + WIDEN_EVERY);
            for b in first..end {
                let mut packed = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    packed[r] = _mm512_loadu_si512(w.add(r * row_bytes + b * 2 * BLOCK_BYTES).cast());
                }
                macro_rules! pair {
                    ($q:literal) => {
                        |x: *const i8| {
                            let x = x.add(b * 2 * BLOCK + 32 * $q);
                            let low = _mm512_castsi256_si512(_mm256_loadu_si256(x.cast()));
                            _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(x.add(BLOCK).cast()))
                        }
                    };
                }
                quarter!(packed, 6, pair!(0));
                quarter!(packed, 4, pair!(1));
                quarter!(packed, 2, pair!(2));
                quarter!(packed, 0, pair!(3));
            }
            widen!();
            first = end;
        }
        if !row_bytes.is_multiple_of(2 * BLOCK_BYTES) {
            let mut packed = [_mm512_setzero_si512(); R];
            for r in 0..R {
                let at = w.add(r * row_bytes + pairs * 2 * BLOCK_BYTES);
                packed[r] = _mm512_zextsi256_si512(_mm256_loadu_si256(at.cast()));
            }
            macro_rules! single {
                ($q:literal) => {
                    |x: *const i8| _mm512_zextsi256_si512(_mm256_loadu_si256(x.add(pairs * 2 * BLOCK + 32 * $q).cast()))
                };
            }
            quarter!(packed, 6, single!(0));
            quarter!(packed, 4, single!(1));
            quarter!(packed, 2, single!(2));
            quarter!(packed, 0, single!(3));
            widen!();
        }
        for r in 0..R {
            for c in 0..C {
                result[r][c] = _mm512_reduce_add_epi32(total[r][c]);
            }
        }
    }
    result
}

cover!(block_rows, 4);

entry!(
    /// [`crate::Kernels::dots`] with AVX-512 BW.
    dots_avx512, Avx512, Madd, "avx512f,avx512bw,avx512dq,avx512vl");
entry!(
    /// [`crate::Kernels::dots`] with AVX-512 VNNI.
    dots_avx512_vnni, Avx512Vnni, Vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

/// The 64 lanes of a float sum in four registers.
#[derive(Debug, Clone, Copy)]
pub struct F32x64([__m512; 4]);

/// Applies an expression to each of the four registers.
macro_rules! each {
    (|$i:ident| $value:expr) => {{
        let mut out = [zero(); 4];
        let mut $i = 0;
        while $i < 4 {
            out[$i] = $value;
            $i += 1;
        }
        F32x64(out)
    }};
}

#[inline(always)]
fn zero() -> __m512 {
    // SAFETY: called by `F32x64` alone, which is made with a token.
    unsafe { _mm512_setzero_ps() }
}

/// Tokens that are proof of AVX-512 F and DQ.
///
/// # Safety
/// The token exists only where CPU and OS support both.
pub unsafe trait HasAvx512: Simd {}
// SAFETY: `detect` asks for both.
unsafe impl HasAvx512 for Avx512 {}
// SAFETY: `detect` asks for both.
unsafe impl HasAvx512 for Avx512Vnni {}

// SAFETY (all blocks): the lanes are made with a token, which is proof of AVX-512 F and DQ; loads and stores are within the
// arrays, whose lengths are in their types.
impl<S: HasAvx512> Lanes<S> for F32x64 {
    #[inline(always)]
    fn splat(_: S, value: f32) -> Self {
        // SAFETY: as above.
        each!(|_i| unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    fn load(_: S, from: &[f32; 64]) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { _mm512_loadu_ps(from.as_ptr().add(16 * i)) })
    }
    #[inline(always)]
    fn load_bf16(_: S, from: &[u8; 128]) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe {
            let half = _mm256_loadu_si256(from.as_ptr().add(32 * i).cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        })
    }
    #[inline(always)]
    fn load_f16(_: S, from: &[u8; 128]) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().add(32 * i).cast())) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 64]) {
        for i in 0..4 {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr().add(16 * i), self.0[i]) };
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { _mm512_add_ps(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        each!(|i| unsafe { _mm512_mul_ps(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    fn fold(self) -> f32 {
        let r = self.0;
        // SAFETY: as above.
        unsafe {
            let sixteen = _mm512_add_ps(_mm512_add_ps(r[0], r[2]), _mm512_add_ps(r[1], r[3]));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps::<1>(sixteen));
            super::avx2::fold8(eight)
        }
    }
}
