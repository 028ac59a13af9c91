//! Quantizing and dequantizing weights.

use tersor_core::codec::absmean::CHUNK;
use tersor_core::format::TAIL;
use tersor_core::{FloatIn, FloatOut, Format, GroupSize, Out, Result, Shape, Weight};

use crate::driver::{Address, Args, Grid, Kernel};
use crate::pack::{block_number, count, format_number, items, row_bytes};
use crate::stream::CudaStream;

/// Chunks whose sums a block of `chunk_stats` adds.
const CHUNKS: usize = 16;
/// Bytes of a `Stats` and of a `Scale`, see weights.cu.
const STATS_BYTES: usize = 16;
const SCALE_BYTES: usize = 16;

impl CudaStream {
    fn floats(&self, what: &'static str, w: FloatIn<'_>) -> Result<(Address, u32)> {
        Ok(match w {
            FloatIn::F32(w) => (self.input(what, w)?, 0),
            FloatIn::F16(w) => (self.input(what, w)?, 1),
            FloatIn::BF16(w) => (self.input(what, w)?, 2),
        })
    }

    pub(super) fn quantize(
        &mut self,
        w: FloatIn<'_>,
        shape: Shape,
        format: Format,
        codes: &Out<'_, u8>,
        scales: &Out<'_, f32>,
    ) -> Result<()> {
        let (w, t) = self.floats("weights", w)?;
        let (out, out_scales) = (self.output("codes", codes)?, self.output("scales", scales)?);
        let n = shape.len();
        let fault = self.watch("weights", format);
        if let Format::I2SGroup(g) = format {
            let kernel = match g {
                GroupSize::G64 => Kernel::QuantizeG64,
                GroupSize::G128 => Kernel::QuantizeG128,
                GroupSize::G256 => Kernel::QuantizeG256,
            };
            let args = Args::new().u64(w).u32(t).u64(n as u64).u64(out).u64(out_scales).fault(fault);
            let grid = Grid::new(count("blocks of weights", n.div_ceil(4096))?, 256);
            // SAFETY: parameters as in weights.cu; `Checked` has seen to the lengths of all operands. So below.
            return unsafe { self.device.launch(kernel, grid, args) };
        }
        let blocks = n.div_ceil(CHUNK * CHUNKS);
        let stats = self.scratch.get(&self.device, 0, STATS_BYTES * blocks)?;
        let scale = self.scratch.get(&self.device, 1, SCALE_BYTES)?;
        let args = Args::new().u64(w).u32(t).u64(n as u64).u64(stats);
        // SAFETY: as above; there is room for the statistics of each block.
        unsafe { self.device.launch(Kernel::ChunkStats, Grid::new(count("chunks", blocks)?, 256), args) }?;
        let tailed = matches!(format, Format::I2S | Format::TL1 | Format::TL2);
        let tail = if tailed { out + (codes.len() - TAIL) as u64 } else { 0 };
        let args = Args::new().u64(stats).u64(blocks as u64).u64(n as u64).u32(u32::from(!tailed)).u64(scale);
        // SAFETY: as above.
        unsafe { self.device.launch(Kernel::Tree, Grid::new(1, 1024), args.u64(tail).fault(fault)) }?;
        if format == Format::I2S {
            let args = Args::new().u64(w).u32(t).u64(n as u64).u64(scale).u64(out).fault(fault);
            // SAFETY: as above.
            return unsafe { self.device.launch(Kernel::QuantizeI2s, items(n.div_ceil(16)), args) };
        }
        let bytes = row_bytes(format, shape);
        let args = Args::new().u32(format_number(format)).u64(w).u32(t).u32(count("rows", shape.rows())?);
        let args = args.u32(count("columns", shape.cols())?).u32(count("bytes of a row", bytes)?).u64(scale);
        // SAFETY: as above.
        unsafe { self.device.launch(Kernel::QuantizeBytes, items(shape.rows() * bytes), args.u64(out).fault(fault)) }
    }

    pub(super) fn dequantize(&mut self, w: &Weight, y: &FloatOut<'_>) -> Result<()> {
        let (y, to) = match y {
            FloatOut::F32(y) => (self.output("dequantized values", y)?, 0),
            FloatOut::F16(y) => (self.output("dequantized values", y)?, 1),
            FloatOut::BF16(y) => (self.output("dequantized values", y)?, 2),
        };
        let (format, shape) = (w.format(), w.shape());
        let n = shape.len();
        let raw = self.scratch.get(&self.device, 0, w.codes().len())?;
        self.device.upload(w.codes(), raw)?;
        if format.is_block() {
            let args = Args::new().u32(block_number(format)).u64(raw).u64(n as u64).u32(to).u64(y);
            // SAFETY: as above, in heads.cu; the weight's bytes were validated for its shape.
            return unsafe { self.device.launch(Kernel::DequantizeBlocks, items(n), args) };
        }
        if !format.is_ternary() {
            let from = match format {
                Format::F16 => 1,
                Format::BF16 => 2,
                _ => 0,
            };
            let args = Args::new().u32(from).u64(raw).u64(n as u64).u32(to).u64(y);
            // SAFETY: as above.
            return unsafe { self.device.launch(Kernel::Convert, items(n), args) };
        }
        let (values, block) = w.block_scales();
        let scales = self.scratch.get(&self.device, 1, 4 * values.len())?;
        self.device.upload(bytemuck::cast_slice(&values), scales)?;
        let args = Args::new().u32(format_number(format)).u64(raw).u64(row_bytes(format, shape) as u64);
        let args = args.u32(count("columns", shape.cols())?).u64(n as u64).u64(scales).u64(block as u64);
        // SAFETY: as above; the weight's bytes and scales were validated for its shape.
        unsafe { self.device.launch(Kernel::Dequantize, items(n), args.u32(to).u64(y)) }
    }
}
