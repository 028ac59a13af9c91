//! Launches that wait for a partner.
//!
//! A decode step is hundreds of small launches, each of which costs the host about two microseconds and the GPU a gap. Where
//! neighbours in the stream belong together (q, k and v; gate and up; rotation and cache; gate and norm), one kernel does
//! the work of both, with the same roundings. So a launch that could be the first of such a group is held until the next
//! operation shows whether it is. Every other use of the device flushes the queue first: order never changes.

use tersor_core::Result;

use crate::driver::{Address, Args, Grid, Kernel};
use crate::memory::Device;
use crate::stream::Fault;

/// One row of activations times a ternary weight, stored as f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gemv {
    pub(crate) x: Address,
    pub(crate) x_scales: Address,
    pub(crate) k: u32,
    pub(crate) tiles: u32,
    pub(crate) w: Address,
    pub(crate) y: Address,
    pub(crate) n: u32,
    pub(crate) scale: f32,
}

/// A rotation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rope {
    pub(crate) x: Address,
    pub(crate) rows: u32,
    pub(crate) heads: u32,
    pub(crate) half: u32,
    pub(crate) positions: Address,
    pub(crate) known: u32,
    pub(crate) cos: Address,
    pub(crate) sin: Address,
    pub(crate) fault: Fault,
}

/// Keys and values into a cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvWrite {
    pub(crate) k: Address,
    pub(crate) v: Address,
    pub(crate) len: u32,
    pub(crate) width: u32,
    pub(crate) positions: Address,
    pub(crate) capacity: u32,
    pub(crate) k_cache: Address,
    pub(crate) v_cache: Address,
    pub(crate) fault: Fault,
}

/// The gate of the feed-forward block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate {
    pub(crate) gate: Address,
    pub(crate) up: Address,
    pub(crate) y: Address,
    /// Below 2^31.
    pub(crate) len: usize,
}

/// A norm whose result is quantized.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) x: Address,
    pub(crate) w: Address,
    pub(crate) eps: f32,
    pub(crate) rows: usize,
    pub(crate) cols: u32,
    pub(crate) q: Address,
    pub(crate) scales: Address,
    pub(crate) grid: Grid,
    pub(crate) fault: Fault,
}

/// A launch that may have partners.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Item {
    Gemv(Gemv),
    Rope(Rope),
    KvWrite(KvWrite),
    Gate(Gate),
    Norm(Norm),
}

/// Items that are held; only ever a group that one kernel can do, or the beginning of one.
#[derive(Debug, Default)]
pub(crate) struct Queue(Vec<Item>);

impl Queue {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `next` continues the group.
    fn continued_by(&self, next: &Item) -> bool {
        match (self.0.as_slice(), next) {
            ([Item::Gemv(first), rest @ ..], Item::Gemv(g)) => {
                let same = (first.x, first.x_scales, first.k) == (g.x, g.x_scales, g.k);
                let others = || [*first].into_iter().chain(rest.iter().filter_map(gemv));
                // A result that an earlier one overwrites, or that an earlier one reads, is not a neighbour's.
                same && rest.len() < 2 && others().all(|o| apart((o.y, o.n), (g.y, g.n)))
            }
            ([Item::Rope(q)], Item::Rope(k)) => {
                let table = |r: &Rope| (r.rows, r.half, r.positions, r.known, r.cos, r.sin);
                table(q) == table(k)
                    && apart((q.x, q.rows * q.heads * 2 * q.half), (k.x, k.rows * k.heads * 2 * k.half))
            }
            ([Item::Rope(q), Item::Rope(k)], Item::KvWrite(kv)) => {
                let width = k.heads * 2 * k.half;
                let same = (kv.k, kv.positions, kv.width, kv.len) == (k.x, k.positions, width, k.rows * width);
                // Values that a rotation changes are not read in the same kernel, and what it reads is not a cache.
                let rotated = [(q.x, q.rows * q.heads * 2 * q.half), (k.x, kv.len)];
                let caches = [(kv.k_cache, kv.capacity * width), (kv.v_cache, kv.capacity * width)];
                same && rotated.iter().all(|r| apart(*r, (kv.v, kv.len)) && caches.iter().all(|c| apart(*r, *c)))
            }
            ([Item::Gate(g)], Item::Norm(n)) => {
                let len = g.len as u32;
                let read = [(g.gate, len), (g.up, len)];
                n.x == g.y
                    && g.len == n.rows * n.cols as usize
                    && apart((n.w, n.cols), (g.y, len))
                    && read.iter().all(|r| apart(*r, (n.scales, n.rows as u32)))
            }
            _ => false,
        }
    }

    /// Whether nothing can continue the group.
    fn is_complete(&self) -> bool {
        match self.0.as_slice() {
            [Item::Gemv(_), _, _] => true,
            [] | [Item::Gemv(_), ..] | [Item::Rope(_)] | [Item::Gate(_)] => false,
            [Item::Rope(_), Item::Rope(_)] => false,
            _ => true,
        }
    }
}

/// The kernel for one row of activations and rows of this many tiles.
pub(crate) fn gemv_kernel(tiles: u32) -> Kernel {
    if tiles > 16 { Kernel::Gemv1Wide } else { Kernel::Gemv1 }
}

fn gemv(item: &Item) -> Option<Gemv> {
    if let Item::Gemv(g) = item { Some(*g) } else { None }
}

/// Whether two ranges of 4-byte elements have none in common.
fn apart(a: (Address, u32), b: (Address, u32)) -> bool {
    let end = |(at, n): (Address, u32)| at + 4 * u64::from(n);
    end(a) <= b.0 || end(b) <= a.0
}

impl Device {
    /// Launches an item, or holds it for a partner.
    pub(crate) fn enqueue(&self, item: Item) -> Result<()> {
        let mut queue = self.queue();
        if !queue.is_empty() && !queue.continued_by(&item) {
            self.drain(&mut queue)?;
        }
        queue.0.push(item);
        if queue.is_complete() { self.drain(&mut queue) } else { Ok(()) }
    }

    /// Launches what is held.
    pub(crate) fn drain(&self, queue: &mut Queue) -> Result<()> {
        if queue.0.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut queue.0);
        let done = match held.as_slice() {
            [Item::Gemv(a), Item::Gemv(b), rest @ ..] => self.gemvs([Some(*a), Some(*b), rest.first().and_then(gemv)]),
            [Item::Rope(q), Item::Rope(k), Item::KvWrite(kv)] => self.rope_kv_write(q, k, kv),
            [Item::Gate(g), Item::Norm(n)] => self.gate_norm(g, n),
            items => items.iter().try_for_each(|item| self.single(item)),
        };
        // The memory of the queue is kept.
        queue.0 = held;
        queue.0.clear();
        done
    }

    fn single(&self, item: &Item) -> Result<()> {
        let (kernel, grid, args) = match item {
            Item::Gemv(g) => {
                let args = Args::new().u64(g.w).u64(g.x).u32(g.k).u64(g.x_scales).u64(g.y);
                let args = args.u32(g.n).u32(g.tiles).u32(g.k).u32(1).f32(g.scale).u32(0);
                (gemv_kernel(g.tiles), Grid::new(g.n.div_ceil(16), 128), args)
            }
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
                let args = Args::new().u64(n.x).u64(n.w).f32(n.eps).u32(n.cols).u64(n.q).u64(n.scales);
                (Kernel::RmsNormQuantize, n.grid, args.fault(n.fault))
            }
        };
        // SAFETY: whoever made the item took its addresses and lengths from checked operands; what is dropped in between
        // flushes the queue first.
        unsafe { self.push(kernel, grid, args) }
    }

    fn gemvs(&self, parts: [Option<Gemv>; 3]) -> Result<()> {
        let Some(first) = parts[0] else { return Ok(()) };
        let args = Args::new().u64(first.x).u64(first.x_scales).u32(first.tiles).u32(first.k);
        let none = Gemv { n: 0, ..first };
        let parts = parts.map(|p| p.unwrap_or(none));
        let args = parts.iter().fold(args, |args, p| args.u64(p.w).u64(p.y).u32(p.n).f32(p.scale));
        let blocks = parts.iter().map(|p| p.n.div_ceil(16)).sum();
        // SAFETY: as in `single`.
        unsafe { self.push(Kernel::Gemv1Of3, Grid::new(blocks, 128), args) }
    }

    fn rope_kv_write(&self, q: &Rope, k: &Rope, kv: &KvWrite) -> Result<()> {
        let args = Args::new().u64(q.x).u64(k.x).u64(kv.v).u32(q.rows).u32(q.heads).u32(k.heads).u32(q.half);
        let args = args.u64(q.positions).u32(q.known).u64(q.cos).u64(q.sin);
        let args = args.u32(kv.capacity).u64(kv.k_cache).u64(kv.v_cache).fault(q.fault);
        let threads = q.rows * (q.heads + 2 * k.heads) * q.half;
        // SAFETY: as in `single`.
        unsafe { self.push(Kernel::RopeKvWrite, Grid::new(threads.div_ceil(128), 128), args) }
    }

    fn gate_norm(&self, g: &Gate, n: &Norm) -> Result<()> {
        let args = Args::new().u64(g.gate).u64(g.up).u64(g.y).u64(n.w).f32(n.eps).u32(n.cols);
        // SAFETY: as in `single`.
        unsafe { self.push(Kernel::GateNormQuantize, n.grid, args.u64(n.q).u64(n.scales).fault(n.fault)) }
    }
}
