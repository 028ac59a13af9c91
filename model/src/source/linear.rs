//! Linear layers as files store them.

use tersor_core::{Ternary, Weight, codec};

use super::Dense;
use crate::error::Result;

/// The weights of a linear layer.
#[derive(Debug, Clone)]
pub enum Linear {
    /// Real values, not quantized yet.
    Master(Dense),
    /// Ternary, in the canonical bytes of a format: usable without a copy.
    Packed(Weight),
    /// Ternary, decoded from a layout that no [`tersor_core::Format`] has.
    Codes(Ternary),
}

impl Linear {
    /// Codes and scales of a layer that is ternary; `None` for master weights.
    ///
    /// # Errors
    /// None for what [`super::ModelFile::linear`] returns; [`crate::Error::Core`] from the codec otherwise.
    pub fn ternary(&self) -> Result<Option<Ternary>> {
        match self {
            Self::Master(_) => Ok(None),
            Self::Packed(weight) => Ok(Some(codec::decode(weight)?)),
            Self::Codes(ternary) => Ok(Some(ternary.clone())),
        }
    }
}

/// ggml stores scale 0 for a block of 256 zeros, whatever the scale of its neighbours. Zero times anything is zero, so
/// such a block may take the scale of the others, and the tensor is single-scale again.
pub(super) fn settle(linear: Linear) -> Result<Linear> {
    let Linear::Packed(weight) = &linear else { return Ok(linear) };
    let (scales, block) = weight.block_scales();
    if scales.iter().all(|s| s.to_bits() == scales[0].to_bits()) {
        return Ok(linear);
    }
    let mut ternary = codec::decode(weight)?;
    let blank: Vec<bool> = ternary.codes.chunks(block).map(|c| c.iter().all(|&t| t == 0)).collect();
    let mut used = ternary.scales.iter().zip(&blank).filter(|(_, blank)| !**blank).map(|(s, _)| *s);
    let Some(scale) = used.next() else { return Ok(linear) };
    if !used.all(|s| s.to_bits() == scale.to_bits()) {
        return Ok(linear);
    }
    ternary.scales.fill(scale);
    Ok(Linear::Packed(codec::encode(&ternary, weight.format())?))
}

#[cfg(test)]
mod tests {
    use tersor_core::{Format, Shape};

    use super::*;

    fn blocks(codes: [i8; 2], scales: [f32; 2]) -> Linear {
        let codes = codes.into_iter().flat_map(|c| [c; 256]).collect();
        let ternary = Ternary { shape: Shape::new(1, 512).unwrap(), codes, block: 256, scales: scales.to_vec() };
        Linear::Packed(codec::encode(&ternary, Format::TQ2_0).unwrap())
    }

    fn scales(linear: &Linear) -> Vec<f32> {
        linear.ternary().unwrap().unwrap().scales
    }

    #[test]
    fn a_block_of_zeros_takes_the_scale_of_the_others() {
        assert_eq!(scales(&settle(blocks([0, 1], [0.0, 0.5])).unwrap()), [0.5, 0.5]);
        assert_eq!(scales(&settle(blocks([-1, 0], [0.25, 7.0])).unwrap()), [0.25, 0.25]);
    }

    #[test]
    fn scales_that_matter_stay() {
        assert_eq!(scales(&settle(blocks([1, -1], [0.5, 0.25])).unwrap()), [0.5, 0.25]);
        assert_eq!(scales(&settle(blocks([0, 0], [0.5, 0.25])).unwrap()), [0.5, 0.25]);
    }
}
