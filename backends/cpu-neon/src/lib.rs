//! AArch64 with NEON, the dot products and the int8 matrix products where the CPU has them.
//!
//! Products of ternary weights and int8 activations are written in intrinsics (`tersor_kernels::arch::aarch64::neon`);
//! everything else is the shared bodies, compiled for NEON. Fused multiply-adds are never used: the float operations are
//! defined without contraction.
#![forbid(unsafe_code)]

use tersor_core::BackendEntry;
use tersor_core::entry::inventory;
use tersor_kernels::Tiers;

const ID: &str = "cpu-neon";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const KERNEL_REVISION: u32 = 3;

inventory::submit! {
    BackendEntry {
        id: ID,
        version: VERSION,
        kernel_revision: KERNEL_REVISION,
        priority: 100,
        probe: || tiers().probe(),
        open: |host| tiers().open(host),
    }
}

#[cfg(target_arch = "aarch64")]
fn tiers() -> Tiers {
    use tersor_kernels::PanelKernels;
    use tersor_kernels::arch::aarch64::neon::*;
    use tersor_kernels::isa::{Neon, NeonDot, NeonI8mm};
    use tersor_kernels::pack::panels::{Density, Layout};

    const BITS2: Layout = Layout { rows: ROWS, density: Density::Bits2 };
    static NEON: &[PanelKernels<Neon>] =
        &[PanelKernels { layout: BITS2, sums: sums_neon, scaled: Some(scaled_neon), tiles: TILES }];
    static NEON_DOTPROD: &[PanelKernels<NeonDot>] =
        &[PanelKernels { layout: BITS2, sums: sums_neon_dotprod, scaled: Some(scaled_neon_dotprod), tiles: TILES }];
    static NEON_I8MM: &[PanelKernels<NeonI8mm>] =
        &[PanelKernels { layout: BITS2, sums: sums_neon_i8mm, scaled: Some(scaled_neon_i8mm), tiles: TILES }];
    const TILES: [&str; 2] = ["4x1", "8x8"];
    Tiers::new(ID, VERSION, KERNEL_REVISION, "NEON")
        .tier(Neon::detect(), NEON)
        .tier(NeonDot::detect(), NEON_DOTPROD)
        .tier(NeonI8mm::detect(), NEON_I8MM)
}

#[cfg(not(target_arch = "aarch64"))]
fn tiers() -> Tiers {
    Tiers::foreign(ID, "NEON", "AArch64")
}
