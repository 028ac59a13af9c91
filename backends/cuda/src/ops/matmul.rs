//! Products.

use tersor_core::{Activations, Epilogue, Error, OpSpec, Output, PackedWeight, Result};

use crate::ID;
use crate::driver::{Address, Args, Grid, Kernel};
use crate::groups::gemv_1;
use crate::many_rows::staged_bytes;
use crate::names::{Product, SCALES_SHARED, head_mma_bytes};
use crate::pack::{Kind, Packed, Scales, TILE, count};
use crate::queue::{Gemv, Item, Staged};
use crate::stream::CudaStream;

/// Bits of a kernel's `mode`.
const ADD: u32 = 1;
const I32: u32 = 2;
/// Tokens that a block of `dense_rows` keeps.
const DENSE_TOKENS: u32 = 16;
/// Weight rows of a block of `dense_mma`, and stages of 64 columns of activations that it keeps.
const MMA_BLOCK_ROWS: u32 = 256;
const MMA_STAGES: u32 = 4;
/// Tiles that `gemv_scales` has loads for; `gemv_scales_long` has them for twice as many.
const SCALES_TILES: u32 = 16;
/// Threads of a block of the kernels in scales.cu.
const SCALES_THREADS: u32 = 256;
/// Rows of activations of a block of `gemm_scales_many`.
const SCALES_TOKENS: u32 = 64;
/// Warps of a block of the kernels in dense.cu, each with a weight row.
const DENSE_WARPS: u32 = 16;
/// Warps of a block of the kernels in heads.cu.
const HEAD_WARPS: u32 = 16;
/// Warps of a block of the kernels in heads_one.cu, each with a weight row.
const HEAD_ONE_WARPS: u32 = 8;

/// Where a product reads and writes.
struct Places {
    x: Address,
    x_scales: Address,
    y: Address,
    mode: u32,
}

impl CudaStream {
    pub(super) fn matmul(
        &mut self,
        w: &PackedWeight,
        x: Activations<'_>,
        y: &Output<'_>,
        epilogue: Epilogue,
        spec: &OpSpec,
    ) -> Result<()> {
        let OpSpec::MatMul { format, scale_block, output, m, n, k, .. } = *spec else { return Ok(()) };
        let packed = self.packed(w)?;
        let add = match epilogue {
            Epilogue::Store => 0,
            Epilogue::Add => ADD,
            _ => {
                let reason = "this epilogue is newer than this backend".to_owned();
                return Err(Error::Unsupported { backend: ID.into(), op: spec.to_string(), reason });
            }
        };
        let (y, mode) = match y {
            Output::F32(y) => (self.output("y", y)?, add),
            Output::I32(y) => (self.output("y", y)?, add | I32),
        };
        let (x, x_scales) = match x {
            Activations::Int8 { q, scales } => {
                (self.input("activations", q)?, self.input("activation scales", scales)?)
            }
            Activations::F32(x) => (self.input("activations", x)?, 0),
        };
        let at = Places { x, x_scales, y, mode };
        let (m, n, k) = (count("M", m)?, count("N", n)?, count("K", k)?);
        let product = Product::of(format, scale_block, output, (m as usize, k as usize), self.device.limits());
        match &packed.kind {
            Kind::Blocks { per_row } if product.head_mma_tiles() > 0 => {
                self.head_mma((format, product), (packed.data.at, *per_row), &at, (m, n, k))
            }
            Kind::Blocks { per_row } => self.head((format, product), (packed.data.at, *per_row), &at, (m, n, k)),
            Kind::Dense { stride } if !product.follows_order() => {
                self.dense_mma((format, product), (packed.data.at, *stride), &at, (m, n, k))
            }
            Kind::Dense { stride } => self.dense(format, packed.data.at, *stride, &at, (m, n, k)),
            Kind::Ternary { tiles, scales: Scales::Blocks { values, words, per_row } } if product.scales() => {
                self.scales(product, (packed.data.at, values.at), (*tiles, *words, *per_row), &at, (m, n, k))
            }
            Kind::Ternary { tiles, scales } => self.ternary(product, (packed, *tiles, scales), &at, (m, n, k)),
        }
    }

    /// A head in `q8_0` or `q6_k`. Up to 32 rows of activations meet the weights in one pass.
    fn head(
        &mut self,
        (format, product): (tersor_core::Format, Product),
        (w, per_row): (Address, u32),
        at: &Places,
        (m, n, k): (u32, u32, u32),
    ) -> Result<()> {
        let rows = product.head_rows() as u32;
        let kernel = match (format, rows) {
            (tersor_core::Format::Q6K, 1) => Kernel::HeadQ61,
            (tersor_core::Format::Q6K, 4) => Kernel::HeadQ64,
            (tersor_core::Format::Q6K, _) => Kernel::HeadQ68,
            (_, 1) => Kernel::HeadQ81,
            (_, 4) => Kernel::HeadQ84,
            _ => Kernel::HeadQ88,
        };
        let args = Args::new().u64(w).u64(at.x).u64(at.x_scales).u64(at.y).u32(n).u32(per_row);
        if rows == 1 {
            // Three blocks on each multiprocessor, and no more than there are rows for.
            let blocks = n.div_ceil(HEAD_ONE_WARPS).min(3 * self.device.driver.processors);
            let grid = Grid { x: blocks, y: 1, threads: 32 * HEAD_ONE_WARPS, shared: k };
            // SAFETY: parameters as in heads_one.cu; `Checked` and `pack` have seen to the lengths of all operands, `supports` that
            // the activations fit.
            return unsafe { self.device.launch(kernel, grid, args.u32(at.mode)) };
        }
        // Warps that have the same weights, each with rows of its own: as many as the activations and shared memory need.
        let room = (self.device.driver.dynamic_shared() / (rows * k)).max(1);
        let mut sharers = m.div_ceil(rows).min(4).next_power_of_two();
        while sharers > room {
            sharers /= 2;
        }
        let groups = m.div_ceil(rows * sharers);
        // No more blocks than there are rows for.
        let blocks = (self.device.driver.processors / groups).clamp(1, n.div_ceil(HEAD_WARPS / sharers)) * groups;
        let grid = Grid { x: blocks, y: 1, threads: 32 * HEAD_WARPS, shared: rows * sharers * k };
        // SAFETY: parameters as in heads.cu; `Checked` and `pack` have seen to the lengths of all operands, `supports` that the
        // activations fit.
        unsafe { self.device.launch(kernel, grid, args.u32(m).u32(groups).u32(sharers).u32(at.mode)) }
    }

    /// A head in `f16` or `bf16` on tensor cores: first the parts of the activations, then the products.
    fn dense_mma(
        &mut self,
        (format, product): (tersor_core::Format, Product),
        (w, stride): (Address, u32),
        at: &Places,
        (m, n, k): (u32, u32, u32),
    ) -> Result<()> {
        let (split, kernels, parts) = match format {
            tersor_core::Format::F16 => {
                (Kernel::SplitRowsF16, [Kernel::DenseMmaF161, Kernel::DenseMmaF162, Kernel::DenseMmaF164], 2)
            }
            _ => (Kernel::SplitRowsBf16, [Kernel::DenseMmaBf161, Kernel::DenseMmaBf162, Kernel::DenseMmaBf164], 3),
        };
        let tiles = product.mma_tiles() as u32;
        let (kernel, resident) = (kernels[(tiles / 2) as usize], if tiles == 4 { 1 } else { 2 });
        let groups = m.div_ceil(8 * tiles);
        let rows = groups * 8 * tiles;
        let bytes = 2 * parts as usize * rows as usize * stride as usize;
        let split_at = self.scratch.get(&self.device, 2, bytes)?;
        let factors = self.scratch.get(&self.device, 3, 4 * rows as usize)?;
        let args = Args::new().u64(at.x).u32(m).u32(k).u32(stride).u32(tiles).u64(split_at).u64(factors);
        // SAFETY: parameters as in dense_mma.cu; `Checked` and `pack` have seen to the lengths of all operands, and the scratch
        // has room for all parts of whole groups, and a factor for each row.
        unsafe { self.device.launch(split, Grid::new(rows, 320), args) }?;
        // As many blocks as run at once, the same number for each group of tokens, and no more than there are rows for.
        let blocks = (self.device.driver.processors * resident / groups).clamp(1, n.div_ceil(MMA_BLOCK_ROWS)) * groups;
        let args = Args::new().u64(w).u64(split_at).u64(factors).u64(at.y).u32(n).u32(stride).u32(m).u32(groups);
        let shared = MMA_STAGES * 64 * parts * 8 * tiles * 2;
        let grid = Grid { x: blocks, y: 1, threads: 256, shared };
        // SAFETY: as above.
        unsafe { self.device.launch(kernel, grid, args.u32(at.mode)) }
    }

    /// A head in `q8_0` or `q6_k` on int8 tensor cores, in the order of the definition.
    fn head_mma(
        &mut self,
        (format, product): (tersor_core::Format, Product),
        (w, per_row): (Address, u32),
        at: &Places,
        (m, n, k): (u32, u32, u32),
    ) -> Result<()> {
        let kernels = match format {
            tersor_core::Format::Q6K => [Kernel::HeadMmaQ61, Kernel::HeadMmaQ62, Kernel::HeadMmaQ64],
            _ => [Kernel::HeadMmaQ81, Kernel::HeadMmaQ82, Kernel::HeadMmaQ84],
        };
        let tiles = product.head_mma_tiles();
        let kernel = kernels[tiles / 2];
        let groups = m.div_ceil(8 * tiles as u32);
        let blocks = (self.device.driver.processors / groups).clamp(1, n.div_ceil(16)) * groups;
        let args = Args::new().u64(w).u64(at.x).u64(at.x_scales).u64(at.y).u32(n).u32(per_row).u32(m).u32(groups);
        let shared = head_mma_bytes(format, k as usize, tiles) as u32;
        let grid = Grid { x: blocks, y: 1, threads: 512, shared };
        // SAFETY: parameters as in heads_mma.cu; `Checked` and `pack` have seen to the lengths of all operands, and the product
        // was chosen because its shared memory is there.
        unsafe { self.device.launch(kernel, grid, args.u32(at.mode)) }
    }

    fn dense(
        &mut self,
        format: tersor_core::Format,
        w: Address,
        stride: u32,
        at: &Places,
        (m, n, k): (u32, u32, u32),
    ) -> Result<()> {
        let shared = 4 * stride * m.next_multiple_of(8).min(DENSE_TOKENS);
        if m > 1 && stride >= 128 && shared <= self.device.driver.dynamic_shared() {
            let kernel = match format {
                tersor_core::Format::F16 => Kernel::DenseRowsF16,
                tersor_core::Format::BF16 => Kernel::DenseRowsBf16,
                _ => Kernel::DenseRowsF32,
            };
            let groups = m.div_ceil(DENSE_TOKENS);
            // A block on each multiprocessor, the same number for each group of tokens.
            let blocks = (self.device.driver.processors / groups).max(1) * groups;
            let args = Args::new().u64(w).u64(at.x).u64(at.y).u32(n).u32(k).u32(stride).u32(m).u32(groups).u32(at.mode);
            let grid = Grid { x: blocks, y: 1, threads: 512, shared };
            // SAFETY: parameters as in batch.cu; `Checked` and `pack` have seen to the lengths of all operands.
            return unsafe { self.device.launch(kernel, grid, args) };
        }
        let kernel = match format {
            tersor_core::Format::F16 => Kernel::DenseF16,
            tersor_core::Format::BF16 => Kernel::DenseBf16,
            _ => Kernel::DenseF32,
        };
        let args = Args::new().u64(w).u64(at.x).u64(at.y).u32(n).u32(k).u32(stride).u32(at.mode);
        // Two blocks on each multiprocessor go over all rows, and no more than there are rows for.
        let blocks = n.div_ceil(DENSE_WARPS).min(2 * self.device.driver.processors);
        let grid = Grid { x: blocks, y: m, threads: 32 * DENSE_WARPS, shared: 0 };
        // SAFETY: parameters as in dense.cu; `Checked` and `pack` have seen to the lengths of all operands.
        unsafe { self.device.launch(kernel, grid, args) }
    }

    /// Ternary weights whose rows have `per_row` scales, each of `words` x 64 columns.
    fn scales(
        &mut self,
        product: Product,
        (w, values): (Address, Address),
        (tiles, words, per_row): (u32, u32, u32),
        at: &Places,
        (m, n, k): (u32, u32, u32),
    ) -> Result<()> {
        let many = product == Product::ScalesMany;
        // Rows are whole blocks of 64 columns, so what begins where 16-byte loads can read is read as it is.
        let (x, _, stride) = if at.x.is_multiple_of(16) { (at.x, 0, k) } else { self.pad_rows(at.x, (m, k), tiles)? };
        // Kernels count them in 32 bits.
        count("M times K, in units of 16,", m as usize * stride as usize / 16)?;
        let padded = m.next_multiple_of(SCALES_TOKENS);
        let sums = if many {
            let sums = self.scratch.get(&self.device, 2, 4 * per_row as usize * padded as usize)?;
            let args = Args::new().u64(x).u32(stride / 16).u32(per_row).u32(words).u32(padded).u64(sums);
            // SAFETY: parameters as in scales.cu; the scratch has room for a sum of each block and padded row.
            unsafe { self.device.launch(Kernel::SumBlocks, Grid::new(m, 256), args) }?;
            sums
        } else {
            0
        };
        let (kernel, rows, tokens) = match product {
            Product::ScalesOne if tiles <= SCALES_TILES => (Kernel::GemvScales, 8, 1),
            Product::ScalesOne => (Kernel::GemvScalesLong, 8, 1),
            Product::Scales1 => (Kernel::GemmScales1, 16, 8),
            Product::Scales2 => (Kernel::GemmScales2, 16, 16),
            Product::Scales4 => (Kernel::GemmScales4, 16, 32),
            _ => (Kernel::GemmScalesMany, 64, SCALES_TOKENS),
        };
        let args = Args::new().u64(w).u64(values).u64(x).u32(stride / 16).u64(sums).u32(padded).u64(at.x_scales);
        let args = args.u64(at.y).u32(n).u32(tiles).u32(per_row).u32(words).u32(m).u32(at.mode);
        // With one row of activations, as many blocks as run at once go over all weight rows.
        let most = match kernel {
            Kernel::GemvScales => 4 * self.device.driver.processors,
            Kernel::GemvScalesLong => 3 * self.device.driver.processors,
            _ => u32::MAX,
        };
        let grid = Grid {
            x: n.div_ceil(rows).min(most),
            y: m.div_ceil(tokens),
            threads: SCALES_THREADS,
            shared: if many { SCALES_SHARED as u32 } else { 0 },
        };
        // SAFETY: as above; `Checked` and `pack` have seen to the lengths of all operands, and there are `per_row` scales for each
        // of n rows.
        unsafe { self.device.launch(kernel, grid, args) }
    }

    /// Rows of activations copied to where 16-byte loads can read them, padded to whole tiles; their sums; and the columns of a
    /// padded row.
    fn pad_rows(&mut self, x: Address, (m, k): (u32, u32), tiles: u32) -> Result<(Address, Address, u32)> {
        let padded = tiles * TILE as u32;
        let to = self.scratch.get(&self.device, 0, m as usize * padded as usize)?;
        let sums = self.scratch.get(&self.device, 1, 4 * m as usize)?;
        let args = Args::new().u64(x).u32(k).u32(tiles).u64(to).u64(sums);
        // SAFETY: parameters as in matmul.cu; the scratch has room for m padded rows and m sums.
        unsafe { self.device.launch(Kernel::PadRows, Grid::new(m, 256), args) }?;
        Ok((to, sums, padded))
    }

    fn ternary(
        &mut self,
        product: Product,
        (packed, tiles, scales): (&Packed, u32, &Scales),
        at: &Places,
        (m, n, k): (u32, u32, u32),
    ) -> Result<()> {
        let w = packed.data.at;
        let scale = if let Scales::Uniform(s) = scales { *s } else { 0.0 };
        let gemv = match product {
            Product::Gemv2 => Some(Kernel::Gemv2),
            Product::Gemv4 => Some(Kernel::Gemv4),
            _ => None,
        };
        let item = Gemv {
            x: at.x,
            x_scales: at.x_scales,
            m,
            k,
            tiles,
            w,
            y: at.y,
            n,
            scale,
            add: at.mode == ADD,
            staged: None,
        };
        if product == Product::Large && self.device.driver.warpgroups {
            let x = self.scratch.get(&self.device, 0, staged_bytes(m, tiles))?;
            let sums = self.scratch.get(&self.device, 1, 4 * m as usize)?;
            let item = Gemv { staged: Some(Staged { x, sums }), ..item };
            if at.mode & I32 == 0 {
                return self.device.enqueue(Item::Gemv(item));
            }
            let none = Gemv { n: 0, ..item };
            let mut queue = self.device.queue();
            self.device.drain(&mut queue)?;
            // SAFETY: `Checked` has seen to the lengths of all operands; the scratch has room for the staged rows and their sums.
            return unsafe { self.device.gemm_many_rows(&[item, none, none], at.mode, true) };
        }
        let rows = matches!(product, Product::Small1 | Product::Small2 | Product::Small4 | Product::Small8);
        // What 16-byte loads cannot read as it is, is copied to where they can; and for many rows what is not whole tiles.
        let unit = if rows { TILE as u32 } else { 16 };
        let direct = at.x.is_multiple_of(16) && k.is_multiple_of(unit);
        let (x, sums, k) = if (product == Product::Gemv1 || gemv.is_some() || rows) && direct {
            (at.x, 0, k)
        } else {
            self.pad_rows(at.x, (m, k), tiles)?
        };
        let item = Gemv { x, k, ..item };
        if (product == Product::Gemv1 || rows) && at.mode & I32 == 0 {
            return self.device.enqueue(Item::Gemv(item));
        }
        if product == Product::Gemv1 {
            let (kernel, grid, args) = gemv_1(&item, at.mode, self.device.driver.processors);
            // SAFETY: as above; x is aligned to 16 bytes, and k is a multiple of 16.
            return unsafe { self.device.launch(kernel, grid, args) };
        }
        if rows {
            let none = Gemv { n: 0, ..item };
            let mut queue = self.device.queue();
            self.device.drain(&mut queue)?;
            // SAFETY: as above; what was not whole tiles is padded.
            return unsafe { self.device.gemm_rows(&[item, none, none], at.mode) };
        }
        if let Some(kernel) = gemv {
            let args = Args::new().u64(w).u64(x).u32(k).u64(at.x_scales).u64(at.y);
            let args = args.u32(n).u32(tiles).u32(k).u32(m).f32(scale).u32(at.mode);
            // SAFETY: as above; rows of x are k apart, aligned to 16 bytes, and k is a multiple of 16.
            return unsafe { self.device.launch(kernel, Grid::new(n.div_ceil(16), 128), args) };
        }
        let args = Args::new().u64(w).u64(x).u64(sums).u64(at.x_scales).u64(at.y);
        let args = args.u32(n).u32(tiles).u32(m).f32(scale).u32(at.mode);
        let grid = Grid { x: n.div_ceil(128), y: m.div_ceil(64), threads: 128, shared: 0 };
        // SAFETY: as above.
        unsafe { self.device.launch(Kernel::GemmLarge, grid, args) }
    }
}
