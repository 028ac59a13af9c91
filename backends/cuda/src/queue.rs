//! Launches that wait for a partner.
//!
//! A decode step is hundreds of small launches, each of which costs the host about two microseconds and the GPU a gap. Where
//! neighbours in the stream belong together (a norm and the products of its row, q, k and v and their rotation, gate and
//! up), one kernel does the work of all, with the same roundings and the same results left in memory. So a launch that could
//! be the first of such a group is held until the next operation shows whether it is. Every other use of the device flushes
//! the queue first: order never changes. `groups` knows the kernels.

use tersor_core::Result;

use crate::driver::{Address, Grid};
use crate::faults::Fault;
use crate::groups;
use crate::memory::Device;

/// Rows of activations times a ternary weight, stored as f32 or added. More than one row are whole tiles, or have a place to be staged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gemv {
    pub(crate) x: Address,
    pub(crate) x_scales: Address,
    pub(crate) m: u32,
    pub(crate) k: u32,
    pub(crate) tiles: u32,
    pub(crate) w: Address,
    pub(crate) y: Address,
    pub(crate) n: u32,
    pub(crate) scale: f32,
    pub(crate) add: bool,
    pub(crate) staged: Option<Staged>,
}

/// Where many rows of activations are put in the order of the kernels in `warpgroups.cu`, and their sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Staged {
    pub(crate) x: Address,
    pub(crate) sums: Address,
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
    /// Whether `w` may be read before what was launched before is done, as the fused kernels do.
    pub(crate) settled: bool,
    pub(crate) eps: f32,
    pub(crate) rows: usize,
    pub(crate) cols: u32,
    pub(crate) q: Address,
    pub(crate) scales: Address,
    pub(crate) grid: Grid,
    /// Whether a product may follow that takes the rows staged.
    pub(crate) many: bool,
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

impl Device {
    /// Launches an item, or holds it for a partner.
    pub(crate) fn enqueue(&self, item: Item) -> Result<()> {
        let mut queue = self.queue();
        if !queue.0.is_empty() && !groups::continues(&queue.0, &item) {
            self.drain(&mut queue)?;
        }
        queue.0.push(item);
        if groups::is_complete(&queue.0) { self.drain(&mut queue) } else { Ok(()) }
    }

    /// Launches what is held.
    pub(crate) fn drain(&self, queue: &mut Queue) -> Result<()> {
        if queue.0.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut queue.0);
        let done = self.launch_groups(&held);
        // The memory of the queue is kept.
        queue.0 = held;
        queue.0.clear();
        done
    }
}
