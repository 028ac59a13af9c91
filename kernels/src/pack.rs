//! The packing of CPU backends: 2 bits a weight in the block layout of `i2_s`, whatever the file's format, scales apart.
//!
//! One block is 32 bytes for 128 consecutive weights of one row: four shifts and masks of one 256-bit register give four
//! registers of codes that meet 128 consecutive activations. Rows are padded to whole blocks with zeros. An `i2_s` file
//! has this layout already, so its bytes are used in place.

use std::sync::Arc;

use tersor_core::codec::{self, rows_of};
use tersor_core::{Bytes, Error, Format, PackTag, PackedWeight, RawBuffer, Result, Shape, Weight};

use crate::isa::{Body, Simd};
use crate::split;
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

/// 2-bit codes in blocks, rows one after another, and the scales.
#[derive(Debug)]
pub struct Ternary {
    codes: Codes,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Scales.
    pub scales: Scales,
}

#[derive(Debug)]
enum Codes {
    Borrowed(Bytes),
    Owned(RawBuffer),
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
        /// All of them.
        values: Vec<f32>,
    },
}

impl Ternary {
    /// The codes of all rows.
    pub fn codes(&self) -> &[u8] {
        match &self.codes {
            Codes::Borrowed(b) => b,
            Codes::Owned(b) => b.as_host().unwrap_or_default(),
        }
    }
}

/// Bytes of a packed row of `cols` weights.
pub const fn row_bytes(cols: usize) -> usize {
    cols.div_ceil(BLOCK) * BLOCK_BYTES
}

/// Bytes that [`pack`] occupies.
pub fn packed_size(format: Format, shape: Shape) -> Result<usize> {
    let len = format.encoded_len(shape)?;
    if !format.is_ternary() {
        return Ok(len.bytes);
    }
    let scales = format.scale_block().map_or(1, |block| shape.len().div_ceil(block));
    Ok(shape.rows() * row_bytes(shape.cols()) + 4 * scales)
}

/// Name of the packing.
pub const PACKING: &str = "2bit-blocks-of-128";

/// Packs for `backend`.
pub fn pack<S: Simd>(backend: &'static str, isa: S, executor: &dyn Executor, w: &Weight) -> Result<PackedWeight> {
    let tag = |packing| PackTag { backend: backend.into(), packing };
    if !w.format().is_ternary() {
        let data = Arc::new(Packed::Dense(w.shared_codes()));
        return Ok(PackedWeight::new(tag("dense"), w, w.bytes(), true, data));
    }
    let (rows, cols) = (w.shape().rows(), w.shape().cols());
    let scales = scales(backend, w)?;
    let in_place = match w.format() {
        Format::I2S => true,
        // Blocks run over the flattened tensor; they are rows of blocks if rows are whole blocks.
        Format::I2SGroup(_) => cols.is_multiple_of(BLOCK),
        _ => false,
    };
    let codes = if in_place {
        Codes::Borrowed(w.shared_codes().slice(..rows * row_bytes(cols)))
    } else {
        let mut buffer = RawBuffer::host(rows * row_bytes(cols));
        if let Some(out) = buffer.as_host_mut() {
            repack(isa, executor, w, out);
        }
        Codes::Owned(buffer)
    };
    let scale_count = match &scales {
        Scales::Uniform(_) => 1,
        Scales::Blocks { values, .. } => values.len(),
    };
    let bytes = rows * row_bytes(cols) + 4 * scale_count;
    let data = Packed::Ternary(Ternary { codes, row_bytes: row_bytes(cols), scales });
    Ok(PackedWeight::new(tag(PACKING), w, bytes, in_place, Arc::new(data)))
}

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
