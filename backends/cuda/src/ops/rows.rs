//! Rows of activations, plain vectors, and drawing tokens.

use tersor_core::{Format, In, Out, PackedWeight, Result, SampleParams};

use crate::driver::{Args, Grid, Kernel};
use crate::names::SMALL_ROWS;
use crate::pack::{Kind, block_number, count, items};
use crate::queue::{Gate, Item, KvWrite, Norm, Rope};
use crate::stream::CudaStream;

/// Threads for a row: few rows get many, as they have the GPU for themselves.
fn row_grid(rows: usize, cols: usize) -> Grid {
    let most = if rows <= 64 { 1024 } else { 256 };
    Grid::new(rows as u32, (cols.next_multiple_of(64) as u32).clamp(64, most))
}

/// The kernels' number for a dense format.
fn type_number(format: Format) -> u32 {
    match format {
        Format::F16 => 1,
        Format::BF16 => 2,
        _ => 0,
    }
}

impl CudaStream {
    pub(super) fn quantize_rows(
        &mut self,
        x: In<'_, f32>,
        cols: usize,
        q: &Out<'_, i8>,
        scales: &Out<'_, f32>,
    ) -> Result<()> {
        let rows = scales.len();
        let args = Args::new().u64(self.input("x", x)?).u32(count("columns", cols)?);
        let args = args.u64(self.output("q", q)?).u64(self.output("scales", scales)?);
        let args = args.fault(self.watch("x", Format::F32));
        // SAFETY: parameters as in rows.cu; `Checked` has seen to the lengths of all operands. So below.
        unsafe { self.device.launch(Kernel::QuantizeRows, row_grid(rows, cols), args) }
    }

    pub(super) fn rms_norm(&mut self, x: In<'_, f32>, w: In<'_, f32>, eps: f32, y: &Out<'_, f32>) -> Result<()> {
        let (rows, cols) = (x.len() / w.len(), w.len());
        let args = Args::new().u64(self.input("x", x)?).u64(self.input("w", w)?).f32(eps);
        let args = args.u32(count("columns", cols)?).u64(self.output("y", y)?);
        // SAFETY: as above.
        unsafe { self.device.launch(Kernel::RmsNorm, row_grid(rows, cols), args) }
    }

    pub(super) fn rms_norm_quantize(
        &mut self,
        x: In<'_, f32>,
        w: In<'_, f32>,
        eps: f32,
        q: &Out<'_, i8>,
        scales: &Out<'_, f32>,
    ) -> Result<()> {
        let (rows, cols) = (scales.len(), w.len());
        let fault = self.watch("normalized x", Format::F32);
        self.device.enqueue(Item::Norm(Norm {
            x: self.input("x", x)?,
            w: self.input("w", w)?,
            settled: self.is_settled("w", w)?,
            eps,
            rows,
            cols: count("columns", cols)?,
            q: self.output("q", q)?,
            scales: self.output("scales", scales)?,
            grid: row_grid(rows, cols),
            many: self.device.driver.warpgroups && rows > SMALL_ROWS,
            fault,
        }))
    }

    pub(super) fn rope(
        &mut self,
        x: &Out<'_, f32>,
        head_dim: usize,
        positions: In<'_, u32>,
        cos: In<'_, f32>,
        sin: In<'_, f32>,
    ) -> Result<()> {
        let (half, rows) = (head_dim / 2, positions.len());
        let heads = x.len() / rows / head_dim;
        count("pairs", x.len())?;
        let fault = self.watch("positions", Format::F32);
        self.device.enqueue(Item::Rope(Rope {
            x: self.output("x", x)?,
            rows: rows as u32,
            heads: heads as u32,
            half: half as u32,
            positions: self.input("positions", positions)?,
            known: count("positions", cos.len() / half)?,
            cos: self.input("cos", cos)?,
            sin: self.input("sin", sin)?,
            fault,
        }))
    }

    pub(super) fn kv_write(
        &mut self,
        (k, v): (In<'_, f32>, In<'_, f32>),
        width: usize,
        positions: In<'_, u32>,
        (k_cache, v_cache): (&Out<'_, f32>, &Out<'_, f32>),
    ) -> Result<()> {
        count("elements of the cache", k_cache.len())?;
        let fault = self.watch("positions", Format::F32);
        self.device.enqueue(Item::KvWrite(KvWrite {
            len: count("keys", k.len())?,
            k: self.input("k", k)?,
            v: self.input("v", v)?,
            width: width as u32,
            positions: self.input("positions", positions)?,
            capacity: (k_cache.len() / width) as u32,
            k_cache: self.output("k_cache", k_cache)?,
            v_cache: self.output("v_cache", v_cache)?,
            fault,
        }))
    }

    pub(super) fn relu_squared_mul(&mut self, gate: In<'_, f32>, up: In<'_, f32>, y: &Out<'_, f32>) -> Result<()> {
        let len = y.len();
        if len == 0 {
            return Ok(());
        }
        count("elements", len)?;
        let (gate, up) = (self.input("gate", gate)?, self.input("up", up)?);
        self.device.enqueue(Item::Gate(Gate { gate, up, y: self.output("y", y)?, len }))
    }

    pub(super) fn add(&mut self, x: In<'_, f32>, y: &Out<'_, f32>) -> Result<()> {
        let len = y.len();
        let args = Args::new().u64(self.input("x", x)?).u64(self.output("y", y)?).u64(len as u64);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { self.device.launch(Kernel::Add, items(len), args) }
    }

    pub(super) fn copy(&mut self, x: In<'_, f32>, y: &Out<'_, f32>) -> Result<()> {
        let len = y.len();
        let (x, y) = (self.input("x", x)?, self.output("y", y)?);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both operands have this length; an output is exclusive, so they do not overlap.
        unsafe { self.device.copy(x, y, 4 * len) }
    }

    pub(super) fn gather(&mut self, table: &PackedWeight, ids: In<'_, u32>, y: &Out<'_, f32>) -> Result<()> {
        let packed = self.packed(table)?;
        let (rows, shape) = (ids.len(), table.shape());
        let wrote = (self.output("y", y)?, 4 * (rows * shape.cols()) as u64);
        if let Kind::Blocks { .. } = packed.kind {
            let args = Args::new().u64(packed.data.at).u32(block_number(table.format()));
            let args = args.u32(count("entries", shape.rows())?).u32(count("columns", shape.cols())?);
            let args = args.u64(self.input("ids", ids)?).u64(self.output("y", y)?);
            let args = args.fault(self.watch("ids", Format::F32));
            // SAFETY: as above; ids are checked by the kernel.
            unsafe { self.device.launch(Kernel::GatherBlocks, row_grid(rows, shape.cols()), args) }?;
            self.device.wrote_only([wrote, (0, 0), (0, 0)]);
            return Ok(());
        }
        let Kind::Dense { stride } = packed.kind else { return Ok(()) };
        let args = Args::new().u64(packed.data.at).u32(type_number(table.format()));
        let args = args.u32(count("entries", shape.rows())?).u32(count("columns", shape.cols())?).u32(stride);
        let args = args.u64(self.input("ids", ids)?).u64(self.output("y", y)?);
        let args = args.fault(self.watch("ids", Format::F32));
        // SAFETY: as above; ids are checked by the kernel.
        unsafe { self.device.launch(Kernel::GatherRows, row_grid(rows, shape.cols()), args) }?;
        self.device.wrote_only([wrote, (0, 0), (0, 0)]);
        Ok(())
    }

    pub(super) fn sample(
        &mut self,
        logits: In<'_, f32>,
        params: SampleParams,
        steps: In<'_, u32>,
        ids: &Out<'_, u32>,
    ) -> Result<()> {
        let (rows, vocab) = (ids.len(), logits.len() / ids.len());
        let vocab32 = count("vocabulary", vocab)?;
        let (l, steps, ids) = (self.input("logits", logits)?, self.input("steps", steps)?, self.output("ids", ids)?);
        let slots = self.scratch.sample_slots(&self.device, rows)?;
        let mut threshold = 0;
        if let Some(k) = params.top_k.filter(|k| params.temperature != 0.0 && (*k as usize) < vocab) {
            threshold = self.scratch.get(&self.device, 1, 8 * rows)?;
            let args = Args::new().u64(l).u32(vocab32).u32(k).u64(threshold);
            // SAFETY: parameters as in sample.cu; there is room for a key a row.
            unsafe { self.device.launch(Kernel::KthLargest, Grid::new(rows as u32, 1024), args) }?;
        }
        let args = Args::new().u64(l).u32(vocab32).f32(params.temperature).u64(params.seed).u64(steps);
        // Nothing is published, unless what comes says so.
        let args = args.u64(threshold).u64(slots).u64(ids).fault(self.watch("logits", Format::F32)).u64(0).u64(0);
        let grid = Grid { x: vocab32.div_ceil(1024).clamp(1, 128), y: rows as u32, threads: 256, shared: 0 };
        // SAFETY: as above; the slots are zero, and zero again when the kernel ends.
        unsafe { self.device.launch(Kernel::Sample, grid, args) }
    }
}
