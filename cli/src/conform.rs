//! `tersor conform`: the case list of the backends of this repository, for one from a file.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tersor::core::{HostContext, Probe};
use tersor::registry::plugins::{About, Loader};
use tersor_abi::host::PluginBackend;
use tersor_abi::host::abuse::{self, Ended};
use tersor_conformance::{Options, Outcome, Report, Suite, Threads};

use crate::context::{Context, print_json, stdout};
use crate::failure::{Exit, Failure};
use crate::plugins::refused;

/// Judge a plugin by the cases that judge the backends of this repository
///
/// The plugin runs in this process. Exit code 0: every backend that can be used here conforms, and there is one; 1 otherwise.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor conform ./acme.toml                       every kind of case: seconds
  tersor conform ./acme.toml --full --json > a.json  more shapes and larger ones, as a report to publish")]
pub(crate) struct Args {
    /// The plugin's manifest
    manifest: PathBuf,
    /// More shapes and larger ones
    #[arg(long)]
    full: bool,
    /// Seed of all data
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Run {
    threads: usize,
    conforms: bool,
    report: Report,
}

/// A case of the boundary itself: `abi_abuse/...` and `panic/...`.
#[derive(Debug, Serialize)]
struct Boundary {
    backend: &'static str,
    name: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Boundary {
    fn of(backend: &PluginBackend) -> impl Iterator<Item = Boundary> {
        let id = backend.id;
        abuse::cases(backend).into_iter().map(move |(name, ended)| {
            let outcome = match ended {
                Ended::Passed => Outcome::Passed,
                Ended::Failed(message) => Outcome::Failed { message },
                Ended::NotTried(reason) => Outcome::NotSupported { reason },
            };
            Boundary { backend: id, name, outcome }
        })
    }

    fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. })
    }
}

#[derive(Debug, Serialize)]
struct Judgement {
    plugin: About,
    sha256: String,
    abi_minor: u32,
    conforms: bool,
    runs: Vec<Run>,
    /// What only a backend from outside has to survive.
    boundary: Vec<Boundary>,
    /// Backends that were not judged, and why.
    not_run: Vec<(&'static str, String)>,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let file = args.manifest.canonicalize().map_err(Failure::file("open", &args.manifest))?;
    let vetted = match Loader::new(&context.config).vet(&file) {
        Ok(vetted) => vetted,
        Err(e) => return refused(context, &e),
    };
    let plugin = match vetted.open() {
        Ok(plugin) => plugin,
        Err(e) => return refused(context, &e),
    };
    let options = if args.full { Options::full() } else { Options::quick() };
    let suite = Suite::new(options.with_seed(args.seed));
    let (mut runs, mut boundary, mut not_run) = (Vec::new(), Vec::new(), Vec::new());
    for backend in &plugin.backends {
        if let Probe::Unusable { reason } = backend.probe() {
            not_run.push((backend.id, reason));
            continue;
        }
        for threads in [1, 3] {
            match backend.open(&HostContext::new(Arc::new(Threads::new(threads)))) {
                Ok(opened) => {
                    let report = suite.run(&*opened, &mut |_| {});
                    runs.push(Run { threads, conforms: report.conforms(), report });
                }
                // It said that it is usable.
                Err(e) => return Err(e.into()),
            }
        }
        boundary.extend(Boundary::of(backend));
    }
    let conforms = !runs.is_empty() && runs.iter().all(|run| run.conforms) && !boundary.iter().any(Boundary::failed);
    let abi_minor = plugin.abi_minor;
    let (plugin, sha256) = (vetted.manifest.plugin, vetted.library.sha256);
    let judgement = Judgement { plugin, sha256, abi_minor, conforms, runs, boundary, not_run };
    if context.json {
        print_json(&judgement)?;
    } else {
        print(&judgement)?;
    }
    Ok(if conforms { Exit::Done } else { Exit::Failed })
}

fn print(judgement: &Judgement) -> Result<(), Failure> {
    let mut out = stdout();
    let About { name, version, .. } = &judgement.plugin;
    writeln!(out, "{name} {version}, sha256 {}", judgement.sha256)?;
    for run in &judgement.runs {
        write!(out, "{} threads: {}", run.threads, run.report)?;
    }
    for case in &judgement.boundary {
        match &case.outcome {
            Outcome::Passed => writeln!(out, "{} {}: passed", case.backend, case.name)?,
            Outcome::Failed { message } => writeln!(out, "{} {}: FAILED: {message}", case.backend, case.name)?,
            Outcome::NotSupported { reason } => writeln!(out, "{} {}: not tried: {reason}", case.backend, case.name)?,
        }
    }
    for (id, reason) in &judgement.not_run {
        writeln!(out, "{id} NOT JUDGED: {reason}")?;
    }
    writeln!(out, "{}", if judgement.conforms { "conforms" } else { "DOES NOT CONFORM" })?;
    Ok(out.flush()?)
}
