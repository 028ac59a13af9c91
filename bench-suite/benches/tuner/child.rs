//! A process of its own, and what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tersor::core::{Format, OpSpec};
use tersor::registry::tune::{Basis, Contender, Effort, Key, Resolved, Route, Workload};

use crate::altered::{Alter, Altered};
use crate::work::{self, Work};
use crate::{Outcome, crash};

/// What a start decided and how long that took.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Probing, threads.
    pub(crate) build: Duration,
    /// Opening candidates, reading the cache, measuring, choosing.
    pub(crate) select: Duration,
    pub(crate) routes: Vec<Decided>,
}

/// The choice for one product.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Decided {
    pub(crate) key: String,
    /// Who runs.
    pub(crate) chosen: String,
    /// Who won: another one, where a packing had to serve several numbers of rows.
    pub(crate) winner: String,
    pub(crate) measured: bool,
    /// Why it was not.
    pub(crate) reason: String,
}

impl From<&Route> for Decided {
    fn from(route: &Route) -> Self {
        let winner = route.basis.record().map_or_else(|| route.chosen.clone(), |record| record.winner.name());
        let measured = route.basis.record().is_some();
        let reason = if let Basis::Static { reason } = &route.basis { reason.clone() } else { String::new() };
        Decided { key: route.key.clone(), chosen: route.chosen.clone(), winner, measured, reason }
    }
}

/// Starts this program as a child.
pub(crate) fn command(kind: &str, directory: &Path) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["child", kind]).arg(directory).stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
}

fn answer<T: serde::de::DeserializeOwned>(mut command: Command) -> Outcome<T> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?} ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A start that keeps its cache in `directory`.
pub(crate) fn select(directory: &Path) -> Outcome<Answer> {
    answer(command("select", directory)?)
}

/// `tersor tune`: whatever is missing is measured.
pub(crate) fn full(directory: &Path) -> Outcome<Answer> {
    answer(command("full", directory)?)
}

/// One product, of a good candidate and of one with a fault, which comes first in the fixed order or last.
pub(crate) fn planted(kind: &str, directory: &Path, first: bool) -> Outcome<Decided> {
    let mut command = command(kind, directory)?;
    command.arg(if first { "first" } else { "last" });
    answer(command)
}

/// The child's side.
pub(crate) fn run(kind: &str, args: &[&str]) -> Outcome<()> {
    let directory = PathBuf::from(args.first().ok_or("a directory is needed")?);
    match (kind, args) {
        ("select", _) => say(&start(&directory, "", None)?),
        ("alone", _) => say(&start(&directory, "threads.count = 1", None)?),
        ("full", _) => say(&start(&directory, "", Some(Effort::Unlimited))?),
        ("write", _) => crash::write(&directory),
        ("slow", [_, place]) => say(&race(&directory, Alter::Slower(1.1), *place == "first")?),
        ("wrong", [_, place]) => say(&race(&directory, Alter::Wrong, *place == "first")?),
        _ => Err(format!("there is no child {kind:?}").into()),
    }
}

fn say(answer: &impl Serialize) -> Outcome<()> {
    println!("{}", serde_json::to_string(answer)?);
    Ok(())
}

fn start(directory: &Path, lines: &str, effort: Option<Effort>) -> Outcome<Answer> {
    let work = Work::of_the_embedded_model()?;
    let workload = Workload { specs: &work.specs, weight_bytes: Some(work.bytes) };
    let begun = Instant::now();
    let registry = work::registry_with(directory, lines)?;
    let build = begun.elapsed();
    let begun = Instant::now();
    let choice = match effort {
        None => registry.select_for(&workload)?,
        Some(effort) => registry.measure(&workload, effort, &mut |_, _| ())?,
    };
    let select = begun.elapsed();
    Ok(Answer { build, select, routes: choice.decision.routes.iter().map(Decided::from).collect() })
}

/// The good one is what static priority says, on one thread: on several, the pause that makes a kernel slower is hidden in
/// what the pool does between two jobs, and some processes measured, rightly, that nothing had become slower.
fn race(directory: &Path, alter: Alter, altered_first: bool) -> Outcome<Decided> {
    let registry = work::registry_with(directory, "threads.count = 1")?;
    let spec = OpSpec::matmul(Format::I2S, 1, 1536, 512);
    let good = work::first(&registry, &[spec])?;
    let bad = Arc::new(Altered::new(good.clone(), alter));
    let (good, bad) = (Contender::new(good), Contender::new(bad));
    let all = if altered_first { [bad, good] } else { [good, bad] };
    let key = Key::of(&spec, registry.host().executor().threads()).ok_or("a product has a key")?;
    let work = Work::of_the_embedded_model()?;
    let resolved = registry.tuner().resolve(&[key], &all, Some(work.bytes), Effort::Missing, |_| ());
    let Resolved { chosen, basis, .. } = resolved.into_iter().next().ok_or("one key, one choice")?;
    let (winner, measured) = (all[chosen].name(), basis.record().is_some());
    let reason = if let Basis::Static { reason } = basis { reason } else { String::new() };
    Ok(Decided { key: key.id(), chosen: winner.clone(), winner, measured, reason })
}
