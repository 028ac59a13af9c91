//! Hyper-parameters in GGUF metadata, under the keys of llama.cpp.

use super::{Activation, ModelConfig, derived_head_dim, require};
use crate::error::{Error, Result};
use crate::gguf::{Array, Gguf, Metadata, Value};

/// Holds the text of `tokenizer.json`, so that a GGUF file is complete by itself. The key is ggml's.
pub const TOKENIZER_KEY: &str = "tokenizer.huggingface.json";

/// All end tokens, where there is more than the one that ggml's own key can hold.
const EOS_IDS_KEY: &str = "tersor.tokenizer.eos_token_ids";

/// The architectures of BitNet models in GGUF files. bitnet.cpp computes `bitnet` with SiLU, the other two with squared ReLU.
const ARCHITECTURES: [(&str, Activation); 3] =
    [("bitnet", Activation::Silu), ("bitnet-25", Activation::SquaredRelu), ("bitnet-b1.58", Activation::SquaredRelu)];

/// The architecture that files are written with.
#[must_use]
pub fn architecture(activation: Activation) -> &'static str {
    match activation {
        Activation::SquaredRelu => "bitnet-b1.58",
        Activation::Silu => "bitnet",
    }
}

/// Required integers of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        let key = self.name(key);
        let Some(value) = self.metadata.u64(&key)? else { return Ok(None) };
        match usize::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => require(false, &key, value, || "larger than any model".to_owned()).map(|()| None),
        }
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> Error {
        Error::MissingKey {
            key: self.name(key),
            why: format!("required in a GGUF file of architecture {}", self.architecture),
        }
    }
}

impl ModelConfig {
    /// Reads the hyper-parameters of a GGUF file.
    ///
    /// # Errors
    /// [`Error::MissingKey`], [`Error::KeyType`], or [`Error::Config`] for a value that is impossible or an architecture
    /// other than `bitnet`, `bitnet-25` and `bitnet-b1.58`.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let metadata = file.metadata();
        let architecture = metadata.str("general.architecture")?.ok_or_else(|| Error::MissingKey {
            key: "general.architecture".to_owned(),
            why: "it names the model's graph".to_owned(),
        })?;
        let Some(&(_, activation)) = ARCHITECTURES.iter().find(|a| a.0 == architecture) else {
            return Err(Error::Config {
                key: "general.architecture".to_owned(),
                value: architecture.to_owned(),
                problem: "supported are bitnet, bitnet-25 and bitnet-b1.58".to_owned(),
            });
        };
        let keys = Keys { metadata, architecture };
        refuse_scaled_rope(&keys)?;
        let hidden_size = keys.required("embedding_length")?;
        let heads = keys.required("attention.head_count")?;
        let stated_head_dim = match keys.optional("attention.key_length")? {
            Some(dim) => Some(dim),
            None => keys.optional("rope.dimension_count")?,
        };
        let config = Self {
            name: metadata.str("general.name")?.map(str::to_owned),
            vocab_size: vocab_size(file, &keys)?,
            hidden_size,
            ffn_size: keys.required("feed_forward_length")?,
            layers: keys.required("block_count")?,
            heads,
            kv_heads: keys.optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim: stated_head_dim.map_or_else(|| derived_head_dim(hidden_size, heads), Ok)?,
            context_length: keys.required("context_length")?,
            // llama.cpp's default where the key is absent.
            rope_theta: metadata.f32(&keys.name("rope.freq_base"))?.unwrap_or(10000.0),
            rms_eps: metadata
                .f32(&keys.name("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?,
            activation,
            tied_head: file.tensor("output.weight").is_none(),
            bos_id: token_id(metadata, "tokenizer.ggml.bos_token_id")?,
            eos_ids: eos_ids(metadata)?,
            quantization: None,
        };
        config.validate()?;
        Ok(config)
    }

    /// Sets the keys that [`ModelConfig::from_gguf`] reads.
    pub fn write_metadata(&self, metadata: &mut Metadata) {
        let architecture = architecture(self.activation);
        metadata.set("general.architecture", Value::String(architecture.to_owned()));
        if let Some(name) = &self.name {
            metadata.set("general.name", Value::String(name.clone()));
        }
        let numbers = [
            ("vocab_size", self.vocab_size),
            ("context_length", self.context_length),
            ("embedding_length", self.hidden_size),
            ("block_count", self.layers),
            ("feed_forward_length", self.ffn_size),
            ("rope.dimension_count", self.head_dim),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
        ];
        for (key, value) in numbers {
            // `validate` bounds all of them far below 2^32; the cast saturates rather than wraps for an unchecked one.
            let value = u32::try_from(value).unwrap_or(u32::MAX);
            metadata.set(format!("{architecture}.{key}"), Value::U32(value));
        }
        metadata.set(format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(self.rms_eps));
        metadata.set(format!("{architecture}.rope.freq_base"), Value::F32(self.rope_theta));
        if let Some(id) = self.bos_id {
            metadata.set("tokenizer.ggml.bos_token_id", Value::U32(id));
        }
        if let Some(&id) = self.eos_ids.first() {
            metadata.set("tokenizer.ggml.eos_token_id", Value::U32(id));
        }
        if self.eos_ids.len() > 1 {
            metadata.set(EOS_IDS_KEY, Value::Array(Array::U32(self.eos_ids.clone())));
        }
    }
}

/// bitnet.cpp writes a linear scaling by 1, which is none; anything else would be computed wrongly.
fn refuse_scaled_rope(keys: &Keys<'_>) -> Result<()> {
    let (kind, factor) = (keys.name("rope.scaling.type"), keys.name("rope.scaling.factor"));
    let kind_value = keys.metadata.str(&kind)?.unwrap_or("none");
    let factor = keys.metadata.f32(&factor)?;
    let plain = kind_value == "none" || (kind_value == "linear" && factor.is_none_or(|f| f == 1.0));
    require(plain, &kind, format!("{kind_value}, factor {factor:?}"), || {
        "scaled rotary embeddings are not supported".to_owned()
    })
}

/// The stated size, or else the embedding's rows, which are what counts.
fn vocab_size(file: &Gguf, keys: &Keys<'_>) -> Result<usize> {
    if let Some(size) = keys.optional("vocab_size")? {
        return Ok(size);
    }
    let rows = file.tensor("token_embd.weight").map(crate::gguf::TensorInfo::rows);
    rows.and_then(|r| usize::try_from(r).ok()).ok_or_else(|| keys.missing("vocab_size"))
}

fn token_id(metadata: &Metadata, key: &str) -> Result<Option<u32>> {
    let Some(id) = metadata.u64(key)? else { return Ok(None) };
    match u32::try_from(id) {
        Ok(id) => Ok(Some(id)),
        Err(_) => require(false, key, id, || "not a token id".to_owned()).map(|()| None),
    }
}

/// Our own list where there is one; otherwise ggml's end of text and end of turn.
fn eos_ids(metadata: &Metadata) -> Result<Vec<u32>> {
    if let Some(Value::Array(Array::U32(ids))) = metadata.get(EOS_IDS_KEY) {
        return Ok(ids.clone());
    }
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ids.extend(token_id(metadata, key)?.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::example;
    use super::*;
    use crate::gguf::write_vec;

    fn written(config: &ModelConfig, change: impl FnOnce(&mut Metadata)) -> Result<ModelConfig> {
        let mut metadata = Metadata::new();
        config.write_metadata(&mut metadata);
        change(&mut metadata);
        ModelConfig::from_gguf(&Gguf::from_bytes(Bytes::from(write_vec(&metadata, &[])?))?)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut config = example();
        assert_eq!(written(&config, |_| ()).unwrap(), config);
        config.eos_ids = vec![1, 5, 9];
        config.activation = Activation::Silu;
        assert_eq!(written(&config, |_| ()).unwrap(), config);
    }

    #[test]
    fn a_file_of_bitnet_cpp_reads() {
        let bytes = Bytes::from_static(include_bytes!("../../tests/data/i2_s.gguf"));
        let config = ModelConfig::from_gguf(&Gguf::from_bytes(bytes).unwrap()).unwrap();
        assert_eq!((config.hidden_size, config.ffn_size, config.layers), (256, 512, 1));
        assert_eq!((config.heads, config.kv_heads, config.head_dim), (4, 2, 64));
        assert_eq!((config.vocab_size, config.rms_eps, config.activation), (512, 1e-5, Activation::Silu));
        assert_eq!((config.bos_id, config.eos_ids, config.tied_head), (Some(1), vec![2], true));
    }

    #[test]
    fn hostile_numbers_are_errors() {
        let set = |key: &'static str, value| move |m: &mut Metadata| m.set(key, value);
        let complaint = |change| written(&example(), change).unwrap_err().to_string();
        assert!(complaint(set("bitnet-b1.58.block_count", Value::U64(u64::MAX))).contains("layers"));
        assert!(complaint(set("bitnet-b1.58.block_count", Value::I32(-3))).contains("not negative"));
        assert!(complaint(set("bitnet-b1.58.attention.head_count", Value::U32(0))).contains("heads = 0"));
        assert!(complaint(set("bitnet-b1.58.context_length", Value::F32(1.0))).contains("integer"));
        assert!(complaint(set("general.architecture", Value::String("llama".into()))).contains("bitnet-25"));
        assert!(complaint(set("general.architecture", Value::String("bitnet-25".into()))).contains("bitnet-25."));
        assert!(complaint(set("bitnet-b1.58.rope.scaling.type", Value::String("yarn".into()))).contains("scaled"));
    }
}
