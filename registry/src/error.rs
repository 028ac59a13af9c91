//! What can go wrong before work starts.

use crate::decision::Rejected;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of discovery, selection or configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No backend is linked into this program.
    #[error(
        "no backend is linked into this program: a dependency that no code mentions is dropped by the linker; depend on \
         the `tersor` crate, or write `use tersor_backend_scalar as _;`"
    )]
    Empty,
    /// Two entries with one id.
    #[error("two backends call themselves {id:?}; ids must be unique")]
    Duplicate {
        /// The id.
        id: &'static str,
    },
    /// A backend id that nothing provides.
    #[error("{asked_by} names backend {given:?}, which is not in this program; known: {known}")]
    UnknownBackend {
        /// The id given.
        given: String,
        /// Who gave it: a key with its origin, or an argument.
        asked_by: String,
        /// The ids that exist.
        known: String,
    },
    /// Nothing can run what was asked.
    #[error("no backend for {what}{}", list(.rejected))]
    NoCandidate {
        /// What was to be run.
        what: String,
        /// Every backend with its reason.
        rejected: Vec<Rejected>,
    },
    /// The thread pool could not be started.
    #[error(transparent)]
    Threads(#[from] tersor_pool::Error),
    /// A backend's own error.
    #[error(transparent)]
    Core(#[from] tersor_core::Error),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
}

fn list(rejected: &[Rejected]) -> String {
    rejected.iter().map(|r| format!("\n  {}: {}", r.id, r.reason)).collect()
}
