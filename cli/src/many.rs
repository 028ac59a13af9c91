//! `tersor run --prompts`: every line of a file, several at a time.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;
use tersor::model::generate::Pace;
use tersor::model::{Batch, BatchOptions, Many, Tokenizer, continue_many};
use tersor::{Decision, Format};

use crate::context::{Context, stdout};
use crate::failure::{Exit, Failure};
use crate::run::{Args, generation, load};
use crate::{memory, models, text};

#[derive(Debug, Serialize)]
struct Report<'a> {
    texts: Vec<Text<'a>>,
    /// Lines at a time.
    at_once: usize,
    prefill_tok_s: Option<f64>,
    /// Of all lines in sum.
    decode_tok_s: Option<f64>,
    /// Passes through the model that decoding took.
    steps: usize,
    backend: &'a str,
    kernels: &'a [&'static str],
    /// Null where the system does not tell it.
    peak_rss_bytes: Option<u64>,
    isa: Option<&'static str>,
    threads: usize,
    /// Null where nothing was drawn at random. Every line has it.
    seed: Option<u64>,
    model: &'a Path,
    /// The format asked for; null: the file's own.
    format: Option<&'static str>,
    load_s: f64,
    weight_bytes: usize,
    batch_bytes: usize,
    decision: &'a Decision,
}

#[derive(Debug, Serialize)]
struct Text<'a> {
    prompt: &'a str,
    text: String,
    token_ids: &'a [u32],
    prompt_token_ids: &'a [u32],
    /// eos, tokens or context.
    stop: &'static str,
}

pub(crate) fn run(context: &Context, args: &Args, path: &Path) -> Result<Exit, Failure> {
    let lines = std::fs::read_to_string(path).map_err(Failure::file("read", path))?;
    let lines: Vec<&str> = lines.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it has no line with a prompt");
        return Err(Failure::file("continue the prompts of", path)(source));
    }
    let mut open = args.foreign.options()?;
    open.tokenizer.clone_from(&args.tokenizer);
    let file = models::open(&args.model, &open)?;
    let tokenizer = Tokenizer::of(&file)?;
    let registry = context.registry()?;
    let options = generation(args, &context.config);
    let prompts = lines.iter().map(|line| tokenizer.encode(line)).collect::<Result<Vec<_>, _>>()?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let capacity = file.config().context_length.min(longest.saturating_add(options.tokens)).max(1);
    let sequences = args.at_once.min(prompts.len());
    let name = args.model.display().to_string();
    let choice = models::select(&registry, (&file, &name), args.format, (options.batch, capacity), Some(sequences))?;
    let (model, loaded) = load(&choice, &file, args.format)?;
    let room = BatchOptions { sequences, capacity: Some(capacity), rows: options.batch, profile: false };
    let mut batch = Batch::new(&model, room)?;
    let many = continue_many(&mut batch, &prompts, &options, |_, _| ControlFlow::Continue(()))?;
    let texts = lines.iter().zip(&prompts).zip(&many.texts).map(|((prompt, ids), text)| {
        let stop = text.stop.id();
        Ok(Text { prompt, text: tokenizer.decode(&text.ids)?, token_ids: &text.ids, prompt_token_ids: ids, stop })
    });
    let report = Report {
        texts: texts.collect::<Result<_, tersor::model::Error>>()?,
        at_once: sequences,
        prefill_tok_s: many.prefill.tokens_per_second(),
        decode_tok_s: many.decode.tokens_per_second(),
        steps: many.steps,
        backend: &choice.decision.chosen,
        kernels: &many.kernels,
        peak_rss_bytes: memory::peak_rss(),
        isa: choice.backend.info().isa.map(tersor::Isa::id),
        threads: registry.host().executor().threads(),
        seed: (options.sampling.temperature > 0.0).then_some(options.sampling.seed),
        model: &args.model,
        format: args.format.map(Format::id),
        load_s: loaded.as_secs_f64(),
        weight_bytes: model.weight_bytes(),
        batch_bytes: batch.bytes(),
        decision: &choice.decision,
    };
    if context.json {
        context.print_json(&report)?;
        return Ok(Exit::Done);
    }
    let mut out = stdout();
    let written =
        report.texts.iter().try_for_each(|t| writeln!(out, "{}{}", t.prompt, t.text)).and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
        written => written?,
    }
    let mut told = Vec::new();
    summarise(&mut told, &report, &many)?;
    // Where standard error is closed, nobody wants to know.
    let _ = io::stderr().lock().write_all(&told);
    Ok(Exit::Done)
}

/// What a person wants to know after the texts.
fn summarise(out: &mut Vec<u8>, report: &Report<'_>, many: &Many) -> io::Result<()> {
    let pace = |name: &str, pace: &Pace| match pace.tokens_per_second() {
        Some(rate) => format!("{name} {rate:.1} tok/s ({} in {:.3} s)", pace.tokens, pace.time.as_secs_f64()),
        None => format!("{name}: no tokens"),
    };
    writeln!(
        out,
        "\n{} of {}, at most {} at a time",
        text::count(many.texts.len(), "text"),
        report.model.display(),
        report.at_once
    )?;
    writeln!(out, "{}", pace("prefill", &many.prefill))?;
    writeln!(out, "{} in {}", pace("decode", &many.decode), text::count(many.steps, "step"))?;
    if let Some(seed) = report.seed {
        writeln!(out, "seed {seed}")?;
    }
    let isa = report.isa.unwrap_or("portable code");
    writeln!(out, "backend {} ({isa}, {})", report.backend, text::count(report.threads, "thread"))?;
    writeln!(out, "{}", report.decision)?;
    writeln!(out, "kernels {}", report.kernels.join(" "))
}
