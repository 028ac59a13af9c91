//! Codes, table indices and scales of groups, in 256-bit registers.
//!
//! 64 codes take 8 loads, 16 `vcmpps`, 8 subtractions, six packs and two permutations and additions. 64 codes of `tl1` take two `vpmaddubsw` and
//! `vpmaddwd`, two packs and a permutation; 192 of `tl2` eight permutations, shuffles and pairs of dot products, six packs and two
//! permutations, and per 32 triples a subtraction, `vpabsb`, `vpmovmskb` and `vpmaddubsw`. Four groups of scales are folded together.

use std::arch::x86_64::*;

use tersor_core::codec::absmean::{CHUNK, ChunkStats, MIN_SCALE};
use tersor_core::reference::lanes::LANES;

use crate::codes::{Codes, Marks, PREFETCH, ThreeCodes};

use super::lanes::{F32x64, HasAvx2};
use super::weights;

// SAFETY (all blocks): the registers are used with a token, which is proof of AVX2; loads and stores are within the arrays,
// whose lengths are in their types.
impl<S: HasAvx2> Codes<S> for F32x64 {
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
/// AVX2 must be enabled in the caller.
#[inline(always)]
unsafe fn codes(w: &[f32; LANES], half: f32) -> [u8; LANES] {
    let mut out = [0; LANES];
    // SAFETY: the caller's contract; loads are within 64 values, stores within 64 bytes.
    unsafe {
        let (high, low) = (_mm256_set1_ps(half), _mm256_set1_ps(-half));
        for h in 0..2 {
            // Comparisons give -1 where they hold: below - above is the ternary value.
            macro_rules! ternary {
                ($i:literal) => {{
                    let v = _mm256_loadu_ps(w.as_ptr().add(32 * h + 8 * $i));
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
            _mm256_storeu_si256(out.as_mut_ptr().add(32 * h).cast(), codes);
        }
    }
    out
}

/// [`Codes::pairs`].
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
unsafe fn pairs(codes: &[u8; LANES]) -> [u8; 16] {
    let mut out = [0; 16];
    // SAFETY: the caller's contract; loads are within 64 bytes, the store within 16.
    unsafe {
        let places = _mm256_set1_epi32(i32::from_le_bytes([48, 16, 3, 1]));
        macro_rules! indices {
            ($at:literal) => {{
                let halves = _mm256_maddubs_epi16(_mm256_loadu_si256(codes.as_ptr().add($at).cast()), places);
                _mm256_madd_epi16(halves, _mm256_set1_epi16(1))
            }};
        }
        let words = _mm256_packs_epi32(indices!(0), indices!(32));
        let bytes = _mm256_packus_epi16(words, words);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
        let bytes = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order));
        _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
    }
    out
}

/// [`Codes::triples`].
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
unsafe fn triples(codes: &ThreeCodes) -> ([u8; 32], [u8; 8]) {
    let (mut nibbles, mut signs) = ([0; 32], [0; 8]);
    // SAFETY: the caller's contract; loads are within 192 bytes, the store within 32.
    unsafe {
        let codes = codes.as_flattened().as_ptr();
        let triples = _mm256_setr_epi8(
            0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1, 0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1,
        );
        let places = _mm256_set1_epi32(i32::from_le_bytes([9, 3, 1, 0]));
        // Eight triples: the six words from `word` on of the eight that are loaded, three to each half.
        macro_rules! eight {
            ($at:expr, $word:literal) => {{
                let words = _mm256_loadu_si256(codes.add($at).cast());
                let order =
                    _mm256_setr_epi32($word, $word + 1, $word + 2, $word, $word + 3, $word + 4, $word + 5, $word);
                let halves = _mm256_maddubs_epi16(
                    _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(words, order), triples),
                    places,
                );
                _mm256_madd_epi16(halves, _mm256_set1_epi16(1))
            }};
        }
        // Packs work in halves of a register.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        macro_rules! magnitudes {
            ($a:expr, $b:expr, $c:expr, $d:expr, $signs:expr) => {{
                let packed = _mm256_packs_epi16(_mm256_packs_epi32($a, $b), _mm256_packs_epi32($c, $d));
                let values = _mm256_sub_epi8(_mm256_permutevar8x32_epi32(packed, order), _mm256_set1_epi8(13));
                signs[$signs..$signs + 4].copy_from_slice(&_mm256_movemask_epi8(values).to_le_bytes());
                _mm256_maddubs_epi16(_mm256_abs_epi8(values), _mm256_set1_epi16(i16::from_le_bytes([16, 1])))
            }};
        }
        let first = magnitudes!(eight!(0, 0), eight!(24, 0), eight!(48, 0), eight!(72, 0), 0);
        // The last load ends with the codes.
        let second = magnitudes!(eight!(96, 0), eight!(120, 0), eight!(144, 0), eight!(160, 2), 4);
        let bytes = _mm256_permute4x64_epi64::<0xd8>(_mm256_packus_epi16(first, second));
        _mm256_storeu_si256(nibbles.as_mut_ptr().cast(), bytes);
    }
    (nibbles, signs)
}

/// [`Codes::group_scales`].
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
unsafe fn group_scales<const G: usize>(groups: &[[f32; G]; 4]) -> Option<[f32; 4]> {
    let mut out = [0.0; 8];
    // SAFETY: the caller's contract; loads are within groups, the store within eight values.
    unsafe {
        let (magnitude, zero) = (_mm256_set1_epi32(0x7fff_ffff), _mm256_setzero_si256());
        let (mut sums, mut max, mut min) = ([_mm256_setzero_ps(); 4], [zero; 4], [zero; 4]);
        for g in 0..4 {
            let mut sum = [_mm256_setzero_ps(); 8];
            for (line, w) in groups[g].as_chunks::<LANES>().0.iter().enumerate() {
                for i in 0..8 {
                    let at = w.as_ptr().add(8 * i);
                    if i % 2 == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(PREFETCH));
                    }
                    let a = _mm256_and_si256(_mm256_loadu_si256(at.cast()), magnitude);
                    // A magnitude is what it is after an addition to +0.
                    let v = _mm256_castsi256_ps(a);
                    sum[i] = if line == 0 { v } else { _mm256_add_ps(sum[i], v) };
                    max[g] = _mm256_max_epu32(max[g], a);
                    // The smaller, the larger when negated, but for zero, which is never the largest.
                    min[g] = _mm256_max_epu32(min[g], _mm256_sub_epi32(zero, a));
                }
            }
            let (a, b) = (_mm256_add_ps(sum[0], sum[4]), _mm256_add_ps(sum[1], sum[5]));
            let (c, d) = (_mm256_add_ps(sum[2], sum[6]), _mm256_add_ps(sum[3], sum[7]));
            sums[g] = _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d));
        }
        // Halves of two groups, then pairs of four side by side: groups 0, 2 in the first half of a register, 1, 3 in the second,
        // each twice.
        macro_rules! halves {
            ($v:expr, $i:literal, $permute:ident, $op:ident) => {
                $op($permute::<0x20>($v[$i], $v[$i + 1]), $permute::<0x31>($v[$i], $v[$i + 1]))
            };
        }
        let a = halves!(sums, 0, _mm256_permute2f128_ps, _mm256_add_ps);
        let b = halves!(sums, 2, _mm256_permute2f128_ps, _mm256_add_ps);
        let sum = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
        let sum = _mm256_add_ps(sum, _mm256_permute_ps::<0xb1>(sum));
        macro_rules! largest {
            ($v:expr) => {{
                let a = halves!($v, 0, _mm256_permute2x128_si256, _mm256_max_epu32);
                let b = halves!($v, 2, _mm256_permute2x128_si256, _mm256_max_epu32);
                let two = _mm256_max_epu32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
                _mm256_max_epu32(two, _mm256_shuffle_epi32::<0xb1>(two))
            }};
        }
        let max = largest!(max);
        let min = _mm256_sub_epi32(zero, largest!(min));
        // Where all are zero there is no smallest.
        let one_magnitude = _mm256_andnot_si256(_mm256_cmpeq_epi32(max, zero), _mm256_cmpeq_epi32(max, min));
        let one_magnitude = _mm256_castsi256_ps(one_magnitude);
        // Exactly rounded, as the quotient in f64 is: G is a power of two.
        let mean = _mm256_mul_ps(sum, _mm256_set1_ps(1.0 / G as f32));
        let infinity = f32::INFINITY.to_bits() as i32;
        // Magnitudes have no sign, so that they compare as signed integers too.
        let finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(infinity), max);
        let mean_finite = _mm256_cmp_ps::<_CMP_LT_OQ>(mean, _mm256_set1_ps(f32::INFINITY));
        let right = _mm256_and_ps(_mm256_castsi256_ps(finite), _mm256_or_ps(mean_finite, one_magnitude));
        if _mm256_movemask_ps(right) != 0xff {
            return None;
        }
        let mean = _mm256_max_ps(mean, _mm256_set1_ps(MIN_SCALE));
        let scales = _mm256_blendv_ps(mean, _mm256_castsi256_ps(max), one_magnitude);
        _mm256_storeu_ps(out.as_mut_ptr(), scales);
    }
    Some([out[0], out[4], out[2], out[6]])
}
