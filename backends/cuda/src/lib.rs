//! NVIDIA GPUs through `cudarc`, the driver loaded at run time.
//!
//! The probe is real: it loads the driver, asks for its version and its devices, and creates no context. Kernels are not
//! built yet, so opening the backend is an error that says so.
#![deny(unsafe_code)]

use std::sync::Arc;

use tersor_core::entry::inventory;
use tersor_core::{BackendEntry, Error, HostContext, Probe, QuantBackend, Result};

mod probe;

const ID: &str = "cuda";

inventory::submit! {
    BackendEntry { id: ID, version: env!("CARGO_PKG_VERSION"), kernel_revision: 0, priority: 200, probe: probe::probe, open }
}

fn open(_: &HostContext) -> Result<Arc<dyn QuantBackend>> {
    let Probe::Unusable { reason } = probe::probe() else {
        return Err(Error::Unusable { backend: ID.into(), reason: probe::NOT_BUILT.into() });
    };
    Err(Error::Unusable { backend: ID.into(), reason })
}
