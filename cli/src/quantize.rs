//! `tersor quantize`: any model to GGUF in a ternary format.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tersor::model::convert::TensorReport;
use tersor::model::{ConvertOptions, ConvertReport, ModelFile, OnBackend, Quantizer, Reference, convert};
use tersor::registry::Choice;
use tersor::{Decision, Format};

use crate::args::{Foreign, Place, format_names, table_format_names};
use crate::context::{Context, stdout};
use crate::failure::{Exit, Failure};
use crate::text::{self, Table};
use crate::{memory, models};

/// Convert a model to GGUF in a ternary format, quantizing real weights on the chosen backend
///
/// Real (master) weights are quantized by the BitNet b1.58 rule, one scale per tensor; cosine and signal-to-noise ratio say
/// what that cost. Ternary weights keep their values and scales bit for bit (tq1_0 and tq2_0 store scales as f16; a scale
/// that changed is marked). Embedding and head keep their type, unless --head names another. The file appears when it is complete and not before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor quantize model/ -o model.gguf --format i2_s
  tersor quantize model/ -o model.gguf --format tq2_0 --backend cpu-avx2 --threads 2
  tersor quantize fable-26m -o tiny.gguf --format tl2
  tersor quantize model/ -o small.gguf --format i2_s --head q6_k
  tersor quantize arm.gguf -o here.gguf --format i2_s --from-layout arm64-block")]
pub(crate) struct Args {
    /// The model to convert
    #[arg(value_name = "IN", long_help = models::WHAT_IS_A_MODEL)]
    input: PathBuf,

    /// The GGUF file to write; one that is there is replaced
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,

    /// The format of the linear layers
    #[arg(short, long, value_name = "FORMAT", value_parser = format_names())]
    format: Format,

    /// The format of embedding and head, instead of the model's own
    #[arg(long, value_name = "FORMAT", value_parser = table_format_names())]
    head: Option<Format>,

    /// The tokenizer.json to put into the file, instead of the one in or beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// The name to put into the file
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Convert linear layers that are entirely zero; some published files have them, and are broken
    #[arg(long)]
    allow_zero: bool,

    #[command(flatten)]
    pub(crate) place: Place,

    #[command(flatten)]
    foreign: Foreign,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    convert: &'a ConvertReport,
    input: &'a PathBuf,
    /// Who quantized; null where all layers were ternary already.
    backend: Option<&'a str>,
    decision: Option<&'a Decision>,
    linear_weights: u64,
    /// Linear weights per second in millions: reading, quantizing, encoding, counting; not writing.
    melem_s: f64,
    bytes: u64,
    peak_rss_bytes: Option<u64>,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut options = args.foreign.options()?;
    options.tokenizer.clone_from(&args.tokenizer);
    let model = models::open(&args.input, &options)?;
    let choice = choose(context, &model, args.format)?;
    let on_backend = choice.as_ref().map(|choice| OnBackend(&*choice.backend));
    let quantizer: &dyn Quantizer = match &on_backend {
        Some(backend) => backend,
        None => &Reference, // nothing to quantize
    };
    let options = ConvertOptions {
        format: args.format,
        quantizer,
        allow_all_zero: args.allow_zero,
        head: args.head,
        name: args.name.as_deref(),
        streams: match &choice {
            Some(choice) if !choice.backend.info().is_host() => context.config.gpu.streams.get().into(),
            _ => 1,
        },
    };
    let bar = progress_bar();
    let done = convert(&model, &args.output, &options, &mut |now| {
        bar.set_length(now.total as u64);
        bar.set_position(now.done as u64);
        bar.set_message(now.tensor.name.clone());
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let done = done?;
    let report = Report {
        convert: &done,
        input: &args.input,
        backend: choice.as_ref().map(|c| c.decision.chosen.as_str()),
        decision: choice.as_ref().map(|c| &c.decision),
        linear_weights: done.linear_elements(),
        melem_s: done.melem_per_second(),
        bytes: done.bytes(),
        peak_rss_bytes: memory::peak_rss(),
    };
    if context.json {
        context.print_json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(Exit::Done)
}

/// A bar on standard error, invisible where that is no terminal.
pub(crate) fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {wide_msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The backend that quantizes, if there is something to quantize. A backend asked for by name is looked up in any case, so
/// that a wrong name is never accepted in silence.
fn choose(context: &Context, model: &ModelFile, format: Format) -> Result<Option<Choice>, Failure> {
    let specs = models::quantize_specs(model, format)?;
    if specs.is_empty() && context.config.select.backend.is_none() {
        return Ok(None);
    }
    let choice = context.registry()?.select(&specs)?;
    Ok((!specs.is_empty()).then_some(choice))
}

fn print(report: &Report<'_>) -> Result<(), Failure> {
    let mut out = stdout();
    let mut table = Table::new(
        &["tensor", "shape", "from", "to", "-1", "0", "+1", "scale", "cosine", "SNR dB", "Melem/s"],
        &[2, 3],
    );
    report.convert.tensors.iter().for_each(|tensor| table.row(row(tensor)));
    table.write(&mut out)?;
    let tensors = &report.convert.tensors;
    let rounded = tensors.iter().filter(|t| t.ternary.is_some_and(|r| r.rounded_from.is_some())).count();
    if rounded > 0 {
        writeln!(out, "~ {} rounded to f16, which the format stores", text::count(rounded, "scale"))?;
    }
    let quantized = tensors.iter().filter(|t| t.ternary.is_some_and(|r| r.fidelity.is_some())).count();
    if quantized > 0 {
        writeln!(
            out,
            "Cosine of ordinary (Gaussian) weights: at best 0.900 for any ternary code, 0.887 by this rule. Weights trained \
             for the rule may be lower still and lose nothing as a model."
        )?;
    }
    writeln!(
        out,
        "{}: {} in {:.2} s, {:.1} Melem/s in {} linear weights, {}",
        report.convert.path.display(),
        text::bytes(report.bytes),
        report.convert.seconds,
        report.melem_s,
        report.linear_weights,
        match report.backend {
            Some(id) => format!("{} quantized by {id}", text::count(quantized, "tensor")),
            None => "ternary already: encoded, not quantized".to_owned(),
        }
    )?;
    out.flush()?;
    if let Some(decision) = report.decision {
        tracing::info!(%decision, "quantized");
    }
    Ok(())
}

fn row(tensor: &TensorReport) -> Vec<String> {
    let mut cells = vec![tensor.name.clone(), text::shape(tensor.shape), tensor.source.clone(), tensor.stored.clone()];
    if let Some(t) = &tensor.ternary {
        cells.extend(t.shares().map(text::percent));
        let mark = if t.rounded_from.is_some() { "~" } else { "" };
        cells.push(t.scale.map_or_else(|| "varies".to_owned(), |s| format!("{mark}{s:.6}")));
        cells.push(t.fidelity.map_or_else(|| "-".to_owned(), |f| format!("{:.4}", f.cosine)));
        cells.push(t.fidelity.map_or_else(|| "-".to_owned(), |f| format!("{:.2}", f.snr_db)));
        let elements = tensor.shape.0 as f64 * tensor.shape.1 as f64;
        cells.push(format!("{:.0}", elements / 1e6 / tensor.seconds.max(1e-9)));
    }
    cells
}
