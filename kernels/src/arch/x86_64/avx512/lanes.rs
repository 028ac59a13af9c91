//! The lanes of float sums in 512-bit registers.

use std::arch::x86_64::*;

use tersor_core::codec::absmean::ChunkStats;

use crate::isa::{Avx512, Avx512Vbmi, Avx512Vnni, Simd};
use crate::lanes::Lanes;
use crate::positions::{Rows, TILE};

use super::{attention, weights};

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
// SAFETY: `detect` asks for both.
unsafe impl HasAvx512 for Avx512Vbmi {}

// SAFETY (all blocks): the lanes are made with a token, which is proof of AVX-512 F and DQ; loads and stores are within the
// arrays, whose lengths are in their types.
impl<S: HasAvx512> Lanes<S> for F32x64 {
    const COLUMNS: usize = 4;

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
        // SAFETY: as above.
        unsafe { fold(self.0) }
    }
    #[inline(always)]
    fn fold4(sums: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe { fold4([sums[0].0, sums[1].0, sums[2].0, sums[3].0]) }
    }
    #[inline(always)]
    fn chunk_stats<const AHEAD: usize>(_: S, w: &[f32]) -> ChunkStats {
        // SAFETY: as above.
        unsafe { weights::chunk_stats::<AHEAD>(w) }
    }
    #[inline(always)]
    fn two_bit_block<const LOW_FIRST: bool>(_: S, w: &[f32; 128], half: [f32; 2]) -> [u8; 32] {
        // SAFETY: as above.
        unsafe { weights::two_bit_block::<LOW_FIRST>(w, half) }
    }
    #[inline(always)]
    fn two_bit_values<const LOW_FIRST: bool>(_: S, bytes: &[u8; 32], values: &[[f32; 4]; 2], out: &mut [f32; 128]) {
        // SAFETY: as above.
        unsafe { weights::two_bit_values::<LOW_FIRST>(bytes, values, out) }
    }
    #[inline(always)]
    unsafe fn scores(_: S, q: &[[f32; 64]], keys: Rows<'_>, scale: f32, scores: &mut [[f32; TILE]]) {
        // SAFETY: as above, and the caller's contract.
        unsafe { attention::scores(q, keys, scale, scores) }
    }
    #[inline(always)]
    fn largest(_: S, scores: &[[f32; TILE]]) -> f32 {
        // SAFETY: as above.
        unsafe { attention::largest(scores) }
    }
}

/// Folds the lanes.
///
/// # Safety
/// AVX-512 F and DQ must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn fold(r: [__m512; 4]) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let sixteen = _mm512_add_ps(_mm512_add_ps(r[0], r[2]), _mm512_add_ps(r[1], r[3]));
        let eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps::<1>(sixteen));
        super::super::avx2::fold8(eight)
    }
}

/// Folds the lanes of four sums: the steps of [`fold`], with the halves of two sums, then the quarters of four, side by side in
/// one register. 26 operations instead of 48.
///
/// # Safety
/// AVX-512 F and DQ must be enabled in the caller.
#[inline(always)]
unsafe fn fold4(s: [[__m512; 4]; 4]) -> [f32; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        macro_rules! sixteen {
            ($r:expr) => {
                _mm512_add_ps(_mm512_add_ps($r[0], $r[2]), _mm512_add_ps($r[1], $r[3]))
            };
        }
        macro_rules! eights {
            ($a:expr, $b:expr) => {{
                let (a, b) = ($a, $b);
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
            }};
        }
        let (a, b) = (eights!(sixteen!(s[0]), sixteen!(s[1])), eights!(sixteen!(s[2]), sixteen!(s[3])));
        let fours = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let twos = _mm512_add_ps(fours, _mm512_permute_ps::<0x4e>(fours));
        let ones = _mm512_add_ps(twos, _mm512_permute_ps::<0xb1>(twos));
        let firsts = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), ones);
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(firsts));
        out
    }
}
