//! Who turns master weights into codes: the reference, or a backend.

use tersor_core::{Floats, Format, QuantBackend, Shape, Weight, codec};

use crate::error::Result;
use crate::source::Linear;

/// Quantizes by the BitNet b1.58 rule ([`codec::absmean`]). All implementations give the same bytes; they differ in speed.
pub trait Quantizer: Sync {
    /// Who it is, for reports.
    fn name(&self) -> &str;

    /// Quantizes a matrix.
    ///
    /// # Errors
    /// Weights that are not finite, a row length or a scale that the format cannot hold, a failing backend.
    fn quantize(&self, weights: Floats<'_>, shape: Shape, format: Format) -> tersor_core::Result<Weight>;
}

/// The reference codec of `tersor_core`: always there, one thread, portable.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

impl Quantizer for Reference {
    fn name(&self) -> &str {
        "reference"
    }

    fn quantize(&self, weights: Floats<'_>, shape: Shape, format: Format) -> tersor_core::Result<Weight> {
        codec::quantize(weights, shape, format)
    }
}

/// A backend as quantizer.
#[derive(Debug, Clone, Copy)]
pub struct OnBackend<'a>(pub &'a dyn QuantBackend);

impl Quantizer for OnBackend<'_> {
    fn name(&self) -> &str {
        &self.0.info().id
    }

    fn quantize(&self, weights: Floats<'_>, shape: Shape, format: Format) -> tersor_core::Result<Weight> {
        let len = format.encoded_len(shape)?;
        let (mut codes, mut scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
        self.0.quantize(weights, shape, format, &mut codes, &mut scales)?;
        // Checks what the backend wrote: one pass over the codes, and a faulty backend cannot spoil a file.
        Weight::new(format, shape, codes, scales)
    }
}

impl Linear {
    /// Canonical bytes in `format`: shared with the file where they lie there already, otherwise encoded or quantized.
    /// `None` keeps the file's own format, or takes `i2_s` where it has none.
    ///
    /// # Errors
    /// Rows or scales that the format cannot hold; a failing quantizer.
    pub fn to_weight(&self, format: Option<Format>, quantizer: &dyn Quantizer) -> Result<Weight> {
        let target = format.unwrap_or(Format::I2S);
        Ok(match self {
            Self::Packed(weight) if format.is_none_or(|f| f == weight.format()) => weight.clone(),
            Self::Packed(weight) => codec::encode(&codec::decode(weight)?, target)?,
            Self::Codes(ternary) => codec::encode(ternary, target)?,
            Self::Master(dense) => dense.with_floats(|w| quantizer.quantize(w, dense.shape, target))??,
        })
    }
}
