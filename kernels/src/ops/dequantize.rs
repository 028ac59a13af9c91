//! Weights back to floats.

use tersor_core::codec::{self, rows_of};
use tersor_core::{Error, FloatsMut, Format, Result, Weight};

use super::Context;
use super::quantize::{TASK_ELEMENTS, TQ2_BYTES};
use crate::isa::{Body, Simd};
use crate::lanes::Lanes;
use crate::split;

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
