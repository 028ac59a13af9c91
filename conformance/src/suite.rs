//! The case list, run on one backend.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use tersor_core::QuantBackend;

use crate::cases::{self, Case};
use crate::ledger::Ledger;
use crate::report::{CaseResult, Outcome, Report};
use crate::rig::{Rig, Stop};
use crate::rng::Rng;

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Profile {
    /// Every kind of case, at most shapes: seconds.
    #[default]
    Quick,
    /// More shapes and larger ones: a minute or two.
    Full,
}

impl Profile {
    /// `quick` or `full`.
    pub const fn id(self) -> &'static str {
        match self {
            Profile::Quick => "quick",
            Profile::Full => "full",
        }
    }
}

/// What is run, and on which data.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Seed of all data. A case's data depends on the seed and the case's name alone.
    pub seed: u64,
    /// How much is run.
    pub profile: Profile,
    /// Run only cases whose names contain one of these; empty: all. For work on a single kernel: a backend conforms only
    /// when everything ran.
    pub only: Vec<String>,
}

impl Options {
    /// The quick profile with seed 0.
    pub fn quick() -> Self {
        Self::default()
    }

    /// The full profile with seed 0.
    pub fn full() -> Self {
        Options { profile: Profile::Full, ..Self::default() }
    }

    /// The same with another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same for cases whose names contain one of `parts`.
    pub fn with_only(mut self, parts: &[&str]) -> Self {
        self.only = parts.iter().map(|p| (*p).to_owned()).collect();
        self
    }
}

/// The case list.
#[derive(Debug, Clone, Default)]
pub struct Suite {
    options: Options,
}

impl Suite {
    /// The cases of these options.
    pub fn new(options: Options) -> Self {
        Suite { options }
    }

    fn cases(&self) -> impl Iterator<Item = Case> {
        let only = &self.options.only;
        let chosen = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
        cases::list(self.options.profile).into_iter().filter(move |case| chosen(&case.name))
    }

    /// Names of the cases, in order. `supports/...` and `kernel-names/...` are judged over the whole run and come after
    /// these.
    pub fn names(&self) -> Vec<String> {
        self.cases().map(|case| case.name).collect()
    }

    /// Judges a backend. `on_case` sees each result as it comes.
    ///
    /// A backend that panics fails the case; the panic goes no further.
    pub fn run(&self, backend: &dyn QuantBackend, on_case: &mut dyn FnMut(&CaseResult)) -> Report {
        let info = backend.info();
        let mut ledger = Ledger::default();
        let mut kernels = BTreeSet::new();
        let mut cases = Vec::new();
        let mut add = |result: CaseResult| {
            on_case(&result);
            cases.push(result);
        };
        for case in self.cases() {
            let started = Instant::now();
            let (outcome, used) = self.run_case(&case, backend, &mut ledger);
            let micros = started.elapsed().as_micros() as u64;
            kernels.extend(used.iter().copied());
            let used = used.into_iter().map(str::to_owned).collect();
            add(CaseResult { name: case.name, outcome, kernels: used, micros });
        }
        for (name, outcome) in ledger.verdicts() {
            add(CaseResult { name, outcome, kernels: Vec::new(), micros: 0 });
        }
        Report {
            backend: info.id.to_string(),
            version: info.version.to_string(),
            kernel_revision: info.kernel_revision,
            device: info.device.name.clone(),
            isa: info.isa.map(|isa| isa.id().to_owned()),
            profile: self.options.profile.id().to_owned(),
            seed: self.options.seed,
            kernels: kernels.into_iter().map(str::to_owned).collect(),
            cases,
        }
    }

    fn run_case(
        &self,
        case: &Case,
        backend: &dyn QuantBackend,
        ledger: &mut Ledger,
    ) -> (Outcome, BTreeSet<&'static str>) {
        let rng = Rng::new(self.options.seed, &case.name);
        // The rig is dropped with its stream, so nothing that a panic left half done is used again.
        let run = catch_unwind(AssertUnwindSafe(|| {
            let mut rig = Rig::new(backend, ledger, rng)?;
            let verdict = (case.run)(&mut rig);
            verdict.map(|()| rig.kernels)
        }));
        match run {
            Ok(Ok(kernels)) => (Outcome::Passed, kernels),
            Ok(Err(Stop::Failed(message))) => (Outcome::Failed { message }, BTreeSet::new()),
            Ok(Err(Stop::NotSupported(reason))) => (Outcome::NotSupported { reason }, BTreeSet::new()),
            Err(payload) => {
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("with no message");
                (Outcome::Failed { message: format!("panicked: {text}") }, BTreeSet::new())
            }
        }
    }
}
