//! Attention.

use tersor_core::{Format, In, Out, Result, Span};

use crate::driver::{Args, Grid, Kernel};
use crate::memory::Device;
use crate::pack::count;
use crate::stream::CudaStream;

/// The shape of the heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

const MAX_THREADS: u32 = 512;

/// Positions whose scores fit in a block's shared memory, beside one partial sum a thread, or the
/// values of a cluster's block.
pub(crate) fn room(device: &Device) -> usize {
    (device.driver.dynamic_shared() / 4).saturating_sub((MAX_THREADS + 64).max(HELD * CHUNK + 64)) as usize
}

/// What `attention_cluster` is for: heads of 128 elements, and so few rows that one block a head would leave the GPU idle.
const CLUSTER_HEAD: usize = 128;
const CLUSTER_ROWS: usize = 8;
const CLUSTER: usize = 8;
/// Chunks of values that it holds, and the floats of one.
const HELD: u32 = 16;
const CHUNK: u32 = 64 * 16 + 16;

impl CudaStream {
    fn clustered(&self, g: Geometry, rows: usize) -> bool {
        self.device.driver.overlaps && g.head_dim == CLUSTER_HEAD && rows <= CLUSTER_ROWS
    }

    /// Whether a block can have all query heads of a key/value head, with their scores.
    fn grouped(&self, g: Geometry, room: u32) -> bool {
        let bytes = 16 * u64::from(room.next_multiple_of(64));
        g.head_dim == CLUSTER_HEAD
            && g.heads == 4 * g.kv_heads
            && bytes <= u64::from(self.device.driver.dynamic_shared())
    }

    pub(super) fn attention(
        &mut self,
        g: Geometry,
        q: In<'_, f32>,
        (positions, span): (In<'_, u32>, Option<Span<'_>>),
        (k_cache, v_cache): (In<'_, f32>, In<'_, f32>),
        y: &Out<'_, f32>,
    ) -> Result<()> {
        let blocks = positions.len() * g.heads;
        let capacity = count("capacity", k_cache.len() / (g.kv_heads * g.head_dim))?;
        let room = span.map_or(capacity, |s| s.longest as u32);
        let (heads, kv_heads, dim) = (count("heads", g.heads)?, g.kv_heads as u32, count("head_dim", g.head_dim)?);
        let (q, y) = (self.input("q", q)?, self.output("y", y)?);
        let (k, v) = (self.input("k_cache", k_cache)?, self.input("v_cache", v_cache)?);
        let positions_at = self.input("positions", positions)?;
        let first = span.map_or(Ok(0), |s| self.input("first rows", s.first))?;
        let fault = self.watch("positions", Format::F32);
        let args = Args::new().u64(q).u32(heads).u32(kv_heads);
        let (kernel, grid, args) = if self.clustered(g, positions.len()) && v.is_multiple_of(16) {
            let x = count("blocks of all rows", blocks * CLUSTER)?;
            let scores = room.next_multiple_of(64);
            let grid = Grid { x, y: 1, threads: 256, shared: 4 * (scores + (scores / 64).min(HELD) * CHUNK) };
            let args = args.u64(positions_at).u64(first).u32(capacity).u64(k).u64(v).u64(y).u32(scores);
            (Kernel::AttentionCluster, grid, args)
        } else if self.grouped(g, room) {
            let x = count("blocks of all rows", positions.len() * g.kv_heads)?;
            let scores = room.next_multiple_of(64);
            let grid = Grid { x, y: 1, threads: 512, shared: 16 * scores };
            let args = args.u64(positions_at).u64(first).u32(capacity).u64(k).u64(v).u64(y).u32(scores);
            (Kernel::AttentionGroup, grid, args)
        } else {
            // Few blocks get many threads: a chunk of 64 positions is then summed by each group of `head_dim` of them.
            let threads = if blocks <= 2 * self.device.driver.processors as usize { MAX_THREADS } else { 256 };
            let x = count("heads of all rows", blocks)?;
            let grid = Grid { x, y: 1, threads, shared: 4 * (room.next_multiple_of(64) + threads) };
            let args = args.u32(dim).u64(positions_at).u64(first).u32(capacity).u64(k).u64(v).u64(y).u32(room);
            (Kernel::Attention, grid, args)
        };
        // SAFETY: parameters as in attention.cu, decode_attention.cu and batch.cu; `Checked` has seen to the lengths, the kernels
        // check positions, and `supports` that the scores fit.
        unsafe { self.device.launch(kernel, grid, args.fault(fault)) }
    }
}
