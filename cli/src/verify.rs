//! `tersor verify`: do two files hold the same model?

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use tersor::model::verify::Difference;
use tersor::model::{ModelFile, OpenOptions, VerifyReport};

use crate::args::Foreign;
use crate::context::{Context, stdout};
use crate::failure::{Exit, Failure};
use crate::{models, text};

/// Compare two models, whatever their containers and formats: ternary values, scales, everything else
///
/// Every difference is listed with its place. Ternary values and scales are compared bit for bit. Where one of the two
/// has real (master) weights, these are quantized by the BitNet b1.58 rule first. Hyper-parameters, tokenizer, embedding,
/// norms and head are compared too; names and licences are not.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor verify model/ model.gguf           did the conversion lose anything?
  tersor verify fable-26m tiny.gguf         against the model that comes along
  tersor verify a.gguf b.gguf --json | jq .verdict

Exit codes:
  0  nothing differs
  3  ternary values differ, or tensors are missing
  4  ternary values are equal; scales differ, each only because f16 (tq1_0, tq2_0) cannot hold it
  5  ternary values are equal; scales differ otherwise, or something beside the ternary layers does
  1  a file cannot be read")]
pub(crate) struct Args {
    /// The one model
    #[arg(value_name = "A", long_help = models::WHAT_IS_A_MODEL)]
    a: PathBuf,

    /// The other
    #[arg(value_name = "B")]
    b: PathBuf,

    /// Applied to those of the two files that carry no mark of tersor's layout
    #[command(flatten)]
    foreign: Foreign,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    a: &'a Path,
    b: &'a Path,
    verdict: &'static str,
    /// The exit code.
    exit: u8,
    linear_tensors: usize,
    linear_weights: u64,
    other_tensors: usize,
    /// Layers with master weights in one of the files, quantized by the rule before comparing.
    quantized: usize,
    differences: Vec<Value>,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let options = args.foreign.options()?;
    let (a, b) = (open(&args.a, &options)?, open(&args.b, &options)?);
    let found = tersor::model::verify(&a, &b)?;
    let (exit, verdict) = judge(&found);
    let report = Report {
        a: &args.a,
        b: &args.b,
        verdict,
        exit: exit as u8,
        linear_tensors: found.linear,
        linear_weights: found.elements,
        other_tensors: found.dense,
        quantized: found.quantized,
        differences: found.differences.iter().map(as_json).collect(),
    };
    if context.json {
        context.print_json(&report)?;
    } else {
        let mut out = stdout();
        for difference in &found.differences {
            writeln!(out, "{difference}")?;
        }
        if found.quantized > 0 {
            writeln!(out, "{} master tensors were quantized by the rule before comparing", found.quantized)?;
        }
        let (linear, weights, dense) = (found.linear, found.elements, found.dense);
        writeln!(out, "{linear} ternary tensors ({weights} weights) and {dense} others compared: {verdict}")?;
        out.flush()?;
    }
    Ok(exit)
}

/// A file that says that its layout is ours is not read in another one.
fn open(path: &Path, options: &OpenOptions) -> Result<ModelFile, Failure> {
    let model = models::open(path, options)?;
    let marked = match model.gguf() {
        Some(file) => file.is_row_major()?,
        None => false,
    };
    if marked { models::open(path, &OpenOptions::default()) } else { Ok(model) }
}

fn judge(report: &VerifyReport) -> (Exit, &'static str) {
    let differs = |which: fn(&Difference) -> bool| report.differences.iter().any(which);
    if report.identical() {
        (Exit::Done, "identical")
    } else if differs(|d| !values_equal(d)) {
        (Exit::ValuesDiffer, "ternary values differ")
    } else if differs(|d| !matches!(d, Difference::Scale { f16_rounding: true, .. })) {
        (Exit::RestDiffers, "ternary values are equal, something else differs")
    } else {
        (Exit::ScalesRounded, "ternary values are equal, scales differ where f16 cannot hold them")
    }
}

/// Whether the difference leaves the ternary values as they are. What this program does not know may touch them.
fn values_equal(difference: &Difference) -> bool {
    use Difference as D;
    matches!(difference, D::Config { .. } | D::Tokenizer | D::Scale { .. } | D::Dense { .. })
}

fn as_json(difference: &Difference) -> Value {
    let mut value = match difference {
        Difference::Config { key, a, b } => json!({ "kind": "config", "key": key, "a": a, "b": b }),
        Difference::Tokenizer => json!({ "kind": "tokenizer" }),
        Difference::Missing { tensor, from_first } => {
            json!({ "kind": "missing", "tensor": tensor, "from": if *from_first { "a" } else { "b" } })
        }
        Difference::Codes { tensor, count, at, a, b } => {
            json!({ "kind": "codes", "tensor": tensor, "count": count, "row": at.0, "col": at.1, "a": a, "b": b })
        }
        Difference::Scale { tensor, count, a, b, f16_rounding } => {
            let (a, b) = (text::json_f32(*a), text::json_f32(*b));
            json!({ "kind": "scale", "tensor": tensor, "count": count, "a": a, "b": b, "f16_rounding": f16_rounding })
        }
        Difference::Dense { tensor, count, .. } => json!({ "kind": "dense", "tensor": tensor, "count": count }),
        _ => json!({ "kind": "other" }),
    };
    value["message"] = difference.to_string().into();
    value
}
