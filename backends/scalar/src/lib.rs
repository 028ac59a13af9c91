//! The portable backend: every format and op, in code that any compiler can vectorise and any CPU can run.
//!
//! It assumes nothing beyond the compilation target (SSE2 on x86-64, NEON on AArch64), and is what every other backend is
//! compared with. Its bodies are those of `tersor-kernels`, run through the [`Portable`] token.
#![forbid(unsafe_code)]

use std::sync::Arc;

use tersor_core::entry::inventory;
use tersor_core::{BackendEntry, Error, Probe};
use tersor_kernels::backend::cpu_device;
use tersor_kernels::{CpuBackend, Kernels, Portable};

const ID: &str = "scalar";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const KERNEL_REVISION: u32 = 1;

inventory::submit! {
    BackendEntry {
        id: ID,
        version: VERSION,
        kernel_revision: KERNEL_REVISION,
        priority: 0,
        probe: || Probe::Usable { devices: vec![cpu_device(Vec::new())] },
        open: |host| match host.isa {
            None => Ok(Arc::new(CpuBackend::new(
                Kernels::shared(ID, Portable),
                host,
                VERSION,
                KERNEL_REVISION,
                cpu_device(Vec::new()),
            ))),
            Some(isa) => {
                Err(Error::Unusable { backend: ID.into(), reason: format!("it has no {isa} kernels; it is portable code") })
            }
        },
    }
}
