//! Attention.

use tersor_core::{Format, In, Out, Result, Span};

use crate::driver::{Address, Args, Grid, Kernel};
use crate::faults::Fault;
use crate::groups::floats;
use crate::memory::Device;
use crate::pack::count;
use crate::placement::{JOINT, SHORT_CACHE, TILES, attention_shared};
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
const CLUSTER: usize = 4;
/// Chunks of values that it holds, at least and at most, and the floats of one.
const HELD: u32 = 8;
const HELD_MOST: u32 = 16;
const CHUNK: u32 = 64 * 32 + 16;

/// Rows from which on tiles of them share keys and values, and the bytes of scores that may lie in memory between the kernels.
const TILED_ROWS: usize = 33;
const TILED_SCORES: usize = 128 << 20;
/// Query heads' rows of a tile, for scores and for values; see `kernels/prefill_attention.cu`.
const SCORE_LINES: usize = 64;
const VALUE_LINES: usize = 32;
/// Bytes of shared memory of a block of each.
const SCORE_SHARED: u32 = 2 * 64 * 33 * 16;
const VALUE_SHARED: u32 = 2 * (32 * 17 + 64 * 16) * 16;

/// Addresses of one attention.
#[derive(Debug, Clone, Copy)]
struct Operands {
    q: Address,
    positions: Address,
    k: Address,
    v: Address,
    y: Address,
}

impl CudaStream {
    fn clustered(&self, g: Geometry, rows: usize) -> bool {
        self.device.driver.overlaps && g.head_dim == CLUSTER_HEAD && rows <= CLUSTER_ROWS
    }

    /// Whether attention is for the kernel that also makes q, k and v: it holds the values of all chunks, and has too few threads for
    /// the scores of long caches.
    fn joins(&self, g: Geometry, scores: u32, held: u32) -> bool {
        self.device.driver.joins && g.heads == 4 * g.kv_heads && held == scores / 64 && scores <= SHORT_CACHE
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
        let at_once = tiled_rows(g, capacity).min(positions.len());
        if span.is_none() && at_once >= TILED_ROWS && (v | y).is_multiple_of(16) {
            let at = Operands { q, positions: positions_at, k, v, y };
            return self.tiled(g, capacity, at, (positions.len(), at_once), fault);
        }
        let args = Args::new().u64(q).u32(heads).u32(kv_heads);
        let (kernel, grid, args) = if self.clustered(g, positions.len()) && v.is_multiple_of(16) {
            let x = count("blocks of all rows", blocks * CLUSTER)?;
            let scores = room.next_multiple_of(64);
            let fits = (self.device.driver.dynamic_shared() / 4).saturating_sub(scores) / CHUNK;
            let held = fits.clamp(HELD, HELD_MOST).min(scores / 64);
            let least = attention_shared(positions.len(), scores);
            let shared = (4 * (scores + held * CHUNK)).max(least).min(self.device.driver.dynamic_shared());
            let grid = Grid { x, y: 1, threads: 512, shared };
            let args = args.u64(positions_at).u64(first).u32(capacity).u64(k).u64(v).u64(y).u32(scores);
            // What was written by the launch before is all that it has to wait for.
            self.device.drained()?;
            let newest = positions.len() == 1 && first == 0 && self.device.is_newest([positions_at, k, v]);
            if newest && self.joins(g, scores, held) && self.is_settled("positions", positions)? {
                let bytes = 4 * (scores + held * CHUNK);
                let more = Args::new().u64(y).u32(scores).u32(held).fault_number(fault).u64(0).u64(0).u32(0);
                // Of the same row, heads and stream.
                let heads = Args::new().u32(heads).u32(kv_heads).u32(dim / 2);
                let given = [(9, Args::new().u64(q)), (16, heads), (26, fault.place())];
                let (grid, wrote) = (JOINT.grid(kv_heads, bytes, TILES), floats(y, kv_heads * 4 * dim));
                // SAFETY: parameters as in qkv_attention.cu; what is written where, `is_newest` and `join` have seen to, and to the
                // rest `Checked`; no op wrote the positions.
                if unsafe { self.device.join(grid, more, &given, wrote) } {
                    return Ok(());
                }
            }
            // The last three are set by what comes later, if it does: see `Batch::bring_nearer`.
            (Kernel::AttentionCluster, grid, args.u32(held).u32(u32::from(newest)).u64(0).u64(0).u32(0))
        } else if self.grouped(g, room) {
            let scores = room.next_multiple_of(64);
            let args = args.u64(positions_at).u64(first).u32(capacity).u64(k).u64(v).u64(y).u32(scores);
            // Where blocks form clusters, two share the work of one.
            let (kernel, blocks, threads) = if self.device.driver.overlaps {
                (Kernel::AttentionPair, 2, 256)
            } else {
                (Kernel::AttentionGroup, 1, 512)
            };
            let x = count("blocks of all rows", positions.len() * g.kv_heads * blocks)?;
            (kernel, Grid { x, y: 1, threads, shared: 16 * scores }, args)
        } else {
            // Few blocks get many threads: a chunk of 64 positions is then summed by each group of `head_dim` of them.
            let threads = if blocks <= 2 * self.device.driver.processors as usize { MAX_THREADS } else { 256 };
            let x = count("heads of all rows", blocks)?;
            let grid = Grid { x, y: 1, threads, shared: 4 * (room.next_multiple_of(64) + threads) };
            let args = args.u32(dim).u64(positions_at).u64(first).u32(capacity).u64(k).u64(v).u64(y).u32(room);
            (Kernel::Attention, grid, args)
        };
        // SAFETY: parameters as in attention.cu, decode_attention.cu and batch_attention.cu; `Checked` has seen to the lengths, the kernels
        // check positions, and `supports` that the scores fit.
        unsafe { self.device.launch(kernel, grid, args.fault(fault)) }
    }

    /// Attention of many rows, `at_once` of them at a time.
    fn tiled(
        &mut self,
        g: Geometry,
        capacity: u32,
        at: Operands,
        (rows, at_once): (usize, usize),
        fault: Fault,
    ) -> Result<()> {
        let (heads, kv_heads) = (g.heads as u32, g.kv_heads as u32);
        let room = capacity.next_multiple_of(64);
        let scores = self.scratch.get(&self.device, 2, 4 * at_once * g.heads * room as usize)?;
        let totals = self.scratch.get(&self.device, 3, 4 * at_once * g.heads)?;
        for first in (0..rows).step_by(at_once) {
            let rows = at_once.min(rows - first);
            let lines = rows * g.heads / g.kv_heads;
            let row_bytes = (4 * first * g.heads * g.head_dim) as u64;
            let (q, y, positions) = (at.q + row_bytes, at.y + row_bytes, at.positions + 4 * first as u64);
            let x = count("tiles of all rows", lines.div_ceil(SCORE_LINES) * g.kv_heads)?;
            let grid = Grid { x, y: room / 64, threads: 256, shared: SCORE_SHARED };
            let args = Args::new().u64(q).u32(heads).u32(kv_heads).u64(positions).u32(capacity).u64(at.k);
            let args = args.u32(rows as u32).u64(scores).u32(room);
            // SAFETY: parameters as in prefill_attention.cu; `Checked` has seen to the lengths, the scratch has room for the
            // scores and sums of `at_once` rows, and the kernels check positions. So below.
            unsafe { self.device.launch(Kernel::PrefillScores, grid, args) }?;
            let grid = Grid::new(count("heads of all rows", rows * g.heads)?.div_ceil(8), 256);
            let args = Args::new().u32(heads).u32(kv_heads).u64(positions).u32(capacity).u32(rows as u32);
            let args = args.u32(first as u32).u64(scores).u32(room).u64(totals).fault(fault);
            // SAFETY: as above.
            unsafe { self.device.launch(Kernel::PrefillWeights, grid, args) }?;
            let x = count("tiles of all rows", 2 * lines.div_ceil(VALUE_LINES) * g.kv_heads)?;
            let grid = Grid { x, y: 1, threads: 128, shared: VALUE_SHARED };
            let args = Args::new().u32(heads).u32(kv_heads).u64(positions).u32(capacity).u64(at.v);
            let args = args.u32(rows as u32).u64(scores).u32(room).u64(totals).u64(y);
            // SAFETY: as above.
            unsafe { self.device.launch(Kernel::PrefillValues, grid, args) }?;
        }
        Ok(())
    }
}

/// Rows whose scores may lie in memory at once; none where the tiled kernels are not for the shape.
fn tiled_rows(g: Geometry, capacity: u32) -> usize {
    if g.head_dim != CLUSTER_HEAD {
        return 0;
    }
    TILED_SCORES / (4 * g.heads * capacity.next_multiple_of(64) as usize)
}
