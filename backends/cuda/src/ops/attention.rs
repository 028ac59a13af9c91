//! Attention.

use tersor_core::{Format, In, Out, Result};

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

/// Positions whose scores fit in a block's shared memory, beside one partial sum a thread.
pub(crate) fn room(device: &Device) -> usize {
    (device.driver.dynamic_shared() / 4).saturating_sub(MAX_THREADS + 64) as usize
}

impl CudaStream {
    pub(super) fn attention(
        &mut self,
        g: Geometry,
        q: In<'_, f32>,
        positions: In<'_, u32>,
        (k_cache, v_cache): (In<'_, f32>, In<'_, f32>),
        y: &Out<'_, f32>,
    ) -> Result<()> {
        let blocks = positions.len() * g.heads;
        // Few blocks get many threads: a chunk of 64 positions is then summed by each group of `head_dim` of them.
        let threads = if blocks <= 2 * self.device.driver.processors as usize { MAX_THREADS } else { 256 };
        let capacity = k_cache.len() / (g.kv_heads * g.head_dim);
        let room = capacity as u32;
        let args = Args::new().u64(self.input("q", q)?);
        let args = args.u32(count("heads", g.heads)?).u32(g.kv_heads as u32).u32(count("head_dim", g.head_dim)?);
        let args = args.u64(self.input("positions", positions)?).u32(count("capacity", capacity)?);
        let args = args.u64(self.input("k_cache", k_cache)?).u64(self.input("v_cache", v_cache)?);
        let args = args.u64(self.output("y", y)?).u32(room).fault(self.watch("positions", Format::F32));
        let grid = Grid {
            x: count("heads of all rows", blocks)?,
            y: 1,
            threads,
            shared: 4 * (room.next_multiple_of(64) + threads),
        };
        // SAFETY: parameters as in attention.cu; `Checked` has seen to the lengths, the kernel checks positions, and
        // `supports` that the scores fit.
        unsafe { self.device.launch(Kernel::Attention, grid, args) }
    }
}
