//! x86-64 with AVX2, and AVX-VNNI where the CPU has it.
//!
//! Products of ternary weights and int8 activations are written in intrinsics (`tersor_kernels::arch::x86_64::dots`);
//! everything else is the shared bodies, compiled for AVX2. FMA is never used: the float operations are defined without
//! contraction.
#![forbid(unsafe_code)]

use tersor_core::BackendEntry;
use tersor_core::entry::inventory;

const ID: &str = "cpu-avx2";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const KERNEL_REVISION: u32 = 1;

#[cfg(target_arch = "x86_64")]
use x86::{open, probe};

inventory::submit! {
    BackendEntry { id: ID, version: VERSION, kernel_revision: KERNEL_REVISION, priority: 100, probe, open }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::sync::Arc;

    use tersor_core::{Error, HostContext, Isa, Probe, QuantBackend, Result};
    use tersor_kernels::arch::x86_64::dots;
    use tersor_kernels::backend::cpu_device;
    use tersor_kernels::isa::{Avx2, AvxVnni};
    use tersor_kernels::{CpuBackend, Kernels, Simd, Tile};

    use super::{ID, KERNEL_REVISION, VERSION};

    fn tiers() -> Vec<Isa> {
        [Avx2::detect().map(|_| Isa::Avx2), AvxVnni::detect().map(|_| Isa::AvxVnni)].into_iter().flatten().collect()
    }

    pub(super) fn probe() -> Probe {
        let isas = tiers();
        if isas.is_empty() {
            let reason = "this CPU (or its operating system) does not support AVX2 with F16C and BMI2".into();
            return Probe::Unusable { reason };
        }
        Probe::Usable { devices: vec![cpu_device(isas)] }
    }

    pub(super) fn open(host: &HostContext) -> Result<Arc<dyn QuantBackend>> {
        let unusable = |reason: String| Error::Unusable { backend: ID.into(), reason };
        let tiers = tiers();
        let wanted = match host.isa {
            Some(isa) => isa,
            None => *tiers.last().ok_or_else(|| unusable("no AVX2".into()))?,
        };
        match (wanted, Avx2::detect(), AvxVnni::detect()) {
            (Isa::Avx2, Some(token), _) => Ok(backend(token, dots::avx2, host, tiers)),
            (Isa::AvxVnni, _, Some(token)) => Ok(backend(token, dots::avx_vnni, host, tiers)),
            (Isa::Avx2 | Isa::AvxVnni, ..) => {
                Err(unusable(format!("this CPU (or its operating system) lacks {wanted}")))
            }
            _ => Err(unusable(format!("it has no {wanted} kernels; its tiers are avx2 and avx-vnni"))),
        }
    }

    fn backend<S: Simd>(
        isa: S,
        dots: fn(S, Tile<'_>, &mut [i32]),
        host: &HostContext,
        isas: Vec<Isa>,
    ) -> Arc<dyn QuantBackend> {
        let (gemv_tile, gemm_tile) = (dots::GEMV_TILE, dots::GEMM_TILE);
        let kernels = Kernels { backend: ID, isa, dots, gemv_tile, gemm_tile };
        Arc::new(CpuBackend::new(kernels, host, VERSION, KERNEL_REVISION, cpu_device(isas)))
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn reason() -> String {
    format!("AVX2 is an x86-64 ISA, and this is {}", std::env::consts::ARCH)
}

#[cfg(not(target_arch = "x86_64"))]
fn probe() -> tersor_core::Probe {
    tersor_core::Probe::Unusable { reason: reason() }
}

#[cfg(not(target_arch = "x86_64"))]
fn open(_: &tersor_core::HostContext) -> tersor_core::Result<std::sync::Arc<dyn tersor_core::QuantBackend>> {
    Err(tersor_core::Error::Unusable { backend: ID.into(), reason: reason() })
}
