//! `tersor tune`: measure which kernel is fastest, and keep it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tersor::core::{DType, OpSpec};
use tersor::model::graph::required_ops;
use tersor::model::{ModelFile, OpenOptions, Role, embedded};
use tersor::registry::tune::cache::Contents;
use tersor::registry::tune::key::not_measured;
use tersor::registry::tune::record::Time;
use tersor::registry::tune::{Basis, Effort, Record, Route, Workload};
use tersor::{Format, Registry};

use crate::args::{Place, format_names};
use crate::context::{Context, note, stdout};
use crate::failure::{Exit, Failure};
use crate::models;
use crate::text::{Table, percent};

/// Measure which kernel is fastest for each operation of a model, and keep the winners
///
/// Matrix products, attention and norms with activation quantization, for one token and for --batch together; and
/// quantizing and dequantizing the linear layers. A candidate is a backend at one of its instruction set tiers, or with fewer
/// threads. It must equal the oracle bit for bit before its time counts.
/// Weights are cold: samples rotate over more copies than the cache holds, or over the model's own size where that is
/// smaller. What is known already is not measured again. Programs use the winners unless tune.mode is "off".
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor tune                              the operations of the model that comes along
  tersor tune model.gguf --batch 128       one token, and 128 together
  tersor tune --full                       measure again what is known
  tersor tune --json | jq '.routes[] | {key, chosen}'
  tersor tune --export winners.json        what is known on this machine
  tersor tune --clear                      forget it")]
pub(crate) struct Args {
    /// The model whose operations are measured
    #[arg(value_name = "MODEL", default_value = embedded::NAME, long_help = models::WHAT_IS_A_MODEL)]
    model: PathBuf,

    /// The format of the linear layers, instead of the file's own
    #[arg(long, value_name = "FORMAT", value_parser = format_names())]
    format: Option<Format>,

    /// Rows of a prompt that go through the model together
    #[arg(long, value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// Measure again what is known
    #[arg(long)]
    full: bool,

    /// Forget what is known of this machine, and measure nothing
    #[arg(long, conflicts_with_all = ["full", "export", "import"])]
    clear: bool,

    /// Write what is known of this machine to a file, and measure nothing
    #[arg(long, value_name = "FILE", conflicts_with = "import")]
    export: Option<PathBuf>,

    /// Take in an exported file of an equal machine, and measure nothing
    #[arg(long, value_name = "FILE")]
    import: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The file of measurements; null where there is no place for one.
    cache: Option<PathBuf>,
    fingerprint: &'a tersor::registry::tune::Fingerprint,
    seconds: f64,
    routes: &'a [Route],
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let registry = context.registry()?;
    if args.clear {
        return clear(context, &registry);
    }
    if let Some(file) = &args.export {
        return export(context, &registry, file);
    }
    if let Some(file) = &args.import {
        return import(context, &registry, file);
    }
    measure(context, &registry, args)
}

fn cache_path(registry: &Registry) -> Option<PathBuf> {
    registry.tuner().cache().map(|cache| cache.path())
}

fn clear(context: &Context, registry: &Registry) -> Result<Exit, Failure> {
    let path = cache_path(registry);
    registry.tuner().clear().map_err(Failure::file("clear", path.clone().unwrap_or_default()))?;
    said(context, "cleared", path.as_deref(), 0)
}

fn export(context: &Context, registry: &Registry, file: &Path) -> Result<Exit, Failure> {
    let mut contents = Contents::empty(registry.tuner().fingerprint().clone());
    contents.keys = registry.tuner().all_known();
    let text = serde_json::to_string_pretty(&contents)?;
    std::fs::write(file, text + "\n").map_err(Failure::file("write", file))?;
    said(context, "exported", Some(file), contents.keys.len())
}

fn import(context: &Context, registry: &Registry, file: &Path) -> Result<Exit, Failure> {
    let refused = |reason: String| Failure::Usage(format!("{} cannot be imported: {reason}", file.display()));
    let read = Contents::read(file, registry.tuner().fingerprint()).map_err(refused)?;
    let keys: BTreeMap<String, Record> = read.ok_or_else(|| refused("there is no such file".into()))?.keys;
    let count = keys.len();
    registry.tuner().import(keys).map_err(Failure::file("write", cache_path(registry).unwrap_or_default()))?;
    said(context, "imported", Some(file), count)
}

fn said(context: &Context, what: &'static str, path: Option<&Path>, keys: usize) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Done<'a> {
        done: &'static str,
        file: Option<&'a Path>,
        keys: usize,
    }
    if context.json {
        context.print_json(&Done { done: what, file: path, keys })?;
    } else {
        note(format_args!("{what}: {}, {keys} keys", path.unwrap_or(Path::new("nothing")).display()));
    }
    Ok(Exit::Done)
}

fn measure(context: &Context, registry: &Registry, args: &Args) -> Result<Exit, Failure> {
    let model = models::open(&args.model, &OpenOptions::default())?;
    let (specs, bytes) = operations(&model, args.format, args.batch as usize)?;
    let bar = ProgressBar::new(specs.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} operations, {elapsed}") {
        bar.set_style(style);
    }
    bar.tick();
    let begun = std::time::Instant::now();
    let effort = if args.full { Effort::Again } else { Effort::Unlimited };
    let workload = Workload { specs: &specs, weight_bytes: Some(bytes) };
    let choice = registry.measure(&workload, effort, &mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let choice = choice?;
    let seconds = begun.elapsed().as_secs_f64();
    let routes = &choice.decision.routes;
    let fingerprint = registry.tuner().fingerprint();
    let report = Report { cache: cache_path(registry), fingerprint, seconds, routes };
    if context.json {
        context.print_json(&report)?;
    } else {
        print(&report)?;
        if registry.tuner().mode() == tersor::registry::config::TuneMode::Off {
            note(format_args!(
                "programs use these winners where tune.mode (TERSOR_TUNE_MODE) is not \"off\", as it is here"
            ));
        }
    }
    Ok(Exit::Done)
}

/// What is measured of a model: its pass for one token and for `batch` together, quantizing and dequantizing its linear
/// layers; and the bytes of all its matrices.
fn operations(model: &ModelFile, wanted: Option<Format>, batch: usize) -> Result<(Vec<OpSpec>, u64), Failure> {
    let config = model.config();
    let mut formats = Vec::new();
    let mut bytes = 0;
    for role in Role::all(config).filter(|r| !r.is_norm()) {
        let format = if role.is_linear() {
            wanted.or(model.entry(role).and_then(models::stored_format)).unwrap_or(Format::I2S)
        } else {
            model.dense(role)?.weight()?.format()
        };
        let (rows, cols) = role.shape(config);
        bytes += format.encoded_len(tersor::Shape::new(rows, cols)?)?.bytes as u64;
        formats.push((role, format));
    }
    let format_of = |role| {
        let format = formats.iter().find(|(r, _)| *r == role).map_or(Format::F32, |(_, f)| *f);
        (format, format.scale_block().filter(|_| format.is_block()))
    };
    let mut specs = Vec::new();
    for rows in [1, batch.min(config.context_length)] {
        for spec in required_ops(config, format_of, rows, config.context_length)? {
            if not_measured(&spec).is_none() && !specs.contains(&spec) {
                specs.push(spec);
            }
        }
    }
    for (role, format) in formats.iter().filter(|(role, _)| role.is_linear()) {
        let (rows, cols) = role.shape(config);
        let (format, shape) = (*format, tersor::Shape::new(rows, cols)?);
        let once = [
            OpSpec::Quantize { from: DType::F32, format, shape },
            OpSpec::Dequantize { format, to: DType::F32, shape },
        ];
        once.into_iter().for_each(|spec| {
            if !specs.contains(&spec) {
                specs.push(spec);
            }
        });
    }
    Ok((specs, bytes))
}

fn print(report: &Report<'_>) -> Result<(), Failure> {
    let mut out = stdout();
    let mut table =
        Table::new(&["operation", "winner", "time", "runner-up", "margin", "+- (95 %)", "samples"], &[1, 3]);
    for route in report.routes {
        let mut row = vec![route.key.clone(), route.chosen.clone()];
        match (&route.basis, route.basis.record()) {
            (Basis::Measured { .. } | Basis::Cached { .. }, Some(record)) => row.extend(figures(record, &route.chosen)),
            (Basis::Alone, _) => row.push("alone".to_owned()),
            _ => row.push("not measured".to_owned()),
        }
        table.row(row);
    }
    table.write(&mut out)?;
    for route in report.routes {
        if let Basis::Static { reason } = &route.basis {
            writeln!(out, "{}: {reason}", route.key)?;
        }
        if let Some(faster) = &route.passed_over {
            writeln!(out, "{}: {faster} is faster, but one packing serves all numbers of rows", route.key)?;
        }
    }
    writeln!(out, "{:.1} s", report.seconds)?;
    // Where there was nothing to choose between, nothing was measured, and there may be no file.
    if let Some(file) = report.cache.as_ref().filter(|file| file.is_file()) {
        writeln!(out, "kept in {}", file.display())?;
    }
    Ok(out.flush()?)
}

/// Time, runner-up, by how much it is behind, how sure that is, samples.
fn figures(record: &Record, chosen: &str) -> Vec<String> {
    let own = record.measured.iter().find(|m| m.who.name() == chosen);
    let time = own.and_then(|m| m.median_ns).map_or("?".into(), |ns| Time(ns).to_string());
    let samples = own.map_or(0, |m| m.samples).to_string();
    match record.runner_up().and_then(|m| Some((m, m.ratio? / own?.ratio?))) {
        None => vec![time, "none near".into(), String::new(), String::new(), samples],
        Some((second, ratio)) => {
            let margin = second.margin.map_or("?".into(), percent);
            vec![time, second.who.name(), percent(ratio - 1.0), margin, samples]
        }
    }
}
