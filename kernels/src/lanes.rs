//! The 64 lanes of a float sum, in registers.
//!
//! Every float sum puts element i into lane `i mod 64` and folds the lanes in halves
//! ([`tersor_core::reference::lanes`]). Written as an array, the lanes live in memory inside a loop, because compilers split
//! arrays into registers before they vectorise: the accumulators then go through the store buffer, about 5 cycles a step.
//! A type of whole registers stays in registers. Multiplication and addition are separate, as everywhere.

use tersor_core::Floats;
use tersor_core::codec::absmean::{self, ChunkStats};
use tersor_core::reference::lanes::{LANES, fold};

use crate::arch::prefetch;
use crate::isa::Simd;
use crate::positions::{Rows, TILE};

/// 64 f32. Each is made with a token, so that whoever has one may use it.
pub trait Lanes<S: Simd>: Copy {
    /// How many such sums there are registers for, beside what is added to them.
    const COLUMNS: usize = 1;

    /// All `value`.
    fn splat(simd: S, value: f32) -> Self;
    /// From memory.
    fn load(simd: S, from: &[f32; LANES]) -> Self;
    /// From little-endian bfloat16, exactly.
    fn load_bf16(simd: S, from: &[u8; 2 * LANES]) -> Self;
    /// From little-endian binary16, exactly.
    fn load_f16(simd: S, from: &[u8; 2 * LANES]) -> Self;
    /// To memory.
    fn store(self, to: &mut [f32; LANES]);
    /// Lane by lane.
    #[must_use]
    fn add(self, other: Self) -> Self;
    /// Lane by lane.
    #[must_use]
    fn mul(self, other: Self) -> Self;
    /// Adds the upper half to the lower until one is left.
    fn fold(self) -> f32;

    /// [`Lanes::fold`] of each of four, which together take fewer steps.
    #[inline(always)]
    fn fold4(sums: [Self; 4]) -> [f32; 4] {
        [sums[0].fold(), sums[1].fold(), sums[2].fold(), sums[3].fold()]
    }

    /// The lanes of at most 64 elements, the rest +0.
    #[inline(always)]
    fn load_part(simd: S, from: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        Self::load(simd, &lanes)
    }

    /// Scores of attention: `dot(q, key) * scale` of each key. Past the last key, at the end of the last tile, its
    /// score is repeated.
    ///
    /// # Safety
    /// The query must have at least one chunk, and as many as the keys.
    #[inline(always)]
    unsafe fn scores(simd: S, q: &[[f32; LANES]], keys: Rows<'_>, scale: f32, scores: &mut [[f32; TILE]]) {
        for (i, score) in scores.as_flattened_mut().iter_mut().enumerate() {
            let position = i.min(keys.count() - 1);
            let mut sum = Self::splat(simd, 0.0);
            for (i, q) in q.iter().enumerate() {
                // SAFETY: a key that there is, and a chunk that it has.
                let key = unsafe { keys.chunk(position, i) };
                sum = sum.add(Self::load(simd, q).mul(Self::load(simd, key)));
            }
            *score = sum.fold() * scale;
        }
    }

    /// The largest score, leaving out NaN.
    #[inline(always)]
    fn largest(_: S, scores: &[[f32; TILE]]) -> f32 {
        scores.as_flattened().iter().fold(f32::NEG_INFINITY, |max, s| max.max(*s))
    }

    /// [`absmean::chunk_stats`], asking for what is AHEAD bytes ahead, if that is not 0.
    #[inline(always)]
    fn chunk_stats<const AHEAD: usize>(_: S, w: &[f32]) -> ChunkStats {
        absmean::chunk_stats(w)
    }

    /// A block of codes, 1 + sign of what exceeds `half` (of its first and second 64 values) in magnitude: byte p holds values p, p + 32, p + 64 and p + 96 in
    /// two bits each, the first in the highest (`i2_s`) or in the lowest (`tq2_0`).
    #[inline(always)]
    fn two_bit_block<const LOW_FIRST: bool>(_: S, w: &[f32; 128], half: [f32; 2]) -> [u8; 32] {
        let code = |v: f32, half: f32| 1 + u8::from(v > half) - u8::from(v < -half);
        std::array::from_fn(|p| {
            let quarter = |q: usize| code(w[p + 32 * q], half[q / 2]) << two_bit_shift::<LOW_FIRST>(q);
            quarter(0) | quarter(1) | quarter(2) | quarter(3)
        })
    }

    /// The values of such a block; `values[i][code]` for its first and its second 64.
    #[inline(always)]
    fn two_bit_values<const LOW_FIRST: bool>(_: S, bytes: &[u8; 32], values: &[[f32; 4]; 2], out: &mut [f32; 128]) {
        for q in 0..4 {
            for p in 0..32 {
                out[p + 32 * q] = values[q / 2][usize::from(bytes[p] >> two_bit_shift::<LOW_FIRST>(q) & 3)];
            }
        }
    }
}

/// Where quarter `q` of a block of two-bit codes lies in its bytes.
#[inline(always)]
pub const fn two_bit_shift<const LOW_FIRST: bool>(q: usize) -> usize {
    if LOW_FIRST { 2 * q } else { 6 - 2 * q }
}

/// Elements `start..start + out.len()` of `w` as f32, which is exact. Those of two bytes are asked for AHEAD bytes before, if that is
/// not 0.
#[inline(always)]
pub fn read<const AHEAD: usize, S: Simd>(simd: S, w: Floats<'_>, start: usize, out: &mut [f32]) {
    // One loop each, so that the conversion is compiled into it.
    macro_rules! two_bytes {
        ($values:expr, $load:ident) => {{
            let chunks =
                bytemuck::cast_slice::<_, u8>(&$values[start..start + out.len()]).as_chunks::<{ 2 * LANES }>().0;
            let (out, rest) = out.as_chunks_mut::<LANES>();
            for (from, to) in chunks.iter().zip(out.iter_mut()) {
                if AHEAD > 0 {
                    prefetch(from.as_ptr().wrapping_add(AHEAD));
                    prefetch(from.as_ptr().wrapping_add(AHEAD + 64));
                }
                S::F32::$load(simd, from).store(to);
            }
            w.read(start + out.len() * LANES, rest);
        }};
    }
    match w {
        Floats::F16(s) => two_bytes!(s, load_f16),
        Floats::BF16(s) => two_bytes!(s, load_bf16),
        Floats::F32(_) => w.read(start, out),
    }
}

/// Lanes as an array, for portable code.
#[derive(Debug, Clone, Copy)]
pub struct Array([f32; LANES]);

impl<S: Simd> Lanes<S> for Array {
    #[inline(always)]
    fn splat(_: S, value: f32) -> Self {
        Array([value; LANES])
    }
    #[inline(always)]
    fn load(_: S, from: &[f32; LANES]) -> Self {
        Array(*from)
    }
    #[inline(always)]
    fn load_bf16(_: S, from: &[u8; 2 * LANES]) -> Self {
        let (pairs, _) = from.as_chunks::<2>();
        Array(std::array::from_fn(|j| f32::from_bits(u32::from(u16::from_le_bytes(pairs[j])) << 16)))
    }
    #[inline(always)]
    fn load_f16(_: S, from: &[u8; 2 * LANES]) -> Self {
        let (pairs, _) = from.as_chunks::<2>();
        Array(std::array::from_fn(|j| tersor_core::f16::from_le_bytes(pairs[j]).to_f32()))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a += b);
        self
    }
    #[inline(always)]
    fn mul(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a *= b);
        self
    }
    #[inline(always)]
    fn fold(mut self) -> f32 {
        fold(&mut self.0)
    }
}

/// Sum of `a[i] * b[i]`; the shorter slice sets the length.
#[inline(always)]
pub fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let ((a, a_rest), (b, b_rest)) = (a[..n].as_chunks::<LANES>(), b[..n].as_chunks::<LANES>());
    let mut sum = S::F32::splat(simd, 0.0);
    for (a, b) in a.iter().zip(b) {
        sum = sum.add(S::F32::load(simd, a).mul(S::F32::load(simd, b)));
    }
    if !a_rest.is_empty() {
        // Lanes past the end add +0 * +0 = +0, which changes no lane: a lane is never -0, as it began at +0.
        sum = sum.add(S::F32::load_part(simd, a_rest).mul(S::F32::load_part(simd, b_rest)));
    }
    sum.fold()
}

/// Sum of squares.
#[inline(always)]
pub fn sum_of_squares<S: Simd>(simd: S, x: &[f32]) -> f32 {
    dot(simd, x, x)
}

/// Sum of the elements.
#[inline(always)]
pub fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sum = S::F32::splat(simd, 0.0);
    for chunk in chunks {
        sum = sum.add(S::F32::load(simd, chunk));
    }
    if !rest.is_empty() {
        sum = sum.add(S::F32::load_part(simd, rest));
    }
    sum.fold()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Body, Portable};
    use tersor_core::reference::lanes as reference;

    struct Check<'a>(&'a [f32], &'a [f32]);
    impl Body for Check<'_> {
        type Out = ();
        fn run<S: Simd>(self, simd: S) {
            let Check(a, b) = self;
            assert_eq!(dot(simd, a, b).to_bits(), reference::dot(a, b).to_bits(), "dot of {} with {simd:?}", a.len());
            assert_eq!(sum(simd, a).to_bits(), reference::sum(a, |v| v).to_bits(), "sum of {} with {simd:?}", a.len());
            if let Some(a) = a.first_chunk::<LANES>() {
                let mut back = [0.0; LANES];
                S::F32::load(simd, a).store(&mut back);
                assert_eq!(&back, a);
                let other = b.first_chunk().map_or(S::F32::splat(simd, 1.0), |b| S::F32::load(simd, b));
                let a = S::F32::load(simd, a);
                let four = [a, other, a.mul(other), a.add(other)];
                let folded = four.map(|v| v.fold().to_bits());
                assert_eq!(S::F32::fold4(four).map(f32::to_bits), folded, "four folds with {simd:?}");
                let mut back = [0.0; LANES];
                a.store(&mut back);
                let a = &back.clone();
                let bf16 = std::array::from_fn(|i| tersor_core::bf16::from_f32(a[i / 2]).to_le_bytes()[i % 2]);
                S::F32::load_bf16(simd, &bf16).store(&mut back);
                assert_eq!(back, a.map(|v| tersor_core::bf16::from_f32(v).to_f32()), "bf16 with {simd:?}");
                let f16 = std::array::from_fn(|i| tersor_core::f16::from_f32(a[i / 2]).to_le_bytes()[i % 2]);
                S::F32::load_f16(simd, &f16).store(&mut back);
                assert_eq!(back, a.map(|v| tersor_core::f16::from_f32(v).to_f32()), "f16 with {simd:?}");
            }
            assert_eq!(
                S::F32::chunk_stats::<0>(simd, a),
                absmean::chunk_stats(a),
                "statistics of {} with {simd:?}",
                a.len()
            );
            if let Some(a) = a.first_chunk::<128>() {
                blocks::<S, false>(simd, a);
                blocks::<S, true>(simd, a);
            }
        }
    }

    /// Two-bit blocks there and back, with values on both sides of the threshold and on it.
    fn blocks<S: Simd, const LOW_FIRST: bool>(simd: S, a: &[f32; 128]) {
        let half = [a[100].abs(), a[7].abs()];
        let bytes = S::F32::two_bit_block::<LOW_FIRST>(simd, a, half);
        assert_eq!(
            bytes,
            <Array as Lanes<Portable>>::two_bit_block::<LOW_FIRST>(Portable, a, half),
            "block with {simd:?}"
        );
        let values = [[-1.5, 0.0, 1.5, f32::NAN], [-2.5, -0.0, 2.5, f32::NAN]];
        let (mut out, mut expected) = ([f32::NAN; 128], [f32::NAN; 128]);
        S::F32::two_bit_values::<LOW_FIRST>(simd, &bytes, &values, &mut out);
        <Array as Lanes<Portable>>::two_bit_values::<LOW_FIRST>(Portable, &bytes, &values, &mut expected);
        assert_eq!(out.map(f32::to_bits), expected.map(f32::to_bits), "values with {simd:?}");
    }

    fn check<S: Simd>(simd: S) {
        for n in (0..200).chain([2560]) {
            let a: Vec<f32> = (0..n).map(|i| ((i * 7919 % 1013) as f32 - 500.0) * 1.37e-3).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 104_729 % 997) as f32 - 450.0) * 2.11e-2).collect();
            simd.run(Check(&a, &b));
        }
    }

    #[test]
    fn registers_give_the_bits_of_the_definition() {
        check(Portable);
        #[cfg(target_arch = "x86_64")]
        {
            use crate::isa::{Avx2, Avx512};
            // Which of these ran is the conformance suite's to say; here each that the machine has must be right.
            if let Some(simd) = Avx2::detect() {
                check(simd);
            }
            if let Some(simd) = Avx512::detect() {
                check(simd);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(simd) = crate::isa::Neon::detect() {
            check(simd);
        }
    }
}
