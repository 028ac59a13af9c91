//! x86-64 with AVX-512 (F, BW, DQ and VL), VNNI and VBMI where the CPU has them.
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
const KERNEL_REVISION: u32 = 3;

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
    use tersor_kernels::PanelKernels;
    use tersor_kernels::arch::x86_64::avx512::*;
    use tersor_kernels::isa::{Avx512, Avx512Vbmi, Avx512Vnni};
    use tersor_kernels::pack::panels::{Density, Layout};

    const BITS2: Layout = Layout { rows: ROWS, density: Density::Bits2 };
    const TRITS: Layout = Layout { rows: ROWS, density: Density::Trits };
    static AVX512: &[PanelKernels<Avx512>] =
        &[PanelKernels { layout: BITS2, sums: sums_avx512, scaled: Some(scaled_avx512), tiles: TILES }];
    static AVX512_VNNI: &[PanelKernels<Avx512Vnni>] =
        &[PanelKernels { layout: BITS2, sums: sums_avx512_vnni, scaled: Some(scaled_avx512_vnni), tiles: TILES }];
    static AVX512_VBMI: &[PanelKernels<Avx512Vbmi>] = &[
        PanelKernels { layout: TRITS, sums: trit_sums_avx512_vbmi, scaled: None, tiles: ["16x1-trits", "32x8-trits"] },
        PanelKernels { layout: BITS2, sums: sums_avx512_vbmi, scaled: Some(scaled_avx512_vbmi), tiles: TILES },
    ];
    const TILES: [&str; 2] = ["16x1", "32x8"];
    Tiers::new(ID, VERSION, KERNEL_REVISION, "AVX-512 F, BW, DQ and VL")
        .tier(Avx512::detect(), AVX512)
        .tier(Avx512Vnni::detect(), AVX512_VNNI)
        .tier(Avx512Vbmi::detect(), AVX512_VBMI)
}

#[cfg(not(target_arch = "x86_64"))]
fn tiers() -> Tiers {
    Tiers::foreign(ID, "AVX-512", "x86-64")
}
