//! Quantizing and dequantizing weights.
//!
//! Per tensor: chunks of 4,096 are summed by any task, and put together in chunk order; then rows are ternarized and
//! encoded by any task. Per group: both steps in one pass over ranges of whole blocks.

use tersor_core::codec::absmean::{CHUNK, ChunkStats, Stats, ternarize};
use tersor_core::codec::{self, rows_of};
use tersor_core::{Error, Floats, FloatsMut, Format, GroupSize, Result, Shape, Weight, f16};

use super::Context;
use crate::codes::{Codes, ask_ahead, encode_tl1, encode_tl2};
use crate::isa::{Body, Simd};
use crate::lanes::{self, Lanes};
use crate::split::{self, Parts};

/// Elements that one task should have at least.
const TASK_ELEMENTS: usize = 1 << 17;

/// Bytes of a `tq2_0` block of 256 values, the last two of which are its scale.
const TQ2_BYTES: usize = 66;

/// `buffer.len()` elements from `start` as f32: in place if they are f32, else in the buffer.
#[inline(always)]
fn window<'a, S: Simd>(simd: S, w: Floats<'a>, start: usize, buffer: &'a mut [f32]) -> &'a [f32] {
    if let Floats::F32(w) = w {
        return &w[start..start + buffer.len()];
    }
    lanes::read(simd, w, start, buffer);
    buffer
}

struct ChunkSums<'a> {
    w: Floats<'a>,
    first: usize,
    out: &'a mut [Option<ChunkStats>],
}

impl Body for ChunkSums<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut buffer = [0.0; CHUNK];
        for (i, out) in self.out.iter_mut().enumerate() {
            let start = (self.first + i) * CHUNK;
            let len = CHUNK.min(self.w.len() - start);
            *out = Some(S::F32::chunk_stats(simd, window(simd, self.w, start, &mut buffer[..len])));
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
    fn run<S: Simd>(self, simd: S) {
        let half = 0.5 * self.scale;
        let (mut values, mut codes) = (vec![0.0; self.cols], vec![0; self.cols]);
        let scales = vec![self.stored; self.cols / 256];
        for (i, out) in self.out.chunks_exact_mut(self.row_bytes).enumerate() {
            let w = window(simd, self.w, (self.first + i) * self.cols, &mut values);
            let blocks = w.as_chunks().0;
            match self.format {
                Format::I2S => {
                    for (out, w) in out.as_chunks_mut().0.iter_mut().zip(blocks) {
                        ask_ahead(w);
                        *out = S::F32::two_bit_block::<false>(simd, w, [half; 2]);
                    }
                }
                Format::TQ2_0 => {
                    let stored = f16::from_f32(self.stored).to_le_bytes();
                    for (out, [a, b]) in out.as_chunks_mut::<TQ2_BYTES>().0.iter_mut().zip(blocks.as_chunks().0) {
                        ask_ahead(a);
                        ask_ahead(b);
                        out[..32].copy_from_slice(&S::F32::two_bit_block::<true>(simd, a, [half; 2]));
                        out[32..64].copy_from_slice(&S::F32::two_bit_block::<true>(simd, b, [half; 2]));
                        out[64..].copy_from_slice(&stored);
                    }
                }
                Format::TL1 => encode_tl1(simd, w, half, out),
                Format::TL2 => encode_tl2(simd, w, half, out),
                _ => {
                    ternarize(w, self.scale, &mut codes);
                    codec::encode_row(self.format, &codes, &scales, out);
                }
            }
        }
    }
}

/// Quantizes whole groups, each with its own scale; false if a value is not finite.
struct Groups<'a> {
    w: Floats<'a>,
    group: GroupSize,
    start: usize,
    scales: &'a mut [f32],
    out: &'a mut [u8],
}

/// Elements whose scales are made before any of them is encoded: whole groups of every size, four at a time, several times. A
/// processor then has other groups to sum while it folds the sums of four, and the scales when it comes to encode.
const STEP: usize = 2048;

impl Body for Groups<'_> {
    type Out = bool;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        match self.group {
            GroupSize::G64 => self.of::<S, 64>(simd),
            GroupSize::G128 => self.of::<S, 128>(simd),
            GroupSize::G256 => self.of::<S, 256>(simd),
        }
    }
}

impl Groups<'_> {
    #[inline(always)]
    fn of<S: Simd, const G: usize>(self, simd: S) -> bool {
        let mut values = [0.0; STEP];
        let steps = self.out.chunks_mut(STEP / 4).zip(self.scales.chunks_mut(STEP / G));
        for (i, (out, scales)) in steps.enumerate() {
            let start = self.start + i * STEP;
            let len = STEP.min(self.w.len() - start);
            let w = window(simd, self.w, start, &mut values[..len]);
            if len == STEP {
                let fours = w.as_chunks::<G>().0.as_chunks().0;
                for (four, scales) in fours.iter().zip(scales.as_chunks_mut().0) {
                    let Some(of_four) = S::F32::group_scales(simd, four) else { return false };
                    *scales = of_four;
                }
                for (b, (out, w)) in out.as_chunks_mut().0.iter_mut().zip(w.as_chunks().0).enumerate() {
                    let half = [0.5 * scales[b * 128 / G], 0.5 * scales[(b * 128 + 64) / G]];
                    *out = S::F32::two_bit_block::<false>(simd, w, half);
                }
                continue;
            }
            // The end of the tensor.
            let mut codes = [0; STEP];
            for ((v, t), scale) in w.chunks(G).zip(codes.chunks_mut(G)).zip(scales) {
                let Some(s) = S::F32::chunk_stats(simd, v).scale(v.len()) else { return false };
                *scale = s;
                ternarize(v, s, t);
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

/// A row's blocks of 128 two-bit codes, for the formats that have them.
#[inline(always)]
fn two_bit_blocks(format: Format, row: &[u8]) -> Option<impl Iterator<Item = &[u8; 32]>> {
    let (block, codes) = match format {
        Format::I2S | Format::I2SGroup(_) => (32, 32),
        Format::TQ2_0 => (TQ2_BYTES, 64),
        _ => return None,
    };
    Some(row.chunks_exact(block).flat_map(move |b| b[..codes].as_chunks().0))
}

impl Body for DecodeRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let rows = rows_of(self.w.format(), self.w.shape());
        let (mut codes, mut values) = (vec![0i8; rows.cols], vec![0.0f32; rows.cols]);
        for r in self.first..self.first + self.count {
            let bytes = &self.w.codes()[r * rows.bytes..][..rows.bytes];
            if let FloatsMut::F32(out) = &mut self.out
                && let Some(blocks) = two_bit_blocks(self.w.format(), bytes)
                && let (out, []) = out[(r - self.first) * rows.cols..][..rows.cols].as_chunks_mut()
            {
                for (i, (bytes, out)) in blocks.zip(out).enumerate() {
                    let values = [0, 64].map(|at| {
                        let s = self.scales[(r * rows.cols + i * 128 + at) / self.block];
                        [-1.0f32, 0.0, 1.0, f32::NAN].map(|t| t * s)
                    });
                    match self.w.format() {
                        Format::TQ2_0 => S::F32::two_bit_values::<true>(simd, bytes, &values, out),
                        _ => S::F32::two_bit_values::<false>(simd, bytes, &values, out),
                    }
                }
                continue;
            }
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
            return self.quantize_groups(w, g, codes, scales);
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

    fn quantize_groups(self, w: Floats<'_>, group: GroupSize, codes: &mut [u8], scales: &mut [f32]) -> Result<()> {
        let (isa, of) = (self.kernels.isa, group.values());
        let tasks = split::task_count(self.executor, w.len(), TASK_ELEMENTS);
        let (codes, scales) = (Parts::new(codes), Parts::new(scales));
        let failed = std::sync::atomic::AtomicBool::new(false);
        split::run(self.executor, tasks, |task| {
            let range = split::part_of(w.len(), STEP, tasks, task);
            // SAFETY: ranges of tasks are disjoint and start at whole steps, which are whole blocks and whole groups.
            let (out, scales) = unsafe {
                let bytes = range.start / 4..range.end.div_ceil(crate::pack::BLOCK) * crate::pack::BLOCK_BYTES;
                (codes.part(bytes), scales.part(range.start / of..range.end.div_ceil(of)))
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
