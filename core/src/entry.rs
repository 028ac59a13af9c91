//! How a backend announces itself.

use std::fmt;
use std::sync::Arc;

use crate::{HostContext, Isa, QuantBackend, Result};

/// What kind of processor a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The host's own cores; its memory is host memory.
    Cpu,
    /// A GPU with memory of its own.
    Gpu,
}

/// One processor that a backend can use.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// Number among the backend's devices.
    pub index: usize,
    /// CPU or GPU.
    pub kind: DeviceKind,
    /// The maker's name for it.
    pub name: String,
    /// The instruction set tiers usable here, lowest first; empty for GPUs and for portable code.
    pub isas: Vec<Isa>,
    /// Bytes of memory of its own; `None` where it shares the host's.
    pub memory: Option<u64>,
}

/// Whether a backend can be used on this machine. Always with a reason.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// It can, on these devices (at least one).
    Usable {
        /// The devices.
        devices: Vec<DeviceInfo>,
    },
    /// It cannot.
    Unusable {
        /// Why not, in words for a person.
        reason: String,
    },
}

/// A backend's entry in the list of backends: plain data, submitted with `inventory::submit!`.
///
/// A backend of another architecture still has an entry, whose probe says why it is unusable: nothing is left out of the
/// list. A dependency that no code mentions is not linked, so a crate that wants the entry must name the backend's crate
/// (`use tersor_backend_scalar as _;`); the `tersor` crate does that for every backend in this repository.
///
/// ```
/// use std::sync::Arc;
/// use tersor_core::{BackendEntry, Error, Probe};
///
/// static ENTRY: BackendEntry = BackendEntry {
///     id: "acme-npu",
///     version: env!("CARGO_PKG_VERSION"),
///     kernel_revision: 1,
///     priority: 50,
///     probe: || Probe::Unusable { reason: "no device file /dev/acme0".into() },
///     open: |_host| Err(Error::Unusable { backend: "acme-npu".into(), reason: "no device file /dev/acme0".into() }),
/// };
/// tersor_core::entry::inventory::submit! { ENTRY }
///
/// assert!(tersor_core::entries().any(|e| e.id == "acme-npu"));
/// ```
#[derive(Clone, Copy)]
pub struct BackendEntry {
    /// Unique id, in lower case with hyphens.
    pub id: &'static str,
    /// Version of the crate that holds it.
    pub version: &'static str,
    /// Raised whenever a kernel changes, so that old measurements of it are not believed.
    pub kernel_revision: u32,
    /// Rank where nothing has been measured: the highest usable one wins.
    pub priority: i32,
    /// Cheap, executes no instruction that it asks about, creates no GPU context.
    pub probe: fn() -> Probe,
    /// Makes the backend ready to work.
    pub open: fn(&HostContext) -> Result<Arc<dyn QuantBackend>>,
}

impl fmt::Debug for BackendEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendEntry")
            .field("id", &self.id)
            .field("version", &self.version)
            .field("kernel_revision", &self.kernel_revision)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

pub use inventory;
inventory::collect!(BackendEntry);

/// Every entry that is linked into this program, highest priority first, then by id.
pub fn entries() -> impl Iterator<Item = &'static BackendEntry> {
    let mut all: Vec<_> = inventory::iter::<BackendEntry>.into_iter().collect();
    all.sort_by(|a, b| b.priority.cmp(&a.priority).then(a.id.cmp(b.id)));
    all.into_iter()
}
