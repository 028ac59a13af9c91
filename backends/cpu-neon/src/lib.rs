//! AArch64 with NEON, and the dot product instructions where the CPU has them.
//!
//! Products of ternary weights and int8 activations are written in intrinsics (`tersor_kernels::arch::aarch64::neon`);
//! everything else is the shared bodies, compiled for NEON. Fused multiply-adds are never used: the float operations are
//! defined without contraction. The int8 matrix instructions (`smmla`) are not used yet.
#![forbid(unsafe_code)]

use tersor_core::BackendEntry;
use tersor_core::entry::inventory;
use tersor_kernels::Tiers;

const ID: &str = "cpu-neon";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const KERNEL_REVISION: u32 = 1;

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
    use tersor_kernels::arch::aarch64::neon::{GEMM_TILE, GEMV_TILE, dots_neon, dots_neon_dotprod};
    use tersor_kernels::isa::{Neon, NeonDot};
    Tiers::new(ID, VERSION, KERNEL_REVISION, "NEON").tier(Neon::detect(), dots_neon, (GEMV_TILE, GEMM_TILE)).tier(
        NeonDot::detect(),
        dots_neon_dotprod,
        (GEMV_TILE, GEMM_TILE),
    )
}

#[cfg(not(target_arch = "aarch64"))]
fn tiers() -> Tiers {
    Tiers::foreign(ID, "NEON", "AArch64")
}
