//! `tersor synth`: a model of random weights, to measure the speed of a shape.

use std::io::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tersor::Format;
use tersor::model::synth::{SynthOptions, SynthShape, synth};

use crate::args::{format_names, table_format_names};
use crate::context::{Context, stdout};
use crate::failure::{Exit, Failure};
use crate::quantize::progress_bar;
use crate::text;

/// Write a model of random ternary weights, to measure what a shape costs
///
/// The model says nothing worth reading: it has the sizes of a real one, so that `run` and `bench` show the speed and memory
/// of a model that is not at hand. The tokenizer is that of fable-26m; most tokens of a larger vocabulary have no text. The
/// same options give the same file on every machine. The file appears when it is complete and not before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor synth --shape 2b4t --head q6_k -o 2b4t.gguf
  tersor synth --shape tiny -o tiny.gguf --format tl2 --seed 7
  tersor bench --model 2b4t.gguf")]
pub(crate) struct Args {
    /// The sizes: 2b4t is BitNet b1.58 2B-4T, tiny is for tests
    #[arg(long, value_name = "SHAPE", value_parser = shape_names())]
    shape: SynthShape,

    /// The GGUF file to write; one that is there is replaced
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,

    /// The format of the linear layers
    #[arg(short, long, value_name = "FORMAT", default_value = "i2_s", value_parser = format_names())]
    format: Format,

    /// The format of the embedding, which is the head too
    #[arg(long, value_name = "FORMAT", default_value = "bf16", value_parser = table_format_names())]
    head: Format,

    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn shape_names() -> impl TypedValueParser<Value = SynthShape> {
    PossibleValuesParser::new(SynthShape::NAMES.map(|(name, _)| name)).try_map(|name| name.parse::<SynthShape>())
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let options = SynthOptions { shape: args.shape, format: args.format, head: args.head, seed: args.seed };
    let bar = progress_bar();
    let done = synth(&args.output, &options, &mut |done, total, tensor| {
        bar.set_length(total >> 20);
        bar.set_position(done >> 20);
        if bar.message() != tensor {
            bar.set_message(tensor.to_owned());
        }
    });
    bar.finish_and_clear();
    let report = done?;
    if context.json {
        context.print_json(&report)?;
        return Ok(Exit::Done);
    }
    let mut out = stdout();
    writeln!(
        out,
        "{}: {} of random weights in {:.1} s, {} tensors, {} linear weights in {}, head in {}",
        report.path.display(),
        text::bytes(report.bytes),
        report.seconds,
        report.tensors,
        report.linear_weights,
        report.format,
        report.head
    )?;
    out.flush()?;
    Ok(Exit::Done)
}
