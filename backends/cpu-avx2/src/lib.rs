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

#[cfg(target_arch = "x86_64")]
fn tiers() -> Tiers {
    use tersor_kernels::PanelKernels;
    use tersor_kernels::arch::x86_64::avx2::*;
    use tersor_kernels::isa::{Avx2, AvxVnni};
    use tersor_kernels::pack::panels::{Density, Layout};

    const BITS2: Layout = Layout { rows: ROWS, density: Density::Bits2 };
    static AVX2: &[PanelKernels<Avx2>] =
        &[PanelKernels { layout: BITS2, sums: sums_avx2, scaled: Some(scaled_avx2), tiles: TILES }];
    static AVX_VNNI: &[PanelKernels<AvxVnni>] =
        &[PanelKernels { layout: BITS2, sums: sums_avx_vnni, scaled: Some(scaled_avx_vnni), tiles: TILES }];
    const TILES: [&str; 2] = ["8x1", "16x4"];
    Tiers::new(ID, VERSION, KERNEL_REVISION, "AVX2").tier(Avx2::detect(), AVX2).tier(AvxVnni::detect(), AVX_VNNI)
}

#[cfg(not(target_arch = "x86_64"))]
fn tiers() -> Tiers {
    Tiers::foreign(ID, "AVX2", "x86-64")
}
