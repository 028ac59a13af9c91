//! The packings of CPU backends, whatever the file's format, scales apart.
//!
//! * *Panels* ([`panels`]) for kernels in intrinsics, at 2 or at 1.6 bits a weight.
//! * *Blocks* for portable code: the layout of `i2_s`, 32 bytes for 128 consecutive weights of one row, rows padded to whole
//!   blocks with zeros. An `i2_s` file has this layout already, so its bytes are used in place, unless the host wants none of
//!   that ([`HostContext::zero_copy`](tersor_core::HostContext::zero_copy)).

pub mod panels;

use std::sync::Arc;

use tersor_core::codec::{self, rows_of};
use tersor_core::{Bytes, Error, Format, PackTag, PackedWeight, Result, Shape, Weight};

use crate::arena::{Arena, Region};
use crate::heads;
use crate::isa::{Body, Simd};
use crate::split;
use panels::{Density, Layout};
use tersor_core::Executor;

/// Weights in a block.
pub const BLOCK: usize = 128;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 32;

/// A packed weight's data.
#[derive(Debug)]
pub enum Packed {
    /// Ternary.
    Ternary(Ternary),
    /// Dense, in the format's own bytes.
    Dense(Bytes),
}

/// Ternary codes and their scales.
#[derive(Debug)]
pub struct Ternary {
    /// The codes.
    pub codes: Codes,
    /// Scales.
    pub scales: Scales,
}

/// The codes of a packed weight.
#[derive(Debug)]
pub enum Codes {
    /// Blocks, rows one after another, in the weight's own bytes or a copy of them.
    Borrowed(Bytes),
    /// The same, rewritten.
    Blocks(Region),
    /// Panels.
    Panels(Layout, Region),
}

/// Scales of a packed weight.
#[derive(Debug)]
pub enum Scales {
    /// One for all rows: sums are whole rows.
    Uniform(f32),
    /// One for each `block` weights of a row, row after row.
    Blocks {
        /// Weights that share a scale: 64, 128 or 256.
        block: usize,
        /// Scales of a row.
        per_row: usize,
        /// All of them: row after row where codes are in blocks. Where they are in panels, panel after panel, inside a panel
        /// block after block, and of each block the scales of the panel's rows, so that a register loads them at once.
        values: Vec<f32>,
    },
}

impl Codes {
    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Codes::Borrowed(bytes) => bytes,
            Codes::Blocks(region) | Codes::Panels(_, region) => region.bytes(),
        }
    }
}

/// Bytes of a row in blocks, of `cols` weights.
pub const fn row_bytes(cols: usize) -> usize {
    cols.div_ceil(BLOCK) * BLOCK_BYTES
}

/// Where a backend's weights lie and how.
pub(crate) struct Packer<'a, S> {
    /// Id of the backend.
    pub(crate) backend: &'static str,
    /// The token that the work runs through.
    pub(crate) isa: S,
    /// The panels to pack in, at most one for each density, preferred first; none for blocks.
    pub(crate) layouts: &'a [Layout],
    /// Who does the work.
    pub(crate) executor: &'a dyn Executor,
    /// Where packed bytes go.
    pub(crate) arena: &'a Arena,
    /// Whether a weight's own bytes may be used in place.
    pub(crate) zero_copy: bool,
}

/// The layout for a weight with one scale in all, or with several. Blocks of scales are whole steps at 2 bits alone.
fn layout(layouts: &[Layout], uniform: bool) -> Option<Layout> {
    layouts.iter().find(|l| uniform || l.density == Density::Bits2).copied()
}

/// The most bytes that [`Packer::pack`] makes of a weight of this format and shape.
pub(crate) fn packed_size(layouts: &[Layout], format: Format, shape: Shape) -> Result<usize> {
    let len = format.encoded_len(shape)?;
    if let Some(bytes) = heads::packed_size(format, shape) {
        return Ok(bytes);
    }
    if !format.is_ternary() {
        return Ok(len.bytes);
    }
    let of = |layout: Option<Layout>| layout.map_or(shape.rows() * row_bytes(shape.cols()), |l| l.bytes(shape));
    let rows = layouts.first().map_or(shape.rows(), |l| l.panels(shape.rows()) * l.rows);
    let scales = format.scale_block().map_or(1, |block| rows * shape.cols().div_ceil(block));
    let codes =
        if scales == 1 { of(layout(layouts, true)) } else { of(layout(layouts, false)).max(of(layout(layouts, true))) };
    Ok(codes + 4 * scales)
}

impl<S: Simd> Packer<'_, S> {
    /// Packs a weight.
    pub(crate) fn pack(&self, w: &Weight) -> Result<PackedWeight> {
        if let Some(packed) = heads::pack(self, w)? {
            return Ok(packed);
        }
        let tag = |packing| PackTag { backend: self.backend.into(), packing };
        if !w.format().is_ternary() {
            let data = Arc::new(Packed::Dense(self.own(w.shared_codes())?));
            return Ok(PackedWeight::new(tag("dense"), w, w.bytes(), self.zero_copy, data));
        }
        let (rows, cols) = (w.shape().rows(), w.shape().cols());
        let scales = scales(self.backend, w)?;
        let layout = layout(self.layouts, matches!(scales, Scales::Uniform(_)));
        let in_place = match w.format() {
            Format::I2S => true,
            // Blocks run over the flattened tensor; they are rows of blocks if rows are whole blocks.
            Format::I2SGroup(_) => cols.is_multiple_of(BLOCK),
            _ => false,
        };
        let (codes, scales, borrowed, packing) = match layout {
            Some(layout) => {
                let mut region = self.arena.region(layout.bytes(w.shape()))?;
                panels::pack(self.isa, self.executor, w, layout, region.bytes_mut());
                (Codes::Panels(layout, region), by_panel(scales, layout.rows), false, layout.name())
            }
            None if in_place => {
                let codes = self.own(w.shared_codes().slice(..rows * row_bytes(cols)))?;
                (Codes::Borrowed(codes), scales, self.zero_copy, PACKING)
            }
            None => {
                let mut region = self.arena.region(rows * row_bytes(cols))?;
                repack(self.isa, self.executor, w, region.bytes_mut());
                (Codes::Blocks(region), scales, false, PACKING)
            }
        };
        let scale_count = match &scales {
            Scales::Uniform(_) => 1,
            Scales::Blocks { values, .. } => values.len(),
        };
        let bytes = codes.bytes().len() + 4 * scale_count;
        Ok(PackedWeight::new(tag(packing), w, bytes, borrowed, Arc::new(Packed::Ternary(Ternary { codes, scales }))))
    }

    /// Bytes that could serve as they are: themselves, or a copy in memory of ours.
    fn own(&self, bytes: Bytes) -> Result<Bytes> {
        if self.zero_copy {
            return Ok(bytes);
        }
        let mut region = self.arena.region(bytes.len())?;
        region.bytes_mut().copy_from_slice(&bytes);
        Ok(Bytes::from_owner(region))
    }
}

/// Name of the packing in blocks.
pub const PACKING: &str = "2bit-blocks-of-128";

fn scales(backend: &str, w: &Weight) -> Result<Scales> {
    let (values, block) = w.block_scales();
    if let Some(scale) = w.uniform_scale() {
        return Ok(Scales::Uniform(scale));
    }
    let cols = w.shape().cols();
    if !cols.is_multiple_of(block) {
        return Err(Error::Unsupported {
            backend: backend.into(),
            op: format!("pack {} {}", w.format(), w.shape()),
            reason: format!("a group of {block} weights straddles rows of {cols}; use groups that divide the row"),
        });
    }
    Ok(Scales::Blocks { block, per_row: cols / block, values })
}

/// The scales of rows in the order of panels of `rows` rows; scales of padded rows are zero.
fn by_panel(scales: Scales, rows: usize) -> Scales {
    let Scales::Blocks { block, per_row, values } = scales else { return scales };
    let panels = (values.len() / per_row).div_ceil(rows);
    let mut out = vec![0.0; panels * rows * per_row];
    for (r, scales) in values.chunks_exact(per_row).enumerate() {
        let panel = &mut out[r / rows * rows * per_row..][..rows * per_row];
        scales.iter().enumerate().for_each(|(b, &s)| panel[b * rows + r % rows] = s);
    }
    Scales::Blocks { block, per_row, values: out }
}

/// Rewrites every row in blocks.
fn repack<S: Simd>(isa: S, executor: &dyn Executor, w: &Weight, out: &mut [u8]) {
    struct Rows<'a> {
        w: &'a Weight,
        first: usize,
        out: &'a mut [u8],
    }
    impl Body for Rows<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            let cols = self.w.shape().cols();
            let layout = rows_of(self.w.format(), self.w.shape());
            let mut codes = vec![0; cols];
            for (i, out) in self.out.chunks_exact_mut(row_bytes(cols)).enumerate() {
                let r = self.first + i;
                if layout.cols == cols {
                    codec::decode_row(self.w.format(), &self.w.codes()[r * layout.bytes..][..layout.bytes], &mut codes);
                } else {
                    flat_row(self.w.codes(), r * cols, &mut codes);
                }
                codec::encode_row(Format::I2S, &codes, &[], out);
            }
        }
    }
    let cols = w.shape().cols();
    let tasks = split::task_count(executor, w.shape().len(), 1 << 17);
    split::chunks_mut(executor, out, row_bytes(cols), tasks, |start, out| {
        isa.run(Rows { w, first: start / row_bytes(cols), out });
    });
}

/// Reads `out.len()` codes from flat index `start` of a tensor in flattened blocks.
fn flat_row(bytes: &[u8], start: usize, out: &mut [i8]) {
    for (i, t) in out.iter_mut().enumerate() {
        let (block, at) = ((start + i) / BLOCK, (start + i) % BLOCK);
        *t = (bytes[block * BLOCK_BYTES + at % 32] >> (6 - 2 * (at / 32)) & 3) as i8 - 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use tersor_core::{Floats, Inline};

    /// What could be used in place is, or is copied into aligned memory of ours, as the host wishes; nothing else changes.
    #[test]
    fn bytes_are_used_in_place_or_copied_as_the_host_wishes() {
        let shape = Shape::new(3, 256).unwrap();
        let values: Vec<f32> = (0..shape.len()).map(|i| (i % 5) as f32 - 2.0).collect();
        let floats = Weight::dense(Format::F32, shape, bytemuck::cast_slice(&values).to_vec()).unwrap();
        let ternary = codec::quantize(Floats::F32(&values), shape, Format::I2S).unwrap();
        let arena = Arena::default();
        for weight in [floats, ternary] {
            let pack = |zero_copy| {
                let isa = crate::Portable;
                Packer { backend: "test", isa, layouts: &[], executor: &Inline, arena: &arena, zero_copy }
                    .pack(&weight)
                    .unwrap()
            };
            let bytes = |packed: &PackedWeight| match packed.data::<Packed>("test").unwrap() {
                Packed::Dense(bytes) | Packed::Ternary(Ternary { codes: Codes::Borrowed(bytes), .. }) => bytes.clone(),
                other => panic!("{other:?}"),
            };
            let (there, copied) = (pack(true), pack(false));
            assert!(there.borrowed() && !copied.borrowed());
            assert_eq!(bytes(&there).as_ptr(), weight.codes().as_ptr());
            assert_ne!(bytes(&copied).as_ptr(), weight.codes().as_ptr());
            assert!(bytes(&copied).as_ptr().addr().is_multiple_of(64));
            assert_eq!(bytes(&there), bytes(&copied));
            assert_eq!((there.bytes(), there.tag()), (copied.bytes(), copied.tag()));
        }
    }
}
