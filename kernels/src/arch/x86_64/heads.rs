//! Groups of `q8_0` and `q6_k` ([`crate::heads`]) in 512-bit and 256-bit registers.
//!
//! A register of codes meets one of activations. Where there is `vpdpbusd` it adds four products to each i32 lane, and a group
//! is 8 of them (`q8_0`) or 4 (`q6_k`, with 13 shifts, selections and masks to unpack 256 codes). Without it
//!
//! * `q6_k` takes `vpmaddubsw`: two products of codes to 63 and activations to -128 are at most 16,128 in magnitude, two
//!   of those 32,256, which i16 holds; then `vpmaddwd` by ones.
//! * `q8_0` codes reach 255, and 2 * 255 * 128 = 65,280 is too much for that: codes and activations are widened to i16
//!   and multiplied by `vpmaddwd`, at most 2 * 255 * 128 a lane and step. The pairs of lanes of a block are added at the end.
//!
//! i32 holds any block: 32 * 255 * 128 + 128 * 32 * 128 < 2^21.

use std::arch::x86_64::*;

use tersor_core::Isa;

use crate::heads::{GROUP, Group, Q6_CODES, Q8_CODES, VECTOR};
use crate::isa::Simd;

/// How far ahead weights are prefetched: about two rows of 2,560. The processor's own prefetchers follow three lines here and
/// one there badly: without this, one Zen 5 core read a 128,256 x 2,560 `q6_k` weight at 15.6 GB/s and `q8_0` at 27.1 (AVX-512
/// VNNI, 4 KiB pages); with it, at 33.0 and 32.4, as much as f16 rows, which are plain streams, at 31.8.
const AHEAD: usize = 4096;

/// [`crate::heads::group_products`] with the ISA of an x86 token.
#[inline(always)]
pub(crate) fn group_products<S: Simd, const Q6: bool>(_: S, group: Group<'_>, out: &mut [f32; GROUP]) {
    let (codes, scales, values) = if Q6 { (Q6_CODES, GROUP, 256) } else { (Q8_CODES, 2 * GROUP, 512) };
    assert!(
        group.codes.len() == codes && group.scales.len() == scales && group.x.len() == values,
        "a group within its slices"
    );
    // SAFETY: SSE is part of x86-64, and a prefetch of any address is allowed.
    unsafe {
        for line in 0..codes / VECTOR {
            _mm_prefetch::<_MM_HINT_T0>(group.codes.as_ptr().wrapping_add(AHEAD + line * VECTOR).cast());
        }
        _mm_prefetch::<_MM_HINT_T0>(group.scales.as_ptr().wrapping_add(AHEAD).cast());
    }
    // SAFETY: the token is proof of its ISA; the assertion gives every slice the length that the functions state.
    unsafe {
        match S::ISA {
            Some(Isa::Avx512) => wide::<false, Q6>(group, out),
            Some(Isa::Avx512Vnni | Isa::Avx512Vbmi) => wide::<true, Q6>(group, out),
            Some(Isa::AvxVnni) => narrow::<true, Q6>(group, out),
            _ => narrow::<false, Q6>(group, out),
        }
    }
}

/// In 512-bit registers.
///
/// # Safety
/// AVX-512 F, BW, and VNNI where `VNNI` says so, must be enabled in the caller; slices must have a group's lengths.
#[inline(always)]
unsafe fn wide<const VNNI: bool, const Q6: bool>(group: Group<'_>, out: &mut [f32; GROUP]) {
    // SAFETY: the contract; all loads are within the slices.
    unsafe {
        let codes = |v: usize| _mm512_loadu_si512(group.codes.as_ptr().add(v * VECTOR).cast());
        let x = |v: usize| _mm512_loadu_si512(group.x.as_ptr().add(v * VECTOR).cast());
        let start = _mm512_loadu_si512(group.start.as_ptr().cast());
        let scale = if Q6 {
            let d = _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(*group.d)));
            let sc = _mm512_cvtepi8_epi32(_mm_loadu_si128(group.scales.as_ptr().cast()));
            _mm512_mul_ps(d, _mm512_cvtepi32_ps(sc))
        } else {
            _mm512_cvtph_ps(_mm256_loadu_si256(group.scales.as_ptr().cast()))
        };
        let sums = if Q6 {
            let (nibble, six) = (_mm512_set1_epi8(15), _mm512_set1_epi8(63));
            let (a, b, h) = (codes(0), codes(1), codes(2));
            // The low four bits from the first operand, the rest from the second; then what neighbours shifted in is cut.
            let join = |low, high| _mm512_and_si512(_mm512_ternarylogic_epi32::<0xca>(nibble, low, high), six);
            let c = [
                join(a, _mm512_slli_epi16::<4>(h)),
                join(_mm512_srli_epi16::<4>(a), _mm512_slli_epi16::<2>(h)),
                join(b, h),
                join(_mm512_srli_epi16::<4>(b), _mm512_srli_epi16::<2>(h)),
            ];
            if VNNI {
                let first = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, c[0], x(0)), c[1], x(1));
                let second = _mm512_dpbusd_epi32(_mm512_setzero_si512(), c[2], x(2));
                _mm512_add_epi32(first, _mm512_dpbusd_epi32(second, c[3], x(3)))
            } else {
                let pair = |i: usize| _mm512_maddubs_epi16(c[i], x(i));
                let ones = _mm512_set1_epi16(1);
                let first = _mm512_madd_epi16(_mm512_add_epi16(pair(0), pair(1)), ones);
                let second = _mm512_madd_epi16(_mm512_add_epi16(pair(2), pair(3)), ones);
                _mm512_add_epi32(start, _mm512_add_epi32(first, second))
            }
        } else if VNNI {
            let (mut first, mut second) = (start, _mm512_setzero_si512());
            for v in 0..4 {
                first = _mm512_dpbusd_epi32(first, codes(2 * v), x(2 * v));
                second = _mm512_dpbusd_epi32(second, codes(2 * v + 1), x(2 * v + 1));
            }
            _mm512_add_epi32(first, second)
        } else {
            // Blocks 0 to 7 and 8 to 15, two lanes each.
            let mut sums = [_mm512_setzero_si512(); 2];
            for v in 0..8 {
                for (half, sum) in sums.iter_mut().enumerate() {
                    let at = v * VECTOR + 32 * half;
                    let c = _mm512_cvtepu8_epi16(_mm256_loadu_si256(group.codes.as_ptr().add(at).cast()));
                    let x = _mm512_cvtepi8_epi16(_mm256_loadu_si256(group.x.as_ptr().add(at).cast()));
                    *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(c, x));
                }
            }
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            let pick = |index| _mm512_permutex2var_epi32(sums[0], index, sums[1]);
            _mm512_add_epi32(start, _mm512_add_epi32(pick(even), pick(odd)))
        };
        _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale));
    }
}

/// In 256-bit registers: blocks 0 to 7, then 8 to 15.
///
/// # Safety
/// AVX2, F16C, and AVX-VNNI where `VNNI` says so, must be enabled in the caller; slices must have a group's lengths.
#[inline(always)]
unsafe fn narrow<const VNNI: bool, const Q6: bool>(group: Group<'_>, out: &mut [f32; GROUP]) {
    // SAFETY: the contract; all loads are within the slices.
    unsafe {
        for half in 0..2 {
            let at = |v: usize| v * VECTOR + 32 * half;
            let codes = |v: usize| _mm256_loadu_si256(group.codes.as_ptr().add(at(v)).cast());
            let x = |v: usize| _mm256_loadu_si256(group.x.as_ptr().add(at(v)).cast());
            let start = _mm256_loadu_si256(group.start.as_ptr().add(8 * half).cast());
            let scale = if Q6 {
                let d = _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(*group.d)));
                let sc = _mm256_cvtepi8_epi32(_mm_loadl_epi64(group.scales.as_ptr().add(8 * half).cast()));
                _mm256_mul_ps(d, _mm256_cvtepi32_ps(sc))
            } else {
                _mm256_cvtph_ps(_mm_loadu_si128(group.scales.as_ptr().add(16 * half).cast()))
            };
            let sums = if Q6 {
                let (low_mask, high_mask) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48));
                let (a, b, h) = (codes(0), codes(1), codes(2));
                let join =
                    |low, high| _mm256_or_si256(_mm256_and_si256(low, low_mask), _mm256_and_si256(high, high_mask));
                let c = [
                    join(a, _mm256_slli_epi16::<4>(h)),
                    join(_mm256_srli_epi16::<4>(a), _mm256_slli_epi16::<2>(h)),
                    join(b, h),
                    join(_mm256_srli_epi16::<4>(b), _mm256_srli_epi16::<2>(h)),
                ];
                if VNNI {
                    let first = _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(start, c[0], x(0)), c[1], x(1));
                    let second = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), c[2], x(2));
                    _mm256_add_epi32(first, _mm256_dpbusd_avx_epi32(second, c[3], x(3)))
                } else {
                    let pair = |i: usize| _mm256_maddubs_epi16(c[i], x(i));
                    let ones = _mm256_set1_epi16(1);
                    let first = _mm256_madd_epi16(_mm256_add_epi16(pair(0), pair(1)), ones);
                    let second = _mm256_madd_epi16(_mm256_add_epi16(pair(2), pair(3)), ones);
                    _mm256_add_epi32(start, _mm256_add_epi32(first, second))
                }
            } else if VNNI {
                let (mut first, mut second) = (start, _mm256_setzero_si256());
                for v in 0..4 {
                    first = _mm256_dpbusd_avx_epi32(first, codes(2 * v), x(2 * v));
                    second = _mm256_dpbusd_avx_epi32(second, codes(2 * v + 1), x(2 * v + 1));
                }
                _mm256_add_epi32(first, second)
            } else {
                // Four blocks each, two lanes a block.
                let mut sums = [_mm256_setzero_si256(); 2];
                for v in 0..8 {
                    for (quarter, sum) in sums.iter_mut().enumerate() {
                        let at = at(v) + 16 * quarter;
                        let c = _mm256_cvtepu8_epi16(_mm_loadu_si128(group.codes.as_ptr().add(at).cast()));
                        let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(group.x.as_ptr().add(at).cast()));
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(c, x));
                    }
                }
                // Adds neighbours inside 128-bit halves: blocks 0, 1, 4, 5, 2, 3, 6, 7.
                let added = _mm256_hadd_epi32(sums[0], sums[1]);
                _mm256_add_epi32(start, _mm256_permute4x64_epi64::<0b11_01_10_00>(added))
            };
            let products = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scale);
            _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), products);
        }
    }
}
