//! Row and element operations: the definitions of [`tersor_core::reference`], instantiated for the backend's ISA.

use std::sync::atomic::{AtomicUsize, Ordering};

use tersor_core::reference::{math, rope, rows};
use tersor_core::{Error, Format, PackedWeight, Result};

use super::Context;
use crate::heads;
use crate::isa::{Body, Simd};
use crate::lanes;
use crate::pack::Packed;
use crate::split::{self, Parts};

/// Elements that one task of a cheap element-wise operation should have at least.
const TASK_ELEMENTS: usize = 1 << 16;

struct QuantizeRow<'a> {
    x: &'a [f32],
    q: &'a mut [i8],
}

impl Body for QuantizeRow<'_> {
    type Out = Option<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Option<f32> {
        rows::quantize(self.x, self.q)
    }
}

struct RmsNormRow<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
}

impl Body for RmsNormRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let RmsNormRow { x, w, eps, y } = self;
        let r = reciprocal_rms(simd, x, eps);
        y.iter_mut().zip(normalized(x, w, r)).for_each(|(y, v)| *y = v);
    }
}

/// The steps of [`rows::rms_norm`].
#[inline(always)]
fn reciprocal_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let mean = lanes::sum_of_squares(simd, x) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

#[inline(always)]
fn normalized(x: &[f32], w: &[f32], r: f32) -> impl Iterator<Item = f32> {
    x.iter().zip(w).map(move |(x, w)| (x * r) * w)
}

/// RMSNorm and activation quantization with the normalized row recomputed instead of stored.
struct RmsNormQuantizeRow<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    q: &'a mut [i8],
}

impl Body for RmsNormQuantizeRow<'_> {
    type Out = Option<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Option<f32> {
        let RmsNormQuantizeRow { x, w, eps, q } = self;
        let r = reciprocal_rms(simd, x, eps);
        let largest = normalized(x, w, r).fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
        if largest >= f32::INFINITY.to_bits() {
            return None;
        }
        let s = 127.0 / f32::from_bits(largest).max(1e-5);
        q.iter_mut().zip(normalized(x, w, r)).for_each(|(q, v)| *q = math::round_to_i32(v * s) as i8);
        Some(s)
    }
}

struct ReluSquaredMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    y: &'a mut [f32],
}

impl Body for ReluSquaredMul<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        rows::relu_squared_mul(self.gate, self.up, self.y);
    }
}

struct WidenRow<'a> {
    format: Format,
    w: &'a [u8],
    y: &'a mut [f32],
}

impl Body for WidenRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        super::dense::widen(simd, self.format, self.w, self.y);
    }
}

struct AddTo<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Body for AddTo<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.y.iter_mut().zip(self.x).for_each(|(y, x)| *y += x);
    }
}

struct RotateRow<'a> {
    row: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Body for RotateRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        rope::rotate(self.row, self.cos, self.sin);
    }
}

impl<S: Simd> Context<'_, S> {
    pub(super) fn quantize_rows(self, x: &[f32], cols: usize, q: &mut [i8], scales: &mut [f32]) -> Result<()> {
        let isa = self.kernels.isa;
        self.rows_to_int8(x, cols, q, scales, |x, q| isa.run(QuantizeRow { x, q }))
    }

    pub(super) fn rms_norm_quantize(
        self,
        x: &[f32],
        w: &[f32],
        eps: f32,
        q: &mut [i8],
        scales: &mut [f32],
    ) -> Result<()> {
        let isa = self.kernels.isa;
        self.rows_to_int8(x, w.len(), q, scales, |x, q| isa.run(RmsNormQuantizeRow { x, w, eps, q }))
    }

    fn rows_to_int8(
        self,
        x: &[f32],
        cols: usize,
        q: &mut [i8],
        scales: &mut [f32],
        row: impl Fn(&[f32], &mut [i8]) -> Option<f32> + Sync,
    ) -> Result<()> {
        let bad_row = AtomicUsize::new(usize::MAX);
        let tasks = split::task_count(self.executor, x.len(), TASK_ELEMENTS).min(scales.len());
        let (q, count, scales) = (Parts::new(q), scales.len(), Parts::new(scales));
        split::run(self.executor, tasks, |task| {
            let range = split::part_of(count, 1, tasks, task);
            // SAFETY: tasks have disjoint ranges of rows.
            let (q, scales) = unsafe { (q.part(range.start * cols..range.end * cols), scales.part(range.clone())) };
            let rows = x[range.start * cols..range.end * cols].chunks_exact(cols).zip(q.chunks_exact_mut(cols));
            for (i, ((x, q), s)) in rows.zip(scales).enumerate() {
                match row(x, q) {
                    Some(scale) => *s = scale,
                    None => {
                        bad_row.fetch_min(range.start + i, Ordering::Relaxed);
                    }
                }
            }
        });
        let bad = bad_row.into_inner();
        if bad == usize::MAX {
            return Ok(());
        }
        let row = &x[bad * cols..][..cols];
        // A norm can overflow although its input is finite; then the row's first element stands for it.
        let at = row.iter().position(|v| !v.is_finite());
        let (at, value) = at.map_or((0, f32::INFINITY), |at| (at, row[at]));
        Err(Error::NotFinite { what: "activations", index: bad * cols + at, value })
    }

    pub(super) fn rms_norm(self, x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        let (isa, cols) = (self.kernels.isa, w.len());
        let tasks = split::task_count(self.executor, x.len(), TASK_ELEMENTS);
        split::chunks_mut(self.executor, y, cols, tasks, |start, y| {
            for (x, y) in x[start..start + y.len()].chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
                isa.run(RmsNormRow { x, w, eps, y });
            }
        });
    }

    pub(super) fn rope(self, x: &mut [f32], head_dim: usize, positions: &[u32], cos: &[f32], sin: &[f32]) {
        let (isa, half, width) = (self.kernels.isa, head_dim / 2, x.len() / positions.len());
        let tasks = split::task_count(self.executor, x.len(), TASK_ELEMENTS);
        split::chunks_mut(self.executor, x, width, tasks, |start, x| {
            for (row, &p) in x.chunks_exact_mut(width).zip(&positions[start / width..]) {
                let at = p as usize * half;
                isa.run(RotateRow { row, cos: &cos[at..at + half], sin: &sin[at..at + half] });
            }
        });
    }

    pub(super) fn relu_squared_mul(self, gate: &[f32], up: &[f32], y: &mut [f32]) {
        let isa = self.kernels.isa;
        let tasks = split::task_count(self.executor, y.len(), TASK_ELEMENTS);
        split::chunks_mut(self.executor, y, 64, tasks, |start, y| {
            isa.run(ReluSquaredMul { gate: &gate[start..start + y.len()], up: &up[start..start + y.len()], y });
        });
    }

    pub(super) fn add(self, x: &[f32], y: &mut [f32]) {
        let isa = self.kernels.isa;
        let tasks = split::task_count(self.executor, y.len(), TASK_ELEMENTS);
        split::chunks_mut(self.executor, y, 64, tasks, |start, y| {
            isa.run(AddTo { x: &x[start..start + y.len()], y });
        });
    }

    pub(super) fn gather(self, table: &PackedWeight, ids: &[u32], y: &mut [f32]) -> Result<()> {
        if let Some(done) = heads::gather(self.kernels.backend, self.kernels.isa, table, ids, y) {
            return done;
        }
        if let Packed::Dense(bytes) = table.data::<Packed>(self.kernels.backend)? {
            let (cols, row_bytes) = (table.shape().cols(), bytes.len() / table.shape().rows());
            for (&id, y) in ids.iter().zip(y.chunks_exact_mut(cols)) {
                let w = &bytes[id as usize * row_bytes..][..row_bytes];
                self.kernels.isa.run(WidenRow { format: table.format(), w, y });
            }
        }
        Ok(())
    }
}
