//! x86-64 with AVX2, and AVX-VNNI where the CPU has it.
//!
//! Products of ternary weights and int8 activations are written in intrinsics (`tersor_kernels::arch::x86_64::avx2`);
//! everything else is the shared bodies, compiled for AVX2. FMA is never used: the float operations are defined without
//! contraction.
#![forbid(unsafe_code)]

use tersor_core::BackendEntry;
use tersor_core::entry::inventory;
use tersor_kernels::Tiers;

const ID: &str = "cpu-avx2";
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

#[cfg(target_arch = "x86_64")]
fn tiers() -> Tiers {
    use tersor_kernels::arch::x86_64::avx2::{GEMM_TILE, GEMV_TILE, dots_avx_vnni, dots_avx2};
    use tersor_kernels::isa::{Avx2, AvxVnni};
    Tiers::new(ID, VERSION, KERNEL_REVISION, "AVX2 with F16C and BMI2")
        .tier(Avx2::detect(), dots_avx2, (GEMV_TILE, GEMM_TILE))
        .tier(AvxVnni::detect(), dots_avx_vnni, (GEMV_TILE, GEMM_TILE))
}

#[cfg(not(target_arch = "x86_64"))]
fn tiers() -> Tiers {
    Tiers::foreign(ID, "AVX2", "x86-64")
}
