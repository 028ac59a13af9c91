//! `tersor doctor`: what this machine offers, what is left unused, and why.

use std::io::Write;
use std::sync::Arc;

use serde::Serialize;
use tersor::Registry;
use tersor::core::{Executor, Inline, Probe, QuantBackend};
use tersor::registry::Pool;
use tersor::registry::config::TuneMode;
use tersor_bench::limits;
use tersor_bench::machine::Machine;
use tersor_bench::report::LimitKind;

use crate::args::Place;
use crate::context::{Context, stdout};
use crate::failure::{Exit, Failure};
use crate::text;

/// Say what this machine offers, what is left unused and why, for someone who wants it faster
///
/// Memory bandwidth is measured, which takes a few seconds and a quarter more memory than the largest cache has.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor doctor
  tersor doctor --threads 1
  tersor doctor --json | jq '.findings[] | select(.advice != null)'")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    /// Bytes a second read from memory, by number of threads.
    bandwidth: Vec<(usize, f64)>,
    findings: Vec<Finding>,
}

/// Something that matters for speed.
#[derive(Debug, Serialize)]
struct Finding {
    about: &'static str,
    found: String,
    /// What would make it faster; null where nothing is left unused.
    advice: Option<String>,
}

fn fine(about: &'static str, found: impl Into<String>) -> Finding {
    Finding { about, found: found.into(), advice: None }
}

fn could(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { about, found: found.into(), advice: Some(advice.into()) }
}

pub(crate) fn run(context: &Context, _: &Args) -> Result<Exit, Failure> {
    let registry = context.registry()?;
    let machine = Machine::detect();
    let mut findings = vec![caches(&machine)];
    findings.extend(backends(&registry));
    findings.push(threads(&registry, &machine));
    findings.push(huge_pages());
    findings.push(tuning(&registry));
    let bandwidth = bandwidth(&registry, &machine);
    findings.push(bus(&bandwidth));
    findings.extend(gpus(&registry));
    let report = Report { machine, bandwidth, findings };
    if context.json {
        context.print_json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(Exit::Done)
}

fn print(report: &Report) -> Result<(), Failure> {
    let mut out = stdout();
    writeln!(out, "{}, {}, {} of memory", report.machine.cpu, report.machine.os, text::bytes(report.machine.memory))?;
    for finding in &report.findings {
        writeln!(out, "{}: {}", finding.about, finding.found)?;
        if let Some(advice) = &finding.advice {
            writeln!(out, "  faster: {advice}")?;
        }
    }
    Ok(out.flush()?)
}

fn caches(machine: &Machine) -> Finding {
    let list: Vec<String> = machine
        .caches
        .iter()
        .map(|c| format!("L{} {} {}", c.level, c.kind.to_lowercase(), text::bytes(c.bytes)))
        .collect();
    match list.is_empty() {
        true => fine("caches", "the system does not tell; products cannot be measured with cold weights"),
        false => fine("caches", list.join(", ")),
    }
}

/// For each backend: the tier in use, or why it cannot be used.
fn backends(registry: &Registry) -> Vec<Finding> {
    let mut findings = Vec::new();
    for found in registry.found() {
        let id = found.entry.id;
        findings.push(match (&found.probe, registry.open(id)) {
            (Probe::Unusable { reason }, _) => fine("backend", format!("{id} is not usable: {reason}")),
            (_, Err(error)) => could("backend", format!("{id} does not open: {error}"), "take back what asks for that"),
            (Probe::Usable { devices }, Ok(backend)) => {
                let tier = text::runs_on(backend.info());
                let highest = devices.iter().flat_map(|d| d.isas.last()).next().map(|isa| isa.id());
                let found = format!("{id} is usable, with kernels for {tier}");
                match highest.filter(|highest| *highest != tier) {
                    Some(highest) => {
                        could("backend", found, format!("it also has {highest} here; select.isa says otherwise"))
                    }
                    None => fine("backend", found),
                }
            }
        });
    }
    findings
}

fn threads(registry: &Registry, machine: &Machine) -> Finding {
    let (used, available) = (registry.host().executor().threads(), Pool::available());
    let cores = machine.cores.map_or(String::new(), |cores| format!(" on {cores} cores"));
    let found = format!("{used} of the {available} that this process may run{cores}");
    match used.cmp(&available) {
        std::cmp::Ordering::Less => could("threads", found, format!("threads.count = {available}, or \"auto\"")),
        std::cmp::Ordering::Greater => could(
            "threads",
            found,
            format!("threads.count = {available}: more threads than processors wait for each other"),
        ),
        std::cmp::Ordering::Equal => fine("threads", found),
    }
}

/// Packed weights are read from end to end; with small pages that costs a page walk every 4 KiB.
fn huge_pages() -> Finding {
    let file = "/sys/kernel/mm/transparent_hugepage/enabled";
    let chosen = std::fs::read_to_string(file).ok().and_then(|text| {
        text.split_whitespace().find_map(|word| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_owned()))
    });
    match chosen.as_deref() {
        Some("always") => fine("huge pages", "given to every large allocation"),
        Some(other) => could(
            "huge pages",
            format!("{other}: weights lie in small pages"),
            format!("echo always | sudo tee {file} (ask whoever runs this machine), then measure again"),
        ),
        None => fine("huge pages", "this system does not tell"),
    }
}

fn tuning(registry: &Registry) -> Finding {
    let known = registry.tuner().all_known().len();
    let found = format!("tune.mode is \"{}\"; {known} products are measured on this machine", registry.tuner().mode());
    match (registry.tuner().mode(), known) {
        (_, 0) => could("tuning", found, "`tersor tune MODEL`, then tune.mode = \"cached\""),
        (TuneMode::Off, _) => could("tuning", found, "tune.mode = \"cached\" (TERSOR_TUNE_MODE=cached) uses them"),
        _ => fine("tuning", found),
    }
}

fn bandwidth(registry: &Registry, machine: &Machine) -> Vec<(usize, f64)> {
    let Some(cache) = machine.last_level_cache() else { return Vec::new() };
    let bytes = (cache.bytes + cache.bytes / 4) as usize;
    let executors: [&dyn Executor; 2] = [&Inline, registry.host().executor()];
    let executors = if executors[1].threads() == 1 { &executors[..1] } else { &executors[..] };
    limits::read_limit(executors, "doctor", bytes).into_iter().map(|limit| (limit.threads, limit.median)).collect()
}

/// What each GPU that a backend uses gives, and what the management library says about all of them.
fn gpus(registry: &Registry) -> Vec<Finding> {
    let mut findings = Vec::new();
    for found in registry.found() {
        let backend = match registry.open(found.entry.id) {
            Ok(backend) if !backend.info().is_host() => backend,
            _ => continue,
        };
        findings.push(match device_rates(&backend) {
            Err(e) => fine("GPU memory", format!("not measured: {e}")),
            Ok([read, copy, up, down]) => {
                // As for the host's memory.
                let most = read / 521.0e6;
                let [read, copy, up, down] = [read, copy, up, down].map(|rate| rate / 1e9);
                fine(
                    "GPU memory",
                    format!(
                        "{read:.0} GB/s read, {copy:.0} GB/s copied, {up:.1} GB/s from the host and {down:.1} GB/s to it: BitNet \
                         b1.58 2B-4T's layers are read {most:.0} times a second at most"
                    ),
                )
            }
        });
        match tersor_bench::gpu::devices() {
            Err(reason) => findings.push(fine("GPU", format!("NVML does not tell: {reason}"))),
            Ok(devices) => findings.extend(devices.iter().map(|d| {
                let (used, all) = (text::bytes(d.memory_before), text::bytes(d.memory));
                fine("GPU", format!("{} ({}), driver {}, {used} of {all} in use", d.name, d.uuid, d.driver))
            })),
        }
    }
    findings
}

/// Bytes a second: read, copied, to the device, from it. The fastest of a few samples.
fn device_rates(backend: &Arc<dyn QuantBackend>) -> tersor::core::Result<[f64; 4]> {
    let mut probe = limits::DeviceProbe::new(backend.clone(), 256 << 20)?;
    for _ in 0..5 {
        probe.sample()?;
    }
    let limits = probe.limits("doctor", 1);
    let best = |kind| limits.iter().find(|l| l.kind == kind).map_or(0.0, |l| l.best);
    Ok([LimitKind::Read, LimitKind::Copy, LimitKind::Up, LimitKind::Down].map(best))
}

fn bus(bandwidth: &[(usize, f64)]) -> Finding {
    let list: Vec<String> =
        bandwidth.iter().map(|(threads, rate)| format!("{:.1} GB/s with {threads}", rate / 1e9)).collect();
    match bandwidth {
        [] => fine("memory", "not measured: the size of the cache is unknown here"),
        [.., (_, all)] => {
            // The matrices of BitNet b1.58 2B-4T at 2 bits a weight, its head apart.
            let most = all / 521.0e6;
            let found =
                format!("{}: BitNet b1.58 2B-4T's layers are read {most:.0} times a second at most", list.join(", "));
            fine("memory", found)
        }
    }
}
