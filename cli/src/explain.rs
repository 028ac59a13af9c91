//! `tersor explain`: who runs an operation, and why.

use std::io::Write;

use tersor::Format;
use tersor::core::{DType, OpSpec};
use tersor::registry::tune::key::not_measured;
use tersor::registry::tune::{Effort, Workload};

use crate::args::Place;
use crate::context::{Context, note, stdout};
use crate::failure::{Exit, Failure};

/// Say which backend runs an operation, why, and why not the others, with measured times
///
/// What is not known is measured now and kept, unless --known is given. A program makes the same choice unless tune.mode is
/// "off". Operations that are never measured say why.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor explain matmul i2_s 2560x6912
  tersor explain matmul tl2 2560x2560 --m 128 --threads 1
  tersor explain quantize i2_s 2560x2560
  tersor explain dequantize tq2_0 2560x2560 --type bf16
  tersor explain rms_norm_quantize f32 1x2560
  tersor explain matmul i2_s 2560x2560 --known --json")]
pub(crate) struct Args {
    /// The operation; gemv and gemm are other names for matmul
    #[arg(value_name = "OP", value_parser = [
        "matmul", "gemv", "gemm", "quantize", "dequantize", "gather_rows", "quantize_rows", "rms_norm",
        "rms_norm_quantize", "relu_squared_mul", "add", "copy",
    ])]
    op: String,

    /// The format of the weight; f32 where there is none
    #[arg(value_name = "FORMAT", value_parser = any_format)]
    format: Format,

    /// Rows and columns of the weight; of the activations where there is no weight
    #[arg(value_name = "NxK", value_parser = sides)]
    shape: (usize, usize),

    /// Rows of activations of a product, or rows that are gathered
    #[arg(long, value_name = "M", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    m: u32,

    /// The type of real weights: what quantize reads and dequantize writes
    #[arg(long = "type", value_name = "TYPE", default_value = "f32", value_parser = ["f32", "f16", "bf16"])]
    real: String,

    /// Take what is known, and measure nothing
    #[arg(long)]
    known: bool,

    #[command(flatten)]
    pub(crate) place: Place,
}

fn any_format(text: &str) -> Result<Format, String> {
    text.parse().map_err(|e: tersor::core::Error| e.to_string())
}

fn sides(text: &str) -> Result<(usize, usize), String> {
    let wrong = || "rows x columns are needed, such as 2560x6912".to_owned();
    let (n, k) = text.split_once('x').ok_or_else(wrong)?;
    let side = |s: &str| s.parse().ok().filter(|n| *n > 0).ok_or_else(wrong);
    Ok((side(n)?, side(k)?))
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let registry = context.registry()?;
    let ((n, k), format) = (args.shape, args.format);
    let shape = tersor::Shape::new(n, k)?;
    let real = match args.real.as_str() {
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => DType::F32,
    };
    let (rows, cols, m) = (n, k, args.m as usize);
    let spec = match args.op.as_str() {
        "quantize" => OpSpec::Quantize { from: real, format, shape },
        "dequantize" => OpSpec::Dequantize { format, to: real, shape },
        "gather_rows" => OpSpec::GatherRows { format, rows: m, cols },
        "quantize_rows" => OpSpec::QuantizeRows { rows, cols },
        "rms_norm" => OpSpec::RmsNorm { rows, cols },
        "rms_norm_quantize" => OpSpec::RmsNormQuantize { rows, cols },
        "relu_squared_mul" => OpSpec::ReluSquaredMul { len: shape.len() },
        "add" => OpSpec::Add { len: shape.len() },
        "copy" => OpSpec::Copy { len: shape.len() },
        _ => OpSpec::matmul(format, m, n, k),
    };
    let weightless = !matches!(
        spec,
        OpSpec::Quantize { .. } | OpSpec::Dequantize { .. } | OpSpec::GatherRows { .. } | OpSpec::MatMul { .. }
    );
    if weightless && format != Format::F32 {
        return Err(Failure::Usage(format!("{} has no weight: its FORMAT is f32, not {format}", spec.kind())));
    }
    let effort = if args.known { Effort::Known } else { Effort::Unlimited };
    let specs = [spec];
    let workload = Workload { specs: &specs, weight_bytes: None };
    let choice = registry.measure(&workload, effort, &mut |_, _| ())?;
    if context.json {
        context.print_json(&choice.decision)?;
        return Ok(Exit::Done);
    }
    let mut out = stdout();
    writeln!(out, "{}", choice.decision)?;
    out.flush()?;
    if let Some(reason) = not_measured(&spec) {
        note(format_args!("{} is not measured: {reason}", spec.kind()));
    }
    Ok(Exit::Done)
}
