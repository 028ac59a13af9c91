//! Packing, and reading a row back.

use std::sync::Arc;

use tersor_core::codec::{self, blocks};
use tersor_core::{Format, PackTag, PackedWeight, Result, Shape, Weight};

use super::{GROUP, Layout, Q6_CODES, VECTOR, half_at, q6_codes};
use crate::arena::Region;
use crate::isa::{Body, Simd};
use crate::pack::Packer;
use crate::split;

/// Name of the packing.
const PACKING: &str = "blocks-in-lanes";
/// Weights that one task should pack at least.
const TASK_WEIGHTS: usize = 1 << 17;

/// Rows of groups.
#[derive(Debug)]
pub(super) struct Packed(Region);

impl Packed {
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// Bytes that [`pack`] makes; `None` for other formats.
pub(crate) fn packed_size(format: Format, shape: Shape) -> Option<usize> {
    Layout::of(format, shape.cols()).map(|layout| shape.rows() * layout.row_bytes())
}

/// Packs a weight; `None` for formats other than `q8_0` and `q6_k`.
pub(crate) fn pack<S: Simd>(packer: &Packer<'_, S>, w: &Weight) -> Result<Option<PackedWeight>> {
    let shape = w.shape();
    let Some(layout) = Layout::of(w.format(), shape.cols()) else { return Ok(None) };
    let row_bytes = layout.row_bytes();
    let mut region = packer.arena.region(shape.rows() * row_bytes)?;
    let tasks = split::task_count(packer.executor, shape.len(), TASK_WEIGHTS);
    split::chunks_mut(packer.executor, region.bytes_mut(), row_bytes, tasks, |start, out| {
        packer.isa.run(PackRows { layout, w, first: start / row_bytes, out });
    });
    let tag = PackTag { backend: packer.backend.into(), packing: PACKING };
    Ok(Some(PackedWeight::new(tag, w, region.bytes().len(), false, Arc::new(Packed(region)))))
}

/// Packs consecutive rows.
struct PackRows<'a> {
    layout: Layout,
    w: &'a Weight,
    first: usize,
    out: &'a mut [u8],
}

impl Body for PackRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let PackRows { layout, w, first, out } = self;
        let (cols, format) = (w.shape().cols(), w.format());
        let bytes = codec::rows_of(format, w.shape()).bytes;
        let (mut codes, mut scales) = (vec![0i8; cols], vec![0.0; layout.blocks]);
        let mut vectors = vec![0i8; layout.groups() * layout.group_values()];
        for (r, out) in out.chunks_exact_mut(layout.row_bytes()).enumerate() {
            let row = &w.codes()[(first + r) * bytes..][..bytes];
            blocks::decode_row(format, row, &mut codes, &mut scales);
            super::product::turn(layout, &codes, &mut vectors);
            write_row(layout, row, &vectors, out);
        }
    }
}

/// One row: `codes` in the order of vectors, signed; the scales from the canonical row.
#[inline(always)]
fn write_row(layout: Layout, row: &[u8], codes: &[i8], out: &mut [u8]) {
    let groups = layout.groups();
    let (out_scales, out_codes) = out.split_at_mut(layout.scale_bytes());
    if !layout.is_q6() {
        out_codes.iter_mut().zip(codes).for_each(|(o, c)| *o = (*c as u8) ^ 0x80);
        let scales = out_scales.chunks_exact_mut(2).zip(row.chunks_exact(blocks::Q8_BYTES));
        scales.for_each(|(o, block)| o.copy_from_slice(&block[..2]));
        return;
    }
    for (out, codes) in out_codes.chunks_exact_mut(Q6_CODES).zip(codes.chunks_exact(4 * VECTOR)) {
        let code = |v: usize, i: usize| codes[v * VECTOR + i].wrapping_add(32) as u8;
        let (low, high) = out.split_at_mut(2 * VECTOR);
        let (a, b) = low.split_at_mut(VECTOR);
        for i in 0..VECTOR {
            let (c0, c1, c2, c3) = (code(0, i), code(1, i), code(2, i), code(3, i));
            a[i] = c0 & 15 | c1 << 4;
            b[i] = c2 & 15 | c3 << 4;
            high[i] = c0 >> 4 | c1 >> 4 << 2 | c2 >> 4 << 4 | c3 >> 4 << 6;
        }
    }
    // A group is a superblock: its int8 scales and its f16 one are the last 18 bytes.
    let (out_scales, out_d) = out_scales.split_at_mut(groups * GROUP);
    let blocks = row.chunks_exact(blocks::Q6_BYTES).map(|b| b[blocks::Q6_BYTES - GROUP - 2..].split_at(GROUP));
    for ((scales, d), (sc, half)) in out_scales.chunks_exact_mut(GROUP).zip(out_d.chunks_exact_mut(2)).zip(blocks) {
        scales.copy_from_slice(sc);
        d.copy_from_slice(half);
    }
}

/// Expands rows `ids` of a packed table; `None` if it is in another format.
pub(crate) fn gather<S: Simd>(
    backend: &'static str,
    isa: S,
    table: &PackedWeight,
    ids: &[u32],
    y: &mut [f32],
) -> Option<Result<()>> {
    let cols = table.shape().cols();
    let layout = Layout::of(table.format(), cols)?;
    let packed = match table.data::<Packed>(backend) {
        Ok(packed) => packed.bytes(),
        Err(e) => return Some(Err(e)),
    };
    for (&id, y) in ids.iter().zip(y.chunks_exact_mut(cols)) {
        let row = &packed[id as usize * layout.row_bytes()..][..layout.row_bytes()];
        isa.run(ReadRow { layout, row, y });
    }
    Some(Ok(()))
}

/// Expands one row.
struct ReadRow<'a> {
    layout: Layout,
    row: &'a [u8],
    y: &'a mut [f32],
}

impl Body for ReadRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ReadRow { layout, row, y } = self;
        let (codes, scales, d) = layout.parts(row);
        let (block, bias) = (layout.block(), layout.bias());
        let mut unpacked = [0; 4 * VECTOR];
        for (g, y) in y.chunks_mut(layout.group_values()).enumerate() {
            let codes = &codes[g * layout.code_bytes()..][..layout.code_bytes()];
            let codes = if layout.is_q6() {
                q6_codes(codes, &mut unpacked);
                &unpacked[..]
            } else {
                codes
            };
            for (j, y) in y.chunks_exact_mut(block).enumerate() {
                let at = g * GROUP + j;
                let scale =
                    if layout.is_q6() { half_at(d, g) * f32::from(scales[at] as i8) } else { half_at(scales, at) };
                for (v, y) in y.chunks_exact_mut(4).enumerate() {
                    let codes = &codes[v * VECTOR + 4 * j..][..4];
                    y.iter_mut().zip(codes).for_each(|(y, c)| *y = (i32::from(*c) - bias) as f32 * scale);
                }
            }
        }
    }
}
