//! `tersor backends`: what is linked into this program, and what it can do here.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use tersor::core::{DType, DeviceInfo, DeviceKind, OpSpec, Probe, QuantBackend, Shape, Support};
use tersor::registry::Found;
use tersor::registry::config::TuneMode;
use tersor::registry::tune::{Effort, Workload};
use tersor::{Decision, Format, Registry};

use crate::args::Place;
use crate::context::{Context, stdout};
use crate::failure::{Exit, Failure};
use crate::text;

/// List the backends: usable or why not, devices, instruction sets, formats and operations
///
/// Nothing is left out: a backend for another processor is listed with the reason why it cannot run here. What a backend
/// can do is asked at the shapes of BitNet b1.58 2B-4T.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor backends                           what can run here
  tersor backends --why                     with kernels, reasons, and what would be chosen for each format
  tersor backends --why --device cuda       what an application with this setting would get
  tersor backends --json | jq '.backends[] | select(.usable).id'")]
pub(crate) struct Args {
    /// Say which kernel does what, why the rest is not done, and which backend would be chosen for each format and why
    #[arg(long)]
    why: bool,

    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Debug, Serialize)]
struct Report {
    backends: Vec<Backend>,
    /// What would run each format.
    #[serde(skip_serializing_if = "Option::is_none")]
    decisions: Option<BTreeMap<&'static str, Chosen>>,
}

#[derive(Debug, Serialize)]
struct Backend {
    id: &'static str,
    usable: bool,
    /// Why it is not usable.
    reason: Option<String>,
    version: &'static str,
    kernel_revision: u32,
    priority: i32,
    /// The plugin that brings it; null for a backend of this program.
    plugin: Option<Origin>,
    devices: Vec<Device>,
    /// The tier that its kernels were chosen for.
    isa: Option<&'static str>,
    /// The device that is used.
    opened: Option<String>,
    /// Format, then job, then the kernel that does it.
    formats: BTreeMap<&'static str, BTreeMap<&'static str, Ability>>,
    /// Operation, then the kernel that does it.
    ops: BTreeMap<&'static str, Ability>,
}

/// Where a plugin's backend comes from.
#[derive(Debug, Serialize)]
struct Origin {
    name: String,
    version: String,
    manifest: PathBuf,
    library: PathBuf,
    sha256: String,
}

impl Origin {
    fn of(registry: &Registry, id: &str) -> Option<Self> {
        let loaded = registry.plugins().loaded.iter().find(|plugin| plugin.backends.iter().any(|b| b.id == id))?;
        let (name, version) = (loaded.about.name.clone(), loaded.about.version.clone());
        let (manifest, library, sha256) = (loaded.manifest.clone(), loaded.library.clone(), loaded.sha256.clone());
        Some(Origin { name, version, manifest, library, sha256 })
    }
}

#[derive(Debug, Serialize)]
struct Device {
    index: usize,
    kind: &'static str,
    name: String,
    isas: Vec<&'static str>,
    memory_bytes: Option<u64>,
}

/// Exactly one of the two.
#[derive(Debug, Serialize)]
struct Ability {
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Chosen {
    Yes(Box<Decision>),
    No { error: String },
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let registry = context.registry()?;
    let backends = registry.found().iter().map(|found| backend(&registry, found)).collect::<Result<_, _>>()?;
    let decisions = if args.why { Some(decisions(&registry)?) } else { None };
    let report = Report { backends, decisions };
    if context.json {
        context.print_json(&report)?;
    } else {
        print(&report, args.why)?;
    }
    Ok(Exit::Done)
}

/// BitNet b1.58 2B-4T: a down projection, which is the longest sum of the model.
const ROWS: usize = 2560;
const COLS: usize = 6912;
/// Tokens in a prefill step.
const MANY: usize = 16;

fn backend(registry: &Registry, found: &Found) -> Result<Backend, Failure> {
    let entry = found.entry;
    let mut report = Backend {
        id: entry.id,
        usable: false,
        reason: None,
        version: entry.version,
        kernel_revision: entry.kernel_revision,
        priority: entry.priority,
        plugin: Origin::of(registry, entry.id),
        devices: Vec::new(),
        isa: None,
        opened: None,
        formats: BTreeMap::new(),
        ops: BTreeMap::new(),
    };
    match &found.probe {
        Probe::Unusable { reason } => report.reason = Some(reason.clone()),
        Probe::Usable { devices } => report.devices = devices.iter().map(device).collect(),
    }
    if report.reason.is_some() {
        return Ok(report);
    }
    // Usable by its probe; opening may still refuse, an instruction set that was asked for being one cause.
    match registry.open(entry.id) {
        Err(error) => report.reason = Some(error.to_string()),
        Ok(backend) => {
            report.usable = true;
            report.isa = backend.info().isa.map(tersor::Isa::id);
            report.opened = Some(text::runs_on(backend.info()));
            for format in Format::all() {
                let jobs = format_jobs(format)?.map(|(job, spec)| (job, ability(&*backend, &spec)));
                report.formats.insert(format.id(), jobs.into_iter().collect());
            }
            report.ops = ops().map(|spec| (spec.kind().id(), ability(&*backend, &spec))).into_iter().collect();
        }
    }
    Ok(report)
}

fn device(device: &DeviceInfo) -> Device {
    Device {
        index: device.index,
        kind: match device.kind {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Gpu => "gpu",
            _ => "other",
        },
        name: device.name.clone(),
        isas: device.isas.iter().map(|isa| isa.id()).collect(),
        memory_bytes: device.memory,
    }
}

fn ability(backend: &dyn QuantBackend, spec: &OpSpec) -> Ability {
    match backend.supports(spec) {
        Support::Yes { kernel } => Ability { kernel: Some(kernel), reason: None },
        Support::No { reason } => Ability { kernel: None, reason: Some(reason) },
    }
}

fn format_jobs(format: Format) -> Result<[(&'static str, OpSpec); 4], Failure> {
    let shape = Shape::new(ROWS, COLS)?;
    Ok([
        ("quantize", OpSpec::Quantize { from: DType::F32, format, shape }),
        ("dequantize", OpSpec::Dequantize { format, to: DType::F32, shape }),
        ("gemv", OpSpec::matmul(format, 1, ROWS, COLS)),
        ("gemm", OpSpec::matmul(format, MANY, ROWS, COLS)),
    ])
}

/// The operations that have no weight format, and the embedding lookup.
fn ops() -> [OpSpec; 11] {
    let (rows, cols, heads, kv_heads, head_dim) = (1, ROWS, 20, 5, 128);
    [
        OpSpec::QuantizeRows { rows, cols },
        OpSpec::GatherRows { format: Format::BF16, rows, cols },
        OpSpec::RmsNorm { rows, cols },
        OpSpec::RmsNormQuantize { rows, cols },
        OpSpec::Rope { rows, heads, head_dim },
        OpSpec::KvWrite { rows, width: kv_heads * head_dim },
        OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity: 4096, span: None },
        OpSpec::ReluSquaredMul { len: COLS },
        OpSpec::Add { len: cols },
        OpSpec::Copy { len: cols },
        OpSpec::Sample { rows, vocab: 128_256 },
    ]
}

fn decisions(registry: &Registry) -> Result<BTreeMap<&'static str, Chosen>, Failure> {
    let mut all = BTreeMap::new();
    for format in Format::TERNARY {
        let rows = OpSpec::QuantizeRows { rows: 1, cols: COLS };
        let [.., (_, gemv), (_, gemm)] = format_jobs(format)?;
        let specs = [gemv, gemm, rows];
        // A list is no reason to measure: what is known counts.
        let choice = match registry.tuner().mode() {
            TuneMode::Off => registry.select(&specs),
            _ => registry.measure(&Workload::from(&specs[..]), Effort::Known, &mut |_, _| ()),
        };
        let chosen = match choice {
            Ok(choice) => Chosen::Yes(Box::new(choice.decision)),
            Err(error) => Chosen::No { error: error.to_string() },
        };
        all.insert(format.id(), chosen);
    }
    Ok(all)
}

fn print(report: &Report, why: bool) -> Result<(), Failure> {
    let mut out = stdout();
    for (i, backend) in report.backends.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        print_backend(&mut out, backend, why)?;
    }
    for (format, chosen) in report.decisions.iter().flatten() {
        match chosen {
            Chosen::Yes(decision) => writeln!(out, "\n{format}: {decision}")?,
            Chosen::No { error } => writeln!(out, "\n{format}: {error}")?,
        }
    }
    Ok(out.flush()?)
}

fn print_backend(out: &mut impl Write, backend: &Backend, why: bool) -> Result<(), Failure> {
    match &backend.reason {
        None => writeln!(out, "{}: usable, priority {}", backend.id, backend.priority)?,
        Some(reason) => writeln!(out, "{}: not usable: {reason}", backend.id)?,
    }
    if let Some(Origin { name, version, manifest, library, sha256 }) = &backend.plugin {
        writeln!(out, "  from plugin {name} {version}, {}", manifest.display())?;
        writeln!(out, "  library {}, sha256 {sha256}", library.display())?;
    }
    for device in &backend.devices {
        let isas = if device.isas.is_empty() { String::new() } else { format!(", has {}", device.isas.join(", ")) };
        let memory = device.memory_bytes.map(|b| format!(", {}", text::bytes(b))).unwrap_or_default();
        writeln!(out, "  device {} ({}): {}{memory}{isas}", device.index, device.kind, device.name)?;
    }
    if !backend.usable {
        return Ok(());
    }
    writeln!(out, "  kernels for: {}", backend.opened.as_deref().unwrap_or("nothing"))?;
    if why {
        return print_kernels(out, backend);
    }
    // Formats that have the same jobs share a line.
    let mut by_jobs: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    for format in Format::all() {
        let Some(jobs) = backend.formats.get(format.id()) else { continue };
        let does: Vec<&str> =
            JOBS.into_iter().filter(|job| jobs.get(job).is_some_and(|a| a.kernel.is_some())).collect();
        match by_jobs.iter_mut().find(|(known, _)| *known == does) {
            Some((_, formats)) => formats.push(format.id()),
            None => by_jobs.push((does, vec![format.id()])),
        }
    }
    for (does, formats) in by_jobs.iter().filter(|(does, _)| !does.is_empty()) {
        writeln!(out, "  {}: {}", does.join(", "), formats.join(" "))?;
    }
    let (yes, no): (Vec<_>, Vec<_>) = backend.ops.iter().partition(|(_, a)| a.kernel.is_some());
    let names = |list: &[(&&'static str, &Ability)]| list.iter().map(|(op, _)| **op).collect::<Vec<_>>().join(" ");
    writeln!(out, "  other operations: {}", names(&yes))?;
    if !no.is_empty() {
        writeln!(out, "  not done: {}", names(&no))?;
    }
    Ok(())
}

const JOBS: [&str; 4] = ["quantize", "dequantize", "gemv", "gemm"];

fn print_kernels(out: &mut impl Write, backend: &Backend) -> Result<(), Failure> {
    let jobs = Format::all().flat_map(|format| {
        let jobs = backend.formats.get(format.id());
        JOBS.into_iter().filter_map(move |job| Some((format!("{job} {format}"), jobs?.get(job)?)))
    });
    let ops = backend.ops.iter().map(|(op, ability)| ((*op).to_owned(), ability));
    for (what, ability) in jobs.chain(ops) {
        match (ability.kernel, &ability.reason) {
            (Some(kernel), _) => writeln!(out, "  {what:<22} {kernel}")?,
            (None, reason) => writeln!(out, "  {what:<22} no: {}", reason.as_deref().unwrap_or("it does not say why"))?,
        }
    }
    Ok(())
}
