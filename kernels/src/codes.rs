//! Codes of real weights, and the bytes that table formats make of codes, in registers.
//!
//! A code is `1 + t` for a ternary value t, so that it has no sign. Then a pair of values (a, b) has the `tl1` index `3a' + b'`, two pairs
//! of a byte are one dot product of four codes with (48, 16, 3, 1), and a triple has `9a' + 3b' + c' = v + 13`, from which `tl2`
//! takes magnitude and sign: int8 dot instructions make indices, a shuffle brings triples to dot products of four.

use tersor_core::codec::absmean::{CHUNK, ChunkStats, MIN_SCALE};
use tersor_core::reference::lanes::LANES;

use crate::arch::prefetch;
use crate::isa::Simd;
use crate::lanes::{Array, Lanes};

/// Codes of three times the lanes, which are 64 triples.
pub type ThreeCodes = [[u8; LANES]; 3];

/// Some of a chunk's values.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    /// A bit for each value, 64 to a line.
    pub values: [u64; CHUNK / LANES],
    /// A bit for each line that has one.
    pub lines: u64,
}

/// How far ahead weights are asked for, see `crate::arch::panels`.
pub(crate) const PREFETCH: usize = 8192;

/// What quantization does in registers beside sums. Each method here is the definition, for ISAs that have no better.
pub trait Codes<S: Simd>: Lanes<S> {
    /// The code of each value: 1 + its sign where it exceeds `half` in magnitude, else 1.
    #[inline(always)]
    fn codes(_: S, w: &[f32; LANES], half: f32) -> [u8; LANES] {
        w.map(|v| 1 + u8::from(v > half) - u8::from(v < -half))
    }

    /// Two `tl1` indices a byte, the first in the high nibble.
    #[inline(always)]
    fn pairs(_: S, codes: &[u8; LANES]) -> [u8; 16] {
        let (quads, _) = codes.as_chunks::<4>();
        std::array::from_fn(|i| 48 * quads[i][0] + 16 * quads[i][1] + 3 * quads[i][2] + quads[i][3])
    }

    /// The magnitudes of 64 triples, two a byte, the first in the high nibble; and their sign bits, the first in bit 0 of a byte.
    #[inline(always)]
    fn triples(_: S, codes: &ThreeCodes) -> ([u8; 32], [u8; 8]) {
        let (triples, _) = codes.as_flattened().as_chunks::<3>();
        let value = |i: usize| (9 * triples[i][0] + 3 * triples[i][1] + triples[i][2]) as i8 - 13;
        let nibbles = |i: usize| value(2 * i).unsigned_abs() << 4 | value(2 * i + 1).unsigned_abs();
        let signs = |i: usize| (0..8).fold(0, |byte, j| byte | u8::from(value(8 * i + j) < 0) << j);
        (std::array::from_fn(nibbles), std::array::from_fn(signs))
    }

    /// The scales of four groups of G weights (64, 128 or 256), as [`tersor_core::codec::absmean::scale_of`] gives them; `None` if a
    /// value is not finite, or a sum.
    #[inline(always)]
    fn group_scales<const G: usize>(simd: S, groups: &[[f32; G]; 4]) -> Option<[f32; 4]> {
        let mut scales = [MIN_SCALE; 4];
        for (scale, w) in scales.iter_mut().zip(groups) {
            *scale = Self::chunk_stats::<PREFETCH>(simd, w).scale(G)?;
        }
        Some(scales)
    }

    /// [`Lanes::chunk_stats`] of a whole chunk; and which values have a magnitude above `low` and not above `high`, both positive. It
    /// asks for the next chunk.
    #[inline(always)]
    fn chunk_stats_near(simd: S, w: &[f32; CHUNK], low: f32, high: f32, near: &mut Marks) -> ChunkStats {
        near.lines = 0;
        for (i, w) in w.as_chunks::<LANES>().0.iter().enumerate() {
            let is_near = |v: f32| v.abs() > low && v.abs() <= high;
            let values = w.iter().rev().fold(0, |values, &v| values << 1 | u64::from(is_near(v)));
            near.values[i] = values;
            near.lines |= u64::from(values != 0) << i;
        }
        Self::chunk_stats::<0>(simd, w)
    }
}

impl<S: Simd> Codes<S> for Array {}

/// What to ask memory for while values are encoded.
pub(crate) trait Ask {
    /// Called with each block of values before it is encoded.
    fn ask<const N: usize>(w: &[f32; N]);
}

/// The lines that are [`PREFETCH`] ahead.
#[derive(Debug)]
pub(crate) struct Ahead;

impl Ask for Ahead {
    #[inline(always)]
    fn ask<const N: usize>(w: &[f32; N]) {
        for line in w.as_chunks::<16>().0 {
            prefetch(line.as_ptr().cast::<u8>().wrapping_add(PREFETCH));
        }
    }
}

/// Nothing: the values are in a cache, and what comes next is asked for elsewhere.
#[derive(Debug)]
pub(crate) struct Nothing;

impl Ask for Nothing {
    #[inline(always)]
    fn ask<const N: usize>(_: &[f32; N]) {}
}

/// Writes a row of `tl1`.
#[inline(always)]
pub(crate) fn encode_tl1<A: Ask, S: Simd>(simd: S, w: &[f32], half: f32, out: &mut [u8]) {
    let (blocks, rest) = w.as_chunks();
    let (whole, last) = out.split_at_mut(16 * blocks.len());
    for (w, out) in blocks.iter().zip(whole.as_chunks_mut().0) {
        A::ask(w);
        *out = S::F32::pairs(simd, &S::F32::codes(simd, w, half));
    }
    if !rest.is_empty() {
        let mut part = [0.0; LANES];
        part[..rest.len()].copy_from_slice(rest);
        let mut codes = S::F32::codes(simd, &part, half);
        // The index of two codes 0 is 0, which pads the last byte.
        codes[rest.len()..].fill(0);
        let bytes = S::F32::pairs(simd, &codes);
        last.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    }
}

/// Writes a row of `tl2`: an even number of triples, then what is left as pairs.
#[inline(always)]
pub(crate) fn encode_tl2<A: Ask, S: Simd>(simd: S, w: &[f32], half: f32, out: &mut [u8]) {
    let triples = w.len() / 6 * 2;
    let (w, rest) = w.split_at(3 * triples);
    let (nibbles, out) = out.split_at_mut(triples / 2);
    let (signs, pairs) = out.split_at_mut(triples.div_ceil(8));
    let (blocks, part) = w.as_chunks::<{ 3 * LANES }>();
    let (nibbles, last_nibbles) = nibbles.split_at_mut(32 * blocks.len());
    let (signs, last_signs) = signs.split_at_mut(8 * blocks.len());
    for ((w, nibbles), signs) in blocks.iter().zip(nibbles.as_chunks_mut().0).zip(signs.as_chunks_mut().0) {
        A::ask(w);
        (*nibbles, *signs) = S::F32::triples(simd, &three(simd, w, half));
    }
    if !part.is_empty() {
        // Zeros make triples of magnitude 0 and sign 0, which pad both sections.
        let mut padded = [0.0; 3 * LANES];
        padded[..part.len()].copy_from_slice(part);
        let (nibbles, signs) = S::F32::triples(simd, &three(simd, &padded, half));
        last_nibbles.iter_mut().zip(nibbles).for_each(|(to, byte)| *to = byte);
        last_signs.iter_mut().zip(signs).for_each(|(to, byte)| *to = byte);
    }
    encode_tl1::<A, S>(simd, rest, half, pairs);
}

#[inline(always)]
fn three<S: Simd>(simd: S, w: &[f32; 3 * LANES], half: f32) -> ThreeCodes {
    let (parts, _) = w.as_chunks::<LANES>();
    // Not by `map`, whose closure may stay a function of its own, which lacks the ISA.
    [S::F32::codes(simd, &parts[0], half), S::F32::codes(simd, &parts[1], half), S::F32::codes(simd, &parts[2], half)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Body, Portable};
    use tersor_core::codec::{self, absmean};
    use tersor_core::{Floats, Format};

    /// Values of all kinds: below, at and above the threshold, both zeros.
    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match state >> 29 {
                    0 => 0.5,
                    1 => -0.5,
                    2 => -0.0,
                    _ => (state >> 8 & 0xffff) as f32 / 32768.0 - 1.0,
                }
            })
            .collect()
    }

    struct Rows<'a>(&'a [f32]);
    impl Body for Rows<'_> {
        type Out = ();
        fn run<S: Simd>(self, simd: S) {
            let mut codes = vec![0i8; self.0.len()];
            absmean::ternarize(self.0, 1.0, &mut codes);
            for format in [Format::TL1, Format::TL2] {
                let bytes = format.row_bytes(self.0.len()).expect("rows start on bytes");
                let (mut got, mut want) = (vec![0xee; bytes], vec![0; bytes]);
                match format {
                    Format::TL1 => encode_tl1::<Ahead, S>(simd, self.0, 0.5, &mut got),
                    _ => encode_tl2::<Ahead, S>(simd, self.0, 0.5, &mut got),
                }
                codec::encode_row(format, &codes, &[], &mut want);
                assert_eq!(got, want, "{format}, {} values with {simd:?}", self.0.len());
            }
        }
    }

    struct Scales<'a, const G: usize>(&'a [[f32; G]; 4]);
    impl<const G: usize> Body for Scales<'_, G> {
        type Out = ();
        fn run<S: Simd>(self, simd: S) {
            let got = S::F32::group_scales(simd, self.0);
            let each: Vec<_> = self.0.iter().map(|w| absmean::scale_of(Floats::F32(w)).ok()).collect();
            let want = each.iter().copied().collect::<Option<Vec<_>>>();
            let bits = |s: &[f32]| s.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
            assert_eq!(got.map(|s| bits(&s)), want.map(|s| bits(&s)), "groups of {G} with {simd:?}: {each:?}");
        }
    }

    struct Near<'a>(&'a [f32; CHUNK], f32, f32);
    impl Body for Near<'_> {
        type Out = ();
        fn run<S: Simd>(self, simd: S) {
            let Near(w, low, high) = self;
            let mut marks = Marks { values: [!0; CHUNK / LANES], lines: !0 };
            let stats = S::F32::chunk_stats_near(simd, w, low, high, &mut marks);
            assert_eq!(stats, absmean::chunk_stats(w), "with {simd:?}");
            for (line, values) in marks.values.iter().enumerate() {
                assert_eq!(marks.lines >> line & 1 == 1, *values != 0, "line {line} with {simd:?}");
            }
            for (i, v) in w.iter().enumerate() {
                let near = v.abs() > low && v.abs() <= high;
                assert_eq!(
                    marks.values[i / 64] >> (i % 64) & 1 == 1,
                    near,
                    "value {i}, {v:e}, {low:e} to {high:e} with {simd:?}"
                );
            }
        }
    }

    /// Groups of every kind, one of them in each of the four places among three ordinary ones.
    fn groups<S: Simd, const G: usize>(simd: S) {
        let ordinary: [f32; G] = values(G, 7).try_into().expect("as many");
        let ternary = |s: f32| std::array::from_fn(|i| [s, 0.0, -s, -0.0][i * 7 % 4]);
        let one = |v: f32| std::array::from_fn(|i| if i == G - 1 { v } else { 0.01 });
        let kinds: Vec<[f32; G]> = vec![
            ordinary.map(|v| v * 1.7e-3),
            ordinary.map(|v| v * 1e-7),
            ordinary.map(|v| v * 1e-39),
            ordinary.map(|v| v * 1e33),
            [0.0; G],
            [-0.0; G],
            ternary(0.0371),
            ternary(1e-40),
            ternary(f32::MAX),
            std::array::from_fn(|i| if i == 0 { -0.3 } else { 0.0 }),
            std::array::from_fn(|i| if i % 2 == 0 { f32::MAX } else { -2.5e38 }),
            one(f32::NAN),
            one(-f32::NAN),
            one(f32::INFINITY),
            one(f32::NEG_INFINITY),
            [f32::INFINITY; G],
            one(f32::MAX),
        ];
        for kind in &kinds {
            for place in 0..4 {
                let mut four = [ordinary; 4];
                four[place] = *kind;
                simd.run(Scales(&four));
            }
        }
    }

    fn check<S: Simd>(simd: S) {
        for n in (0..=800).step_by(2).chain([2560, 6912, 2562]) {
            simd.run(Rows(&values(n, n as u32)));
        }
        let chunk: [f32; CHUNK] = values(CHUNK, 3).try_into().expect("as many");
        for (low, high) in [(0.499, 0.501), (0.5, 0.6), (0.4, 0.5), (0.5, 0.5), (1e-30, 2.0)] {
            simd.run(Near(&chunk, low, high));
        }
        groups::<S, 64>(simd);
        groups::<S, 128>(simd);
        groups::<S, 256>(simd);
    }

    #[test]
    fn registers_give_the_bytes_of_the_definition() {
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
