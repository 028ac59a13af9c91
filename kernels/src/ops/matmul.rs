//! Matrix products: ternary codes x int8 in i32, dense weights x f32 in lanes.
//!
//! Ternary weights in panels are in [`super::panels`]; here are those in blocks. A product is cut into ranges of weight
//! rows, one for each task; a task works through tiles of weight rows x activation rows, whose sums fit on the stack. Codes are 0, 1, 2 for
//! -1, 0, +1, so `sum(t * x) = sum(code * x) - sum(x)`, and the sums of the activation rows are made once.

use tersor_core::reference::matmul::{scaled, scaled_blocks};
use tersor_core::{Activations, Epilogue, Output, PackedWeight, Result};

use super::Context;
use crate::heads;
use crate::isa::{Body, Simd};
use crate::pack::{BLOCK, BLOCK_BYTES, Codes, Packed, Scales, Ternary, row_bytes};
use crate::split::{self, Parts};

/// Weight rows and activation rows of a tile.
pub(super) const ROWS: usize = 16;
pub(super) const COLS: usize = 64;

/// Multiply-adds that one task should have at least, so that handing it out pays.
pub(super) const TASK_MACS: usize = 1 << 17;

/// A block of weight rows and of activation rows.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// 2-bit codes of `rows` rows in blocks, see [`crate::pack`].
    w: &'a [u8],
    /// Bytes from one weight row to the next: 32 for each block of 128 weights.
    row_bytes: usize,
    /// Weight rows; at most [`ROWS`].
    rows: usize,
    /// `m` rows of int8 activations.
    x: &'a [i8],
    /// Elements from one activation row to the next, which is also their length: `4 * row_bytes`.
    stride: usize,
    /// Activation rows; at most [`COLS`].
    m: usize,
}

/// The raw sums of a tile, in code that any compiler can vectorise.
pub(crate) struct Dots<'a> {
    pub(crate) tile: Tile<'a>,
    pub(crate) out: &'a mut [i32],
}

impl Body for Dots<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Tile { w, row_bytes, rows, x, stride, m } = self.tile;
        for r in 0..rows {
            for c in 0..m {
                let (w, x) = (&w[r * row_bytes..][..row_bytes], &x[c * stride..][..stride]);
                self.out[r * m + c] = dot_codes(w, x);
            }
        }
    }
}

/// Sum of code x activation over a row of blocks.
///
/// Bound: a lane adds four products of magnitude at most 2 * 128 a block, 1,024 in all; 16 blocks stay below 2^15.
#[inline(always)]
fn dot_codes(w: &[u8], x: &[i8]) -> i32 {
    let mut total = 0i32;
    for (w, x) in w.chunks(16 * BLOCK_BYTES).zip(x.chunks(16 * BLOCK)) {
        let mut lanes = [0i16; BLOCK_BYTES];
        for (w, x) in w.chunks_exact(BLOCK_BYTES).zip(x.chunks_exact(BLOCK)) {
            for p in 0..BLOCK_BYTES {
                let b = w[p];
                let product = |code: u8, at: usize| i16::from(code & 3).wrapping_mul(i16::from(x[at]));
                let sum = product(b >> 6, p)
                    .wrapping_add(product(b >> 4, p + 32))
                    .wrapping_add(product(b >> 2, p + 64))
                    .wrapping_add(product(b, p + 96));
                lanes[p] = lanes[p].wrapping_add(sum);
            }
        }
        total += lanes.iter().map(|&l| i32::from(l)).sum::<i32>();
    }
    total
}

/// One result of a row whose scales differ from block to block.
struct Blocks<'a> {
    w: &'a [u8],
    x: &'a [i8],
    /// Weights that share a scale: 64, 128 or 256.
    block: usize,
    scales: &'a [f32],
    x_scale: f32,
}

impl Body for Blocks<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f32 {
        let per_scale = self.block / 64;
        let half = |i: usize| {
            // The block layout keeps values 0..64 of a block in the upper four bits of its bytes, the rest in the lower.
            let (w, x) = (&self.w[i / 2 * BLOCK_BYTES..][..BLOCK_BYTES], &self.x[i * 64..][..64]);
            if i.is_multiple_of(2) { half_block::<6>(w, x) } else { half_block::<2>(w, x) }
        };
        let sums = self.scales.iter().enumerate();
        let sums = sums.map(|(b, &scale)| ((b * per_scale..(b + 1) * per_scale).map(half).sum(), scale));
        scaled_blocks(sums, self.x_scale)
    }
}

/// Sum of ternary value x activation over 64 values, at bits `HIGH` and `HIGH - 2` of 32 bytes.
#[inline(always)]
fn half_block<const HIGH: u32>(w: &[u8], x: &[i8]) -> i32 {
    let mut lanes = [0i16; BLOCK_BYTES];
    for p in 0..BLOCK_BYTES {
        let t = |shift: u32| i16::from(w[p] >> shift & 3).wrapping_sub(1);
        let (a, b) = (t(HIGH).wrapping_mul(i16::from(x[p])), t(HIGH - 2).wrapping_mul(i16::from(x[p + 32])));
        lanes[p] = a.wrapping_add(b);
    }
    lanes.iter().map(|&l| i32::from(l)).sum()
}

/// Where results go.
pub(super) enum Sink<'a> {
    F32(Parts<'a, f32>, Epilogue),
    I32(Parts<'a, i32>, Epilogue),
}

impl Sink<'_> {
    /// Stores what `value(row)` gives for each of `rows` weight rows from `at` on.
    ///
    /// # Safety
    /// No other task may have elements `at..at + rows` at the same time.
    #[inline(always)]
    pub(super) unsafe fn store_f32(&self, at: usize, rows: usize, value: impl Fn(usize) -> f32) {
        let Sink::F32(y, epilogue) = self else { return };
        // SAFETY: the caller's contract.
        let y = unsafe { y.part(at..at + rows) };
        match epilogue {
            Epilogue::Add => y.iter_mut().enumerate().for_each(|(r, y)| *y += value(r)),
            _ => y.iter_mut().enumerate().for_each(|(r, y)| *y = value(r)),
        }
    }

    /// The same for exact sums.
    ///
    /// # Safety
    /// As for [`Sink::store_f32`].
    #[inline(always)]
    pub(super) unsafe fn store_i32(&self, at: usize, rows: usize, value: impl Fn(usize) -> i32) {
        let Sink::I32(y, epilogue) = self else { return };
        // SAFETY: the caller's contract.
        let y = unsafe { y.part(at..at + rows) };
        match epilogue {
            Epilogue::Add => y.iter_mut().enumerate().for_each(|(r, y)| *y = y.wrapping_add(value(r))),
            _ => y.iter_mut().enumerate().for_each(|(r, y)| *y = value(r)),
        }
    }
}

impl<S: Simd> Context<'_, S> {
    pub(super) fn matmul(self, w: &PackedWeight, x: Activations<'_>, y: Output<'_>, epilogue: Epilogue) -> Result<()> {
        let (n, k) = (w.shape().rows(), w.shape().cols());
        if let (true, Activations::Int8 { q, scales }) = (w.format().is_block(), x) {
            let Output::F32(y) = y else { return Ok(()) };
            let id = self.kernels.backend;
            let (q, scales) = (q.host("activations", id)?, scales.host("activation scales", id)?);
            let product = heads::Product { w, q, scales, y: y.host("y", id)?, epilogue };
            let memory = (&mut self.scratch.padded, &mut self.scratch.sums);
            return product.run(id, self.kernels.isa, self.executor, memory);
        }
        let sink = match y {
            Output::F32(y) => Sink::F32(Parts::new(y.host("y", self.kernels.backend)?), epilogue),
            Output::I32(y) => Sink::I32(Parts::new(y.host("y", self.kernels.backend)?), epilogue),
        };
        match (w.data::<Packed>(self.kernels.backend)?, x) {
            (Packed::Ternary(w), Activations::Int8 { q, scales }) => {
                let (q, scales) = (
                    q.host("activations", self.kernels.backend)?,
                    scales.host("activation scales", self.kernels.backend)?,
                );
                match &w.codes {
                    Codes::Panels(layout, codes) => {
                        self.panels(*layout, codes.bytes(), &w.scales, (n, k), (q, scales), &sink)?
                    }
                    _ => self.blocks(w, n, k, q, scales, &sink),
                }
            }
            (Packed::Dense(bytes), Activations::F32(x)) => {
                let x = x.host("activations", self.kernels.backend)?;
                self.dense(w.format(), bytes, n, k, x, &sink);
            }
            // `check` lets no other combination through.
            _ => {}
        }
        Ok(())
    }

    fn blocks(self, w: &Ternary, n: usize, k: usize, q: &[i8], x_scales: &[f32], sink: &Sink<'_>) {
        let m = x_scales.len();
        let row_bytes = row_bytes(k);
        let stride = row_bytes * 4;
        let (q, sums) = self.scratch.activations(self.kernels.isa, q, k, stride);
        let kernels = self.kernels;
        let tasks = split::task_count(self.executor, m * n * k, TASK_MACS);
        split::run(self.executor, tasks, |task| {
            let rows = split::part_of(n, ROWS, tasks, task);
            let mut out = [0i32; ROWS * COLS];
            for first in rows.clone().step_by(ROWS) {
                let count = ROWS.min(rows.end - first);
                let codes = &w.codes.bytes()[first * row_bytes..][..count * row_bytes];
                for c0 in (0..m).step_by(COLS) {
                    let cols = COLS.min(m - c0);
                    if let (Scales::Blocks { block, per_row, values }, Sink::F32(..)) = (&w.scales, sink) {
                        for c in c0..c0 + cols {
                            // SAFETY: this task alone has these rows.
                            unsafe {
                                sink.store_f32(c * n + first, count, |r| {
                                    kernels.isa.run(Blocks {
                                        w: &codes[r * row_bytes..][..row_bytes],
                                        x: &q[c * stride..][..stride],
                                        block: *block,
                                        scales: &values[(first + r) * per_row..][..*per_row],
                                        x_scale: x_scales[c],
                                    })
                                });
                            }
                        }
                        continue;
                    }
                    let x = &q[c0 * stride..][..cols * stride];
                    let tile = Tile { w: codes, row_bytes, rows: count, x, stride, m: cols };
                    kernels.isa.run(Dots { tile, out: &mut out[..count * cols] });
                    for c in 0..cols {
                        let sum = |r: usize| out[r * cols + c] - sums[c0 + c];
                        let at = (c0 + c) * n + first;
                        // SAFETY: this task alone has these rows.
                        unsafe {
                            match w.scales {
                                Scales::Uniform(s) => {
                                    sink.store_f32(at, count, |r| scaled(sum(r), s, x_scales[c0 + c]));
                                    sink.store_i32(at, count, sum);
                                }
                                Scales::Blocks { .. } => sink.store_i32(at, count, sum),
                            }
                        }
                    }
                }
            }
        });
    }
}

impl super::Scratch {
    /// The activations padded to whole blocks (in place if they are), and the sum of each row.
    fn activations<'a, S: Simd>(&'a mut self, isa: S, q: &'a [i8], k: usize, stride: usize) -> (&'a [i8], &'a [i32]) {
        struct RowSum<'a>(&'a [i8]);
        impl Body for RowSum<'_> {
            type Out = i32;
            #[inline(always)]
            fn run<S: Simd>(self, _: S) -> i32 {
                // 128 values of magnitude at most 128 fit in i16.
                self.0.chunks(BLOCK).map(|b| i32::from(b.iter().fold(0i16, |s, &v| s.wrapping_add(i16::from(v))))).sum()
            }
        }
        self.sums.clear();
        self.sums.extend(q.chunks_exact(k).map(|row| isa.run(RowSum(row))));
        if k == stride {
            return (q, &self.sums);
        }
        self.padded.clear();
        self.padded.resize(q.len() / k * stride, 0);
        for (row, out) in q.chunks_exact(k).zip(self.padded.chunks_exact_mut(stride)) {
            out[..k].copy_from_slice(row);
        }
        (&self.padded, &self.sums)
    }
}
