//! The lanes of float sums in 256-bit registers.

use std::arch::x86_64::*;

use tersor_core::codec::absmean::ChunkStats;

use crate::isa::{Avx2, AvxVnni, Simd};
use crate::lanes::Lanes;
use crate::positions::{Rows, TILE};

use super::{attention, weights};

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
        // SAFETY: as above.
        unsafe { fold(self.0) }
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
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn fold(r: [__m256; 8]) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let (a, b) = (_mm256_add_ps(r[0], r[4]), _mm256_add_ps(r[1], r[5]));
        let (c, d) = (_mm256_add_ps(r[2], r[6]), _mm256_add_ps(r[3], r[7]));
        fold8(_mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d)))
    }
}

/// Folds eight lanes: 4, 2, 1.
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(in crate::arch::x86_64) unsafe fn fold8(v: __m256) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}
