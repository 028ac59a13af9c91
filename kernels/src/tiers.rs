//! The tiers of a backend: probing and opening, written once for every ISA family.

use std::sync::Arc;

use tersor_core::{Error, HostContext, Isa, Probe, QuantBackend, Result};

use crate::backend::{CpuBackend, Kernels, PanelKernels, cpu_device};
use crate::isa::Simd;

type Open = Box<dyn FnOnce(&HostContext, Vec<Isa>) -> Arc<dyn QuantBackend>>;

/// The tiers of one backend, lowest first, and which of them this machine has.
pub struct Tiers {
    backend: &'static str,
    version: &'static str,
    kernel_revision: u32,
    /// Why nothing can run, if nothing can.
    lacking: String,
    tiers: Vec<(Isa, Option<Open>)>,
}

impl Tiers {
    /// A backend whose lowest tier needs `needs`. `version` and `kernel_revision` are the entry's.
    pub fn new(backend: &'static str, version: &'static str, kernel_revision: u32, needs: &str) -> Self {
        let lacking = format!("this CPU (or its operating system) does not support {needs}");
        Tiers { backend, version, kernel_revision, lacking, tiers: Vec::new() }
    }

    /// A backend of another architecture than this program's.
    pub fn foreign(backend: &'static str, family: &str, architecture: &str) -> Self {
        let lacking =
            format!("{family} is an ISA of {architecture}, and this program is for {}", std::env::consts::ARCH);
        Tiers { backend, version: "", kernel_revision: 0, lacking, tiers: Vec::new() }
    }

    /// Adds the next higher tier: its token, if the machine has it, and its products, preferred first.
    pub fn tier<S: Simd>(mut self, token: Option<S>, panels: &'static [PanelKernels<S>]) -> Self {
        let (backend, version, revision) = (self.backend, self.version, self.kernel_revision);
        if let Some(isa) = S::ISA {
            let open = token.map(|isa| {
                let kernels = Kernels { backend, isa, panels };
                Box::new(move |host: &HostContext, isas| {
                    Arc::new(CpuBackend::new(kernels, host, version, revision, cpu_device(isas)))
                        as Arc<dyn QuantBackend>
                }) as Open
            });
            self.tiers.push((isa, open));
        }
        self
    }

    fn usable(&self) -> Vec<Isa> {
        self.tiers.iter().filter(|(_, open)| open.is_some()).map(|(isa, _)| *isa).collect()
    }

    /// For [`tersor_core::BackendEntry::probe`].
    pub fn probe(self) -> Probe {
        match self.usable() {
            none if none.is_empty() => Probe::Unusable { reason: self.lacking },
            isas => Probe::Usable { devices: vec![cpu_device(isas)] },
        }
    }

    /// For [`tersor_core::BackendEntry::open`]: the tier that the host wants, or the highest there is.
    pub fn open(self, host: &HostContext) -> Result<Arc<dyn QuantBackend>> {
        let (usable, backend) = (self.usable(), self.backend);
        let unusable = |reason| Error::Unusable { backend: backend.into(), reason };
        let known: Vec<_> = self.tiers.iter().map(|(isa, _)| isa.id()).collect();
        let wanted = match (host.isa, usable.last()) {
            (Some(isa), _) if !known.is_empty() && !known.contains(&isa.id()) => {
                return Err(unusable(format!("it has no {isa} kernels; its tiers are {}", known.join(", "))));
            }
            (_, None) => return Err(unusable(self.lacking)),
            (Some(isa), _) => isa,
            (None, Some(highest)) => *highest,
        };
        match self.tiers.into_iter().find(|(isa, _)| *isa == wanted) {
            Some((_, Some(open))) => Ok(open(host, usable)),
            _ => Err(unusable(format!("this CPU (or its operating system) lacks {wanted}"))),
        }
    }
}

impl std::fmt::Debug for Tiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiers").field("backend", &self.backend).field("usable", &self.usable()).finish_non_exhaustive()
    }
}
