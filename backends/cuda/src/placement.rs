//! Where the blocks of a decode step's kernels lie.
//!
//! A block that starts early, beside those of the kernel before it, goes wherever there is room, and two of one kernel on a
//! multiprocessor take twice as long. So blocks take more than they need of what the kernels before and after them need
//! little of: shared memory, and registers, of which each quarter of a multiprocessor has 16,384, and warps of a block go to
//! the quarters in turn (what the kernels may have of them is in `kernels/fused.cu`). The numbers are what was fastest of some
//! thousands on an H100, among dozens that were as fast: see `docs/performance-cuda.md`. They change no result.

use crate::driver::Grid;

/// Tiles of a row that the fused kernels hold; see `kernels/fused.cu`, as for what follows.
pub(crate) const TILES: u32 = 10;
pub(crate) const WIDE_TILES: u32 = 28;

/// A fused kernel: the threads that have rows of weights, those that keep the norm's sum, threads that only take registers; the
/// rows of weights that its block holds, the tiles of a row it has room for, and the least shared memory its block takes.
pub(crate) struct Fused {
    workers: u32,
    keepers: u32,
    idle: u32,
    pub(crate) rows: u32,
    tiles: u32,
    least: u32,
}

pub(crate) const GEMV: Fused = Fused { workers: 160, keepers: 32, idle: 0, rows: 20, tiles: TILES, least: 42_000 };
pub(crate) const WIDE_GEMV: Fused =
    Fused { workers: 320, keepers: 32, idle: 160, rows: 20, tiles: WIDE_TILES, least: 117_000 };
/// As many rows of each of the two products.
pub(crate) const GATE_UP: Fused = Fused { workers: 224, keepers: 32, idle: 160, rows: 2 * 56, tiles: TILES, least: 0 };
/// Pairs of rows that turn with each other.
pub(crate) const QKV: Fused = Fused { workers: 128, keepers: 32, idle: 128, rows: 2 * 16, tiles: TILES, least: 75_000 };
/// With the attention of its row, in clusters of sixteen blocks; other threads than those have scores.
pub(crate) const JOINT: Joint =
    Joint(Fused { workers: 192, keepers: 32, idle: 288, rows: 2 * 24, tiles: TILES, least: 0 });

impl Fused {
    /// Bytes of shared memory for rows of so many tiles; the norm's part is `STAGED_BYTES` in `kernels/fused_norm.cuh`.
    /// Products read on past the last row, up to the tiles that there is room for.
    const fn shared(&self, tiles: u32) -> u32 {
        let staged = (2368 * self.tiles + 4096 + self.workers + 704).next_multiple_of(128);
        let bytes = staged + 64 * (self.rows * tiles + self.tiles.saturating_sub(tiles));
        if bytes < self.least { self.least } else { bytes }
    }

    pub(crate) const fn grid(&self, blocks: u32, tiles: u32) -> Grid {
        Grid { x: blocks, y: 1, threads: self.workers + self.keepers + self.idle, shared: self.shared(tiles) }
    }
}

/// `norm_qkv_attention`.
pub(crate) struct Joint(Fused);

impl Joint {
    /// For so many key/value heads, bytes of scores and values, and tiles of a row.
    pub(crate) const fn grid(&self, kv_heads: u32, attention: u32, tiles: u32) -> Grid {
        let Grid { y, threads, shared, .. } = self.0.grid(0, tiles);
        Grid { x: 16 * kv_heads, y, threads, shared: shared + attention }
    }
}

/// Bytes of dynamic shared memory without which the fused kernels are not used.
pub(crate) const FUSED_SHARED: u32 = {
    let all = [GEMV.shared(TILES), WIDE_GEMV.shared(WIDE_TILES), GATE_UP.shared(TILES), QKV.shared(TILES)];
    let (mut most, mut i) = (0, 0);
    while i < all.len() {
        if all[i] > most {
            most = all[i];
        }
        i += 1;
    }
    most
};

/// Bytes of shared memory that a block of attention of one row takes at least: for caches of up to `SHORT_CACHE` positions, and
/// for longer ones.
const ATTENTION_SHARED: [u32; 2] = [117_000, 60_000];
pub(crate) const SHORT_CACHE: u32 = 448;

/// Bytes of shared memory that a block of attention with clusters takes at least, with room for so many scores. Several rows
/// have more blocks than there are multiprocessors, and need none to be kept away.
pub(crate) fn attention_shared(rows: usize, scores: u32) -> u32 {
    if rows == 1 { ATTENTION_SHARED[usize::from(scores > SHORT_CACHE)] } else { 0 }
}
