//! Quantizing and dequantizing weights.
//!
//! Per tensor: chunks of 4,096 are summed by any task, and put together in chunk order; then rows are ternarized and
//! encoded by any task. Per group: both steps in one pass over ranges of whole blocks.

use tersor_core::codec::absmean::{CHUNK, ChunkStats, Stats, chunk_stats, ternarize};
use tersor_core::codec::{self, rows_of};
use tersor_core::{Error, Floats, FloatsMut, Format, Result, Shape, Weight};

use super::Context;
use crate::isa::{Body, Simd};
use crate::split::{self, Parts};

/// Elements that one task should have at least.
const TASK_ELEMENTS: usize = 1 << 17;

struct ChunkSums<'a> {
    w: Floats<'a>,
    first: usize,
    out: &'a mut [Option<ChunkStats>],
}

impl Body for ChunkSums<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let mut buffer = [0.0; CHUNK];
        for (i, out) in self.out.iter_mut().enumerate() {
            let start = (self.first + i) * CHUNK;
            let len = CHUNK.min(self.w.len() - start);
            *out = Some(if let Floats::F32(w) = self.w {
                chunk_stats(&w[start..start + len])
            } else {
                self.w.read(start, &mut buffer[..len]);
                chunk_stats(&buffer[..len])
            });
        }
    }
}

/// Ternarizes and encodes consecutive rows.
struct EncodeRows<'a> {
    w: Floats<'a>,
    format: Format,
    cols: usize,
    row_bytes: usize,
    first: usize,
    scale: f32,
    stored: f32,
    out: &'a mut [u8],
}

impl Body for EncodeRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (mut values, mut codes) = (vec![0.0; self.cols], vec![0; self.cols]);
        let scales = vec![self.stored; self.cols / 256];
        for (i, out) in self.out.chunks_exact_mut(self.row_bytes).enumerate() {
            let start = (self.first + i) * self.cols;
            if let Floats::F32(w) = self.w {
                ternarize(&w[start..start + self.cols], self.scale, &mut codes);
            } else {
                self.w.read(start, &mut values);
                ternarize(&values, self.scale, &mut codes);
            }
            codec::encode_row(self.format, &codes, &scales, out);
        }
    }
}

/// Quantizes whole groups, each with its own scale; false if a value is not finite.
struct Groups<'a> {
    w: Floats<'a>,
    group: usize,
    start: usize,
    scales: &'a mut [f32],
    out: &'a mut [u8],
}

/// Elements of a step of [`Groups`]: whole groups and whole blocks of every size.
const STEP: usize = 256;

impl Body for Groups<'_> {
    type Out = bool;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        let (mut values, mut codes) = ([0.0; STEP], [0; STEP]);
        let mut scales = self.scales.iter_mut();
        for (i, out) in self.out.chunks_mut(STEP / 4).enumerate() {
            let start = self.start + i * STEP;
            let len = STEP.min(self.w.len() - start);
            self.w.read(start, &mut values[..len]);
            let groups = values[..len].chunks(self.group).zip(codes[..len].chunks_mut(self.group));
            for ((v, t), s) in groups.zip(&mut scales) {
                let mut stats = Stats::default();
                stats.push(chunk_stats(v), v.len());
                let Some(scale) = stats.scale() else { return false };
                *s = scale;
                ternarize(v, scale, t);
            }
            codec::encode_row(Format::I2S, &codes[..len], &[], out);
        }
        true
    }
}

struct DecodeRows<'a> {
    w: &'a Weight,
    scales: &'a [f32],
    block: usize,
    first: usize,
    count: usize,
    out: FloatsMut<'a>,
}

impl Body for DecodeRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        let rows = rows_of(self.w.format(), self.w.shape());
        let (mut codes, mut values) = (vec![0i8; rows.cols], vec![0.0f32; rows.cols]);
        for r in self.first..self.first + self.count {
            let bytes = &self.w.codes()[r * rows.bytes..][..rows.bytes];
            if self.w.format().is_ternary() {
                codec::decode_row(self.w.format(), bytes, &mut codes);
                // A block never straddles rows as the layout sees them, or spans the whole tensor.
                let flat = r * rows.cols;
                let step = self.block.min(rows.cols);
                for (i, (v, t)) in values.chunks_mut(step).zip(codes.chunks(step)).enumerate() {
                    let s = self.scales[(flat + i * step) / self.block];
                    v.iter_mut().zip(t).for_each(|(v, &t)| *v = f32::from(t) * s);
                }
            } else {
                codec::dense_row(self.w.format(), bytes, &mut values);
            }
            self.out.write((r - self.first) * rows.cols, &values);
        }
    }
}

impl<S: Simd> Context<'_, S> {
    pub(super) fn quantize(
        self,
        w: Floats<'_>,
        shape: Shape,
        format: Format,
        codes: &mut [u8],
        scales: &mut [f32],
    ) -> Result<()> {
        if let Format::I2SGroup(g) = format {
            return self.quantize_groups(w, g.values(), codes, scales);
        }
        let scale = self.scale(w)?;
        let stored = codec::storable_scale(format, scale)?;
        let (isa, rows) = (self.kernels.isa, rows_of(format, shape));
        let tasks = split::task_count(self.executor, w.len(), TASK_ELEMENTS);
        split::chunks_mut(self.executor, &mut codes[..rows.count * rows.bytes], rows.bytes, tasks, |start, out| {
            let first = start / rows.bytes;
            isa.run(EncodeRows { w, format, cols: rows.cols, row_bytes: rows.bytes, first, scale, stored, out });
        });
        codec::write_tail(format, scale, codes);
        Ok(())
    }

    fn scale(&self, w: Floats<'_>) -> Result<f32> {
        let isa = self.kernels.isa;
        let mut chunks = vec![None; w.len().div_ceil(CHUNK)];
        let tasks = split::task_count(self.executor, w.len(), TASK_ELEMENTS);
        split::chunks_mut(self.executor, &mut chunks, 1, tasks, |first, out| isa.run(ChunkSums { w, first, out }));
        let mut stats = Stats::default();
        for (i, chunk) in chunks.into_iter().flatten().enumerate() {
            stats.push(chunk, CHUNK.min(w.len() - i * CHUNK));
        }
        stats.scale().ok_or_else(|| codec::non_finite(w))
    }

    fn quantize_groups(self, w: Floats<'_>, group: usize, codes: &mut [u8], scales: &mut [f32]) -> Result<()> {
        let isa = self.kernels.isa;
        let tasks = split::task_count(self.executor, w.len(), TASK_ELEMENTS);
        let (codes, scales) = (Parts::new(codes), Parts::new(scales));
        let failed = std::sync::atomic::AtomicBool::new(false);
        split::run(self.executor, tasks, |task| {
            let range = split::part_of(w.len(), STEP, tasks, task);
            // SAFETY: ranges of tasks are disjoint and start at whole steps, which are whole blocks and whole groups.
            let (out, scales) = unsafe {
                let bytes = range.start / 4..range.end.div_ceil(crate::pack::BLOCK) * crate::pack::BLOCK_BYTES;
                (codes.part(bytes), scales.part(range.start / group..range.end.div_ceil(group)))
            };
            if !isa.run(Groups { w, group, start: range.start, scales, out }) {
                failed.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        });
        if failed.into_inner() { Err(codec::non_finite(w)) } else { Ok(()) }
    }

    pub(super) fn dequantize(self, w: &Weight, y: FloatsMut<'_>) -> Result<()> {
        let isa = self.kernels.isa;
        let (scales, block) = w.block_scales();
        let rows = rows_of(w.format(), w.shape());
        Error::expect_len("dequantized values", y.len(), rows.count * rows.cols, || format!("shape {}", w.shape()))?;
        let tasks = split::task_count(self.executor, y.len(), TASK_ELEMENTS);
        let decode = |start: usize, out: FloatsMut<'_>| {
            let (first, count) = (start / rows.cols, out.len() / rows.cols);
            isa.run(DecodeRows { w, scales: &scales, block, first, count, out });
        };
        match y {
            FloatsMut::F32(y) => {
                split::chunks_mut(self.executor, y, rows.cols, tasks, |s, o| decode(s, FloatsMut::F32(o)))
            }
            FloatsMut::F16(y) => {
                split::chunks_mut(self.executor, y, rows.cols, tasks, |s, o| decode(s, FloatsMut::F16(o)))
            }
            FloatsMut::BF16(y) => {
                split::chunks_mut(self.executor, y, rows.cols, tasks, |s, o| decode(s, FloatsMut::BF16(o)))
            }
        }
        Ok(())
    }
}
