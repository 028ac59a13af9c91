//! Products of more rows than one block has: the kernels of `kernels/warpgroups.cu`, and which of their tiles suits a shape.

use tersor_core::Result;

use crate::driver::{Args, Grid, Kernel};
use crate::groups::{gemv, norm_args};
use crate::memory::Device;
use crate::names::SMALL_ROWS;
use crate::pack::TILE;
use crate::queue::{Gate, Gemv, Item, KvWrite, Norm, Rope};

/// Columns that `norm_stage` and `gate_norm_stage` have room for: one and two times four for each thread.
const NORM_COLS: u32 = 2560;
const GATED_COLS: u32 = 7168;

/// Rows of activations that there is room for are a multiple of this, the most that a block has.
const MOST_TOKENS: u32 = 128;

/// A kernel: the weight rows and activation rows of a block, its threads, the stages in its shared memory, and how many blocks a
/// multiprocessor has at a time.
struct Tile {
    kernel: Kernel,
    rows: u32,
    tokens: u32,
    threads: u32,
    stages: u32,
    resident: u32,
}

const TILES: [Tile; 4] = [
    Tile { kernel: Kernel::Gemm256x128, rows: 256, tokens: 128, threads: 256, stages: 8, resident: 1 },
    Tile { kernel: Kernel::Gemm128x128, rows: 128, tokens: 128, threads: 256, stages: 6, resident: 2 },
    Tile { kernel: Kernel::Gemm192x64, rows: 192, tokens: 64, threads: 384, stages: 8, resident: 1 },
    Tile { kernel: Kernel::Gemm128x64, rows: 128, tokens: 64, threads: 256, stages: 8, resident: 2 },
];

impl Tile {
    /// Blocks that products of `m` rows with weights of `n` rows each have.
    fn blocks(&self, m: u32, n: [u32; 3]) -> u32 {
        m.div_ceil(self.tokens) * n.iter().map(|n| n.div_ceil(self.rows)).sum::<u32>()
    }

    /// Cycles that the busiest multiprocessor needs for 32 columns of all its blocks. What was measured on an H100: a multiplication that
    /// adds to the sums of the one before it comes 200 cycles after it with 64 tokens and 300 with 128, so it takes several at a time to
    /// keep the tensor cores busy, which need a cycle for 128 sums and reach 85 % of that.
    fn cost(&self, m: u32, n: [u32; 3], processors: u32) -> u32 {
        let most = self.blocks(m, n).div_ceil(processors.max(1));
        let (latency, work) = (100 + 100 * self.tokens / 64, self.rows * self.tokens / 128 * 20 / 17);
        let round = |blocks: u32| if blocks == 0 { 0 } else { (latency + 20 * (blocks - 1)).max(blocks * work) };
        most / self.resident * round(self.resident) + round(most % self.resident)
    }
}

/// The tile for products of `m` rows with weights of `n` rows each.
fn tile(m: u32, n: [u32; 3], processors: u32) -> &'static Tile {
    let [first, others @ ..] = &TILES;
    others.iter().fold(first, |best, t| if t.cost(m, n, processors) < best.cost(m, n, processors) { t } else { best })
}

/// Whether a product takes the rows that a norm makes, and `norm_stage` is for their length.
pub(crate) fn follows(n: &Norm, g: &Gemv) -> bool {
    takes(n, g) && n.x.is_multiple_of(16) && n.cols <= NORM_COLS
}

/// The same where a gate makes the rows that are normed, and `gate_norm_stage` is for them.
pub(crate) fn follows_gate(gate: &Gate, n: &Norm, g: &Gemv) -> bool {
    takes(n, g) && [gate.gate, gate.up, gate.y].iter().all(|at| at.is_multiple_of(16)) && n.cols <= GATED_COLS
}

fn takes(n: &Norm, g: &Gemv) -> bool {
    let same = (n.rows, n.cols, n.q, n.scales) == (g.m as usize, g.k, g.x, g.x_scales);
    let aligned = n.w.is_multiple_of(16) && n.q.is_multiple_of(16);
    same && aligned && g.staged.is_some() && n.cols.is_multiple_of(TILE as u32)
}

/// Bytes of `m` staged rows of so many tiles.
pub(crate) fn staged_bytes(m: u32, tiles: u32) -> usize {
    m.next_multiple_of(MOST_TOKENS) as usize * tiles as usize * TILE
}

impl Device {
    /// A norm that leaves its rows staged for the products that follow.
    pub(crate) fn norm_stage(&self, n: &Norm, products: &[Item]) -> Result<()> {
        let Some(Gemv { m, staged: Some(staged), .. }) = products.first().and_then(gemv) else { return Ok(()) };
        let args = norm_args(n).u32(m.next_multiple_of(MOST_TOKENS)).u64(staged.x).u64(staged.sums);
        // SAFETY: whoever made the items took their addresses and lengths from checked operands, `follows` has seen that the rows are
        // whole tiles and fit; there is room for them where they are staged. So below.
        unsafe { self.push(Kernel::NormStage, Grid::new(m, NORM_COLS / 4), args.fault(n.fault)) }
    }

    /// The same of what a gate makes.
    pub(crate) fn gate_norm_stage(&self, g: &Gate, n: &Norm, products: &[Item]) -> Result<()> {
        let Some(Gemv { m, staged: Some(staged), .. }) = products.first().and_then(gemv) else { return Ok(()) };
        let args = Args::new().u64(g.gate).u64(g.up).u64(g.y).u64(n.w).f32(n.eps).u32(n.cols).u64(n.q).u64(n.scales);
        let args = args.u32(m.next_multiple_of(MOST_TOKENS)).u64(staged.x).u64(staged.sums).fault(n.fault);
        // SAFETY: as above.
        unsafe { self.push(Kernel::GateNormStage, Grid::new(m, GATED_COLS / 8), args) }
    }

    /// Whether rotations and what goes to the cache are of many rows, in which four elements lie together.
    pub(crate) fn ropes_rows(&self, q: &Rope, k: &Rope, kv: &KvWrite) -> bool {
        let addresses = [q.x, q.cos, q.sin, k.x, kv.v, kv.k_cache, kv.v_cache];
        self.driver.warpgroups
            && q.rows as usize > SMALL_ROWS
            && q.half.is_multiple_of(4)
            && addresses.iter().all(|at| at.is_multiple_of(16))
    }

    /// The rotations of queries and keys, and keys and values into the cache.
    pub(crate) fn rope_kv_rows(&self, q: &Rope, k: &Rope, kv: &KvWrite) -> Result<()> {
        let args = Args::new().u64(q.x).u64(k.x).u64(kv.v).u32(q.heads).u32(k.heads).u32(q.half);
        let args = args.u64(q.positions).u32(q.known).u64(q.cos).u64(q.sin).u64(kv.positions);
        let args = args.u32(kv.capacity).u64(kv.k_cache).u64(kv.v_cache).fault(q.fault);
        let threads = ((q.heads + 2 * k.heads) * q.half / 4).next_multiple_of(32).min(512);
        // SAFETY: as above; the kernel checks positions and places.
        unsafe { self.push(Kernel::RopeKvRows, Grid::new(q.rows, threads), args) }
    }

    /// Up to three products of rows that are staged.
    pub(crate) fn staged_products(&self, products: &[Item]) -> Result<()> {
        let part = |i: usize| products.get(i).and_then(gemv);
        let Some(first) = part(0) else { return Ok(()) };
        let none = Gemv { n: 0, ..first };
        let parts = [first, part(1).unwrap_or(none), part(2).unwrap_or(none)];
        // SAFETY: as above.
        unsafe { self.gemm_many_rows(&parts, u32::from(first.add), false) }
    }

    /// Up to three products of the same rows, which are staged first where that is not yet done.
    ///
    /// # Safety
    /// As for `push`: the parts' addresses are of operands of their lengths, what is staged has room for all rows, and `mode` says
    /// what the results are.
    pub(crate) unsafe fn gemm_many_rows(&self, parts: &[Gemv; 3], mode: u32, stage: bool) -> Result<()> {
        let Gemv { x, x_scales, m, k, tiles, staged: Some(staged), .. } = parts[0] else { return Ok(()) };
        let padded = m.next_multiple_of(MOST_TOKENS);
        if stage {
            let args = Args::new().u64(x).u32(k).u32(tiles).u32(padded).u64(staged.x).u64(staged.sums);
            // SAFETY: by contract; parameters as in warpgroups.cu. So below.
            unsafe { self.push(Kernel::StageRows, Grid::new(m, 256), args) }?;
        }
        let n = [parts[0].n, parts[1].n, parts[2].n];
        let tile = tile(m, n, self.driver.processors);
        let args = Args::new().u64(staged.x).u32(padded).u64(staged.sums).u64(x_scales).u32(m).u32(tiles).u32(mode);
        let args = parts.iter().fold(args, |args, p| args.u64(p.w).u64(p.y).u32(p.n).f32(p.scale));
        // A stage has 128 bytes of each token, and begins where 1,024 divides its address.
        let shared = tile.stages * tile.tokens * 128 + 1024;
        let grid = Grid { x: tile.blocks(m, n), y: 1, threads: tile.threads, shared };
        // SAFETY: as above.
        unsafe { self.push(tile.kernel, grid, args) }
    }
}

#[cfg(test)]
mod tests {
    use super::{TILES, tile};

    #[test]
    fn the_tile_fits_the_shape() {
        let chosen = |m, n| {
            let t = tile(m, n, 132);
            (t.rows, t.tokens)
        };
        // Of 2B-4T, 512 rows: those that were fastest there.
        assert_eq!(chosen(512, [2560, 640, 640]), (128, 64));
        assert_eq!(chosen(512, [2560, 0, 0]), (192, 64));
        assert_eq!(chosen(512, [6912, 6912, 0]), (256, 128));
        assert_eq!(chosen(65, [2560, 0, 0]), (192, 64));
    }

    #[test]
    fn shared_memory_holds_the_stages() {
        for t in TILES {
            // A multiprocessor has 227 KiB, of which `dynamic_shared` gives 215.
            assert!(t.stages * t.tokens * 128 + 1024 <= 215 << 10);
            // Sums that do not go straight to their places lie there for a while.
            assert!(t.rows * t.tokens * 4 <= t.stages * t.tokens * 128);
        }
    }
}
