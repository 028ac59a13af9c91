//! `tersor doctor`: what this machine offers, what is left unused, and why.

use std::io::Write;
use std::sync::Arc;

use serde::Serialize;
use tersor::core::{Executor, Inline, OpSpec, Probe, QuantBackend};
use tersor::registry::Pool;
use tersor::registry::config::TuneMode;
use tersor::{Format, Registry};
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
    findings.push(alignment(&registry));
    findings.push(threads(&registry, &machine));
    findings.push(huge_pages(context.config.memory.zero_copy));
    findings.push(gpu(&registry));
    findings.push(driver());
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

/// Where the buffers of the first backend that opens begin, against the vectors that it loads from them.
fn alignment(registry: &Registry) -> Finding {
    let host = |id: &str| registry.open(id).ok().filter(|backend| backend.info().is_host());
    let Some(backend) = registry.found().iter().find_map(|found| host(found.entry.id)) else {
        return fine("alignment", "no CPU backend opens");
    };
    let vector = match backend.info().isa.map(tersor::Isa::id) {
        Some(id) if id.starts_with("avx512") || id.starts_with("amx") => 64,
        Some(id) if id.starts_with("avx") => 32,
        _ => 16,
    };
    let start = |bytes: usize| Some(backend.alloc(bytes).ok()?.as_host()?.as_ptr().addr());
    // Small ones and large ones come from different places.
    let Some(starts) = [100, 1 << 20, 64 << 20].into_iter().map(start).collect::<Option<Vec<_>>>() else {
        return fine("alignment", "no buffer can be had: memory.pool is too small to look at one");
    };
    let zeros = starts.iter().map(|start| start.trailing_zeros().min(12)).min().unwrap_or(0);
    let (found, id) = (1usize << zeros, &backend.info().id);
    let text = format!("buffers of {id} begin at multiples of {found} bytes, its vectors have {vector}");
    match found >= vector {
        true => fine("alignment", text),
        false => {
            could("alignment", text, "a system allocator that aligns to cache lines: loads straddle two of them here")
        }
    }
}

/// Weights are read from end to end; with small pages that costs a page walk every 4 KiB. Packed ones ask for huge pages;
/// what is used in place lies in the pages of the file.
fn huge_pages(zero_copy: bool) -> Finding {
    let file = "/sys/kernel/mm/transparent_hugepage/enabled";
    let chosen = std::fs::read_to_string(file).ok().and_then(|text| {
        text.split_whitespace().find_map(|word| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_owned()))
    });
    let in_place = "embedding and head of float types are used in place, in the file's small pages";
    match chosen.as_deref() {
        None => fine("huge pages", "this system does not tell"),
        Some("always" | "madvise") if zero_copy => could(
            "huge pages",
            format!("packed weights lie in them; {in_place}"),
            "memory.zero_copy = false copies these too, if their memory can be spared",
        ),
        Some("always" | "madvise") => fine("huge pages", "all weights lie in them"),
        Some(other) => could(
            "huge pages",
            format!("\"{other}\": weights lie in small pages"),
            format!("echo madvise | sudo tee {file} (ask whoever runs this machine), then measure again"),
        ),
    }
}

fn gpu(registry: &Registry) -> Finding {
    let Some(cuda) = registry.found().iter().find(|found| found.entry.id == "cuda") else {
        return fine("GPU", "this program has no GPU backend: it was built without the feature \"gpu\"");
    };
    let devices = match &cuda.probe {
        Probe::Unusable { reason } => return fine("GPU", format!("none is usable: {reason}")),
        Probe::Usable { devices } => devices,
    };
    let told = |d: &tersor::core::DeviceInfo| {
        let memory = d.memory.map(|bytes| format!(" with {}", text::bytes(bytes))).unwrap_or_default();
        format!("{} {}{memory}", d.index, d.name)
    };
    let list = devices.iter().map(told).collect::<Vec<_>>().join(", ");
    match registry.select(&[OpSpec::matmul(Format::I2S, 1, 2560, 2560)]) {
        Ok(choice) if choice.decision.chosen == "cuda" => fine("GPU", list),
        Ok(choice) => {
            let why = choice.decision.rejected.into_iter().find(|r| r.id == "cuda").map_or(String::new(), |r| r.reason);
            could("GPU", format!("{list}; not used: {why}"), "select.device = \"cuda\" (--device cuda) uses it")
        }
        Err(error) => could("GPU", format!("{list}; not used: {error}"), "take back what asks for another device"),
    }
}

fn driver() -> Finding {
    match std::fs::read_to_string("/proc/driver/nvidia/version") {
        Ok(text) => fine("driver", text.lines().next().unwrap_or_default().trim()),
        Err(_) if cfg!(target_os = "linux") => fine("driver", "no NVIDIA driver is loaded"),
        Err(_) => fine("driver", "this system does not tell"),
    }
}

fn tuning(registry: &Registry) -> Finding {
    let known = registry.tuner().all_known().len();
    let found =
        format!("tune.mode is \"{}\"; {known} operations are measured on this machine", registry.tuner().mode());
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
