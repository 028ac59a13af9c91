//! Scores of attention in 256-bit registers: eight keys at a time, so that a lane of the result is a position.
//!
//! Each key costs eight loads, multiplications and (beyond 64 elements) additions, seven additions to fold 64 lanes to eight,
//! and its share of folding eight such registers into one: 7 additions and 14 shuffles for eight keys. For 64 elements that
//! is 18 operations of the four vector pipes a key, 4.5 cycles. Four keys meet a register of the query together: loading it
//! for each would be 16 loads a key, of which there are two a cycle.

use std::arch::x86_64::*;

use crate::positions::{Rows, TILE};

/// [`crate::lanes::Lanes::scores`].
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn scores(q: &[[f32; 64]], keys: Rows<'_>, scale: f32, scores: &mut [[f32; TILE]]) {
    // SAFETY: the caller's contract.
    unsafe {
        for (half, scores) in scores.as_flattened_mut().as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let at = Rows::opaque(8 * half);
            let dots = match (q.len(), at + 8 <= keys.count()) {
                (1, true) => tile::<1, true>(q, keys, at),
                (1, false) => tile::<1, false>(q, keys, at),
                (2, true) => tile::<2, true>(q, keys, at),
                (2, false) => tile::<2, false>(q, keys, at),
                (_, true) => tile::<0, true>(q, keys, at),
                (_, false) => tile::<0, false>(q, keys, at),
            };
            _mm256_storeu_ps(scores.as_mut_ptr(), _mm256_mul_ps(dots, _mm256_set1_ps(scale)));
        }
    }
}

/// [`crate::lanes::Lanes::largest`].
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn largest(scores: &[[f32; TILE]]) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let mut largest = _mm256_set1_ps(f32::NEG_INFINITY);
        for scores in scores.as_flattened().as_chunks::<8>().0 {
            // A NaN is not the larger one, as for `f32::max`.
            largest = _mm256_max_ps(_mm256_loadu_ps(scores.as_ptr()), largest);
        }
        let four = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps::<1>(largest));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// The dots of eight keys, in order, of `CHUNKS` chunks, or as many as the query has if 0; `FULL`: there are eight. Keys are folded in such an order that no
/// permutation is left at the end.
///
/// # Safety
/// As for [`scores`]; the query must be as long as the keys.
#[inline(always)]
unsafe fn tile<const CHUNKS: usize, const FULL: bool>(q: &[[f32; 64]], keys: Rows<'_>, at: usize) -> __m256 {
    // SAFETY: the caller's contract; positions are below `keys.count()`, or the last.
    unsafe {
        // Quarters of eight lanes of two keys, twice; pairs of four; single lanes of eight.
        macro_rules! two {
            ($a:expr, $b:expr) => {
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>($a, $b), _mm256_permute2f128_ps::<0x31>($a, $b))
            };
        }
        macro_rules! one {
            ($p:expr) => {
                if FULL { keys.row(at + $p) } else { keys.row_or_last(at + $p) }
            };
        }
        macro_rules! four {
            ($p:expr) => {{
                let [a, b, c, d] = eights::<CHUNKS>(q, [one!($p), one!($p + 4), one!($p + 1), one!($p + 5)]);
                let (a, b) = (two!(a, b), two!(c, d));
                _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b))
            }};
        }
        let (a, b) = (four!(0), four!(2));
        _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b))
    }
}

/// The products of a query and four keys, the 64 lanes of each folded to eight. Lanes begin with the first product instead of at +0,
/// which differs in the sign of a zero, and a score's sign of zero changes nothing: exp of both is 1.
///
/// # Safety
/// As for [`tile`]; a key must begin at each of `keys`.
#[inline(always)]
unsafe fn eights<const CHUNKS: usize>(q: &[[f32; 64]], keys: [*const f32; 4]) -> [__m256; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        // Lanes 8i..8i + 8 and those 32 above.
        macro_rules! pair {
            ($i:expr) => {{
                let (low, high) = (register::<CHUNKS>(q, keys, $i), register::<CHUNKS>(q, keys, $i + 4));
                add(low, high)
            }};
        }
        add(add(pair!(0), pair!(2)), add(pair!(1), pair!(3)))
    }
}

/// Key by key.
///
/// # Safety
/// AVX2 must be enabled in the caller.
#[inline(always)]
unsafe fn add(a: [__m256; 4], b: [__m256; 4]) -> [__m256; 4] {
    let [a0, a1, a2, a3] = a;
    let [b0, b1, b2, b3] = b;
    // SAFETY: the caller's contract.
    unsafe { [_mm256_add_ps(a0, b0), _mm256_add_ps(a1, b1), _mm256_add_ps(a2, b2), _mm256_add_ps(a3, b3)] }
}

/// Lanes `8 * i..8 * i + 8` of the dots of a query and four keys.
///
/// # Safety
/// As for [`eights`].
#[inline(always)]
unsafe fn register<const CHUNKS: usize>(q: &[[f32; 64]], keys: [*const f32; 4], i: usize) -> [__m256; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        macro_rules! products {
            ($c:expr) => {{
                let q = _mm256_loadu_ps(q.as_ptr().cast::<f32>().add(64 * $c + 8 * i));
                let at = 64 * $c + 8 * i;
                [
                    _mm256_mul_ps(q, _mm256_loadu_ps(keys[0].add(at))),
                    _mm256_mul_ps(q, _mm256_loadu_ps(keys[1].add(at))),
                    _mm256_mul_ps(q, _mm256_loadu_ps(keys[2].add(at))),
                    _mm256_mul_ps(q, _mm256_loadu_ps(keys[3].add(at))),
                ]
            }};
        }
        let mut lanes = products!(0);
        for c in 1..if CHUNKS == 0 { q.len() } else { CHUNKS } {
            lanes = add(lanes, products!(c));
        }
        lanes
    }
}
