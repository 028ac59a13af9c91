//! Who takes part in a measurement.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tersor_core::{Isa, OpSpec, QuantBackend, Support};

/// Compiler, target and profile of this program. Times of kernels that were built otherwise are not believed.
pub const BUILD_ID: &str = env!("TERSOR_BUILD_ID");

/// A kernel, by everything that its speed depends on but the machine. Winners are remembered by this, never by a number
/// in a list: a kernel that was rewritten has another identity and is measured again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Backend id.
    pub backend: String,
    /// The ISA tier that the backend was opened at; `None` for portable code.
    pub isa: Option<String>,
    /// Threads that it may use; `None` for all of the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Name of the kernel.
    pub kernel: String,
    /// Kernel revision of the backend's entry.
    pub revision: u32,
    /// [`BUILD_ID`].
    pub build: String,
}

impl Identity {
    /// Backend, tier and, where it does not use all threads, their number: `cpu-avx512/avx512-vnni`, `scalar@1t`.
    pub fn name(&self) -> String {
        name(&self.backend, self.isa.as_deref(), self.threads)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

fn name(backend: &str, isa: Option<&str>, threads: Option<usize>) -> String {
    let isa = isa.map(|isa| format!("/{isa}")).unwrap_or_default();
    let threads = threads.map(|n| format!("@{n}t")).unwrap_or_default();
    format!("{backend}{isa}{threads}")
}

/// A backend at one tier with so many threads, ready to work.
#[derive(Debug, Clone)]
pub struct Contender {
    /// The backend.
    pub backend: Arc<dyn QuantBackend>,
    /// Its tier.
    pub isa: Option<Isa>,
    /// Threads that it may use; `None` for all of the pool's.
    pub threads: Option<usize>,
    /// Compiler and profile, or what else tells builds of it apart.
    pub build: String,
}

impl Contender {
    /// A backend of this program.
    pub fn new(backend: Arc<dyn QuantBackend>) -> Self {
        let isa = backend.info().isa;
        let build = format!("{}; {BUILD_ID}", backend.info().version);
        Contender { backend, isa, threads: None, build }
    }

    /// The same, known to have been opened with fewer threads than the pool has.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Backend, tier and, where it does not use all threads, their number.
    pub fn name(&self) -> String {
        name(&self.backend.info().id, self.isa.map(Isa::id), self.threads)
    }

    /// Who would run `spec`, or why it cannot.
    pub fn identity(&self, spec: &OpSpec) -> Result<Identity, String> {
        match self.backend.supports(spec) {
            Support::No { reason } => Err(reason),
            Support::Yes { kernel } => Ok(Identity {
                backend: self.backend.info().id.to_string(),
                isa: self.isa.map(|isa| isa.id().to_owned()),
                threads: self.threads,
                kernel: kernel.to_owned(),
                revision: self.backend.info().kernel_revision,
                build: self.build.clone(),
            }),
        }
    }
}
