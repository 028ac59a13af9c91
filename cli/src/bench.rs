//! `tersor bench`: how fast, and how far from what the machine allows.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tersor::model::embedded;
use tersor_bench::{Options, Progress, compare, output};

use crate::args::Place;
use crate::context::{Context, note, stdout};
use crate::failure::{Exit, Failure};
use crate::models;

/// Measure every backend: quantization, products, a model; beside each figure what the machine allows
///
/// Weights are real and colder than the last-level cache, candidates take turns, every output is checked. The whole ends
/// within --budget; what that cuts is listed. Tables go to standard output; the report, with all samples and pictures, to
/// --out.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor bench                                         every backend, the model that comes along
  tersor bench --backend cpu-avx2 --threads 4          one backend, with 1 and with 4 threads
  tersor bench --model model.gguf --budget 600         another model, more samples
  tersor bench --profile-quantization                  quantization shape by shape, with packing and the way back
  tersor bench --batch 32 --prompt-len 128             a model with 32 sequences at a time, in sum and each
  tersor bench --compare before/report.json            what changed since; refused where the machine differs
  tersor bench --json | jq '.figures[] | select(.measure == \"decode\") | {backend, isa, threads, time}'")]
pub(crate) struct Args {
    /// The model whose weights are measured and which is run
    #[arg(long, value_name = "MODEL", default_value = embedded::NAME, long_help = models::WHAT_IS_A_MODEL)]
    model: PathBuf,

    /// The tokenizer.json to use, instead of the one in or beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Measure quantization in detail: each shape, from f16 and bf16 too, back to f32, and packing
    #[arg(long)]
    profile_quantization: bool,

    /// Tokens of a decode sample
    #[arg(short = 'n', long, value_name = "N", default_value_t = Options::default().tokens, value_parser = at_least_one)]
    tokens: usize,

    /// Tokens of a prompt [default: 128, and 16 before those of a decode sample]
    #[arg(long, value_name = "P", value_parser = at_least_one)]
    prompt_len: Option<usize>,

    /// Decode N sequences at a time too, each after a prompt of its own; measures inference and nothing else
    ///
    /// Tokens per second are given in sum and for each sequence. (The key run.batch is something else: rows of a prompt that
    /// go through the model together.)
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    batch: Option<usize>,

    /// Samples of each case that are thrown away
    #[arg(long, value_name = "W", default_value_t = Options::default().warmup)]
    warmup: usize,

    /// Samples of each case; where time does not suffice there are fewer, and the report says so
    #[arg(long, value_name = "I", default_value_t = Options::default().iterations, value_parser = at_least_one)]
    iterations: usize,

    /// Seconds for everything
    #[arg(long, value_name = "SECONDS", default_value_t = Options::default().budget.as_secs())]
    budget: u64,

    /// Directory for report.json, report.md and pictures [default: target/tersor-bench of the Cargo project that the current
    /// directory is in, else tersor-bench]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Compare with an earlier report.json
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) place: Place,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "must be a whole number, at least 1".to_owned())
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    // Read first: a wrong path should not cost two minutes.
    let before = args.compare.as_deref().map(output::read).transpose()?;
    let registry = context.registry()?;
    let options = Options {
        model: (!models::is_embedded(&args.model)).then(|| args.model.clone()),
        tokenizer: args.tokenizer.clone(),
        profile_quantization: args.profile_quantization,
        tokens: args.tokens,
        prompt: args.prompt_len,
        batch: args.batch,
        warmup: args.warmup,
        iterations: args.iterations,
        budget: Duration::from_secs(args.budget.max(1)),
        ..Options::default()
    };
    let bar = progress_bar();
    let told = tersor_bench::run(&registry, &options, &mut |p| show(&bar, p));
    bar.finish_and_clear();
    let report = told?;
    let directory = args.out.clone().unwrap_or_else(default_directory);
    let files = output::write(&report, &directory)?;
    if context.json {
        context.print_json(&report)?;
    } else {
        let mut out = stdout();
        write!(out, "{}", output::terminal(&report))?;
        out.flush()?;
    }
    for file in files.iter().filter(|f| f.extension().is_none_or(|e| e != "svg")) {
        note(format_args!("wrote {}", file.display()));
    }
    if let Some(before) = before {
        let comparison = compare(&before, &report)?;
        if context.json {
            note(format_args!("{comparison}"));
        } else {
            let mut out = stdout();
            write!(out, "\n{comparison}")?;
            out.flush()?;
        }
    }
    Ok(Exit::Done)
}

/// Cargo's own directory for what a build makes, where there is a project; it is ignored by git.
fn default_directory() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let project = here.ancestors().find(|d| d.join("Cargo.lock").is_file());
    project.map_or_else(|| PathBuf::from("tersor-bench"), |p| Path::new(p).join("target").join("tersor-bench"))
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {percent:>3} % of the time  {msg}");
    ProgressBar::new(1000).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, p: Progress<'_>) {
    bar.set_position((p.done * 1000.0) as u64);
    bar.set_message(format!("{}  {}", p.phase, p.step));
}
