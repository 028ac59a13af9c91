//! Where the blocks of a decode step's kernels lie.
//!
//! A block that starts early, beside those of the kernel before it, goes wherever there is room, and two of one kernel on a
//! multiprocessor take twice as long. So blocks take more than they need of what the kernels before and after them need
//! little of: gate and up more than half of the shared memory, down more than half of the registers, and o, between an
//! attention and gate and up, little of either. The numbers are what was fastest of some thousands on an H100, among dozens
//! that were as fast: see `docs/performance-cuda.md`. They change no result.

use crate::driver::Grid;

/// Tiles of a row that the fused kernels hold; see `kernels/fused.cu`, as for what follows.
pub(crate) const TILES: u32 = 10;
pub(crate) const WIDE_TILES: u32 = 28;

/// A fused kernel: the threads that have rows of weights (one more warp keeps the norm's sum), the rows of weights that its
/// block holds, the tiles of a row it has room for, the least shared memory its block takes, and threads that only take
/// registers.
pub(crate) struct Fused {
    workers: u32,
    pub(crate) rows: u32,
    tiles: u32,
    least: u32,
    idle: u32,
}

pub(crate) const GEMV: Fused = Fused { workers: 160, rows: 20, tiles: TILES, least: 60_000, idle: 0 };
pub(crate) const WIDE_GEMV: Fused = Fused { workers: 320, rows: 20, tiles: WIDE_TILES, least: 0, idle: 128 };
/// As many rows of each of the two products.
pub(crate) const GATE_UP: Fused = Fused { workers: 224, rows: 2 * 56, tiles: TILES, least: 117_000, idle: 128 };
/// Pairs of rows that turn with each other.
pub(crate) const QKV: Fused = Fused { workers: 128, rows: 2 * 16, tiles: TILES, least: 75_000, idle: 128 };

impl Fused {
    /// Bytes of shared memory for rows of so many tiles; the norm's part is `STAGED_BYTES` in `kernels/fused_norm.cuh`.
    const fn shared(&self, tiles: u32) -> u32 {
        let staged = (2368 * self.tiles + 4096 + self.workers + 320).next_multiple_of(128);
        let bytes = staged + self.rows * tiles * 64;
        if bytes < self.least { self.least } else { bytes }
    }

    pub(crate) const fn grid(&self, blocks: u32, tiles: u32) -> Grid {
        Grid { x: blocks, y: 1, threads: self.workers + 32 + self.idle, shared: self.shared(tiles) }
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
const SHORT_CACHE: u32 = 448;

/// Bytes of shared memory that a block of attention with clusters takes at least, with room for so many scores. Several rows
/// have more blocks than there are multiprocessors, and need none to be kept away.
pub(crate) fn attention_shared(rows: usize, scores: u32) -> u32 {
    if rows == 1 { ATTENTION_SHARED[usize::from(scores > SHORT_CACHE)] } else { 0 }
}
