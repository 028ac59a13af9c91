//! Products of weights in panels.
//!
//! Activations are first brought into the order that kernels read ([`Activations`]); then each task goes through its own
//! range of panels, from the first byte to the last, and finishes each tile's sums while they are in the cache.

use tersor_core::{Error, Result};

use super::matmul::{Sink, TASK_MACS};
use super::{Context, Scratch};
use crate::arch::panels::{COLUMNS, PanelTile, SUMS, ScaledTile};
use crate::backend::PanelKernels;
use crate::isa::{Body, Simd};
use crate::pack::Scales;
use crate::pack::panels::Layout;
use crate::split::{self, Parts};

/// Groups of activation rows that meet a panel before the next panel is taken: 128 rows of 2560 are 320 KiB, which the
/// second-level cache of every CPU with these kernels holds.
const GROUPS: usize = 128 / COLUMNS;

/// Bytes of activations that one task should bring into order at least.
const TASK_BYTES: usize = 1 << 16;

/// Activations in groups of [`COLUMNS`] rows, quad after quad, with the sums that turn codes into values.
#[derive(Clone, Copy)]
struct Activations<'a> {
    /// Group after group; all but the last have [`COLUMNS`] rows.
    x: &'a [i8],
    /// Columns of a row, padded to whole steps.
    cols: usize,
    /// Row after row, the sum of each block of columns.
    sums: &'a [i32],
    /// Blocks of a row.
    blocks: usize,
    /// Scales of the rows.
    scales: &'a [f32],
}

impl<'a> Activations<'a> {
    fn rows(&self) -> usize {
        self.scales.len()
    }

    /// The rows of group `g`, and their number.
    fn group(&self, g: usize) -> (&'a [i8], usize) {
        let m = COLUMNS.min(self.rows() - g * COLUMNS);
        (&self.x[g * COLUMNS * self.cols..][..m * self.cols], m)
    }
}

/// Sums one row's blocks.
#[inline(always)]
fn block_sums(row: &[i8], block: usize, out: &mut [i32]) {
    for (block, out) in row.chunks(block).zip(out) {
        // 128 values of magnitude at most 128 fit in i16.
        let part = |p: &[i8]| i32::from(p.iter().fold(0i16, |s, &v| s.wrapping_add(i16::from(v))));
        *out = block.chunks(128).map(part).sum();
    }
}

/// Orders the rows of one group and sums them.
struct Group<'a> {
    /// Rows of `k` columns.
    q: &'a [i8],
    k: usize,
    /// Columns that share a sum.
    block: usize,
    sums: &'a mut [i32],
    /// Padded columns.
    cols: usize,
    /// Where the ordered rows go; `None` if the one row there is needs no order.
    out: Option<&'a mut [i8]>,
}

impl Body for Group<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let blocks = self.k.div_ceil(self.block);
        for (row, sums) in self.q.chunks_exact(self.k).zip(self.sums.chunks_exact_mut(blocks)) {
            block_sums(row, self.block, sums);
        }
        let Some(out) = self.out else { return };
        let m = self.q.len() / self.k;
        out[self.k.div_ceil(4).saturating_sub(1) * 4 * m..].fill(0);
        for (c, row) in self.q.chunks_exact(self.k).enumerate() {
            let (quads, rest) = row.as_chunks::<4>();
            for (out, quad) in out.chunks_exact_mut(4 * m).zip(quads) {
                out[4 * c..][..4].copy_from_slice(quad);
            }
            if !rest.is_empty() {
                out[(quads.len() * m + c) * 4..][..rest.len()].copy_from_slice(rest);
            }
        }
        debug_assert!(out.len() == m * self.cols);
    }
}

/// One task's panels.
struct Task<'a, S: 'static> {
    isa: S,
    kernels: &'a PanelKernels<S>,
    codes: &'a [u8],
    scales: &'a Scales,
    /// Weight rows and columns.
    shape: (usize, usize),
    panels: std::ops::Range<usize>,
    x: Activations<'a>,
    sink: &'a Sink<'a>,
}

impl<S: Simd> Body for Task<'_, S> {
    type Out = ();
    #[inline(always)]
    fn run<T: Simd>(self, _: T) {
        let layout = self.kernels.layout;
        let bytes = layout.panel_bytes(self.shape.1);
        let (groups, panels) = (self.x.rows().div_ceil(COLUMNS), self.panels.clone());
        if let (Scales::Blocks { block, per_row, values }, Sink::F32(..), Some(scaled)) =
            (self.scales, self.sink, self.kernels.scaled)
        {
            for p in panels {
                let scales = &values[p * layout.rows * per_row..][..layout.rows * per_row];
                for g in 0..groups {
                    let (x, m) = self.x.group(g);
                    let x_sums = &self.x.sums[g * COLUMNS * per_row..][..m * per_row];
                    let steps = block / layout.step_cols();
                    let tile = ScaledTile {
                        w: &self.codes[p * bytes..][..bytes],
                        blocks: *per_row,
                        steps,
                        x,
                        m,
                        scales,
                        x_sums,
                    };
                    let mut out = [0.0; SUMS];
                    scaled(self.isa, tile, &mut out);
                    for c in 0..m {
                        let (sums, x_scale) = (&out[c * layout.rows..], self.x.scales[g * COLUMNS + c]);
                        // SAFETY: this task alone has these panels.
                        unsafe { self.store_f32(p, g * COLUMNS + c, |r| sums[r] / x_scale) };
                    }
                }
            }
            return;
        }
        // As many panels as there is room for sums of, where one row of activations makes tiles small.
        let at_once = if self.x.rows() == 1 { SUMS / layout.rows } else { 2 };
        for first_group in (0..groups).step_by(GROUPS) {
            for p in panels.clone().step_by(at_once) {
                let count = at_once.min(panels.end - p);
                for g in first_group..groups.min(first_group + GROUPS) {
                    let (x, m) = self.x.group(g);
                    let w = &self.codes[p * bytes..][..count * bytes];
                    let mut out = [0; SUMS];
                    let tile = PanelTile { w, panels: count, steps: layout.steps(self.shape.1), x, m };
                    (self.kernels.sums)(self.isa, tile, &mut out);
                    for i in 0..count {
                        for c in 0..m {
                            self.finish(p + i, g * COLUMNS + c, &out[(i * m + c) * layout.rows..][..layout.rows]);
                        }
                    }
                }
            }
        }
    }
}

impl<S: Simd> Task<'_, S> {
    /// Stores the sums of one panel and one row of activations.
    #[inline(always)]
    fn finish(&self, panel: usize, column: usize, sums: &[i32]) {
        // Rows with several scales get here for their sums alone.
        let blocks = &self.x.sums[column * self.x.blocks..][..self.x.blocks];
        let (x_sum, x_scale) = (blocks.iter().sum::<i32>(), self.x.scales[column]);
        // SAFETY: this task alone has these panels.
        unsafe {
            if let Scales::Uniform(scale) = self.scales {
                self.store_f32(panel, column, |r| {
                    tersor_core::reference::matmul::scaled(sums[r] - x_sum, *scale, x_scale)
                });
            }
            let (at, rows) = self.place(panel, column);
            self.sink.store_i32(at, rows, |r| sums[r] - x_sum);
        }
    }

    /// Where results of a panel and a row of activations go: the first, and how many.
    #[inline(always)]
    fn place(&self, panel: usize, column: usize) -> (usize, usize) {
        let (n, rows) = (self.shape.0, self.kernels.layout.rows);
        (column * n + panel * rows, rows.min(n - panel * rows))
    }

    /// # Safety
    /// No other task may have this panel.
    #[inline(always)]
    unsafe fn store_f32(&self, panel: usize, column: usize, value: impl Fn(usize) -> f32) {
        let (at, rows) = self.place(panel, column);
        // SAFETY: the caller's contract.
        unsafe { self.sink.store_f32(at, rows, value) }
    }
}

impl<S: Simd> Context<'_, S> {
    /// A product of codes in panels of `layout`.
    pub(super) fn panels(
        self,
        layout: Layout,
        codes: &[u8],
        scales: &Scales,
        shape: (usize, usize),
        (q, x_scales): (&[i8], &[f32]),
        sink: &Sink<'_>,
    ) -> Result<()> {
        let (isa, executor) = (self.kernels.isa, self.executor);
        let Some(kernels) = self.kernels.panels.iter().find(|p| p.layout == layout) else {
            return Err(Error::Unsupported {
                backend: self.kernels.backend.into(),
                op: format!("matmul of {}", layout.name()),
                reason: "this tier has no kernel for that packing".into(),
            });
        };
        let block = match scales {
            Scales::Blocks { block, .. } => *block,
            Scales::Uniform(_) => shape.1,
        };
        let x = self.scratch.ordered(isa, executor, layout.padded_cols(shape.1), (q, shape.1), block, x_scales);
        let panels = layout.panels(shape.0);
        let tasks = split::task_count(executor, x_scales.len() * shape.0 * shape.1, TASK_MACS);
        split::run(executor, tasks, |task| {
            let panels = split::part_of(panels, if x.rows() == 1 { 1 } else { 2 }, tasks, task);
            isa.run(Task { isa, kernels, codes, scales, shape, panels, x, sink });
        });
        Ok(())
    }
}

impl Scratch {
    /// Orders rows of `k` columns and sums their blocks. One row of whole steps stays where it is.
    fn ordered<'a, S: Simd>(
        &'a mut self,
        isa: S,
        executor: &dyn tersor_core::Executor,
        cols: usize,
        (q, k): (&'a [i8], usize),
        block: usize,
        scales: &'a [f32],
    ) -> Activations<'a> {
        let (m, blocks) = (scales.len(), k.div_ceil(block));
        self.sums.resize(m * blocks, 0);
        if m == 1 && k == cols {
            isa.run(Group { q, k, block, sums: &mut self.sums, cols, out: None });
            return Activations { x: q, cols, sums: &self.sums, blocks, scales };
        }
        self.padded.resize(m * cols, 0);
        let groups = m.div_ceil(COLUMNS);
        let tasks = split::task_count(executor, q.len(), TASK_BYTES).min(groups);
        let (sums, padded) = (Parts::new(&mut self.sums), Parts::new(&mut self.padded));
        split::run(executor, tasks, |task| {
            for g in split::part_of(groups, 1, tasks, task) {
                let rows = g * COLUMNS..m.min((g + 1) * COLUMNS);
                // SAFETY: each group belongs to one task, and rows to one group.
                let (sums, out) = unsafe {
                    (sums.part(rows.start * blocks..rows.end * blocks), padded.part(rows.start * cols..rows.end * cols))
                };
                isa.run(Group { q: &q[rows.start * k..rows.end * k], k, block, sums, cols, out: Some(out) });
            }
        });
        Activations { x: &self.padded, cols, sums: &self.sums, blocks, scales }
    }
}
