//! NVIDIA GPUs through `cudarc`, the driver loaded at run time.
//!
//! Kernels are CUDA C++ in `kernels/`, compiled ahead of time and embedded: cubins for compute capability 8.x and 9.0 (one more for
//! instructions that 9.0 alone has, with a kernel behind each that does without), PTX for the driver to compile on anything newer.
//! Building this crate needs no toolkit, running it nothing but a driver.
//!
//! * `probe` asks the driver what there is and creates no context.
//! * `driver` is the only module that calls the driver's C functions; every call's result is checked there.
//! * `memory` is the pool that buffers come from; `pack` the layout of weights.
//! * `many_rows` chooses the tile of products of many rows.
//! * `queue` and `groups` let neighbouring launches become one, `placement` says where the blocks of some lie, `batch` sends them
//!   off together, as CUDA graphs where they recur.
//! * `stream` turns checked ops into launches; `ops` has one file for each family of kernels.
//! * `faults` is what becomes of data that cannot be rounded; `ahead` lets the host submit a step before it has seen the last.
//! * `staging` is how large copies keep the link busy: page-locked slots, streams of their own.
//!
//! The kernels of all streams of a backend share one CUDA stream, so memory that is given back can be taken again without
//! waiting, and what one stream wrote another may read. Large copies run beside it, one in each direction: `staging` says what
//! keeps them in order. Work is asynchronous: data that cannot be rounded (a NaN, say) is reported by the next `synchronize`
//! or download, by the first failing element of the first failing op; by a download that was begun, if it was in the ops before it.
//!
//! Every float operation follows the order of `tersor_core::reference`, so results are bit-identical to the CPU backends'.

use std::sync::Arc;

use tersor_core::entry::inventory;
use tersor_core::{BackendEntry, Error, HostContext, Probe, QuantBackend, Result};

mod ahead;
mod backend;
mod batch;
mod driver;
mod faults;
mod groups;
mod many_rows;
mod memory;
mod names;
mod ops;
mod pack;
mod placement;
mod probe;
mod queue;
mod staging;
mod stream;

pub use backend::CudaBackend;
pub use memory::Counters;

const ID: &str = "cuda";

/// Raised whenever a kernel changes.
const KERNEL_REVISION: u32 = 14;

inventory::submit! {
    BackendEntry {
        id: ID,
        version: env!("CARGO_PKG_VERSION"),
        kernel_revision: KERNEL_REVISION,
        priority: 200,
        probe: probe::probe,
        open,
    }
}

fn open(host: &HostContext) -> Result<Arc<dyn QuantBackend>> {
    let index = match (host.device, probe::probe()) {
        (Some(index), _) => index,
        (None, Probe::Usable { devices }) => devices.first().map_or(0, |d| d.index),
        (None, Probe::Unusable { reason }) => return Err(Error::Unusable { backend: ID.into(), reason }),
    };
    Ok(Arc::new(open_device(index, host)?))
}

/// Opens the GPU with this number among those that the driver shows (`CUDA_VISIBLE_DEVICES` decides which those are).
///
/// # Errors
/// [`Error::Unusable`] where there is no such GPU or it is too old, [`Error::Device`] where the driver fails.
pub fn open_device(index: usize, host: &HostContext) -> Result<CudaBackend> {
    open_as(index, host, false)
}

/// The same with the kernels of GPUs that are newer than every embedded cubin: PTX, which the driver compiles now, and none of
/// those that compute capability 9.0 alone has. Results are the same, slower; so that these kernels can be checked on a GPU
/// that has a cubin.
///
/// # Errors
/// As [`open_device`].
pub fn open_portable(index: usize, host: &HostContext) -> Result<CudaBackend> {
    open_as(index, host, true)
}

fn open_as(index: usize, host: &HostContext, portable: bool) -> Result<CudaBackend> {
    let unusable = |reason| Error::Unusable { backend: ID.into(), reason };
    let devices = match probe::probe() {
        Probe::Unusable { reason } => return Err(unusable(reason)),
        Probe::Usable { devices } => devices,
    };
    if let Some(isa) = host.isa {
        return Err(unusable(format!("it has no ISA tier {isa}")));
    }
    let known: Vec<String> = devices.iter().map(|d| format!("{} ({})", d.index, d.name)).collect();
    match devices.into_iter().find(|d| d.index == index) {
        Some(device) => CudaBackend::open(device, host, portable),
        None => Err(unusable(format!("there is no supported GPU number {index}; there are: {}", known.join(", ")))),
    }
}
