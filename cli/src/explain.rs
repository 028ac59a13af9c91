//! `tersor explain`: who runs a product, and why.

use std::io::Write;

use tersor::Format;
use tersor::core::OpSpec;
use tersor::registry::tune::{Effort, Workload};

use crate::args::Place;
use crate::context::{Context, note, stdout};
use crate::failure::{Exit, Failure};

/// Say which backend runs an operation, why, and why not the others, with measured times
///
/// What is not known is measured now and kept, unless --known is given. A program makes the same choice unless tune.mode is
/// "off".
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor explain matmul i2_s 2560x6912
  tersor explain matmul tl2 2560x2560 --m 128 --threads 1
  tersor explain matmul i2_s 2560x2560 --known --json")]
pub(crate) struct Args {
    /// The operation: matmul (gemv and gemm are other names for it), quantize or dequantize
    #[arg(value_name = "OP", value_parser = ["matmul", "gemv", "gemm", "quantize", "dequantize"])]
    op: String,

    /// The weight format
    #[arg(value_name = "FORMAT", value_parser = any_format)]
    format: Format,

    /// Rows and columns of the weight
    #[arg(value_name = "NxK", value_parser = sides)]
    shape: (usize, usize),

    /// Rows of activations
    #[arg(long, value_name = "M", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    m: u32,

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
    let spec = match args.op.as_str() {
        "quantize" => OpSpec::Quantize { from: tersor::core::DType::F32, format, shape },
        "dequantize" => OpSpec::Dequantize { format, to: tersor::core::DType::F32, shape },
        _ => OpSpec::matmul(format, args.m as usize, n, k),
    };
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
    if !matches!(spec, OpSpec::MatMul { .. }) {
        note(format_args!("only matrix products are measured; {} goes by static priority", spec.kind()));
    }
    Ok(Exit::Done)
}
