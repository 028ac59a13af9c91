//! Tensors of Hugging Face checkpoints: master weights, and the packed layout with its `weight_scale`.

use std::collections::{BTreeMap, BTreeSet};

use tersor_core::{Format, Shape, Ternary, codec};

use super::{Dense, Linear, TensorEntry, check_shape};
use crate::checkpoint::{Checkpoint, Dtype, StoredTensor};
use crate::config::{LinearClass, ModelConfig, QuantizationConfig};
use crate::error::{Error, Result};
use crate::gguf::GgmlType;
use crate::names::Role;

/// The checkpoint's tensors by role, and the names that belong to none.
pub(super) fn entries(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
) -> Result<(BTreeMap<Role, TensorEntry>, Vec<String>)> {
    let mut entries = BTreeMap::new();
    let mut companions = BTreeSet::new();
    for (name, tensor) in checkpoint.tensors() {
        let Some(role) = Role::from_hf(name) else { continue };
        if !fits(role, config) {
            continue;
        }
        let shape = shape_of(name, role, tensor)?;
        check_shape(name, shape, role, config)?;
        let stored =
            if tensor.dtype == Dtype::U8 { "packed".to_owned() } else { format!("{:?}", tensor.dtype).to_lowercase() };
        let bytes = tensor.data.len() as u64;
        let entry = TensorEntry { role, name: name.to_owned(), shape, stored, bytes };
        if let Some(other) = entries.insert(role, entry) {
            return Err(Error::tensor(name, format!("the checkpoint also has {}, for the same place", other.name)));
        }
        companions.insert(scale_name(name));
    }
    let mut ignored = Vec::new();
    for (name, _) in checkpoint.tensors() {
        let known = companions.contains(name) || Role::from_hf(name).is_some_and(|r| entries.contains_key(&r));
        if name.ends_with(".bias") {
            return Err(Error::tensor(
                name,
                "a bias; BitNet b1.58 has none, and leaving it out would change the model",
            ));
        }
        if !known {
            ignored.push(name.to_owned());
        }
    }
    Ok((entries, ignored))
}

/// Whether the configuration has a place for it: `lm_head` of a tied model is a second copy that the libraries ignore too.
fn fits(role: Role, config: &ModelConfig) -> bool {
    match role {
        Role::Output => !config.tied_head,
        Role::Layer(layer, _) => layer < config.layers,
        Role::TokenEmbedding | Role::OutputNorm => true,
    }
}

/// Rows and columns of the weights, which a packed tensor stores four rows to a byte.
fn shape_of(name: &str, role: Role, tensor: &StoredTensor) -> Result<(usize, usize)> {
    let packed = if tensor.dtype == Dtype::U8 && role.is_linear() { 4 } else { 1 };
    match (tensor.shape.as_slice(), role.is_norm()) {
        (&[cols], true) => Ok((1, cols)),
        (&[rows, cols], false) => Ok((rows.saturating_mul(packed), cols)),
        (dims, norm) => {
            let need = if norm { "one dimension" } else { "two dimensions" };
            Err(Error::tensor(name, format!("has shape {dims:?}; {need} were expected")))
        }
    }
}

/// `X.weight` -> `X.weight_scale`.
fn scale_name(weight: &str) -> String {
    format!("{weight}_scale")
}

/// The tensor behind an entry.
fn stored<'a>(checkpoint: &'a Checkpoint, entry: &TensorEntry) -> Result<&'a StoredTensor> {
    let missing = || Error::MissingTensor { name: entry.name.clone(), why: "it was listed".to_owned() };
    checkpoint.tensor(&entry.name).ok_or_else(missing)
}

pub(super) fn dense(checkpoint: &Checkpoint, entry: &TensorEntry) -> Result<Dense> {
    let tensor = stored(checkpoint, entry)?;
    let ty = match tensor.dtype {
        Dtype::F32 => GgmlType::F32,
        Dtype::F16 => GgmlType::F16,
        Dtype::BF16 => GgmlType::BF16,
        other => return Err(Error::tensor(&entry.name, format!("is {other:?}; F32, F16 and BF16 are supported"))),
    };
    let shape = Shape::new(entry.shape.0, entry.shape.1)?;
    Ok(Dense { name: entry.name.clone(), ty, shape, data: tensor.data.clone() })
}

pub(super) fn linear(
    checkpoint: &Checkpoint,
    entry: &TensorEntry,
    quantization: Option<QuantizationConfig>,
) -> Result<Linear> {
    let tensor = stored(checkpoint, entry)?;
    let scale_name = scale_name(&entry.name);
    let scale = checkpoint.tensor(&scale_name);
    if tensor.dtype != Dtype::U8 {
        if scale.is_some() {
            return Err(Error::tensor(
                &entry.name,
                format!("is {:?} but {scale_name} stands beside it; only packed U8 weights have a scale", tensor.dtype),
            ));
        }
        return dense(checkpoint, entry).map(Linear::Master);
    }
    let scale = scale.ok_or_else(|| Error::MissingTensor {
        name: scale_name.clone(),
        why: format!("the packed weights {} need it", entry.name),
    })?;
    let class = quantization.ok_or_else(|| Error::MissingKey {
        key: "quantization_config".to_owned(),
        why: format!("{scale_name} multiplies in linear_class autobitlinear and divides in bitlinear"),
    })?;
    let scale = multiplier(&scale_name, scale, class.linear_class)?;
    let shape = Shape::new(entry.shape.0, entry.shape.1)?;
    let codes = unpack(&entry.name, &tensor.data, shape)?;
    Ok(Linear::Codes(Ternary { shape, codes, block: shape.len(), scales: vec![scale] }))
}

/// The multiplier behind a `weight_scale`.
fn multiplier(name: &str, tensor: &StoredTensor, class: LinearClass) -> Result<f32> {
    let format = match tensor.dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::BF16 => Format::BF16,
        other => return Err(Error::tensor(name, format!("is {other:?}; a scale is F32, F16 or BF16"))),
    };
    if tensor.shape.iter().product::<usize>() != 1 {
        return Err(Error::tensor(
            name,
            format!("has shape {:?}; one scale for the tensor was expected", tensor.shape),
        ));
    }
    let mut value = [0.0];
    codec::dense_row(format, &tensor.data, &mut value);
    let scale = match class {
        LinearClass::AutoBitLinear => value[0],
        LinearClass::BitLinear => 1.0 / value[0],
    };
    if scale.is_finite() {
        return Ok(scale);
    }
    Err(Error::tensor(name, format!("is {}, which as {class:?} scale makes the multiplier {scale}", value[0])))
}

/// Two bits a weight, four rows a byte: with R = rows / 4, bits 2i and 2i + 1 of byte (r, c) hold row i R + r, column c,
/// as code = value + 1.
fn unpack(name: &str, data: &[u8], shape: Shape) -> Result<Vec<i8>> {
    let quarter = shape.len() / 4;
    if data.len() != quarter {
        return Err(Error::tensor(name, format!("{} bytes for {shape} packed weights, {quarter} needed", data.len())));
    }
    let mut codes = vec![0i8; shape.len()];
    for (i, rows) in codes.chunks_exact_mut(quarter.max(1)).enumerate() {
        for (code, byte) in rows.iter_mut().zip(data) {
            *code = (byte >> (2 * i) & 3) as i8 - 1;
        }
    }
    match codes.iter().position(|&c| c == 2) {
        None => Ok(codes),
        Some(at) => {
            let (row, col) = (at / shape.cols(), at % shape.cols());
            Err(Error::tensor(name, format!("invalid code 3 at row {row}, column {col}; codes are 0, 1 and 2")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_i_r_plus_r_sits_in_bit_pair_i() {
        // 8 rows of 2: R = 2. Byte (r, c) = code(row r) | code(row 2 + r) << 2 | ...
        let shape = Shape::new(8, 2).unwrap();
        let codes = unpack("w", &[0b10_01_00_10, 0b01_01_01_01, 0b00_00_00_00, 0b10_10_10_10], shape).unwrap();
        assert_eq!(codes, [1, 0, -1, 1, -1, 0, -1, 1, 0, 0, -1, 1, 1, 0, -1, 1]);
        let error = unpack("w", &[0, 0, 0, 0b00_11_00_00], shape).unwrap_err().to_string();
        assert!(error.contains("row 5, column 1"), "{error}");
    }

    #[test]
    fn bitlinear_divides_and_autobitlinear_multiplies() {
        let tensor = |v: f32| StoredTensor { dtype: Dtype::F32, shape: vec![1], data: v.to_le_bytes().to_vec().into() };
        assert_eq!(multiplier("s", &tensor(4.0), LinearClass::AutoBitLinear).unwrap(), 4.0);
        assert_eq!(multiplier("s", &tensor(4.0), LinearClass::BitLinear).unwrap(), 0.25);
        assert!(multiplier("s", &tensor(0.0), LinearClass::BitLinear).is_err());
        assert!(multiplier("s", &tensor(f32::NAN), LinearClass::AutoBitLinear).is_err());
    }
}
