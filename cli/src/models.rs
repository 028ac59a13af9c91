//! Opening a model, and choosing a backend for it.

use std::path::Path;

use tersor::core::{DType, OpSpec, Shape};
use tersor::model::graph::{required_batch_ops, required_ops};
use tersor::model::source::{KernelConfig, TensorEntry};
use tersor::model::{Linear, ModelFile, OpenOptions, Role, embedded};
use tersor::registry::Choice;
use tersor::registry::tune::Workload;
use tersor::{Format, Registry};

use crate::args::Foreign;
use crate::failure::Failure;

/// What commands say about their model arguments.
pub(crate) const WHAT_IS_A_MODEL: &str = "\
A model is a GGUF file, a .safetensors file or index beside its config.json, or a directory with these. The name fable-26m,
where no such file exists, means the model that comes with the program.";

/// Opens a model: a path, or the name of the embedded one.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<ModelFile, Failure> {
    let _span = tracing::debug_span!("open", model = %path.display()).entered();
    if !is_embedded(path) {
        return Ok(ModelFile::open_with(path, options)?);
    }
    let model = embedded::fable_26m()?;
    match &options.tokenizer {
        None => Ok(model),
        Some(file) => Ok(model.with_tokenizer(read(file)?)),
    }
}

/// Whether the path is the name of the embedded model. A file of that name comes first.
pub(crate) fn is_embedded(path: &Path) -> bool {
    path == Path::new(embedded::NAME) && !path.exists()
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(Failure::file("read", path))
}

impl Foreign {
    /// As options for [`open`].
    pub(crate) fn options(&self) -> Result<OpenOptions, Failure> {
        let kernels = match &self.kernel_config {
            None => None,
            Some(file) => Some(KernelConfig::parse(&read(file)?)?),
        };
        Ok(OpenOptions { tokenizer: None, i2_s_layout: self.from_layout.unwrap_or_default(), kernels })
    }
}

/// The backend that runs a model: one that does every operation of the pass, for one token and for `batch` together.
/// With `sequences`, one that does them for so many at a time, each with `capacity` positions. `wanted` is the format that the linear layers are brought into, or none; decision and error call the model `name`.
pub(crate) fn select(
    registry: &Registry,
    (model, name): (&ModelFile, &str),
    wanted: Option<Format>,
    (batch, capacity): (usize, usize),
    sequences: Option<usize>,
) -> Result<Choice, Failure> {
    let config = model.config();
    let mut formats = Vec::new();
    let mut bytes = 0;
    for role in Role::all(config).filter(|r| !r.is_norm()) {
        let operand = operand(model, role, wanted)?;
        let (rows, cols) = role.shape(config);
        bytes += operand.0.encoded_len(Shape::new(rows, cols)?)?.bytes as u64;
        formats.push((role, operand));
    }
    // A role that the model lacks is not asked for.
    let format_of = |role| formats.iter().find(|(r, _)| *r == role).map_or((Format::F32, None), |(_, f)| *f);
    let mut specs = required_ops(config, format_of, 1, capacity)?;
    specs.extend(required_ops(config, format_of, batch.clamp(1, capacity), capacity)?);
    if let Some(sequences) = sequences {
        for (rows, drawn) in
            [(1, 1), (sequences, sequences), (batch.clamp(1, capacity.saturating_mul(sequences)), sequences)]
        {
            specs.extend(required_batch_ops(config, format_of, rows, capacity, drawn)?);
        }
    }
    specs.extend(quantize_specs(model, wanted.unwrap_or(Format::I2S))?);
    let format = wanted.map(|f| format!(" in {f}")).unwrap_or_default();
    let what = format!("{name}{format} ({} kinds of operation)", specs.len());
    // The registry knows operations; a person knows the model.
    match registry.select_for(&Workload { specs: &specs, weight_bytes: Some(bytes) }) {
        Ok(mut choice) => {
            choice.decision.what = what;
            Ok(choice)
        }
        Err(tersor::Error::NoCandidate { rejected, .. }) => Err(tersor::Error::NoCandidate { what, rejected }.into()),
        Err(other) => Err(other.into()),
    }
}

/// The format in which a matrix reaches the backend, and the weights per scale where those of a row differ.
fn operand(model: &ModelFile, role: Role, wanted: Option<Format>) -> Result<(Format, Option<usize>), Failure> {
    if !role.is_linear() {
        let format = model.dense(role)?.weight()?.format();
        return Ok((format, format.scale_block().filter(|_| format.is_block())));
    }
    let stored = model.entry(role).and_then(stored_format);
    let format = wanted.or(stored).unwrap_or(Format::I2S);
    if stored != Some(format) || format.scale_block().is_none() {
        return Ok((format, None)); // encoded or quantized on loading, or a format that has one scale
    }
    let varied = match model.linear(role)? {
        Linear::Packed(weight) => weight.uniform_scale().is_none(),
        Linear::Codes(ternary) => ternary.uniform_scale().is_none(),
        Linear::Master(_) => false,
    };
    Ok((format, format.scale_block().filter(|_| varied)))
}

/// The ternary format of a tensor in a file, where it is one.
pub(crate) fn stored_format(entry: &TensorEntry) -> Option<Format> {
    Format::TERNARY.into_iter().find(|f| f.id() == entry.stored)
}

/// Linear layers with real weights, which have to be quantized.
pub(crate) fn masters(model: &ModelFile) -> impl Iterator<Item = &TensorEntry> {
    model.tensors().filter(|t| t.role.is_linear() && float_type(t).is_some())
}

fn float_type(entry: &TensorEntry) -> Option<DType> {
    match entry.stored.as_str() {
        "f32" => Some(DType::F32),
        "f16" => Some(DType::F16),
        "bf16" => Some(DType::BF16),
        _ => None,
    }
}

/// The quantization of each master layer, as questions to backends, each once.
pub(crate) fn quantize_specs(model: &ModelFile, format: Format) -> Result<Vec<OpSpec>, Failure> {
    let mut specs = Vec::new();
    for entry in masters(model) {
        let (rows, cols) = entry.role.shape(model.config());
        let from = float_type(entry).unwrap_or(DType::F32);
        let spec = OpSpec::Quantize { from, format, shape: Shape::new(rows, cols)? };
        if !specs.contains(&spec) {
            specs.push(spec);
        }
    }
    Ok(specs)
}
