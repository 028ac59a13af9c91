//! Every backend that is linked into the program, in every ISA tier that this machine has.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tersor_core::{BackendEntry, HostContext, Isa, Probe, QuantBackend, entries};

use crate::{CaseResult, Error, Options, Report, Suite, Threads};

/// One backend, in one tier, with one number of threads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Threads of the executor.
    pub threads: usize,
    /// What was found.
    pub report: Report,
}

/// A backend that was not run, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Backend id.
    pub backend: String,
    /// The probe's reason.
    pub reason: String,
}

/// All runs of a program's backends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegisteredReport {
    /// What was run.
    pub runs: Vec<Run>,
    /// What could not be.
    pub skipped: Vec<Skipped>,
    /// Everything that keeps this from counting as passed, failed cases included.
    pub errors: Vec<Error>,
}

impl RegisteredReport {
    /// The first error, if there is one.
    pub fn into_result(self) -> Result<Self, Error> {
        match self.errors.first() {
            None => Ok(self),
            Some(e) => Err(e.clone()),
        }
    }
}

impl fmt::Display for RegisteredReport {
    /// One table of runs, then what failed or was not supported in each, then what was skipped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "backend      tier          threads  passed  failed  not supported  kernels      ms")?;
        for Run { threads, report } in &self.runs {
            let (passed, failed, not_supported) = report.counts();
            let tier = report.isa.as_deref().unwrap_or("-");
            let millis = report.cases.iter().map(|c| c.micros).sum::<u64>() / 1000;
            let kernels = report.kernels.len();
            let id = &report.backend;
            writeln!(
                f,
                "{id:12} {tier:12} {threads:8} {passed:7} {failed:7} {not_supported:14} {kernels:8} {millis:7}"
            )?;
        }
        for Skipped { backend, reason } in &self.skipped {
            writeln!(f, "{backend:12} SKIPPED: {reason}")?;
        }
        for run in self.runs.iter().filter(|run| run.report.counts().1 + run.report.counts().2 > 0) {
            write!(f, "{} threads: {}", run.threads, run.report)?;
        }
        self.errors.iter().try_for_each(|e| writeln!(f, "ERROR: {e}"))
    }
}

/// What `TERSOR_REQUIRE` names: ISA ids or backend ids, separated by commas. Empty when it is not set.
pub fn required_by_environment() -> Vec<String> {
    let value = std::env::var("TERSOR_REQUIRE").unwrap_or_default();
    value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The tiers that a backend can be opened for on this machine, lowest first; `[None]` for one without tiers, `Err` with the
/// probe's reason for one that is unusable.
pub fn tiers(entry: &BackendEntry) -> Result<Vec<Option<Isa>>, String> {
    match (entry.probe)() {
        Probe::Unusable { reason } => Err(reason),
        Probe::Usable { devices } => {
            let mut isas: Vec<Isa> = devices.into_iter().flat_map(|device| device.isas).collect();
            isas.sort_unstable();
            isas.dedup();
            Ok(if isas.is_empty() { vec![None] } else { isas.into_iter().map(Some).collect() })
        }
    }
}

/// Opens a backend for a tier, on this many threads.
pub fn open(entry: &BackendEntry, isa: Option<Isa>, threads: usize) -> Result<Arc<dyn QuantBackend>, Error> {
    let host = if threads == 1 { HostContext::inline() } else { HostContext::new(Arc::new(Threads::new(threads))) };
    let tier = |isa: Option<Isa>| isa.map_or_else(|| "none".to_owned(), |isa| isa.id().to_owned());
    let backend = (entry.open)(&host.with_isa(isa)).map_err(|source| Error::Open {
        backend: entry.id.into(),
        isa: tier(isa),
        source: Box::new(source),
    })?;
    match (isa, backend.info().isa) {
        (Some(asked), got) if got != Some(asked) => {
            Err(Error::OtherTier { backend: entry.id.into(), asked, got: tier(got) })
        }
        _ => Ok(backend),
    }
}

/// Runs the suite on every registered backend that its probe calls usable, once for each ISA tier of this machine and each
/// number of threads. `required` are ISA ids or backend ids that must be among them, see [`required_by_environment`].
///
/// Nothing is skipped silently: an unusable backend is listed with its reason, and what could not be opened, did not run
/// although it was required, or failed is in [`RegisteredReport::errors`].
pub fn run_all_registered(
    options: &Options,
    threads: &[usize],
    required: &[String],
    on_case: &mut dyn FnMut(&str, &CaseResult),
) -> RegisteredReport {
    let mut all = RegisteredReport::default();
    let suite = Suite::new(options.clone());
    let mut ids = Vec::new();
    for entry in entries() {
        ids.push(entry.id);
        let tiers = match tiers(entry) {
            Ok(tiers) => tiers,
            Err(reason) => {
                all.skipped.push(Skipped { backend: entry.id.into(), reason });
                continue;
            }
        };
        for (isa, &threads) in tiers.iter().flat_map(|isa| threads.iter().map(move |t| (*isa, t))) {
            match open(entry, isa, threads) {
                Ok(backend) => {
                    let report = suite.run(&*backend, &mut |case| on_case(entry.id, case));
                    all.errors.extend(failure(&report, threads));
                    all.runs.push(Run { threads, report });
                }
                Err(e) => all.errors.push(e),
            }
        }
    }
    if ids.is_empty() {
        all.errors.push(Error::NothingRegistered);
    }
    for name in required {
        all.errors.extend(missing(name, &ids, &all.runs));
    }
    all
}

fn failure(report: &Report, threads: usize) -> Option<Error> {
    let first = report.failures().next()?;
    Some(Error::Failed {
        backend: report.backend.clone(),
        isa: report.isa.clone().unwrap_or_else(|| "none".into()),
        threads,
        failed: report.counts().1,
        cases: report.cases.len(),
        first: format!("{}: {}", first.name, first.failure().unwrap_or_default()),
    })
}

fn missing(name: &str, ids: &[&str], runs: &[Run]) -> Option<Error> {
    if !Isa::ALL.iter().any(|isa| isa.id() == name) && !ids.contains(&name) {
        return Some(Error::UnknownRequirement {
            given: name.into(),
            isas: Isa::ALL.map(Isa::id).join(", "),
            backends: ids.join(", "),
        });
    }
    let mut ran: Vec<&str> =
        runs.iter().flat_map(|r| [Some(r.report.backend.as_str()), r.report.isa.as_deref()]).flatten().collect();
    ran.sort_unstable();
    ran.dedup();
    (!ran.contains(&name)).then(|| Error::RequiredNotRun { missing: name.into(), ran: ran.join(", ") })
}
