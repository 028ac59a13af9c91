//! Embedding and head in another format than the source's.

use bytes::Bytes;
use tersor_core::{Format, bf16, codec, f16};

use crate::error::{Error, Result};
use crate::gguf::GgmlType;
use crate::source::Dense;

/// The ggml type of a format that embeddings and heads can have.
pub(crate) fn ggml_type(format: Format) -> Result<GgmlType> {
    match format {
        Format::F32 => Ok(GgmlType::F32),
        Format::F16 => Ok(GgmlType::F16),
        Format::BF16 => Ok(GgmlType::BF16),
        Format::Q8_0 => Ok(GgmlType::Q8_0),
        Format::Q6K => Ok(GgmlType::Q6_K),
        other => Err(Error::Config {
            key: "head".to_owned(),
            value: other.to_string(),
            problem: format!(
                "embeddings and heads are {}",
                Format::tables().map(Format::id).collect::<Vec<_>>().join(", ")
            ),
        }),
    }
}

/// The tensor in `format`, row by row; its own bytes where it has that format already.
pub(super) fn recode(dense: &Dense, format: Format) -> Result<Bytes> {
    let weight = dense.weight().map_err(|e| e.in_tensor(&dense.name))?;
    if weight.format() == format {
        return Ok(dense.data.clone());
    }
    let shape = weight.shape();
    let mut out =
        Vec::with_capacity(format.encoded_len(shape).map_err(|e| Error::from(e).in_tensor(&dense.name))?.bytes);
    let mut values = vec![0.0; shape.cols()];
    let from = codec::rows_of(weight.format(), shape).bytes;
    for (r, row) in weight.codes().chunks_exact(from).enumerate() {
        codec::dense_row(weight.format(), row, &mut values);
        if let Some(col) = values.iter().position(|v| !v.is_finite()) {
            let problem = format!("row {r}, column {col} is {}; weights must be finite", values[col]);
            return Err(Error::tensor(&dense.name, problem));
        }
        encode_row(format, &values, &mut out).map_err(|e| Error::from(e).in_tensor(&dense.name))?;
    }
    Ok(out.into())
}

/// Appends one row of finite values.
pub(crate) fn encode_row(format: Format, values: &[f32], out: &mut Vec<u8>) -> tersor_core::Result<()> {
    match format {
        Format::F16 => {
            for &v in values {
                let half = f16::from_f32(v);
                if half.is_infinite() {
                    let reason = "the value overflows f16, at most 65504; use bf16 or f32";
                    return Err(tersor_core::Error::Scale { format, scale: v, reason });
                }
                out.extend_from_slice(&half.to_le_bytes());
            }
        }
        Format::BF16 => values.iter().for_each(|v| out.extend_from_slice(&bf16::from_f32(*v).to_le_bytes())),
        Format::Q8_0 | Format::Q6K => {
            let start = out.len();
            out.resize(start + format.row_bytes(values.len()).unwrap_or(0), 0);
            codec::blocks::quantize_row(format, values, &mut out[start..])?;
        }
        _ => values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
    }
    Ok(())
}
