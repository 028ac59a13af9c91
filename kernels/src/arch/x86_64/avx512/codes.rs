//! Codes, table indices and scales of groups, in 512-bit registers.
//!
//! 64 codes take 4 loads, 8 `vcmpps` into masks, 6 `kunpck`, a masked move and a masked addition. 64 codes of `tl1` take `vpmaddubsw`, `vpmaddwd` and
//! `vpmovdb`; 192 of `tl2`, which are 64 triples, four permutations, shuffles and pairs of dot products, three packs and a
//! permutation back, then a subtraction, `vpabsb`, `vpmovb2m`, `vpmaddubsw` and `vpmovwb`: 26 operations, 0.14 a weight.
//!
//! Four groups of 64 take 17 operations each, and together 33 to fold them and 11 to make scales of that; one by one they were 48 each
//! and a division of scalars, and stood in line for each other's latencies.

use std::arch::x86_64::*;

use tersor_core::codec::absmean::{CHUNK, ChunkStats, MIN_SCALE};
use tersor_core::reference::lanes::LANES;

use crate::codes::{Codes, Marks, PREFETCH, ThreeCodes};

use super::lanes::{F32x64, HasAvx512};
use super::weights;

// SAFETY (all blocks): the registers are used with a token, which is proof of AVX-512 F, BW, DQ and VL; loads and stores are
// within the arrays, whose lengths are in their types.
impl<S: HasAvx512> Codes<S> for F32x64 {
    #[inline(always)]
    fn codes(_: S, w: &[f32; LANES], half: f32) -> [u8; LANES] {
        // SAFETY: as above.
        unsafe { codes(w, half) }
    }
    #[inline(always)]
    fn pairs(_: S, codes: &[u8; LANES]) -> [u8; 16] {
        // SAFETY: as above.
        unsafe { pairs(codes) }
    }
    #[inline(always)]
    fn triples(_: S, codes: &ThreeCodes) -> ([u8; 32], [u8; 8]) {
        // SAFETY: as above.
        unsafe { triples(codes) }
    }
    #[inline(always)]
    fn group_scales<const G: usize>(_: S, groups: &[[f32; G]; 4]) -> Option<[f32; 4]> {
        // SAFETY: as above.
        unsafe { group_scales(groups) }
    }
    #[inline(always)]
    fn chunk_stats_near(_: S, w: &[f32; CHUNK], low: f32, high: f32, near: &mut Marks) -> ChunkStats {
        // SAFETY: as above.
        unsafe { weights::chunk_stats_near(w, low, high, near) }
    }
}

/// [`Codes::codes`].
///
/// # Safety
/// AVX-512 F and BW must be enabled in the caller.
#[inline(always)]
unsafe fn codes(w: &[f32; LANES], half: f32) -> [u8; LANES] {
    let mut out = [0; LANES];
    // SAFETY: the caller's contract; loads are within 64 values, the store within 64 bytes.
    unsafe {
        let (high, low) = (_mm512_set1_ps(half), _mm512_set1_ps(-half));
        // A macro, for a closure may stay a function of its own, which lacks the ISA.
        macro_rules! mask {
            ($compare:ident, $with:expr) => {{
                let mut masks = [0; 4];
                for i in 0..4 {
                    masks[i] = _mm512_cmp_ps_mask::<$compare>(_mm512_loadu_ps(w.as_ptr().add(16 * i)), $with);
                }
                let low = _mm512_kunpackw(masks[1].into(), masks[0].into());
                _mm512_kunpackd(_mm512_kunpackw(masks[3].into(), masks[2].into()).into(), low.into())
            }};
        }
        // No value is NaN: what is not below is at least.
        let (above, not_below) = (mask!(_CMP_GT_OQ, high), mask!(_CMP_GE_OQ, low));
        let one = _mm512_set1_epi8(1);
        let zero_or_one = _mm512_maskz_mov_epi8(not_below, one);
        let codes = _mm512_mask_add_epi8(zero_or_one, above, zero_or_one, one);
        _mm512_storeu_si512(out.as_mut_ptr().cast(), codes);
    }
    out
}

/// [`Codes::pairs`].
///
/// # Safety
/// AVX-512 F and BW must be enabled in the caller.
#[inline(always)]
unsafe fn pairs(codes: &[u8; LANES]) -> [u8; 16] {
    let mut out = [0; 16];
    // SAFETY: the caller's contract; the load is within 64 bytes, the store within 16.
    unsafe {
        let places = _mm512_set1_epi32(i32::from_le_bytes([48, 16, 3, 1]));
        let halves = _mm512_maddubs_epi16(_mm512_loadu_si512(codes.as_ptr().cast()), places);
        let indices = _mm512_cvtepi32_epi8(_mm512_madd_epi16(halves, _mm512_set1_epi16(1)));
        _mm_storeu_si128(out.as_mut_ptr().cast(), indices);
    }
    out
}

/// [`Codes::triples`].
///
/// # Safety
/// AVX-512 F and BW must be enabled in the caller.
#[inline(always)]
unsafe fn triples(codes: &ThreeCodes) -> ([u8; 32], [u8; 8]) {
    let (mut nibbles, signs);
    // SAFETY: the caller's contract; loads are within 64 bytes, the store within 32.
    unsafe {
        let a = _mm512_loadu_si512(codes[0].as_ptr().cast());
        let b = _mm512_loadu_si512(codes[1].as_ptr().cast());
        let c = _mm512_loadu_si512(codes[2].as_ptr().cast());
        // Twelve bytes to each quarter of a register: words 12 i + 3 l of quarter l, and two after it.
        macro_rules! words {
            ($first:literal) => {
                _mm512_setr_epi32(
                    $first,
                    $first + 1,
                    $first + 2,
                    $first,
                    $first + 3,
                    $first + 4,
                    $first + 5,
                    $first,
                    $first + 6,
                    $first + 7,
                    $first + 8,
                    $first,
                    $first + 9,
                    $first + 10,
                    $first + 11,
                    $first,
                )
            };
        }
        let parts = [
            _mm512_permutexvar_epi32(words!(0), a),
            _mm512_permutex2var_epi32(a, words!(12), b),
            // Counted from the second register on.
            _mm512_permutex2var_epi32(b, words!(8), c),
            _mm512_permutexvar_epi32(words!(4), c),
        ];
        let triples = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
        let places = _mm512_set1_epi32(i32::from_le_bytes([9, 3, 1, 0]));
        let mut sums = parts;
        for i in 0..4 {
            let halves = _mm512_maddubs_epi16(_mm512_shuffle_epi8(parts[i], triples), places);
            sums[i] = _mm512_madd_epi16(halves, _mm512_set1_epi16(1));
        }
        // Packs work in quarters of a register: word 4 l + i has part i's triples of quarter l.
        let (first, second) = (_mm512_packs_epi32(sums[0], sums[1]), _mm512_packs_epi32(sums[2], sums[3]));
        let packed = _mm512_packs_epi16(first, second);
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let values = _mm512_sub_epi8(_mm512_permutexvar_epi32(order, packed), _mm512_set1_epi8(13));
        signs = _mm512_movepi8_mask(values).to_le_bytes();
        let two = _mm512_maddubs_epi16(_mm512_abs_epi8(values), _mm512_set1_epi16(i16::from_le_bytes([16, 1])));
        nibbles = [0; 32];
        _mm256_storeu_si256(nibbles.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(two));
    }
    (nibbles, signs)
}

/// [`Codes::group_scales`].
///
/// # Safety
/// AVX-512 F, BW and DQ must be enabled in the caller.
#[inline(always)]
unsafe fn group_scales<const G: usize>(groups: &[[f32; G]; 4]) -> Option<[f32; 4]> {
    let mut out = [0.0; 4];
    // SAFETY: the caller's contract; loads are within groups, the store within four values.
    unsafe {
        let (magnitude, zero) = (_mm512_set1_epi32(0x7fff_ffff), _mm512_setzero_si512());
        let (mut sums, mut max, mut min) = ([_mm512_setzero_ps(); 4], [zero; 4], [zero; 4]);
        for g in 0..4 {
            let mut sum = [_mm512_setzero_ps(); 4];
            for (line, w) in groups[g].as_chunks::<LANES>().0.iter().enumerate() {
                for i in 0..4 {
                    let at = w.as_ptr().add(16 * i);
                    _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(PREFETCH));
                    let a = _mm512_and_si512(_mm512_loadu_si512(at.cast()), magnitude);
                    // A magnitude is what it is after an addition to +0.
                    let v = _mm512_castsi512_ps(a);
                    sum[i] = if line == 0 { v } else { _mm512_add_ps(sum[i], v) };
                    max[g] = _mm512_max_epu32(max[g], a);
                    // The smaller, the larger when negated, but for zero, which is never the largest.
                    min[g] = _mm512_max_epu32(min[g], _mm512_sub_epi32(zero, a));
                }
            }
            sums[g] = _mm512_add_ps(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
        }
        // Halves of two, then quarters of four side by side: quarter l of a register has what is left of group l.
        macro_rules! fours {
            ($v:expr, $shuffle:ident, $op:ident) => {{
                let a = $op($shuffle::<0x44>($v[0], $v[1]), $shuffle::<0xee>($v[0], $v[1]));
                let b = $op($shuffle::<0x44>($v[2], $v[3]), $shuffle::<0xee>($v[2], $v[3]));
                $op($shuffle::<0x88>(a, b), $shuffle::<0xdd>(a, b))
            }};
        }
        let sum = fours!(sums, _mm512_shuffle_f32x4, _mm512_add_ps);
        let sum = _mm512_add_ps(sum, _mm512_permute_ps::<0x4e>(sum));
        let sum = _mm512_add_ps(sum, _mm512_permute_ps::<0xb1>(sum));
        let max = fours!(max, _mm512_shuffle_i32x4, _mm512_max_epu32);
        let min = fours!(min, _mm512_shuffle_i32x4, _mm512_max_epu32);
        let both = _mm512_max_epu32(_mm512_unpacklo_epi64(max, min), _mm512_unpackhi_epi64(max, min));
        let both = _mm512_max_epu32(both, _mm512_shuffle_epi32::<0xb1>(both));
        let max = _mm512_shuffle_epi32::<0x00>(both);
        let min = _mm512_sub_epi32(zero, _mm512_shuffle_epi32::<0xaa>(both));
        // Where all are zero there is no smallest.
        let one_magnitude = _mm512_mask_cmpeq_epi32_mask(_mm512_test_epi32_mask(max, max), max, min);
        // Exactly rounded, as the quotient in f64 is: G is a power of two.
        let mean = _mm512_mul_ps(sum, _mm512_set1_ps(1.0 / G as f32));
        let infinity = _mm512_set1_ps(f32::INFINITY);
        let not_finite = _mm512_cmpge_epu32_mask(max, _mm512_castps_si512(infinity));
        let overflowed = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(!one_magnitude, mean, infinity);
        if (not_finite | overflowed) != 0 {
            return None;
        }
        let mean = _mm512_max_ps(mean, _mm512_set1_ps(MIN_SCALE));
        let scales = _mm512_mask_mov_ps(mean, one_magnitude, _mm512_castsi512_ps(max));
        let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, scales)));
    }
    Some(out)
}
