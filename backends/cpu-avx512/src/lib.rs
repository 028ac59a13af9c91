//! x86-64 with AVX-512 (F, BW, DQ and VL), and VNNI where the CPU has it.
//!
//! Products of ternary weights and int8 activations are written in intrinsics (`tersor_kernels::arch::x86_64::avx512`);
//! everything else is the shared bodies, compiled for AVX-512. FMA is never used: the float operations are defined without
//! contraction.
#![forbid(unsafe_code)]

use tersor_core::BackendEntry;
use tersor_core::entry::inventory;
use tersor_kernels::Tiers;

const ID: &str = "cpu-avx512";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const KERNEL_REVISION: u32 = 1;

inventory::submit! {
    BackendEntry {
        id: ID,
        version: VERSION,
        kernel_revision: KERNEL_REVISION,
        priority: 110,
        probe: || tiers().probe(),
        open: |host| tiers().open(host),
    }
}

#[cfg(target_arch = "x86_64")]
fn tiers() -> Tiers {
    use tersor_kernels::arch::x86_64::avx512::{GEMM_TILE, GEMV_TILE, dots_avx512, dots_avx512_vnni};
    use tersor_kernels::isa::{Avx512, Avx512Vnni};
    Tiers::new(ID, VERSION, KERNEL_REVISION, "AVX-512 F, BW, DQ and VL")
        .tier(Avx512::detect(), dots_avx512, (GEMV_TILE, GEMM_TILE))
        .tier(Avx512Vnni::detect(), dots_avx512_vnni, (GEMV_TILE, GEMM_TILE))
}

#[cfg(not(target_arch = "x86_64"))]
fn tiers() -> Tiers {
    Tiers::foreign(ID, "AVX-512", "x86-64")
}
