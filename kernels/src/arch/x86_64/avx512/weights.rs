//! Statistics of weights, and blocks of two-bit codes, in 512-bit registers.
//!
//! Statistics take per 64 weights 4 loads, 4 `vandps`, 4 `vaddps`, 4 `vpmaxud`, 4 `vpaddd` and 4 `vpminud`; a block of 128 codes
//! 8 loads, 16 `vcmpps` into masks, 8 `kunpck`, and two masked moves and a `vpor` for each 32 bytes. Both are far below what
//! memory delivers (4 bytes a weight), so that quantization is a matter of how often weights are read.

use std::arch::x86_64::*;

use tersor_core::codec::absmean::{CHUNK, ChunkStats};
use tersor_core::reference::lanes::LANES;

use crate::codes::Marks;
use crate::lanes::two_bit_shift;

/// [`tersor_core::codec::absmean::chunk_stats`].
///
/// # Safety
/// AVX-512 F and DQ must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn chunk_stats<const AHEAD: usize>(w: &[f32]) -> ChunkStats {
    // SAFETY: the caller's contract; loads are within chunks of 64.
    unsafe {
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let minus_one = _mm512_set1_epi32(-1);
        let mut sum = [_mm512_setzero_ps(); 4];
        let mut max = [_mm512_setzero_si512(); 4];
        let mut min = [minus_one; 4];
        // A macro, for a closure may stay a function of its own, which lacks the ISA.
        macro_rules! add {
            ($chunk:expr) => {
                let chunk: &[f32; LANES] = $chunk;
                for i in 0..4 {
                    let at = chunk.as_ptr().add(16 * i);
                    if AHEAD > 0 {
                        _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                    }
                    let a = _mm512_and_si512(_mm512_loadu_si512(at.cast()), magnitude);
                    sum[i] = _mm512_add_ps(sum[i], _mm512_castsi512_ps(a));
                    max[i] = _mm512_max_epu32(max[i], a);
                    min[i] = _mm512_min_epu32(min[i], _mm512_add_epi32(a, minus_one));
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
/// AVX-512 F and DQ must be enabled in the caller.
#[inline(always)]
unsafe fn finish(sum: [__m512; 4], max: [__m512i; 4], min: [__m512i; 4]) -> ChunkStats {
    // SAFETY: the caller's contract.
    unsafe {
        let (low, high) = (_mm512_max_epu32(max[0], max[1]), _mm512_max_epu32(max[2], max[3]));
        let max_bits = _mm512_reduce_max_epu32(_mm512_max_epu32(low, high));
        let (low, high) = (_mm512_min_epu32(min[0], min[1]), _mm512_min_epu32(min[2], min[3]));
        let min_bits = _mm512_reduce_min_epu32(_mm512_min_epu32(low, high)).saturating_add(1);
        ChunkStats { sum: super::lanes::fold(sum), max_bits, min_bits }
    }
}

/// [`crate::codes::Codes::chunk_stats_near`]: 4 `vpsubd` and `vpcmpud`, and 4 stores of masks, more for each 64 weights.
///
/// # Safety
/// AVX-512 F and DQ must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn chunk_stats_near(w: &[f32; CHUNK], low: f32, high: f32, near: &mut Marks) -> ChunkStats {
    // SAFETY: the caller's contract; loads are within the chunk, stores within its 256 masks of 16 bits.
    unsafe {
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let minus_one = _mm512_set1_epi32(-1);
        // Magnitudes from the one above `low` to `high`, counted from 0.
        let above_low = _mm512_set1_epi32(low.to_bits() as i32);
        let count = _mm512_set1_epi32(high.to_bits().wrapping_sub(low.to_bits()) as i32);
        let mut sum = [_mm512_setzero_ps(); 4];
        let mut max = [_mm512_setzero_si512(); 4];
        let mut min = [minus_one; 4];
        for (chunk, near) in w.as_chunks::<LANES>().0.iter().zip(&mut near.values) {
            let marks: *mut u16 = std::ptr::from_mut(near).cast();
            for i in 0..4 {
                let at = chunk.as_ptr().add(16 * i);
                _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(4 * CHUNK));
                let a = _mm512_and_si512(_mm512_loadu_si512(at.cast()), magnitude);
                let less_one = _mm512_add_epi32(a, minus_one);
                sum[i] = _mm512_add_ps(sum[i], _mm512_castsi512_ps(a));
                max[i] = _mm512_max_epu32(max[i], a);
                min[i] = _mm512_min_epu32(min[i], less_one);
                *marks.add(i) = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(less_one, above_low), count);
            }
        }
        near.lines = 0;
        for (i, eight) in near.values.as_chunks::<8>().0.iter().enumerate() {
            let eight = _mm512_loadu_si512(eight.as_ptr().cast());
            near.lines |= u64::from(_mm512_test_epi64_mask(eight, eight)) << (8 * i);
        }
        finish(sum, max, min)
    }
}

/// [`crate::lanes::Lanes::two_bit_block`].
///
/// # Safety
/// AVX-512 F, BW and VL must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn two_bit_block<const LOW_FIRST: bool>(w: &[f32; 128], half: [f32; 2]) -> [u8; 32] {
    let mut out = [0; 32];
    // SAFETY: the caller's contract; loads are within 128 values, the store within 32 bytes.
    unsafe {
        let mut block = _mm256_setzero_si256();
        for q in 0..4 {
            let (high, low) = (_mm512_set1_ps(half[q / 2]), _mm512_set1_ps(-half[q / 2]));
            let a = _mm512_loadu_ps(w.as_ptr().add(32 * q));
            let b = _mm512_loadu_ps(w.as_ptr().add(32 * q + 16));
            let (first, second) =
                (_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, high), _mm512_cmp_ps_mask::<_CMP_GT_OQ>(b, high));
            let above = _mm512_kunpackw(second.into(), first.into());
            let (first, second) = (_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, low), _mm512_cmp_ps_mask::<_CMP_LT_OQ>(b, low));
            let below = _mm512_kunpackw(second.into(), first.into());
            let shift = two_bit_shift::<LOW_FIRST>(q);
            let zero_or_one = _mm256_mask_set1_epi8(_mm256_set1_epi8(1 << shift), below, 0);
            block = _mm256_or_si256(block, _mm256_mask_set1_epi8(zero_or_one, above, (2u8 << shift) as i8));
        }
        _mm256_storeu_si256(out.as_mut_ptr().cast(), block);
    }
    out
}

/// [`crate::lanes::Lanes::two_bit_values`].
///
/// # Safety
/// AVX-512 F must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn two_bit_values<const LOW_FIRST: bool>(
    bytes: &[u8; 32],
    values: &[[f32; 4]; 2],
    out: &mut [f32; 128],
) {
    // SAFETY: the caller's contract; loads are within 32 bytes, stores within 128 values.
    unsafe {
        let tables = [
            _mm512_broadcast_f32x4(_mm_loadu_ps(values[0].as_ptr())),
            _mm512_broadcast_f32x4(_mm_loadu_ps(values[1].as_ptr())),
        ];
        for half in 0..2 {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().add(16 * half).cast()));
            for q in 0..4 {
                // `vpermps` looks at the low four bits of an index; tables repeat every four, so that two count.
                let code = _mm512_srl_epi32(bytes, _mm_cvtsi32_si128(two_bit_shift::<LOW_FIRST>(q) as i32));
                _mm512_storeu_ps(out.as_mut_ptr().add(32 * q + 16 * half), _mm512_permutexvar_ps(code, tables[q / 2]));
            }
        }
    }
}
