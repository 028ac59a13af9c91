//! Which launches one kernel can do, and how.
//!
//! A kernel that does several operations at once reads all inputs and writes all results in no particular order. So a group
//! is one only if what one member writes is, but for what the next takes from it, apart from all that another reads or
//! writes.

use tersor_core::Result;

use crate::batch::{Span, apart};
use crate::driver::{Address, Args, Grid, Kernel};
use crate::many_rows;
use crate::memory::Device;
use crate::pack::TILE;
use crate::placement::{FUSED_SHARED, GATE_UP, GEMV, QKV, TILES, WIDE_GEMV, WIDE_TILES};
use crate::queue::{Gate, Gemv, Item, KvWrite, Norm, Rope};

/// Columns that `norm_rows` and `norm_rows_wide` have room for, and the threads of the latter.
const NORM_COLS: u32 = 2560;
const WIDE_NORM_COLS: u32 = 7168;
const WIDE_NORM_THREADS: u32 = 896;
/// Warps of a block of `gemm_rows_short`, and the tiles of a row that it has room for.
const SHORT_WARPS: u32 = 10;

/// Whether `next` continues the group that is held.
pub(crate) fn continues(held: &[Item], next: &Item) -> bool {
    match (held, next) {
        ([Item::Norm(n)], Item::Gemv(g)) if n.many => many_rows::follows(n, g),
        ([Item::Gate(gate), Item::Norm(n)], Item::Gemv(g)) if n.many => many_rows::follows_gate(gate, n, g),
        ([Item::Norm(n), Item::Gemv(a), rest @ ..], Item::Gemv(g)) if n.many => {
            !a.add && !g.add && many_rows::follows(n, g) && joins(a, rest, g)
        }
        ([Item::Norm(n)], Item::Gemv(g)) => {
            follows(n, g, if g.add { WIDE_TILES } else { TILES }) && (!g.add || adds(n, g))
        }
        ([Item::Norm(n), Item::Gemv(a), rest @ ..], Item::Gemv(g)) => {
            !a.add && !g.add && follows(n, g, TILES) && joins(a, rest, g)
        }
        ([Item::Norm(n), Item::Gemv(a), Item::Gemv(b)], Item::Gate(g)) => gates(n, a, b, g),
        ([Item::Norm(_), Item::Gemv(q), Item::Gemv(_), Item::Gemv(_)], Item::Rope(r)) => {
            r.rows == 1 && (r.x, r.heads * 2 * r.half) == (q.y, q.n)
        }
        ([Item::Norm(_), Item::Gemv(_), Item::Gemv(k), Item::Gemv(_), Item::Rope(q)], Item::Rope(r)) => {
            same_turn(q, r) && q.fault.same_stream(&r.fault) && (r.x, r.heads * 2 * r.half) == (k.y, k.n)
        }
        (
            [Item::Norm(n), Item::Gemv(q), Item::Gemv(k), Item::Gemv(v), Item::Rope(rq), Item::Rope(rk)],
            Item::KvWrite(kv),
        ) => writes_cache(n, [q, k, v], [rq, rk], kv),
        ([Item::Gemv(first), rest @ ..], Item::Gemv(g)) => {
            let same = (first.x, first.x_scales, first.k, first.m) == (g.x, g.x_scales, g.k, g.m);
            same && !first.add && !g.add && joins(first, rest, g)
        }
        ([Item::Rope(q)], Item::Rope(k)) => same_turn(q, k) && disjoint(&[], &[turned(q), turned(k)]),
        ([Item::Rope(q), Item::Rope(k)], Item::KvWrite(kv)) => {
            // Values that a rotation changes are not read in the same kernel, and what it reads is not a cache.
            let writes = [turned(q), turned(k), cache(kv, kv.k_cache), cache(kv, kv.v_cache)];
            turned_keys(k, kv) && disjoint(&[floats(kv.v, kv.len), floats(kv.positions, k.rows)], &writes)
        }
        ([Item::Gate(g)], Item::Norm(n)) => {
            let len = g.len as u32;
            let reads = [floats(g.gate, len), floats(g.up, len), floats(n.w, n.cols)];
            let writes = [floats(g.y, len), (n.q, u64::from(len)), floats(n.scales, n.rows as u32)];
            n.x == g.y && g.len == n.rows * n.cols as usize && disjoint(&reads, &writes)
        }
        _ => false,
    }
}

/// Whether nothing can continue the group.
pub(crate) fn is_complete(held: &[Item]) -> bool {
    match held {
        [Item::Gemv(g)] => g.add,
        [Item::Norm(n)] => n.rows != 1 && !n.many,
        [Item::Gate(_), Item::Norm(n)] => !n.many,
        [Item::Norm(_), Item::Gemv(g)] => g.add,
        [Item::Norm(_), .., Item::KvWrite(_) | Item::Gate(_)] => true,
        [Item::Norm(_), ..] => false,
        [Item::Gemv(_), _, _] => true,
        [] | [Item::Gemv(_), ..] | [Item::Rope(_)] | [Item::Gate(_)] => false,
        [Item::Rope(_), Item::Rope(_)] => false,
        _ => true,
    }
}

/// The launch of a product of one row of activations on a GPU of so many multiprocessors; see `gemv_rows` in
/// `kernels/matmul.cu`.
pub(crate) fn gemv_1(g: &Gemv, mode: u32, processors: u32) -> (Kernel, Grid, Args) {
    let all_rows = Grid::new(g.n.div_ceil(32).min(2 * processors), 512);
    let (kernel, grid) = match g.tiles {
        0..=12 => (Kernel::Gemv1, all_rows),
        13..=20 => (Kernel::Gemv1Long, all_rows),
        21..=32 => (Kernel::Gemv1Wide, Grid::new(g.n.div_ceil(8), 256)),
        _ => {
            let args = Args::new().u64(g.w).u64(g.x).u32(g.k).u64(g.x_scales).u64(g.y);
            let args = args.u32(g.n).u32(g.tiles).u32(g.k).u32(1).f32(g.scale).u32(mode);
            return (Kernel::Gemv1Any, Grid::new(g.n.div_ceil(16), 128), args);
        }
    };
    let args = Args::new().u64(g.w).u64(g.x).u64(g.x_scales).u64(g.y);
    (kernel, grid, args.u32(g.n).u32(g.tiles).u32(g.k).f32(g.scale).u32(mode))
}

pub(crate) fn gemv(item: &Item) -> Option<Gemv> {
    if let Item::Gemv(g) = item { Some(*g) } else { None }
}

/// Whether a third product at most is none that an earlier one's result overlaps.
fn joins(first: &Gemv, rest: &[Item], g: &Gemv) -> bool {
    let others = || [*first].into_iter().chain(rest.iter().filter_map(gemv));
    rest.len() < 2 && others().all(|o| disjoint(&[], &[floats(o.y, o.n * o.m), floats(g.y, g.n * g.m)]))
}

pub(crate) fn floats(at: Address, n: u32) -> Span {
    (at, 4 * u64::from(n))
}

fn turned(r: &Rope) -> Span {
    floats(r.x, r.rows * r.heads * 2 * r.half)
}

fn cache(kv: &KvWrite, at: Address) -> Span {
    (at, 4 * u64::from(kv.capacity) * u64::from(kv.width))
}

/// Whether no range that is written has a byte in common with one that is read, or with another that is written.
fn disjoint(reads: &[Span], writes: &[Span]) -> bool {
    writes.iter().enumerate().all(|(i, w)| reads.iter().chain(&writes[i + 1..]).all(|other| apart(w, other)))
}

/// Whether a product takes the one row that a norm makes, and a fused kernel has room for it.
fn follows(n: &Norm, g: &Gemv, tiles: u32) -> bool {
    let aligned = n.x.is_multiple_of(16) && n.w.is_multiple_of(16) && n.q.is_multiple_of(4);
    (n.rows, g.m, n.cols, n.q, n.scales) == (1, 1, g.k, g.x, g.x_scales)
        && aligned
        && n.settled
        && n.cols.is_multiple_of(64)
        && g.tiles == n.cols.div_ceil(TILE as u32)
        && g.tiles <= tiles
}

/// What a fused kernel reads and writes for its norm.
fn norm_reads(n: &Norm) -> [Span; 2] {
    [floats(n.x, n.cols), floats(n.w, n.cols)]
}
fn norm_writes(n: &Norm) -> [Span; 2] {
    [(n.q, u64::from(n.cols)), floats(n.scales, 1)]
}

fn adds(n: &Norm, g: &Gemv) -> bool {
    let [q, scale] = norm_writes(n);
    disjoint(&norm_reads(n), &[q, scale, floats(g.y, g.n)])
}

fn gates(n: &Norm, a: &Gemv, b: &Gemv, g: &Gate) -> bool {
    let [q, scale] = norm_writes(n);
    let writes = [q, scale, floats(a.y, a.n), floats(b.y, b.n), floats(g.y, a.n)];
    (g.gate, g.up, g.len) == (a.y, b.y, a.n as usize) && a.n == b.n && disjoint(&norm_reads(n), &writes)
}

fn same_turn(q: &Rope, k: &Rope) -> bool {
    let table = |r: &Rope| (r.rows, r.half, r.positions, r.known, r.cos, r.sin);
    table(q) == table(k)
}

fn turned_keys(k: &Rope, kv: &KvWrite) -> bool {
    let width = k.heads * 2 * k.half;
    (kv.k, kv.width, kv.len) == (k.x, width, k.rows * width)
}

/// Whether the cache rows are the positions too, as with one sequence.
fn written_from(k: &Rope, kv: &KvWrite) -> bool {
    turned_keys(k, kv) && kv.positions == k.positions
}

/// What `norm_qkv` reads, and what it writes.
fn qkv_touches(n: &Norm, [q, k, v]: [&Gemv; 3], r: &Rope, kv: &KvWrite) -> ([Span; 5], [Span; 7]) {
    let [x, w] = norm_reads(n);
    let [q8, scale] = norm_writes(n);
    let table = |at| (at, 4 * u64::from(r.known) * u64::from(r.half));
    let [q, k, v] = [q, k, v].map(|g| floats(g.y, g.n));
    let reads = [x, w, floats(r.positions, 1), table(r.cos), table(r.sin)];
    (reads, [q8, scale, q, k, v, cache(kv, kv.k_cache), cache(kv, kv.v_cache)])
}

fn writes_cache(n: &Norm, parts: [&Gemv; 3], [rq, rk]: [&Rope; 2], kv: &KvWrite) -> bool {
    let (reads, writes) = qkv_touches(n, parts, rq, kv);
    let v = parts[2];
    let faults = n.fault.same_stream(&rq.fault) && rq.fault.same_stream(&kv.fault);
    faults && written_from(rk, kv) && (kv.v, kv.width) == (v.y, v.n) && disjoint(&reads, &writes)
}

impl Device {
    /// Launches what the queue holds: the longest groups that are whole.
    pub(crate) fn launch_groups(&self, items: &[Item]) -> Result<()> {
        let fused = self.driver.dynamic_shared() >= FUSED_SHARED;
        match items {
            [] => Ok(()),
            [
                Item::Norm(n),
                Item::Gemv(q),
                Item::Gemv(k),
                Item::Gemv(v),
                Item::Rope(rq),
                Item::Rope(_),
                Item::KvWrite(kv),
            ] if fused => self.norm_qkv(n, [q, k, v], rq, kv),
            [Item::Norm(n), Item::Gemv(a), Item::Gemv(b), Item::Gate(g)] if fused => self.norm_gate_up(n, a, b, g),
            [Item::Norm(n), products @ ..] if n.many && !products.is_empty() => {
                self.norm_stage(n, products)?;
                self.staged_products(products)
            }
            [Item::Gate(g), Item::Norm(n), products @ ..] if n.many && !products.is_empty() => {
                self.gate_norm_stage(g, n, products)?;
                self.staged_products(products)
            }
            [Item::Norm(n), Item::Gemv(g)] if fused && (g.add || g.tiles <= TILES && adds(n, g)) => {
                self.norm_gemv(n, g)
            }
            [Item::Gemv(a), Item::Gemv(b), Item::Gemv(c), rest @ ..] => {
                self.gemvs([Some(*a), Some(*b), Some(*c)])?;
                self.launch_groups(rest)
            }
            [Item::Gemv(a), Item::Gemv(b), rest @ ..] => {
                self.gemvs([Some(*a), Some(*b), None])?;
                self.launch_groups(rest)
            }
            [Item::Rope(q), Item::Rope(k), Item::KvWrite(kv)] => self.rope_kv_write(q, k, kv),
            [Item::Gate(g), Item::Norm(n)] => self.gate_norm(g, n),
            [first, rest @ ..] => {
                self.single(first)?;
                self.launch_groups(rest)
            }
        }
    }

    fn single(&self, item: &Item) -> Result<()> {
        let (kernel, grid, args) = match item {
            Item::Gemv(g) if g.m > 1 => return self.gemvs([Some(*g), None, None]),
            Item::Gemv(g) => gemv_1(g, u32::from(g.add), self.driver.processors),
            Item::Rope(r) => {
                let pairs = r.rows * r.heads * r.half;
                let args = Args::new().u64(r.x).u32(pairs).u32(r.heads).u32(r.half).u64(r.positions).u32(r.known);
                (Kernel::Rope, Grid::new(pairs.div_ceil(256), 256), args.u64(r.cos).u64(r.sin).fault(r.fault))
            }
            Item::KvWrite(k) => {
                let args = Args::new().u64(k.k).u64(k.v).u32(k.len).u32(k.width).u64(k.positions).u32(k.capacity);
                let args = args.u64(k.k_cache).u64(k.v_cache).fault(k.fault);
                (Kernel::KvWrite, Grid::new(k.len.div_ceil(256), 256), args)
            }
            Item::Gate(g) => {
                let args = Args::new().u64(g.gate).u64(g.up).u64(g.y).u64(g.len as u64);
                (Kernel::ReluSquaredMul, crate::pack::items(g.len), args)
            }
            Item::Norm(n) => {
                let (kernel, grid) = match rows_kernel(n, [n.x, n.w, n.q]) {
                    Some((kernel, threads)) => (kernel, Grid::new(n.rows as u32, threads)),
                    None => (Kernel::RmsNormQuantize, n.grid),
                };
                (kernel, grid, norm_args(n).fault(n.fault))
            }
        };
        // SAFETY: whoever made the item took its addresses and lengths from checked operands; what is dropped in between
        // flushes the queue first. So below.
        unsafe { self.push(kernel, grid, args) }
    }

    fn norm_gemv(&self, n: &Norm, g: &Gemv) -> Result<()> {
        let (kernel, fused) =
            if g.tiles > TILES { (Kernel::NormGemvWide, WIDE_GEMV) } else { (Kernel::NormGemv, GEMV) };
        let args = norm_args(n).u32(g.tiles).u64(g.w).u64(g.y).u32(g.n).f32(g.scale).u32(u32::from(g.add));
        let grid = fused.grid(g.n.div_ceil(fused.rows), g.tiles);
        // SAFETY: as above; parameters as in fused.cu, rows no longer than it has room for.
        unsafe { self.push(kernel, grid, args.fault(n.fault)) }?;
        let [q, scale] = norm_writes(n);
        self.wrote_only([q, scale, floats(g.y, g.n)]);
        Ok(())
    }

    fn norm_gate_up(&self, n: &Norm, a: &Gemv, b: &Gemv, g: &Gate) -> Result<()> {
        let args = norm_args(n).u32(a.tiles).u64(a.w).u64(a.y).f32(a.scale).u64(b.w).u64(b.y).f32(b.scale);
        let args = args.u64(g.y).u32(a.n).fault(n.fault);
        self.bring_nearer([a.w, b.w], u64::from(a.n) * u64::from(a.tiles) * 64);
        // SAFETY: as above.
        unsafe { self.push(Kernel::NormGateUp, GATE_UP.grid(a.n.div_ceil(GATE_UP.rows / 2), a.tiles), args) }
    }

    fn norm_qkv(&self, n: &Norm, parts: [&Gemv; 3], r: &Rope, kv: &KvWrite) -> Result<()> {
        let args = norm_args(n).u32(parts[0].tiles);
        let args = parts.iter().fold(args, |args, p| args.u64(p.w).f32(p.scale).u64(p.y));
        let kv_heads = kv.width / (2 * r.half);
        let args = args.u32(r.heads).u32(kv_heads).u32(r.half).u64(r.positions).u32(r.known).u64(r.cos).u64(r.sin);
        let args = args.u32(kv.capacity).u64(kv.k_cache).u64(kv.v_cache).fault(n.fault).fault_number(r.fault);
        let blocks = ((r.heads + 2 * kv_heads) * r.half).div_ceil(QKV.rows / 2);
        // SAFETY: as above.
        unsafe { self.push(Kernel::NormQkv, QKV.grid(blocks, parts[0].tiles), args) }?;
        let ([r0, r1, r2, r3, r4], [w0, w1, w2, w3, w4, w5, w6]) = qkv_touches(n, parts, r, kv);
        let touched = [r0, r1, r2, r3, r4, w0, w1, w2, w3, w4, w5, w6];
        self.wrote_newest([kv.positions, kv.k_cache, kv.v_cache], touched);
        Ok(())
    }

    fn gemvs(&self, parts: [Option<Gemv>; 3]) -> Result<()> {
        let Some(first) = parts[0] else { return Ok(()) };
        let none = Gemv { n: 0, ..first };
        let parts = parts.map(|p| p.unwrap_or(none));
        if first.staged.is_some() {
            // SAFETY: as in `single`; what is staged has room for all rows.
            return unsafe { self.gemm_many_rows(&parts, u32::from(first.add), true) };
        }
        if first.m > 1 {
            // SAFETY: as in `single`.
            return unsafe { self.gemm_rows(&parts, u32::from(first.add)) };
        }
        let args = Args::new().u64(first.x).u64(first.x_scales).u32(first.tiles).u32(first.k);
        let args = parts.iter().fold(args, |args, p| args.u64(p.w).u64(p.y).u32(p.n).f32(p.scale));
        let blocks = parts.iter().map(|p| p.n.div_ceil(16)).sum();
        // SAFETY: as in `single`.
        unsafe { self.push(Kernel::Gemv1Of3, Grid::new(blocks, 128), args) }
    }

    /// Up to three products of up to 64 rows of whole tiles, aligned to 16 bytes.
    ///
    /// # Safety
    /// As for `push`: the parts' addresses are of operands of their lengths, and `mode` says what the results are.
    pub(crate) unsafe fn gemm_rows(&self, parts: &[Gemv; 3], mode: u32) -> Result<()> {
        let Gemv { x, x_scales, m, tiles, .. } = parts[0];
        let short = tiles <= SHORT_WARPS;
        // The kernel, its warps, the words of a row of sums, and the places for sums.
        let (kernel, warps, words, places) = match (m, short) {
            (0..=8, true) => (Kernel::GemmRowsShort1, SHORT_WARPS, 40, 2),
            (9..=16, true) => (Kernel::GemmRowsShort2, SHORT_WARPS, 40, 2),
            (17..=32, true) => (Kernel::GemmRowsShort4, SHORT_WARPS, 40, 2),
            (0..=8, false) => (Kernel::GemmRows1, 14, 40, 1),
            (9..=16, false) => (Kernel::GemmRows2, 14, 40, 1),
            (17..=32, false) => (Kernel::GemmRows4, 14, 40, 1),
            (_, _) => (Kernel::GemmRows8, 8, 72, 1),
        };
        let args = Args::new().u64(x).u64(x_scales).u32(m).u32(tiles).u32(mode);
        let args = parts.iter().fold(args, |args, p| args.u64(p.w).u64(p.y).u32(p.n).f32(p.scale));
        let groups: u32 = parts.iter().map(|p| p.n.div_ceil(32)).sum();
        let blocks = if places == 2 { groups.min(self.driver.processors) } else { groups };
        let grid = Grid { x: blocks, y: 1, threads: warps * 32, shared: 4 * places * warps * 32 * words };
        // SAFETY: by contract; parameters as in batch.cu, with room for the sums of every warp.
        unsafe { self.push(kernel, grid, args) }
    }

    fn rope_kv_write(&self, q: &Rope, k: &Rope, kv: &KvWrite) -> Result<()> {
        if self.ropes_rows(q, k, kv) {
            return self.rope_kv_rows(q, k, kv);
        }
        let args = Args::new().u64(q.x).u64(k.x).u64(kv.v).u32(q.rows).u32(q.heads).u32(k.heads).u32(q.half);
        let args = args.u64(q.positions).u32(q.known).u64(q.cos).u64(q.sin).u64(kv.positions);
        let args = args.u32(kv.capacity).u64(kv.k_cache).u64(kv.v_cache).fault(q.fault);
        let threads = q.rows * (q.heads + 2 * k.heads) * q.half;
        // SAFETY: as in `single`.
        unsafe { self.push(Kernel::RopeKvWrite, Grid::new(threads.div_ceil(128), 128), args) }
    }

    fn gate_norm(&self, g: &Gate, n: &Norm) -> Result<()> {
        let args = Args::new().u64(g.gate).u64(g.up).u64(g.y).u64(n.w).f32(n.eps).u32(n.cols);
        let (kernel, grid) = match rows_kernel(n, [g.gate | g.up | g.y, n.w, n.q]) {
            Some(_) => (Kernel::GateNormRows, Grid::new(n.rows as u32, WIDE_NORM_THREADS)),
            None => (Kernel::GateNormQuantize, n.grid),
        };
        // SAFETY: as in `single`.
        unsafe { self.push(kernel, grid, args.u64(n.q).u64(n.scales).fault(n.fault)) }
    }
}

/// The kernel that keeps rows in registers, and its threads, where the rows fit and all addresses are aligned for it.
fn rows_kernel(n: &Norm, addresses: [Address; 3]) -> Option<(Kernel, u32)> {
    let fits = n.cols.is_multiple_of(64) && addresses.iter().all(|a| a.is_multiple_of(16));
    match n.cols {
        _ if !fits => None,
        cols if cols <= NORM_COLS => Some((Kernel::NormRows, NORM_COLS / 4)),
        cols if cols <= WIDE_NORM_COLS => Some((Kernel::NormRowsWide, WIDE_NORM_THREADS)),
        _ => None,
    }
}

/// How the parameters of all kernels with a norm begin.
pub(crate) fn norm_args(n: &Norm) -> Args {
    Args::new().u64(n.x).u64(n.w).f32(n.eps).u32(n.cols).u64(n.q).u64(n.scales)
}
