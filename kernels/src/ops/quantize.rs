//! Quantizing weights.
//!
//! Per tensor: chunks of 4,096 are summed by any task, and put together in chunk order; then rows are ternarized and
//! encoded by any task. Large tensors are read once for both ([`super::single_read`]). Per group: both steps in one pass over
//! ranges of whole blocks.

use tersor_core::codec::absmean::{CHUNK, ChunkStats, Stats, ternarize};
use tersor_core::codec::{self, rows_of};
use tersor_core::{Floats, Format, GroupSize, Result, Shape, f16};

use super::Context;
use super::single_read::Outcome;
use crate::codes::{Ahead, Ask, Codes, PREFETCH, encode_tl1, encode_tl2};
use crate::isa::{Body, Simd};
use crate::lanes::{self, Lanes};
use crate::split::{self, Parts};

/// Elements that one task should have at least.
pub(super) const TASK_ELEMENTS: usize = 1 << 17;

/// Bytes of a `tq2_0` block of 256 values, the last two of which are its scale.
pub(super) const TQ2_BYTES: usize = 66;

/// Bytes of a `tq1_0` block, as many of which its scale.
const TQ1_BYTES: usize = 54;

/// `buffer.len()` elements from `start` as f32: in place if they are f32, else in the buffer, and the source asked for AHEAD.
#[inline(always)]
pub(super) fn window<'a, const AHEAD: usize, S: Simd>(
    simd: S,
    w: Floats<'a>,
    start: usize,
    buffer: &'a mut [f32],
) -> &'a [f32] {
    if let Floats::F32(w) = w {
        return &w[start..start + buffer.len()];
    }
    lanes::read::<AHEAD, S>(simd, w, start, buffer);
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
            *out = Some(S::F32::chunk_stats::<PREFETCH>(
                simd,
                window::<PREFETCH, S>(simd, self.w, start, &mut buffer[..len]),
            ));
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
        let rows = RowEncoder { format: self.format, stored: self.stored };
        let mut values = vec![0.0; self.cols];
        for (i, out) in self.out.chunks_exact_mut(self.row_bytes).enumerate() {
            let w = window::<PREFETCH, S>(simd, self.w, (self.first + i) * self.cols, &mut values);
            rows.encode::<Ahead, S>(simd, w, 0.5 * self.scale, out);
        }
    }
}

/// Ternarizes and encodes rows of a format with one scale.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowEncoder {
    pub(super) format: Format,
    /// The scale for formats that store it among the codes.
    pub(super) stored: f32,
}

impl RowEncoder {
    /// Encodes a row; `half` is half the scale.
    #[inline(always)]
    pub(super) fn encode<A: Ask, S: Simd>(self, simd: S, w: &[f32], half: f32, out: &mut [u8]) {
        match self.format {
            Format::I2S => {
                for (out, w) in out.as_chunks_mut().0.iter_mut().zip(w.as_chunks().0) {
                    A::ask(w);
                    *out = S::F32::two_bit_block::<false>(simd, w, [half; 2]);
                }
            }
            Format::TQ2_0 => {
                let stored = f16::from_f32(self.stored).to_le_bytes();
                for (out, w) in out.as_chunks_mut::<TQ2_BYTES>().0.iter_mut().zip(w.as_chunks::<256>().0) {
                    A::ask(w);
                    if let ([a, b], []) = w.as_chunks() {
                        out[..32].copy_from_slice(&S::F32::two_bit_block::<true>(simd, a, [half; 2]));
                        out[32..64].copy_from_slice(&S::F32::two_bit_block::<true>(simd, b, [half; 2]));
                        out[64..].copy_from_slice(&stored);
                    }
                }
            }
            Format::TL1 => encode_tl1::<A, S>(simd, w, half, out),
            Format::TL2 => encode_tl2::<A, S>(simd, w, half, out),
            _ => {
                // `tq1_0`, several blocks at a time: codes of one alone would be read while they are still written.
                let mut codes = [0; 8 * 256];
                for (out, w) in out.chunks_mut(8 * TQ1_BYTES).zip(w.chunks(8 * 256)) {
                    for (w, codes) in w.as_chunks::<256>().0.iter().zip(codes.as_chunks_mut::<256>().0) {
                        A::ask(w);
                        // Half of this is half again: no scale is so small that half of it is rounded twice.
                        ternarize(w, half + half, codes);
                    }
                    codec::encode_row(Format::TQ1_0, &codes[..w.len()], &[self.stored; 8], out);
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
            let w = window::<PREFETCH, S>(simd, self.w, start, &mut values[..len]);
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
                let Some(s) = S::F32::chunk_stats::<PREFETCH>(simd, v).scale(v.len()) else { return false };
                *scale = s;
                ternarize(v, s, t);
            }
            codec::encode_row(Format::I2S, &codes[..len], &[], out);
        }
        true
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
        let (isa, rows) = (self.kernels.isa, rows_of(format, shape));
        let scale = match self.single_read(w, format, rows, &mut codes[..rows.count * rows.bytes])? {
            Outcome::Encoded(scale) => {
                codec::write_tail(format, scale, codes);
                return Ok(());
            }
            Outcome::Missed(scale) => scale,
            Outcome::Unknown => self.scale(w)?,
        };
        let stored = codec::storable_scale(format, scale)?;
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
}
