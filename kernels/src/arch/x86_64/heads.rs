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
//!
//! A group of weights is unpacked once for up to eight rows of activations, each of which costs, at 512 bits and in `q6_k`, four
//! `vpdpbusd`, an addition, a conversion, a multiplication and an addition to the lanes of its sum, which stay in the first-level
//! cache. That is six operations for the two pipes that multiply, three cycles for 256 products; with the end of a row (64 lanes
//! folded in order, for ten groups at 2,560 columns) one core did 185 GMAC/s with 64 rows (104 before, unpacking for each row).

use std::arch::x86_64::*;

use tersor_core::Isa;
use tersor_core::reference::lanes::LANES;

use crate::arch::prefetch;
use crate::heads::{Columns, GROUP, Group, Q6_CODES, Q8_CODES, VECTOR};
use crate::isa::Simd;

/// How far ahead weights are prefetched: about two rows of 2,560. The processor's own prefetchers follow three lines here and
/// one there badly: without this, one Zen 5 core read a 128,256 x 2,560 `q6_k` weight at 15.6 GB/s and `q8_0` at 27.1 (AVX-512
/// VNNI, 4 KiB pages); with it, at 33.0 and 32.4; on huge pages at 38.3 and 39.9 of 43.6 that reading alone reached.
const AHEAD: usize = 4096;

/// [`crate::heads::add_group`] with the ISA of an x86 token.
///
/// # Safety
/// As for [`crate::heads::add_group`].
#[inline(always)]
pub(crate) unsafe fn add_group<S: Simd, const Q6: bool, const C: usize>(_: S, group: Group<'_>, columns: Columns) {
    let (codes, scales) = if Q6 { (Q6_CODES, GROUP) } else { (Q8_CODES, 2 * GROUP) };
    assert!(group.codes.len() == codes && group.scales.len() == scales, "a group within its slices");
    for line in 0..codes / VECTOR {
        prefetch(group.codes.as_ptr().wrapping_add(AHEAD + line * VECTOR));
    }
    prefetch(group.scales.as_ptr().wrapping_add(AHEAD));
    // SAFETY: the token is proof of its ISA; the assertion gives the group's slices their lengths, the caller the rest.
    unsafe {
        match S::ISA {
            Some(Isa::Avx512) => wide::<false, Q6, C>(group, columns),
            Some(Isa::Avx512Vnni | Isa::Avx512Vbmi) => wide::<true, Q6, C>(group, columns),
            Some(Isa::AvxVnni) => narrow::<true, Q6, C>(group, columns),
            _ => narrow::<false, Q6, C>(group, columns),
        }
    }
}

// Loads are macros: a closure may stay a function of its own, which lacks the ISA, and then everything in it is a call.

/// In 512-bit registers.
///
/// # Safety
/// AVX-512 F, BW, and VNNI where `VNNI` says so, must be enabled in the caller; the group's slices must have their lengths, and
/// what `columns` points to must be there for `C` rows.
#[inline(always)]
unsafe fn wide<const VNNI: bool, const Q6: bool, const C: usize>(group: Group<'_>, columns: Columns) {
    // SAFETY: the contract; all loads are within the slices and what the columns point to.
    unsafe {
        macro_rules! codes {
            ($v:expr) => {
                _mm512_loadu_si512(group.codes.as_ptr().add($v * VECTOR).cast())
            };
        }
        let scale = if Q6 {
            let d = _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(*group.d)));
            let sc = _mm512_cvtepi8_epi32(_mm_loadu_si128(group.scales.as_ptr().cast()));
            _mm512_mul_ps(d, _mm512_cvtepi32_ps(sc))
        } else {
            _mm512_cvtph_ps(_mm256_loadu_si256(group.scales.as_ptr().cast()))
        };
        let zero = _mm512_setzero_si512();
        let mut q6 = [zero; 4];
        if Q6 {
            let (nibble, six) = (_mm512_set1_epi8(15), _mm512_set1_epi8(63));
            let (a, b, h) = (codes!(0), codes!(1), codes!(2));
            // The low four bits from the first operand, the rest from the second; then what neighbours shifted in is cut.
            macro_rules! join {
                ($low:expr, $high:expr) => {
                    _mm512_and_si512(_mm512_ternarylogic_epi32::<0xca>(nibble, $low, $high), six)
                };
            }
            q6 = [
                join!(a, _mm512_slli_epi16::<4>(h)),
                join!(_mm512_srli_epi16::<4>(a), _mm512_slli_epi16::<2>(h)),
                join!(b, h),
                join!(_mm512_srli_epi16::<4>(b), _mm512_srli_epi16::<2>(h)),
            ];
        }
        for c in 0..C {
            let row = columns.x.add(c * columns.x_row);
            macro_rules! x {
                ($v:expr) => {
                    _mm512_loadu_si512(row.add($v * VECTOR).cast())
                };
            }
            let start = _mm512_loadu_si512(columns.start.add(c * columns.start_row).cast());
            let sums = if Q6 && VNNI {
                let first = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, q6[0], x!(0)), q6[1], x!(1));
                let second = _mm512_dpbusd_epi32(zero, q6[2], x!(2));
                _mm512_add_epi32(first, _mm512_dpbusd_epi32(second, q6[3], x!(3)))
            } else if Q6 {
                let ones = _mm512_set1_epi16(1);
                let (a, b) = (_mm512_maddubs_epi16(q6[0], x!(0)), _mm512_maddubs_epi16(q6[1], x!(1)));
                let first = _mm512_madd_epi16(_mm512_add_epi16(a, b), ones);
                let (a, b) = (_mm512_maddubs_epi16(q6[2], x!(2)), _mm512_maddubs_epi16(q6[3], x!(3)));
                let second = _mm512_madd_epi16(_mm512_add_epi16(a, b), ones);
                _mm512_add_epi32(start, _mm512_add_epi32(first, second))
            } else if VNNI {
                let (mut first, mut second) = (start, zero);
                for v in 0..4 {
                    first = _mm512_dpbusd_epi32(first, codes!(2 * v), x!(2 * v));
                    second = _mm512_dpbusd_epi32(second, codes!(2 * v + 1), x!(2 * v + 1));
                }
                _mm512_add_epi32(first, second)
            } else {
                // Blocks 0 to 7 and 8 to 15, two lanes each.
                let mut sums = [zero; 2];
                for v in 0..8 {
                    for half in 0..2 {
                        let at = v * VECTOR + 32 * half;
                        let codes = _mm256_loadu_si256(group.codes.as_ptr().add(at).cast());
                        let x = _mm512_cvtepi8_epi16(_mm256_loadu_si256(row.add(at).cast()));
                        let products = _mm512_madd_epi16(_mm512_cvtepu8_epi16(codes), x);
                        sums[half] = _mm512_add_epi32(sums[half], products);
                    }
                }
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                let (even, odd) = (
                    _mm512_permutex2var_epi32(sums[0], even, sums[1]),
                    _mm512_permutex2var_epi32(sums[0], odd, sums[1]),
                );
                _mm512_add_epi32(start, _mm512_add_epi32(even, odd))
            };
            let lanes = columns.lanes.add(c * LANES);
            let products = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale);
            _mm512_storeu_ps(lanes, _mm512_add_ps(_mm512_loadu_ps(lanes), products));
        }
    }
}

/// In 256-bit registers: blocks 0 to 7, then 8 to 15.
///
/// # Safety
/// AVX2, F16C, and AVX-VNNI where `VNNI` says so, must be enabled in the caller; otherwise as for [`wide`].
#[inline(always)]
unsafe fn narrow<const VNNI: bool, const Q6: bool, const C: usize>(group: Group<'_>, columns: Columns) {
    // SAFETY: the contract; all loads are within the slices and what the columns point to.
    unsafe {
        for half in 0..2 {
            macro_rules! codes {
                ($v:expr) => {
                    _mm256_loadu_si256(group.codes.as_ptr().add($v * VECTOR + 32 * half).cast())
                };
            }
            let scale = if Q6 {
                let d = _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(*group.d)));
                let sc = _mm256_cvtepi8_epi32(_mm_loadl_epi64(group.scales.as_ptr().add(8 * half).cast()));
                _mm256_mul_ps(d, _mm256_cvtepi32_ps(sc))
            } else {
                _mm256_cvtph_ps(_mm_loadu_si128(group.scales.as_ptr().add(16 * half).cast()))
            };
            let zero = _mm256_setzero_si256();
            let mut q6 = [zero; 4];
            if Q6 {
                let (low_mask, high_mask) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48));
                let (a, b, h) = (codes!(0), codes!(1), codes!(2));
                macro_rules! join {
                    ($low:expr, $high:expr) => {
                        _mm256_or_si256(_mm256_and_si256($low, low_mask), _mm256_and_si256($high, high_mask))
                    };
                }
                q6 = [
                    join!(a, _mm256_slli_epi16::<4>(h)),
                    join!(_mm256_srli_epi16::<4>(a), _mm256_slli_epi16::<2>(h)),
                    join!(b, h),
                    join!(_mm256_srli_epi16::<4>(b), _mm256_srli_epi16::<2>(h)),
                ];
            }
            for c in 0..C {
                let row = columns.x.add(c * columns.x_row + 32 * half);
                macro_rules! x {
                    ($v:expr) => {
                        _mm256_loadu_si256(row.add($v * VECTOR).cast())
                    };
                }
                let start = _mm256_loadu_si256(columns.start.add(c * columns.start_row + 8 * half).cast());
                let sums = if Q6 && VNNI {
                    let first = _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(start, q6[0], x!(0)), q6[1], x!(1));
                    let second = _mm256_dpbusd_avx_epi32(zero, q6[2], x!(2));
                    _mm256_add_epi32(first, _mm256_dpbusd_avx_epi32(second, q6[3], x!(3)))
                } else if Q6 {
                    let ones = _mm256_set1_epi16(1);
                    let (a, b) = (_mm256_maddubs_epi16(q6[0], x!(0)), _mm256_maddubs_epi16(q6[1], x!(1)));
                    let first = _mm256_madd_epi16(_mm256_add_epi16(a, b), ones);
                    let (a, b) = (_mm256_maddubs_epi16(q6[2], x!(2)), _mm256_maddubs_epi16(q6[3], x!(3)));
                    let second = _mm256_madd_epi16(_mm256_add_epi16(a, b), ones);
                    _mm256_add_epi32(start, _mm256_add_epi32(first, second))
                } else if VNNI {
                    let (mut first, mut second) = (start, zero);
                    for v in 0..4 {
                        first = _mm256_dpbusd_avx_epi32(first, codes!(2 * v), x!(2 * v));
                        second = _mm256_dpbusd_avx_epi32(second, codes!(2 * v + 1), x!(2 * v + 1));
                    }
                    _mm256_add_epi32(first, second)
                } else {
                    // Four blocks each, two lanes a block.
                    let mut sums = [zero; 2];
                    for v in 0..8 {
                        for quarter in 0..2 {
                            let at = v * VECTOR + 16 * quarter;
                            let codes = _mm_loadu_si128(group.codes.as_ptr().add(at + 32 * half).cast());
                            let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(row.add(at).cast()));
                            let products = _mm256_madd_epi16(_mm256_cvtepu8_epi16(codes), x);
                            sums[quarter] = _mm256_add_epi32(sums[quarter], products);
                        }
                    }
                    // Adds neighbours inside 128-bit halves: blocks 0, 1, 4, 5, 2, 3, 6, 7.
                    let added = _mm256_hadd_epi32(sums[0], sums[1]);
                    _mm256_add_epi32(start, _mm256_permute4x64_epi64::<0b11_01_10_00>(added))
                };
                let lanes = columns.lanes.add(c * LANES + 8 * half);
                let products = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scale);
                _mm256_storeu_ps(lanes, _mm256_add_ps(_mm256_loadu_ps(lanes), products));
            }
        }
    }
}
