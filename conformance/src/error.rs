//! What can go wrong with a run as a whole. A case that fails is no error of the kit: it is in the report.

use tersor_core::Isa;

/// Why a run over backends does not count as passed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No backend is linked into the program.
    #[error(
        "no backend is registered; name the crates of the backends, as in `use tersor_backend_scalar as _;`, or the linker drops them"
    )]
    NothingRegistered,
    /// A name in `TERSOR_REQUIRE` that is neither an ISA nor a registered backend.
    #[error("TERSOR_REQUIRE names {given:?}, which is neither an ISA ({isas}) nor a registered backend ({backends})")]
    UnknownRequirement {
        /// The name.
        given: String,
        /// Every ISA id.
        isas: String,
        /// Ids of the registered backends.
        backends: String,
    },
    /// A backend that its probe calls usable could not be opened.
    #[error("backend {backend} (ISA tier: {isa}): the probe says it is usable, but it cannot be opened: {source}")]
    Open {
        /// Backend id.
        backend: String,
        /// The tier asked for.
        isa: String,
        /// What `open` answered.
        source: Box<tersor_core::Error>,
    },
    /// A backend that was asked for one ISA tier took another.
    #[error("backend {backend} was opened for ISA tier {asked} and says that it runs {got}")]
    OtherTier {
        /// Backend id.
        backend: String,
        /// The tier that was forced.
        asked: Isa,
        /// What [`tersor_core::BackendInfo::isa`] says.
        got: String,
    },
    /// Something that `TERSOR_REQUIRE` names was run by no backend.
    #[error("TERSOR_REQUIRE names {missing}, which no backend here ran; it ran: {ran}")]
    RequiredNotRun {
        /// The ISA or backend.
        missing: String,
        /// ISAs and backends that were run.
        ran: String,
    },
    /// Cases failed.
    #[error(
        "backend {backend} (ISA tier: {isa}, {threads} threads): {failed} of {cases} cases failed, the first: {first}"
    )]
    Failed {
        /// Backend id.
        backend: String,
        /// Its tier.
        isa: String,
        /// Threads it ran with.
        threads: usize,
        /// Number of failed cases.
        failed: usize,
        /// Number of cases.
        cases: usize,
        /// Name and message of the first failed case.
        first: String,
    },
}
