//! Products of float weights (f32, f16, bf16) and f32 activations, in the 64 lanes of every float sum.
//!
//! Few rows of activations: weights are widened in registers as they stream by, and meet as many rows as there are registers
//! for sums ([`Lanes::COLUMNS`]). More rows: a tile of 16 weight rows is widened once, to memory that the second-level cache
//! holds, and its rows pass by as many rows of activations. Multiplication and
//! addition stay separate and lanes keep their order, so the bits are those of one row at a time.

use tersor_core::Format;
use tersor_core::codec::dense_row;
use tersor_core::reference::lanes::LANES;

use super::Context;
use super::matmul::{COLS, ROWS, Sink, TASK_MACS};
use crate::arch::prefetch;
use crate::arena::aligned;
use crate::isa::{Body, Simd};
use crate::lanes::Lanes;
use crate::split;

/// How far ahead of its use a weight is asked for, see `crate::arch::panels`.
const AHEAD: usize = 8192;

/// A row of weights as f32, which is exact.
#[inline(always)]
pub(super) fn widen<S: Simd>(simd: S, format: Format, w: &[u8], out: &mut [f32]) {
    let (chunks, rest) = out.as_chunks_mut::<LANES>();
    let (w, w_rest) = w.split_at(chunks.len() * LANES * if format == Format::F32 { 4 } else { 2 });
    // Loops, for a closure may stay a function of its own, which lacks the ISA.
    match format {
        Format::F16 => {
            for (w, out) in w.as_chunks().0.iter().zip(chunks) {
                S::F32::load_f16(simd, w).store(out);
            }
        }
        Format::BF16 => {
            for (w, out) in w.as_chunks().0.iter().zip(chunks) {
                S::F32::load_bf16(simd, w).store(out);
            }
        }
        _ => dense_row(format, w, chunks.as_flattened_mut()),
    }
    dense_row(format, w_rest, rest);
}

/// Rows of `w` times `m` rows of activations, widened in registers; results to `out[row * m + column]`.
struct Rows<'a> {
    format: Format,
    w: &'a [u8],
    row_bytes: usize,
    x: &'a [f32],
    k: usize,
    out: &'a mut [f32],
}

impl Body for Rows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Rows { format, w, row_bytes, x, k, out } = self;
        let m = x.len() / k;
        for (w, out) in w.chunks_exact(row_bytes).zip(out.chunks_exact_mut(m)) {
            let mut c = 0;
            while c + 4 <= m && S::F32::COLUMNS >= 4 {
                out[c..c + 4].copy_from_slice(&dots::<S, 4>(simd, format, w, &x[c * k..][..4 * k], k));
                c += 4;
            }
            while c + 2 <= m && S::F32::COLUMNS >= 2 {
                out[c..c + 2].copy_from_slice(&dots::<S, 2>(simd, format, w, &x[c * k..][..2 * k], k));
                c += 2;
            }
            while c < m {
                out[c..c + 1].copy_from_slice(&dots::<S, 1>(simd, format, w, &x[c * k..][..k], k));
                c += 1;
            }
        }
    }
}

/// A row of weights times `C` rows of activations.
#[inline(always)]
fn dots<S: Simd, const C: usize>(simd: S, format: Format, w: &[u8], x: &[f32], k: usize) -> [f32; C] {
    match format {
        Format::F16 => widening_dots::<S, false, C>(simd, format, w, x, k),
        Format::BF16 => widening_dots::<S, true, C>(simd, format, w, x, k),
        _ => {
            let mut sums = [S::F32::splat(simd, 0.0); C];
            for (i, w) in w.chunks(4 * LANES).enumerate() {
                let mut wide = [0.0; LANES];
                dense_row(format, w, &mut wide[..w.len() / 4]);
                let w = S::F32::load(simd, &wide);
                for c in 0..C {
                    let x = &x[c * k..][..k][i * LANES..];
                    sums[c] = sums[c].add(w.mul(S::F32::load_part(simd, &x[..x.len().min(LANES)])));
                }
            }
            folded(sums)
        }
    }
}

/// A row of bf16 or f16 weights. (Which of them is a constant: a function handed over need not be inlined, and is then
/// compiled without the ISA, thirty times slower.)
#[inline(always)]
fn widening_dots<S: Simd, const BF16: bool, const C: usize>(
    simd: S,
    format: Format,
    w: &[u8],
    x: &[f32],
    k: usize,
) -> [f32; C] {
    let (w, w_rest) = w.as_chunks::<{ 2 * LANES }>();
    let columns = in_chunks::<C>(x, k);
    let mut sums = [S::F32::splat(simd, 0.0); C];
    for (i, w) in w.iter().enumerate().take(k / LANES) {
        prefetch(w.as_ptr().wrapping_add(AHEAD));
        prefetch(w.as_ptr().wrapping_add(AHEAD + 64));
        let w = if BF16 { S::F32::load_bf16(simd, w) } else { S::F32::load_f16(simd, w) };
        for c in 0..C {
            sums[c] = sums[c].add(w.mul(S::F32::load(simd, &columns[c].0[i])));
        }
    }
    if !w_rest.is_empty() {
        let mut wide = [0.0; LANES];
        dense_row(format, w_rest, &mut wide[..k % LANES]);
        let w = S::F32::load(simd, &wide);
        for c in 0..C {
            sums[c] = sums[c].add(w.mul(S::F32::load_part(simd, columns[c].1)));
        }
    }
    folded(sums)
}

/// `C` rows of `k` values in chunks of the lanes, and what is left of each.
#[inline(always)]
fn in_chunks<const C: usize>(x: &[f32], k: usize) -> [(&[[f32; LANES]], &[f32]); C] {
    let mut chunks = [(&[][..], &[][..]); C];
    for (c, chunks) in chunks.iter_mut().enumerate() {
        *chunks = x[c * k..][..k].as_chunks::<LANES>();
    }
    chunks
}

#[inline(always)]
fn folded<S: Simd, L: Lanes<S>, const C: usize>(sums: [L; C]) -> [f32; C] {
    if let Ok(sums) = <[L; 4]>::try_from(&sums[..]) {
        let (mut out, four) = ([0.0; C], L::fold4(sums));
        out.copy_from_slice(&four);
        return out;
    }
    let mut out = [0.0; C];
    for c in 0..C {
        out[c] = sums[c].fold();
    }
    out
}

/// A tile of rows of `w` times `m` rows of `x`; results to `out[row * m + column]`.
struct Tile<'a> {
    format: Format,
    w: &'a [u8],
    row_bytes: usize,
    x: &'a [f32],
    k: usize,
    /// Memory for the tile's rows as f32.
    wide: &'a mut [f32],
    out: &'a mut [f32],
}

impl Body for Tile<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tile { format, w, row_bytes, x, k, wide, out } = self;
        let rows = w.len() / row_bytes;
        for (w, wide) in w.chunks_exact(row_bytes).zip(wide.chunks_exact_mut(k)) {
            widen(simd, format, w, wide);
        }
        let (wide, m) = (&wide[..rows * k], x.len() / k);
        let mut c = 0;
        while c + 4 <= m && S::F32::COLUMNS >= 4 {
            columns::<S, 4>(simd, wide, in_chunks(&x[c * k..][..4 * k], k), k, &mut out[c..], m);
            c += 4;
        }
        while c < m {
            columns::<S, 1>(simd, wide, in_chunks(&x[c * k..][..k], k), k, &mut out[c..], m);
            c += 1;
        }
    }
}

/// All rows of a tile times `C` rows of activations; results of a row `stride` from those of the row before.
#[inline(always)]
fn columns<S: Simd, const C: usize>(
    simd: S,
    wide: &[f32],
    x: [(&[[f32; LANES]], &[f32]); C],
    k: usize,
    out: &mut [f32],
    stride: usize,
) {
    for (row, out) in wide.chunks_exact(k).zip(out.chunks_mut(stride)) {
        let (row, row_rest) = row.as_chunks::<LANES>();
        let mut sums = [S::F32::splat(simd, 0.0); C];
        for (i, w) in row.iter().enumerate().take(k / LANES) {
            let w = S::F32::load(simd, w);
            for c in 0..C {
                sums[c] = sums[c].add(w.mul(S::F32::load(simd, &x[c].0[i])));
            }
        }
        if !row_rest.is_empty() {
            // Lanes past the end add +0 * +0 = +0, which changes none: a lane is never -0, as it began at +0.
            let w = S::F32::load_part(simd, row_rest);
            for c in 0..C {
                sums[c] = sums[c].add(w.mul(S::F32::load_part(simd, x[c].1)));
            }
        }
        out[..C].copy_from_slice(&folded(sums));
    }
}

/// Activation rows up to which widening again for each few of them is cheaper than widening to memory once.
const FEW: usize = 8;

impl<S: Simd> Context<'_, S> {
    pub(super) fn dense(self, format: Format, bytes: &[u8], n: usize, k: usize, x: &[f32], sink: &Sink<'_>) {
        let m = x.len() / k;
        let row_bytes = bytes.len() / n;
        let kernels = self.kernels;
        let tasks = split::task_count(self.executor, m * n * k, TASK_MACS / 4);
        split::run(self.executor, tasks, |task| {
            let rows = split::part_of(n, ROWS, tasks, task);
            let mut out = [0.0; ROWS * COLS];
            let mut memory = Vec::new();
            let wide = aligned(&mut memory, if m > FEW { ROWS * k } else { 0 });
            for first in rows.clone().step_by(ROWS) {
                let count = ROWS.min(rows.end - first);
                let w = &bytes[first * row_bytes..][..count * row_bytes];
                for c0 in (0..m).step_by(COLS) {
                    let cols = COLS.min(m - c0);
                    let (x, out) = (&x[c0 * k..][..cols * k], &mut out[..count * cols]);
                    if m <= FEW {
                        kernels.isa.run(Rows { format, w, row_bytes, x, k, out });
                    } else {
                        kernels.isa.run(Tile { format, w, row_bytes, x, k, wide, out });
                    }
                    for c in 0..cols {
                        // SAFETY: this task alone has these rows.
                        unsafe { sink.store_f32((c0 + c) * n + first, count, |r| out[r * cols + c]) };
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Portable;
    use tersor_core::reference::lanes::dot;
    use tersor_core::{bf16, f16};

    /// Every number of activation rows that is put together differently, both ways, against one dot product at a time.
    fn check<S: Simd>(simd: S) {
        for format in [Format::F16, Format::BF16, Format::F32] {
            for k in [1, 63, 64, 70, 200] {
                let w: Vec<f32> =
                    (0..3 * k).map(|i| bf16::from_f32((i * 7919 % 1013) as f32 - 500.0).to_f32() / 512.0).collect();
                let bytes: Vec<u8> = match format {
                    Format::F16 => w.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                    Format::BF16 => w.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
                    _ => w.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                let row_bytes = bytes.len() / 3;
                for m in [1, 2, 3, 4, 5, 7, 9] {
                    let x: Vec<f32> = (0..m * k).map(|i| ((i * 104_729 % 997) as f32 - 450.0) * 2.11e-2).collect();
                    let pairs = w.chunks(k).flat_map(|w| x.chunks(k).map(move |x| dot(w, x).to_bits()));
                    let want: Vec<u32> = pairs.collect();
                    let (mut few, mut many, mut wide) =
                        (vec![f32::NAN; 3 * m], vec![f32::NAN; 3 * m], vec![0.0; 3 * k]);
                    simd.run(Rows { format, w: &bytes, row_bytes, x: &x, k, out: &mut few });
                    simd.run(Tile { format, w: &bytes, row_bytes, x: &x, k, wide: &mut wide, out: &mut many });
                    for (name, got) in [("rows", few), ("tile", many)] {
                        let got: Vec<u32> = got.iter().map(|v| v.to_bits()).collect();
                        assert_eq!(got, want, "{name} of {format} with {simd:?}, {m} x 3 x {k}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_and_tiles_have_the_bits_of_one_dot_product_at_a_time() {
        check(Portable);
        #[cfg(target_arch = "x86_64")]
        {
            crate::isa::Avx2::detect().into_iter().for_each(check);
            crate::isa::Avx512::detect().into_iter().for_each(check);
        }
        #[cfg(target_arch = "aarch64")]
        crate::isa::Neon::detect().into_iter().for_each(check);
    }
}
