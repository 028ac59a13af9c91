//! `tersor inspect`: what is in a file?

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use tersor::model::gguf::{Array, Metadata, Value};
use tersor::model::{Checkpoint, Gguf, ModelConfig, ModelFile};

use crate::args::Foreign;
use crate::context::{Context, stdout};
use crate::failure::{Exit, Failure};
use crate::models;
use crate::suspicion::{self, Codes};
use crate::text::{self, Table};

/// Show what a model file holds: metadata, tensors, sizes, formats, shares of zeros, anything suspicious
///
/// A GGUF or safetensors file that is no model tersor could run is shown all the same, with the reason.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor inspect model.gguf
  tersor inspect fable-26m                  the model that comes along
  tersor inspect model/ --quick             names and shapes, without reading the weights
  tersor inspect model.gguf --json | jq .suspicious")]
pub(crate) struct Args {
    /// The file or directory
    #[arg(value_name = "FILE", long_help = models::WHAT_IS_A_MODEL)]
    file: PathBuf,

    /// Do not read the weights: no shares of zeros, no scales, fewer suspicions
    #[arg(long)]
    quick: bool,

    #[command(flatten)]
    foreign: Foreign,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    file: PathBuf,
    container: String,
    /// Null where the file is no model that tersor can run; `problem` says why.
    model: Option<Json>,
    problem: Option<String>,
    /// inside, a path, or null.
    tokenizer: Option<String>,
    metadata: Map<String, Json>,
    tensors: Vec<Tensor>,
    /// Tensors and bytes for each type.
    types: BTreeMap<String, Total>,
    tensor_bytes: u64,
    suspicious: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    /// The contiguous dimension last.
    shape: Vec<u64>,
    #[serde(rename = "type")]
    stored: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    codes: Option<Codes>,
}

#[derive(Debug, Default, Serialize)]
struct Total {
    tensors: usize,
    bytes: u64,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let options = args.foreign.options()?;
    let mut report = match models::open(&args.file, &options) {
        Ok(model) => of_model(&model, args.quick),
        Err(problem) => of_container(&args.file, problem)?,
    };
    report.file.clone_from(&args.file);
    for tensor in &report.tensors {
        let total = report.types.entry(tensor.stored.clone()).or_default();
        *total = Total { tensors: total.tensors + 1, bytes: total.bytes + tensor.bytes };
        report.tensor_bytes += tensor.bytes;
    }
    if context.json {
        context.print_json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(Exit::Done)
}

fn of_model(model: &ModelFile, quick: bool) -> Report {
    let mut report = Report { model: Some(summary(model.config())), ..Report::default() };
    report.tokenizer = match (model.tokenizer_json(), model.tokenizer_path()) {
        (None, _) => None,
        (Some(_), None) => Some("inside".to_owned()),
        (Some(_), Some(path)) => Some(path.display().to_string()),
    };
    match model.gguf() {
        Some(file) => {
            report.container = format!("GGUF version {}", file.version());
            report.metadata = metadata(file.metadata());
        }
        None => report.container = "safetensors".to_owned(),
    }
    suspicion::of_model(model, &mut report.suspicious);
    for entry in model.tensors() {
        let codes = if quick { None } else { suspicion::of_tensor(model, entry, &mut report.suspicious) };
        report.tensors.push(Tensor {
            name: entry.name.clone(),
            shape: vec![entry.shape.0 as u64, entry.shape.1 as u64],
            stored: entry.stored.clone(),
            bytes: entry.bytes,
            codes,
        });
    }
    report
}

/// The file as its container shows it, for files that are no model of ours. Where it is not even that, the problem stands.
fn of_container(path: &Path, problem: Failure) -> Result<Report, Failure> {
    let mut report = Report { problem: Some(problem.to_string()), ..Report::default() };
    if path.is_dir() || path.extension().is_some_and(|e| e == "safetensors" || e == "json") {
        let Ok(file) = Checkpoint::open(path) else { return Err(problem) };
        report.container = "safetensors".to_owned();
        report.tensors = file
            .tensors()
            .map(|(name, tensor)| Tensor {
                name: name.to_owned(),
                shape: tensor.shape.iter().map(|&n| n as u64).collect(),
                stored: format!("{:?}", tensor.dtype).to_lowercase(),
                bytes: tensor.data.len() as u64,
                codes: None,
            })
            .collect();
    } else {
        let Ok(file) = Gguf::open(path) else { return Err(problem) };
        report.container = format!("GGUF version {}", file.version());
        report.metadata = metadata(file.metadata());
        report.tensors = file
            .tensors()
            .iter()
            .map(|tensor| Tensor {
                name: tensor.name.clone(),
                shape: tensor.dims.iter().rev().copied().collect(),
                stored: tensor.ty.to_string(),
                bytes: tensor.len,
                codes: None,
            })
            .collect();
    }
    report.suspicious.push(format!("not a model that tersor can run: {problem}"));
    Ok(report)
}

fn summary(config: &ModelConfig) -> Json {
    json!({
        "name": config.name,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "ffn_size": config.ffn_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "rope_theta": text::json_f32(config.rope_theta),
        "rms_eps": text::json_f32(config.rms_eps),
        "activation": config.activation.hf_name(),
        "tied_head": config.tied_head,
        "bos_id": config.bos_id,
        "eos_ids": config.eos_ids,
        "linear_weights": config.linear_elements(),
    })
}

fn metadata(metadata: &Metadata) -> Map<String, Json> {
    metadata.iter().map(|(key, value)| (key.to_owned(), value_json(value))).collect()
}

/// Longer arrays and texts (vocabularies, tokenizers) are counted, not shown.
const LONG_ARRAY: usize = 32;
const LONG_TEXT: usize = 1000;

fn value_json(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) => text::json_f32(*v),
        Value::Bool(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::String(text) if text.len() > LONG_TEXT => json!({ "type": "string", "bytes": text.len() }),
        Value::String(text) => json!(text),
        Value::Array(array) => array_json(array),
    }
}

fn array_json(array: &Array) -> Json {
    if array.len() > LONG_ARRAY {
        return json!({ "type": "array", "elements": array.len() });
    }
    match array {
        Array::U8(v) => json!(v),
        Array::I8(v) => json!(v),
        Array::U16(v) => json!(v),
        Array::I16(v) => json!(v),
        Array::U32(v) => json!(v),
        Array::I32(v) => json!(v),
        Array::F32(v) => v.iter().map(|v| text::json_f32(*v)).collect(),
        Array::Bool(v) => json!(v),
        Array::String(v) => json!(v),
        Array::U64(v) => json!(v),
        Array::I64(v) => json!(v),
        Array::F64(v) => json!(v),
        Array::Array(v) => v.iter().map(array_json).collect(),
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let mut out = stdout();
    let (tensors, bytes) = (text::count(report.tensors.len(), "tensor"), text::bytes(report.tensor_bytes));
    writeln!(out, "{}: {}, {tensors}, {bytes}", report.file.display(), report.container)?;
    for (key, value) in report.model.iter().filter_map(Json::as_object).flatten() {
        writeln!(out, "  {key:<16} {}", plain(value))?;
    }
    if report.model.is_some() {
        writeln!(out, "  {:<16} {}", "tokenizer", report.tokenizer.as_deref().unwrap_or("none"))?;
    }
    if !report.metadata.is_empty() {
        writeln!(out, "\nmetadata")?;
        for (key, value) in &report.metadata {
            writeln!(out, "  {} = {}", text::shown(key, 80), plain(value))?;
        }
    }
    writeln!(out, "\ntensors")?;
    let mut table = Table::new(&["  name", "shape", "type", "bytes", "-1", "0", "+1", "scale"], &[2]);
    report.tensors.iter().for_each(|tensor| table.row(row(tensor)));
    table.write(&mut out)?;
    writeln!(out, "\ntypes")?;
    for (name, total) in &report.types {
        writeln!(out, "  {name}: {}, {}", text::count(total.tensors, "tensor"), text::bytes(total.bytes))?;
    }
    match report.suspicious.as_slice() {
        [] => writeln!(out, "\nnothing suspicious")?,
        all => {
            writeln!(out, "\nsuspicious")?;
            all.iter().try_for_each(|s| writeln!(out, "  {s}"))?;
        }
    }
    Ok(out.flush()?)
}

fn row(tensor: &Tensor) -> Vec<String> {
    let dims: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    let mut cells = vec![
        format!("  {}", text::shown(&tensor.name, 100)),
        dims.join(" x "),
        tensor.stored.clone(),
        tensor.bytes.to_string(),
    ];
    if let Some(codes) = &tensor.codes {
        cells.extend([codes.minus, codes.zero, codes.plus].map(text::percent));
        cells.push(codes.scale.map_or_else(|| "varies".to_owned(), |s| format!("{s:.6}")));
    }
    cells
}

fn plain(value: &Json) -> String {
    match value {
        Json::Null => "none".to_owned(),
        Json::String(text) => text::shown(text, 90),
        Json::Object(long) => match (&long["type"], long.get("elements").or_else(|| long.get("bytes"))) {
            (Json::String(ty), Some(n)) if ty == "array" => format!("[{n} elements]"),
            (_, Some(n)) => format!("[text of {n} bytes]"),
            _ => text::shown(&value.to_string(), 90),
        },
        other => text::shown(&other.to_string(), 90),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_counted_not_shown() {
        assert_eq!(plain(&value_json(&Value::String("x".repeat(5000)))), "[text of 5000 bytes]");
        assert_eq!(plain(&value_json(&Value::Array(Array::U8(vec![1; 100])))), "[100 elements]");
        assert_eq!(plain(&value_json(&Value::Array(Array::Bool(vec![true, false])))), "[true,false]");
    }
}
