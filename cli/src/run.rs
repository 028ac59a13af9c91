//! `tersor run`: text from a model.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use tersor::core::SampleParams;
use tersor::model::generate::{Options, Pace, prompt_logits};
use tersor::model::graph::InFormat;
use tersor::model::{Generation, LoadProgress, Model, ModelFile, Profile, Tokenizer, embedded, generate};
use tersor::registry::Choice;
use tersor::{Config, Decision, Format};

use crate::args::{Foreign, Place, format_names};
use crate::context::{Context, note, stdout};
use crate::failure::{Exit, Failure};
use crate::text::{self, Table};
use crate::{many, memory, models, quantize};

/// Generate text, and say how fast and with what
///
/// Text goes to standard output as it is generated; speed, backend, kernels and memory follow on standard error. Without
/// --temperature the likeliest token is taken each time. The same settings give the same text on every CPU backend and with
/// any number of threads.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor run                                              the model that comes along, a prompt of ours
  tersor run --prompt 'The old king' --tokens 64
  tersor run --model model.gguf --temperature 0.8 --top-k 40 --seed 7
  tersor run --backend scalar --threads 1 --profile
  tersor run --prompts lines.txt --at-once 32 --json      every line of a file, 32 at a time
  tersor run --format tl2                                 the same text from another format
  tersor run --json | jq '{text, decode_tok_s, backend}'
  tersor run --logits logits.safetensors --tokens 1")]
pub(crate) struct Args {
    /// The model to run
    #[arg(long, value_name = "MODEL", default_value = embedded::NAME, long_help = models::WHAT_IS_A_MODEL)]
    pub(crate) model: PathBuf,

    /// The tokenizer.json to use, instead of the one in or beside the model
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,

    /// The text to continue
    #[arg(short, long, value_name = "TEXT", default_value = "Once upon a time")]
    prompt: String,

    /// Continue every line of a file, several at a time; each text is the one that its line gives alone
    ///
    /// Empty lines are left out. With --json, one object with all texts; without, each line with its text, in the order of
    /// the file, once all are done. Tokens per second are those of all in sum.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "logits", "profile"])]
    pub(crate) prompts: Option<PathBuf>,

    /// Lines of --prompts that go through the model at a time
    #[arg(long, value_name = "N", default_value = "8", value_parser = at_least_one, requires = "prompts")]
    pub(crate) at_once: usize,

    /// The most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value = "128", value_parser = at_least_one)]
    tokens: usize,

    /// Go on when the model ends its text
    #[arg(long)]
    ignore_eos: bool,

    /// Take the likeliest token each time (the default)
    #[arg(long, conflicts_with_all = ["temperature", "top_k"])]
    greedy: bool,

    /// Draw tokens at random; below 1 sharpens, above 1 flattens, 0 is greedy
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,

    /// Draw among the K likeliest tokens only
    #[arg(long, value_name = "K", requires = "temperature", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,

    /// Seed of the drawing; without one, each run has its own and reports it [key: run.seed]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,

    /// Re-encode (or quantize) the linear layers to this format before packing, instead of the file's own
    #[arg(long, value_name = "FORMAT", value_parser = format_names())]
    pub(crate) format: Option<Format>,

    /// Write the prompt's logits to a safetensors file: `logits`, f32, positions x vocabulary, and `token_ids`
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,

    /// Measure each operation, and print the time per operation and per layer
    #[arg(long)]
    profile: bool,

    #[command(flatten)]
    pub(crate) place: Place,

    #[command(flatten)]
    pub(crate) foreign: Foreign,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "a whole number, at least 1, is needed".to_owned())
}

fn temperature(text: &str) -> Result<f32, String> {
    let value: Option<f32> = text.parse().ok();
    value.filter(|t| t.is_finite() && *t >= 0.0).ok_or_else(|| "a number, 0 or more, is needed".to_owned())
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    prompt_token_ids: &'a [u32],
    prefill_tok_s: Option<f64>,
    decode_tok_s: Option<f64>,
    backend: &'a str,
    kernels: &'a [&'static str],
    /// Null where the system does not tell it.
    peak_rss_bytes: Option<u64>,
    isa: Option<&'static str>,
    /// What its kernels are for: an instruction set, or the name of a GPU.
    runs_on: String,
    threads: usize,
    /// eos, tokens, context or caller.
    stop: &'static str,
    /// Null where nothing was drawn at random.
    seed: Option<u64>,
    model: &'a Path,
    /// The format asked for; null: the file's own.
    format: Option<&'static str>,
    load_s: f64,
    weight_bytes: usize,
    session_bytes: usize,
    decision: &'a Decision,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<[Measured; 2]>,
}

/// A part of the run in numbers.
#[derive(Debug, Serialize)]
struct Measured {
    phase: &'static str,
    entries: Vec<MeasuredOp>,
}

#[derive(Debug, Serialize)]
struct MeasuredOp {
    place: String,
    op: &'static str,
    calls: u64,
    seconds: f64,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    if let Some(prompts) = &args.prompts {
        return many::run(context, args, prompts);
    }
    let mut options = args.foreign.options()?;
    options.tokenizer.clone_from(&args.tokenizer);
    let file = models::open(&args.model, &options)?;
    let tokenizer = Tokenizer::of(&file)?;
    let registry = context.registry()?;
    let options = generation(args, &context.config);
    let prompt = tokenizer.encode(&args.prompt)?;
    let capacity = file.config().context_length.min(prompt.len().saturating_add(options.tokens)).max(1);
    let choice = models::select(
        &registry,
        (&file, &args.model.display().to_string()),
        args.format,
        (options.batch, capacity),
        None,
    )?;
    let (model, load) = load(&choice, &file, args.format)?;
    if let Some(path) = &args.logits {
        write_logits(&model, &prompt, path)?;
    }
    let Some(generation) = stream(context, &model, &tokenizer, args, &options)? else { return Ok(Exit::Done) };
    let sampled = options.sampling.temperature > 0.0;
    let report = Report {
        text: &generation.text,
        token_ids: &generation.run.ids,
        prompt_token_ids: &generation.prompt_ids,
        prefill_tok_s: generation.run.prefill.tokens_per_second(),
        decode_tok_s: generation.run.decode.tokens_per_second(),
        backend: &choice.decision.chosen,
        kernels: &generation.run.kernels,
        peak_rss_bytes: memory::peak_rss(),
        isa: choice.backend.info().isa.map(tersor::Isa::id),
        runs_on: text::runs_on(choice.backend.info()),
        threads: registry.host().executor().threads(),
        stop: generation.run.stop.id(),
        seed: sampled.then_some(options.sampling.seed),
        model: &args.model,
        format: args.format.map(Format::id),
        load_s: load.as_secs_f64(),
        weight_bytes: generation.weight_bytes,
        session_bytes: generation.session_bytes,
        decision: &choice.decision,
        profile: generation.run.profiles.as_ref().map(|(p, d)| [measured("prefill", p), measured("decode", d)]),
    };
    if context.json {
        context.print_json(&report)?;
    } else {
        summarise(&report, &generation)?;
    }
    Ok(Exit::Done)
}

pub(crate) fn generation(args: &Args, config: &Config) -> Options {
    let temperature = if args.greedy { 0.0 } else { args.temperature.unwrap_or(0.0) };
    // The hasher's keys are the operating system's random numbers.
    let seed = args.seed.or(config.run.seed).unwrap_or_else(|| RandomState::new().hash_one(0));
    Options {
        tokens: args.tokens,
        sampling: SampleParams { temperature, top_k: args.top_k, seed },
        stop_at_eos: !args.ignore_eos,
        batch: usize::try_from(config.run.batch.get()).unwrap_or(usize::MAX),
        profile: args.profile,
    }
}

pub(crate) fn load(choice: &Choice, file: &ModelFile, format: Option<Format>) -> Result<(Model, Duration), Failure> {
    let start = Instant::now();
    let bar = quantize::progress_bar();
    let progress = |now: LoadProgress| {
        bar.set_length(now.total as u64);
        bar.set_position(now.done as u64);
        bar.set_message(now.role.to_string());
    };
    let backend = choice.backend.clone();
    let model = match format {
        None => Model::load(backend, file, progress),
        Some(format) => Model::load(backend, &InFormat { file, format }, progress),
    };
    bar.finish_and_clear();
    Ok((model?, start.elapsed()))
}

/// Generates, streaming text unless one object is wanted at the end. `None` where the reader of the text went away.
fn stream(
    context: &Context,
    model: &Model,
    tokenizer: &Tokenizer,
    args: &Args,
    options: &Options,
) -> Result<Option<Generation>, Failure> {
    let streaming = !context.json;
    if streaming && io::stderr().is_terminal() {
        let _ = write!(io::stderr().lock(), "{}", args.prompt);
    }
    let mut out = stdout();
    let mut written = Ok(());
    let generation = generate(model, tokenizer, &args.prompt, options, |token| {
        if streaming && written.is_ok() {
            written = out.write_all(token.text.as_bytes()).and_then(|()| out.flush());
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if streaming && written.is_ok() {
        written = writeln!(out).and_then(|()| out.flush());
    }
    match written {
        Ok(()) => Ok(Some(generation)),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Writes the logits under a temporary name, then renames: a file that is there is complete.
fn write_logits(model: &Model, prompt: &[u32], path: &Path) -> Result<(), Failure> {
    let logits = prompt_logits(model, prompt)?;
    let values: Vec<u8> = logits.values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let ids: Vec<u8> = prompt.iter().flat_map(|v| v.to_le_bytes()).collect();
    let invalid = |e: safetensors::SafeTensorError| Failure::File {
        action: "write",
        path: path.to_owned(),
        source: io::Error::other(e),
    };
    let tensors = [
        ("logits", TensorView::new(Dtype::F32, vec![logits.positions, logits.vocab], &values).map_err(invalid)?),
        ("token_ids", TensorView::new(Dtype::U32, vec![prompt.len()], &ids).map_err(invalid)?),
    ];
    let bytes = safetensors::serialize(tensors, None::<HashMap<String, String>>).map_err(invalid)?;
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(Failure::file("create a file in", directory))?;
    file.write_all(&bytes).map_err(Failure::file("write", path))?;
    file.persist(path).map_err(|e| e.error).map_err(Failure::file("write", path))?;
    note(format_args!("logits of {} x {} written to {}", logits.positions, logits.vocab, path.display()));
    Ok(())
}

fn measured(phase: &'static str, profile: &Profile) -> Measured {
    let entries = profile.entries().map(|(place, kind, spent)| MeasuredOp {
        place: place.to_string(),
        op: kind.id(),
        calls: spent.calls,
        seconds: spent.time.as_secs_f64(),
    });
    Measured { phase, entries: entries.collect() }
}

/// What a person wants to know after the text, on standard error.
fn summarise(report: &Report<'_>, generation: &Generation) -> Result<(), Failure> {
    let mut out = Vec::new();
    writeln!(out)?;
    let pace = |name: &str, pace: &Pace| match pace.tokens_per_second() {
        Some(rate) => format!("{name} {rate:.1} tok/s ({} in {:.3} s)", pace.tokens, pace.time.as_secs_f64()),
        None => format!("{name}: no tokens"),
    };
    writeln!(out, "{}", pace("prefill", &generation.run.prefill))?;
    writeln!(out, "{}; ended by {}", pace("decode", &generation.run.decode), ended_by(report.stop))?;
    if let Some(seed) = report.seed {
        writeln!(out, "seed {seed}")?;
    }
    writeln!(out, "backend {} ({}, {})", report.backend, report.runs_on, text::count(report.threads, "thread"))?;
    writeln!(out, "{}", report.decision)?;
    writeln!(out, "kernels {}", report.kernels.join(" "))?;
    let peak = report.peak_rss_bytes.map_or_else(|| "not told by this system".to_owned(), text::bytes);
    let (weights, session) = (report.weight_bytes as u64, report.session_bytes as u64);
    writeln!(
        out,
        "peak memory {peak} (weights {}, cache and activations {}), loaded in {:.2} s",
        text::bytes(weights),
        text::bytes(session),
        report.load_s
    )?;
    if let Some((prefill, decode)) = &generation.run.profiles {
        for (name, profile) in [("prefill", prefill), ("decode", decode)] {
            writeln!(out, "\n{name} by operation")?;
            print_spent(&mut out, profile.by_kind().into_iter().map(|(k, s)| (k.to_string(), s.calls, s.time)))?;
            writeln!(out, "\n{name} by layer")?;
            print_spent(&mut out, profile.by_place().into_iter().map(|(p, s)| (p.to_string(), s.calls, s.time)))?;
        }
    }
    // Where standard error is closed, nobody wants to know.
    let _ = io::stderr().lock().write_all(&out);
    Ok(())
}

fn ended_by(stop: &str) -> &str {
    match stop {
        "eos" => "the model",
        "tokens" => "--tokens",
        "context" => "the length of the context",
        other => other,
    }
}

fn print_spent(out: &mut impl Write, spent: impl Iterator<Item = (String, u64, Duration)>) -> io::Result<()> {
    let rows: Vec<_> = spent.collect();
    let total: Duration = rows.iter().map(|(.., time)| *time).sum();
    let mut table = Table::new(&["", "calls", "ms", "share"], &[]);
    for (name, calls, time) in rows {
        let share = time.as_secs_f64() / total.as_secs_f64().max(1e-12);
        table.row([name, calls.to_string(), format!("{:.3}", 1e3 * time.as_secs_f64()), text::percent(share)]);
    }
    table.write(out)
}
