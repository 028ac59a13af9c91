//! The packing: 2 bits a weight in tiles of 256 columns of one row, whatever the file's format; scales apart. The order
//! inside a tile is written down in `kernels/matmul.cu`. Dense tables are padded to whole rows of 64 elements; `q8_0` and
//! `q6_k` lie in planes, see `kernels/heads.cu`, in as many bytes as the file has.

use std::sync::Arc;

use tersor_core::codec::rows_of;
use tersor_core::{Error, Format, PackTag, PackedWeight, Result, Shape, Weight};

use crate::ID;
use crate::driver::{Args, Grid, Kernel};
use crate::memory::{Allocation, Device};

/// Columns of a tile.
pub(crate) const TILE: usize = 256;
const TILE_BYTES: usize = 64;
/// Rows of dense tables are whole multiples of this many elements.
const DENSE_UNIT: usize = 64;

/// A packed weight's data.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) data: Allocation,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// Tiles of a row, and the scales.
    Ternary { tiles: u32, scales: Scales },
    /// Blocks of a row of `q8_0` or `q6_k`.
    Blocks { per_row: u32 },
    /// Elements from one row to the next.
    Dense { stride: u32 },
}

#[derive(Debug)]
pub(crate) enum Scales {
    /// One for all rows.
    Uniform(f32),
    /// One for each `words` x 64 weights of a row; `per_row` of them.
    Blocks { values: Allocation, words: u32, per_row: u32 },
}

/// The kernels' number for a ternary format.
pub(crate) fn format_number(format: Format) -> u32 {
    match format {
        Format::TL1 => 1,
        Format::TL2 => 2,
        Format::TQ1_0 => 3,
        Format::TQ2_0 => 4,
        _ => 0,
    }
}

/// The kernels' flag for `q6_k`, where the other choice is `q8_0`.
pub(crate) fn block_number(format: Format) -> u32 {
    u32::from(format == Format::Q6K)
}

/// Bytes from one row to the next in canonical bytes; 0 where blocks run over the flattened tensor.
pub(crate) fn row_bytes(format: Format, shape: Shape) -> usize {
    if matches!(format, Format::I2SGroup(_)) { 0 } else { rows_of(format, shape).bytes }
}

fn element(format: Format) -> usize {
    if format == Format::F32 { 4 } else { 2 }
}

/// Bytes that [`pack`] occupies.
pub(crate) fn packed_size(format: Format, shape: Shape) -> Result<usize> {
    let encoded = format.encoded_len(shape)?;
    if format.is_block() {
        return Ok(encoded.bytes);
    }
    Ok(if format.is_ternary() {
        let scales = format.scale_block().map_or(1, |block| shape.len().div_ceil(block));
        shape.rows() * shape.cols().div_ceil(TILE) * TILE_BYTES + 4 * scales
    } else {
        shape.rows() * shape.cols().next_multiple_of(DENSE_UNIT) * element(format)
    })
}

/// Number of something that kernels count in 32 bits.
pub(crate) fn count(what: &'static str, n: usize) -> Result<u32> {
    let need = "below 2^31 on this backend";
    let too_many = || Error::Parameter { what, value: n.to_string(), need };
    u32::try_from(n).ok().filter(|n| *n < 1 << 31).ok_or_else(too_many)
}

/// A grid for `n` independent items, 256 threads a block; kernels loop if there are more.
pub(crate) fn items(n: usize) -> Grid {
    Grid::new(n.div_ceil(256).clamp(1, 1 << 20) as u32, 256)
}

/// Packs on the device: the canonical bytes go up as they are.
pub(crate) fn pack(device: &Arc<Device>, w: &Weight) -> Result<PackedWeight> {
    let (shape, format) = (w.shape(), w.format());
    let (rows, cols) = (count("rows", shape.rows())?, count("columns", shape.cols())?);
    let tag = |packing| PackTag { backend: ID.into(), packing };
    let size = packed_size(format, shape)?;
    if let Some(block) = format.scale_block().filter(|_| format.is_block()) {
        let per_row = cols / block as u32;
        let (raw, data) = (device.take_with(w.codes())?, device.take(size)?);
        let args = Args::new().u32(block_number(format)).u64(raw.at).u32(rows).u32(per_row).u64(data.at);
        // SAFETY: parameters as in heads.cu; the weight's bytes were validated for its shape, and planes take as many.
        unsafe { device.launch(Kernel::PackBlocks, items(shape.len() / block), args) }?;
        device.flush()?;
        device.driver.fence();
        let data = Arc::new(Packed { data, kind: Kind::Blocks { per_row } });
        return Ok(PackedWeight::new(tag("planes-of-blocks"), w, size, false, data));
    }
    if !format.is_ternary() {
        let stride = count("columns", shape.cols().next_multiple_of(DENSE_UNIT))?;
        let data = if stride == cols {
            device.take_with(w.codes())?
        } else {
            let (raw, data) = (device.take_with(w.codes())?, device.take(size)?);
            let args = Args::new().u64(raw.at).u32(element(format) as u32).u32(rows).u32(cols).u32(stride).u64(data.at);
            let grid = items(shape.rows() * stride as usize);
            // SAFETY: parameters as in weights.cu; both allocations have the lengths that shape and stride give.
            unsafe { device.launch(Kernel::PackDense, grid, args) }?;
            device.flush()?;
            device.driver.fence();
            data
        };
        let data = Arc::new(Packed { data, kind: Kind::Dense { stride } });
        return Ok(PackedWeight::new(tag("rows-of-64"), w, size, false, data));
    }
    let (scales, scale_bytes) = scales(device, w)?;
    let tiles = cols.div_ceil(TILE as u32);
    let bytes = shape.rows() * tiles as usize * TILE_BYTES;
    let (raw, data) = (device.take_with(w.codes())?, device.take(bytes)?);
    let args = Args::new()
        .u32(format_number(format))
        .u64(raw.at)
        .u64(row_bytes(format, shape) as u64)
        .u32(rows)
        .u32(cols)
        .u32(tiles)
        .u64(data.at);
    // SAFETY: parameters as in weights.cu; the weight's bytes were validated for its shape, and the tiles take `bytes`.
    unsafe { device.launch(Kernel::Pack, items(bytes / 4), args) }?;
    device.flush()?;
    device.driver.fence();
    let data = Arc::new(Packed { data, kind: Kind::Ternary { tiles, scales } });
    Ok(PackedWeight::new(tag("2bit-tiles-of-256"), w, bytes + scale_bytes, false, data))
}

fn scales(device: &Arc<Device>, w: &Weight) -> Result<(Scales, usize)> {
    if let Some(scale) = w.uniform_scale() {
        return Ok((Scales::Uniform(scale), 4));
    }
    let (values, block) = w.block_scales();
    let cols = w.shape().cols();
    if !cols.is_multiple_of(block) {
        return Err(Error::Unsupported {
            backend: ID.into(),
            op: format!("pack {} {}", w.format(), w.shape()),
            reason: format!("a group of {block} weights straddles rows of {cols}; use groups that divide the row"),
        });
    }
    let bytes = 4 * values.len();
    let values = device.take_with(bytemuck::cast_slice(&values))?;
    Ok((Scales::Blocks { values, words: (block / 64) as u32, per_row: (cols / block) as u32 }, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_rows_are_whole_tiles_at_two_bits() {
        let size = |k| packed_size(Format::I2S, Shape::new(10, k).unwrap()).unwrap();
        assert_eq!((size(2560), size(6912)), (10 * 640 + 4, 10 * 1728 + 4));
        assert!(packed_size(Format::TQ2_0, Shape::new(2, 257).unwrap()).is_err());
    }
}
