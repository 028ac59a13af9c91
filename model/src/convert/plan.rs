//! What the new file will hold, settled before a byte of it is written.

use tersor_core::{Format, Shape};

use super::ConvertOptions;
use crate::config::TOKENIZER_KEY;
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Metadata, TensorPlan, Value};
use crate::names::Role;
use crate::source::ModelFile;

/// Keys of the source that describe its encoding, not the model.
const NOT_COPIED: [&str; 4] =
    ["general.architecture", "general.file_type", "general.quantization_version", "general.alignment"];

/// Names, shapes, types and lengths of all tensors.
pub(super) fn tensors(model: &ModelFile, roles: &[Role], options: &ConvertOptions<'_>) -> Result<Vec<TensorPlan>> {
    let linear_type = ggml_type(options.format)?;
    roles.iter().map(|&role| tensor(model, role, options, linear_type)).collect()
}

fn tensor(model: &ModelFile, role: Role, options: &ConvertOptions<'_>, linear_type: GgmlType) -> Result<TensorPlan> {
    let (rows, cols) = role.shape(model.config());
    let dims = if role.is_norm() { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
    let encoded = |format: Format| {
        Shape::new(rows, cols).and_then(|s| format.encoded_len(s)).map(|len| len.bytes as u64).map_err(|e| {
            let name = model.entry(role).map_or_else(|| role.gguf_name(), |e| e.name.clone());
            Error::from(e).in_tensor(&name)
        })
    };
    let (ty, len) = if role.is_linear() {
        (linear_type, encoded(options.format)?)
    } else if role.is_norm() {
        (GgmlType::F32, 4 * cols as u64)
    } else if let Some(format) = options.head {
        (super::head::ggml_type(format)?, encoded(format)?)
    } else {
        let dense = model.dense(role)?;
        (dense.ty, dense.data.len() as u64)
    };
    Ok(TensorPlan { name: role.gguf_name(), dims, ty, len })
}

/// The ggml type of a ternary format.
pub(crate) fn ggml_type(format: Format) -> Result<GgmlType> {
    match format {
        Format::I2S => Ok(GgmlType::I2_S),
        Format::TL1 => Ok(GgmlType::TL1),
        Format::TL2 => Ok(GgmlType::TL2),
        Format::TQ1_0 => Ok(GgmlType::TQ1_0),
        Format::TQ2_0 => Ok(GgmlType::TQ2_0),
        other => Err(Error::Config {
            key: "format".to_owned(),
            value: other.to_string(),
            problem: format!("files hold {}", Format::TERNARY.map(Format::id).join(", ")),
        }),
    }
}

/// `general.file_type`, as llama.cpp and bitnet.cpp number them.
fn file_type(ty: GgmlType) -> Option<u32> {
    match ty {
        GgmlType::TQ1_0 => Some(36),
        GgmlType::TQ2_0 => Some(37),
        GgmlType::TL1 => Some(38),
        GgmlType::TL2 => Some(39),
        GgmlType::I2_S => Some(40),
        _ => None,
    }
}

/// The new file's metadata: the model's hyper-parameters, the mark of the layout, the tokenizer, and what the source said
/// about name, licence and vocabulary.
pub(super) fn metadata(model: &ModelFile, options: &ConvertOptions<'_>) -> Metadata {
    let mut config = model.config().clone();
    if let Some(name) = options.name {
        config.name = Some(name.to_owned());
    }
    let mut metadata = Metadata::new();
    config.write_metadata(&mut metadata);
    if let Some(number) = ggml_type(options.format).ok().and_then(file_type) {
        metadata.set("general.file_type", Value::U32(number));
    }
    metadata.set("general.quantization_version", Value::U32(2));
    metadata.set("tersor.layout.version", Value::U32(1));
    metadata.set("tersor.layout", Value::String("row-major".to_owned()));
    if let Some(json) = model.tokenizer_json() {
        metadata.set(TOKENIZER_KEY, Value::String(json.to_owned()));
    }
    for (key, value) in model.gguf().map(|g| g.metadata().iter()).into_iter().flatten() {
        let wanted = key.starts_with("general.") || key.starts_with("tokenizer.");
        if wanted && !NOT_COPIED.contains(&key) && metadata.get(key).is_none() {
            metadata.set(key, value.clone());
        }
    }
    metadata
}
