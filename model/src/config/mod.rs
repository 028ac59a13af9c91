//! A model's hyper-parameters, wherever they come from, checked before anything is computed with them.

mod gguf;
mod hf;

use std::fmt;

use crate::error::{Error, Result};

pub use gguf::{TOKENIZER_KEY, architecture};

/// The non-linearity of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)^2`, BitNet b1.58 2B-4T: GGUF architectures `bitnet-25` and `bitnet-b1.58`, `relu2` in config.json.
    SquaredRelu,
    /// `x * sigmoid(x)`, the first BitNet b1.58 checkpoints: GGUF architecture `bitnet`, `silu` in config.json.
    Silu,
}

impl Activation {
    /// Its name in a Hugging Face config.json.
    #[must_use]
    pub fn hf_name(self) -> &'static str {
        match self {
            Self::SquaredRelu => "relu2",
            Self::Silu => "silu",
        }
    }
}

/// What a checkpoint means by `weight_scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinearClass {
    /// `autobitlinear`: the output is multiplied by the scale.
    AutoBitLinear,
    /// `bitlinear`: the output is divided by it.
    BitLinear,
}

/// Whether a checkpoint's linear weights are ternary already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantizationMode {
    /// Master weights, quantized when the model is loaded.
    Online,
    /// Packed ternary codes and scales.
    Offline,
}

/// The `quantization_config` of a Hugging Face BitNet checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// The meaning of `weight_scale`.
    pub linear_class: LinearClass,
    /// Packed or master weights.
    pub mode: QuantizationMode,
}

/// The hyper-parameters of a BitNet b1.58 model.
///
/// [`ModelConfig::from_hf_json`] and [`ModelConfig::from_gguf`] return checked ones; after changing a field by hand, call
/// [`ModelConfig::validate`].
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// A name for people, where the file has one.
    pub name: Option<String>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub ffn_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads, each shared by `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head; the rotation pairs element i with i + head_dim / 2.
    pub head_dim: usize,
    /// Positions the model was trained for.
    pub context_length: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Epsilon of every RMS norm.
    pub rms_eps: f32,
    /// Non-linearity of the feed-forward block.
    pub activation: Activation,
    /// Whether the embedding serves as the head.
    pub tied_head: bool,
    /// The token put before a text.
    pub bos_id: Option<u32>,
    /// Tokens that end a text; the first is the main one.
    pub eos_ids: Vec<u32>,
    /// How the checkpoint stores its linear layers; GGUF files have none, their tensor types say it.
    pub quantization: Option<QuantizationConfig>,
}

/// The largest value accepted for each size: far beyond any model, small enough that products of two fit 64 bits and a
/// damaged file is noticed here and not by the allocator.
const MAX_VOCAB: usize = 1 << 24;
const MAX_HIDDEN: usize = 1 << 18;
const MAX_FFN: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_CONTEXT: usize = 1 << 24;

impl ModelConfig {
    /// Checks every number and their relations.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first that is wrong.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("hidden_size", self.hidden_size, MAX_HIDDEN),
            ("ffn_size", self.ffn_size, MAX_FFN),
            ("layers", self.layers, MAX_LAYERS),
            ("heads", self.heads, MAX_HIDDEN),
            ("kv_heads", self.kv_heads, MAX_HIDDEN),
            ("head_dim", self.head_dim, MAX_HIDDEN),
            ("context_length", self.context_length, MAX_CONTEXT),
        ];
        for (key, value, max) in sizes {
            require((1..=max).contains(&value), key, value, || format!("must lie between 1 and {max}"))?;
        }
        let (heads, kv) = (self.heads, self.kv_heads);
        require(heads % kv == 0, "kv_heads", kv, || format!("must divide the {heads} query heads"))?;
        require(self.head_dim.is_multiple_of(2), "head_dim", self.head_dim, || {
            "must be even: the rotary embedding turns pairs".to_owned()
        })?;
        require(heads * self.head_dim == self.hidden_size, "head_dim", self.head_dim, || {
            format!("{heads} heads of {} do not make the hidden size {}", self.head_dim, self.hidden_size)
        })?;
        require(self.rope_theta.is_finite() && self.rope_theta >= 1.0, "rope_theta", self.rope_theta, || {
            "must be a finite number of at least 1".to_owned()
        })?;
        require(self.rms_eps > 0.0 && self.rms_eps < 1.0, "rms_eps", self.rms_eps, || {
            "must lie between 0 and 1, both excluded".to_owned()
        })?;
        for &id in self.bos_id.iter().chain(&self.eos_ids) {
            require((id as usize) < self.vocab_size, "bos or eos token id", id, || {
                format!("is not below the vocabulary size {}", self.vocab_size)
            })?;
        }
        Ok(())
    }

    /// Elements of all linear layers together.
    #[must_use]
    pub fn linear_elements(&self) -> u64 {
        let (h, f) = (self.hidden_size as u64, self.ffn_size as u64);
        let kv = (self.kv_heads * self.head_dim) as u64;
        self.layers as u64 * (2 * h * h + 2 * h * kv + 3 * h * f)
    }
}

/// [`Error::Config`] unless `ok`.
fn require(ok: bool, key: &str, value: impl fmt::Display, problem: impl FnOnce() -> String) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Config { key: key.to_owned(), value: value.to_string(), problem: problem() })
}

/// Head dimension where the file does not state it.
fn derived_head_dim(hidden: usize, heads: usize) -> Result<usize> {
    require(heads > 0, "heads", heads, || "must be at least 1".to_owned())?;
    require(hidden.is_multiple_of(heads), "hidden_size", hidden, || format!("is not a multiple of the {heads} heads"))?;
    Ok(hidden / heads)
}

#[cfg(test)]
pub(crate) fn example() -> ModelConfig {
    ModelConfig {
        name: Some("example".to_owned()),
        vocab_size: 4096,
        hidden_size: 512,
        ffn_size: 1536,
        layers: 8,
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
        context_length: 512,
        rope_theta: 10000.0,
        rms_eps: 1e-5,
        activation: Activation::SquaredRelu,
        tied_head: true,
        bos_id: Some(0),
        eos_ids: vec![1],
        quantization: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message for `example()` with one thing changed.
    fn complaint(change: impl FnOnce(&mut ModelConfig)) -> String {
        let mut config = example();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_valid() {
        example().validate().unwrap();
        assert_eq!(example().linear_elements(), 8 * (2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1536));
    }

    #[test]
    fn impossible_numbers_are_named() {
        assert!(complaint(|c| c.heads = 0).contains("heads = 0"));
        assert!(complaint(|c| c.layers = usize::MAX).contains("layers"));
        assert!(complaint(|c| c.kv_heads = 3).contains("must divide the 8 query heads"));
        assert!(complaint(|c| (c.heads, c.kv_heads, c.head_dim) = (512, 512, 1)).contains("even"));
        assert!(complaint(|c| c.head_dim = 32).contains("do not make the hidden size 512"));
        assert!(complaint(|c| c.rms_eps = f32::NAN).contains("rms_eps = NaN"));
        assert!(complaint(|c| c.rope_theta = f32::INFINITY).contains("rope_theta"));
        assert!(complaint(|c| c.eos_ids = vec![1, 4096]).contains("token id = 4096"));
    }
}
