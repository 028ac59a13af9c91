//! Scores of attention in 512-bit registers: 16 keys at a time, so that a lane of the result is a position.
//!
//! Each key costs four loads, multiplications and (beyond 64 elements) additions, three additions to fold 64 lanes to 16,
//! and its share of folding 16 such registers into one, `h` = 8, 4, 2, 1 side by side: 15 additions and 30 shuffles for 16
//! keys, where folding four keys at a time took 26 operations for four. For 64 elements that is 10 operations of the four
//! vector pipes a key, 2.5 cycles.

use std::arch::x86_64::*;

use crate::positions::{Rows, TILE};

/// [`crate::lanes::Lanes::scores`].
///
/// # Safety
/// AVX-512 F and DQ must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn scores(q: &[[f32; 64]], keys: Rows<'_>, scale: f32, scores: &mut [[f32; TILE]]) {
    // SAFETY: the caller's contract; the query has at least as many chunks as are held.
    unsafe {
        match q.len() {
            1 => tiles::<1, false>(q, keys, scale, scores),
            2 => tiles::<2, false>(q, keys, scale, scores),
            _ => tiles::<2, true>(q, keys, scale, scores),
        }
    }
}

/// [`crate::lanes::Lanes::largest`].
///
/// # Safety
/// AVX-512 F must be enabled in the caller.
#[inline(always)]
pub(super) unsafe fn largest(scores: &[[f32; TILE]]) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
        for scores in scores {
            // A NaN is not the larger one, as for `f32::max`.
            largest = _mm512_max_ps(_mm512_loadu_ps(scores.as_ptr()), largest);
        }
        _mm512_reduce_max_ps(largest)
    }
}

/// `HELD` chunks of the query stay in registers; `MORE`: there are others.
///
/// # Safety
/// As for [`scores`]; the query must have `HELD` chunks, or more, and be as long as the keys.
#[inline(always)]
unsafe fn tiles<const HELD: usize, const MORE: bool>(
    q: &[[f32; 64]],
    keys: Rows<'_>,
    scale: f32,
    scores: &mut [[f32; TILE]],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut held = [[_mm512_setzero_ps(); 4]; HELD];
        for (held, q) in held.as_flattened_mut().iter_mut().zip(q.as_flattened().as_chunks::<16>().0) {
            *held = _mm512_loadu_ps(q.as_ptr());
        }
        for (i, scores) in scores.iter_mut().enumerate() {
            let at = Rows::opaque(i * TILE);
            let dots = if at + TILE <= keys.count() {
                tile::<HELD, MORE, true>(&held, q, keys, at)
            } else {
                tile::<HELD, MORE, false>(&held, q, keys, at)
            };
            _mm512_storeu_ps(scores.as_mut_ptr(), _mm512_mul_ps(dots, _mm512_set1_ps(scale)));
        }
    }
}

/// The dots of 16 keys, in order. Keys are folded in such an order that no permutation is left at the end.
///
/// # Safety
/// As for [`tiles`].
#[inline(always)]
unsafe fn tile<const HELD: usize, const MORE: bool, const FULL: bool>(
    held: &[[__m512; 4]; HELD],
    q: &[[f32; 64]],
    keys: Rows<'_>,
    at: usize,
) -> __m512 {
    // SAFETY: the caller's contract; positions are below `keys.count()`, or the last.
    unsafe {
        // Halves of 16 lanes of two keys; quarters of four; pairs of eight; single lanes of 16.
        macro_rules! one {
            ($p:expr) => {{
                let key = if FULL { keys.row(at + $p) } else { keys.row_or_last(at + $p) };
                sixteen::<HELD, MORE>(held, q, key)
            }};
        }
        macro_rules! two {
            ($p:expr) => {{
                let (a, b) = (one!($p), one!($p + 4));
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
            }};
        }
        macro_rules! four {
            ($p:expr) => {{
                let (a, b) = (two!($p), two!($p + 8));
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
            }};
        }
        macro_rules! eight {
            ($p:expr) => {{
                let (a, b) = (four!($p), four!($p + 1));
                _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b))
            }};
        }
        let (a, b) = (eight!(0), eight!(2));
        _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b))
    }
}

/// The products of a query and a key, the 64 lanes folded to 16. Lanes begin with the first product instead of at +0, which
/// differs in the sign of a zero, and a score's sign of zero changes nothing: exp of both is 1.
///
/// # Safety
/// As for [`tiles`]; a key must begin at `key`.
#[inline(always)]
unsafe fn sixteen<const HELD: usize, const MORE: bool>(
    held: &[[__m512; 4]; HELD],
    q: &[[f32; 64]],
    key: *const f32,
) -> __m512 {
    // SAFETY: the caller's contract.
    unsafe {
        let mut lanes = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            lanes[i] = _mm512_mul_ps(held[0][i], _mm512_loadu_ps(key.add(16 * i)));
            for c in 1..HELD {
                let product = _mm512_mul_ps(held[c][i], _mm512_loadu_ps(key.add(64 * c + 16 * i)));
                lanes[i] = _mm512_add_ps(lanes[i], product);
            }
        }
        if MORE {
            for (c, q) in q.iter().enumerate().skip(HELD) {
                for i in 0..4 {
                    let q = _mm512_loadu_ps(q.as_ptr().add(16 * i));
                    let product = _mm512_mul_ps(q, _mm512_loadu_ps(key.add(64 * c + 16 * i)));
                    lanes[i] = _mm512_add_ps(lanes[i], product);
                }
            }
        }
        _mm512_add_ps(_mm512_add_ps(lanes[0], lanes[2]), _mm512_add_ps(lanes[1], lanes[3]))
    }
}
