//! Statistics of weights, and blocks of two-bit codes, in 256-bit registers.
//!
//! Statistics keep the eight registers of the sum's lanes and two each for the largest and the smallest, whose order is free.
//! A block of 128 codes takes 16 loads, 32 `vcmpps`, and per 32 bytes four subtractions, three packs and a permutation.

use std::arch::x86_64::*;

use tersor_core::codec::absmean::{CHUNK, ChunkStats};
use tersor_core::reference::lanes::LANES;

use crate::codes::Marks;
use crate::lanes::two_bit_shift;

/// [`tersor_core::codec::absmean::chunk_stats`].
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn chunk_stats<const AHEAD: usize>(w: &[f32]) -> ChunkStats {
    // SAFETY: the caller's contract; loads are within chunks of 64.
    unsafe {
        let magnitude = _mm256_set1_epi32(0x7fff_ffff);
        let minus_one = _mm256_set1_epi32(-1);
        let mut sum = [_mm256_setzero_ps(); 8];
        let mut max = [_mm256_setzero_si256(); 2];
        let mut min = [minus_one; 2];
        // A macro, for a closure may stay a function of its own, which lacks the ISA.
        macro_rules! add {
            ($chunk:expr) => {
                let chunk: &[f32; LANES] = $chunk;
                for i in 0..8 {
                    let at = chunk.as_ptr().add(8 * i);
                    if AHEAD > 0 && i % 2 == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                    }
                    let a = _mm256_and_si256(_mm256_loadu_si256(at.cast()), magnitude);
                    sum[i] = _mm256_add_ps(sum[i], _mm256_castsi256_ps(a));
                    max[i % 2] = _mm256_max_epu32(max[i % 2], a);
                    min[i % 2] = _mm256_min_epu32(min[i % 2], _mm256_add_epi32(a, minus_one));
                }
            };
        }
        let (chunks, rest) = w.as_chunks::<LANES>();
        for chunk in chunks {
            add!(chunk);
        }
        if !rest.is_empty() {
            // A zero adds +0 to a sum that is never -0, and is neither the largest nor, wrapped, the smallest.
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            add!(&last);
        }
        finish(sum, max, min)
    }
}

/// Statistics from what lanes have gathered; `min` is of magnitudes less one.
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
unsafe fn finish(sum: [__m256; 8], max: [__m256i; 2], min: [__m256i; 2]) -> ChunkStats {
    let (mut largest, mut smallest) = ([0u32; 8], [0u32; 8]);
    // SAFETY: the caller's contract; stores are within eight lanes.
    let sum = unsafe {
        _mm256_storeu_si256(largest.as_mut_ptr().cast(), _mm256_max_epu32(max[0], max[1]));
        _mm256_storeu_si256(smallest.as_mut_ptr().cast(), _mm256_min_epu32(min[0], min[1]));
        super::lanes::fold(sum)
    };
    let max_bits = largest.into_iter().fold(0, u32::max);
    ChunkStats { sum, max_bits, min_bits: smallest.into_iter().fold(u32::MAX, u32::min).saturating_add(1) }
}

/// [`crate::codes::Codes::chunk_stats_near`]: 16 `vcmpps`, and 8 `vandps`, `vmovmskps` and stores of a byte, more for each 64 weights.
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn chunk_stats_near(w: &[f32; CHUNK], low: f32, high: f32, near: &mut Marks) -> ChunkStats {
    // SAFETY: the caller's contract; loads are within the chunk, stores within its 512 masks of 8 bits.
    unsafe {
        let magnitude = _mm256_set1_epi32(0x7fff_ffff);
        let minus_one = _mm256_set1_epi32(-1);
        let (low, high) = (_mm256_set1_ps(low), _mm256_set1_ps(high));
        let mut sum = [_mm256_setzero_ps(); 8];
        let mut max = [_mm256_setzero_si256(); 2];
        let mut min = [minus_one; 2];
        for (chunk, near) in w.as_chunks::<LANES>().0.iter().zip(&mut near.values) {
            let marks: *mut u8 = std::ptr::from_mut(near).cast();
            for i in 0..8 {
                let at = chunk.as_ptr().add(8 * i);
                if i % 2 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(4 * CHUNK));
                }
                let a = _mm256_and_si256(_mm256_loadu_si256(at.cast()), magnitude);
                let v = _mm256_castsi256_ps(a);
                sum[i] = _mm256_add_ps(sum[i], v);
                max[i % 2] = _mm256_max_epu32(max[i % 2], a);
                min[i % 2] = _mm256_min_epu32(min[i % 2], _mm256_add_epi32(a, minus_one));
                let inside = _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(v, low), _mm256_cmp_ps::<_CMP_LE_OQ>(v, high));
                *marks.add(i) = _mm256_movemask_ps(inside) as u8;
            }
        }
        let mut none = 0;
        for (i, four) in near.values.as_chunks::<4>().0.iter().enumerate() {
            let zero = _mm256_cmpeq_epi64(_mm256_loadu_si256(four.as_ptr().cast()), _mm256_setzero_si256());
            none |= (_mm256_movemask_pd(_mm256_castsi256_pd(zero)) as u64) << (4 * i);
        }
        near.lines = !none;
        finish(sum, max, min)
    }
}

/// [`crate::lanes::Lanes::two_bit_block`].
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn two_bit_block<const LOW_FIRST: bool>(w: &[f32; 128], half: [f32; 2]) -> [u8; 32] {
    let mut out = [0; 32];
    // SAFETY: the caller's contract; loads are within 128 values, the store within 32 bytes.
    unsafe {
        let mut block = _mm256_setzero_si256();
        for q in 0..4 {
            let (high, low) = (_mm256_set1_ps(half[q / 2]), _mm256_set1_ps(-half[q / 2]));
            // Comparisons give -1 where they hold: below - above is the ternary value.
            macro_rules! ternary {
                ($i:literal) => {{
                    let v = _mm256_loadu_ps(w.as_ptr().add(32 * q + 8 * $i));
                    let above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(v, high));
                    _mm256_sub_epi32(_mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(v, low)), above)
                }};
            }
            let a = _mm256_packs_epi32(ternary!(0), ternary!(1));
            let b = _mm256_packs_epi32(ternary!(2), ternary!(3));
            // Packs work in halves of a register: their groups of four come as 0 2 4 6 1 3 5 7.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let values = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
            let codes = _mm256_add_epi8(values, _mm256_set1_epi8(1));
            // Codes are at most 2, so that nothing leaves its byte.
            let shift = _mm_cvtsi32_si128(two_bit_shift::<LOW_FIRST>(q) as i32);
            block = _mm256_or_si256(block, _mm256_sll_epi16(codes, shift));
        }
        _mm256_storeu_si256(out.as_mut_ptr().cast(), block);
    }
    out
}

/// [`crate::lanes::Lanes::two_bit_values`].
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn two_bit_values<const LOW_FIRST: bool>(
    bytes: &[u8; 32],
    values: &[[f32; 4]; 2],
    out: &mut [f32; 128],
) {
    // SAFETY: the caller's contract; loads are within 32 bytes, stores within 128 values.
    unsafe {
        let tables = [
            _mm256_broadcast_ps(&_mm_loadu_ps(values[0].as_ptr())),
            _mm256_broadcast_ps(&_mm_loadu_ps(values[1].as_ptr())),
        ];
        let mask = _mm256_set1_epi32(3);
        for eighth in 0..4 {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().add(8 * eighth).cast()));
            for q in 0..4 {
                let code = _mm256_srl_epi32(bytes, _mm_cvtsi32_si128(two_bit_shift::<LOW_FIRST>(q) as i32));
                let value = _mm256_permutevar8x32_ps(tables[q / 2], _mm256_and_si256(code, mask));
                _mm256_storeu_ps(out.as_mut_ptr().add(32 * q + 8 * eighth), value);
            }
        }
    }
}
