//! Tensors that are not ternary.

use bytes::Bytes;
use tersor_core::{Floats, Shape, Weight, bf16, codec, f16};

use super::table_format;
use crate::error::{Error, Result};
use crate::gguf::GgmlType;

/// A tensor as its file stores it: embedding, norm, head, or master weights.
#[derive(Debug, Clone)]
pub struct Dense {
    /// The name in the file.
    pub name: String,
    /// The element type; of heads and embeddings also `q8_0` or `q6_k`.
    pub ty: GgmlType,
    /// Rows and columns.
    pub shape: Shape,
    /// Little-endian bytes, row-major.
    pub data: Bytes,
}

impl Dense {
    /// As a core weight, without a copy: f32, f16, bf16, q8_0 and q6_k only.
    ///
    /// # Errors
    /// [`Error::Tensor`] for another type; bytes that are not what the type defines.
    pub fn weight(&self) -> Result<Weight> {
        let format = table_format(self.ty).ok_or_else(|| self.unknown("f32, f16, bf16, q8_0 or q6_k"))?;
        Ok(Weight::dense(format, self.shape, self.data.clone())?)
    }

    /// All values as f32: of f32, f16, bf16, q8_0 and q6_k only.
    ///
    /// # Errors
    /// As [`Dense::weight`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(codec::dequantize(&self.weight()?)?)
    }

    /// Runs `f` on the values as typed elements: in place where the file's alignment and the machine's byte order allow,
    /// otherwise on an f32 copy, which has the same values.
    ///
    /// # Errors
    /// As [`Dense::weight`].
    pub fn with_floats<T>(&self, f: impl FnOnce(Floats<'_>) -> T) -> Result<T> {
        if cfg!(target_endian = "little") {
            match self.ty {
                GgmlType::F32 => {
                    if let Ok(values) = bytemuck::try_cast_slice::<u8, f32>(&self.data) {
                        return Ok(f(Floats::F32(values)));
                    }
                }
                GgmlType::F16 => {
                    if let Ok(values) = bytemuck::try_cast_slice::<u8, f16>(&self.data) {
                        return Ok(f(Floats::F16(values)));
                    }
                }
                GgmlType::BF16 => {
                    if let Ok(values) = bytemuck::try_cast_slice::<u8, bf16>(&self.data) {
                        return Ok(f(Floats::BF16(values)));
                    }
                }
                _ => {}
            }
        }
        Ok(f(Floats::F32(&self.to_f32()?)))
    }

    fn unknown(&self, need: &str) -> Error {
        Error::tensor(&self.name, format!("is {}; {need} is needed here", self.ty))
    }
}
