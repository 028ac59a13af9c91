//! Hyper-parameters from a Hugging Face `config.json`.

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Activation, LinearClass, ModelConfig, QuantizationConfig, QuantizationMode, derived_head_dim, require};
use crate::error::{Error, Result};

/// The fields of config.json that mean something to this program; the others describe training.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    #[serde(rename = "_name_or_path")]
    name: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<Json>,
    rope_parameters: Option<Json>,
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
    quantization_config: Option<RawQuantization>,
}

/// Newer files write the ids of several end tokens as a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RawQuantization {
    quant_method: Option<String>,
    linear_class: Option<String>,
    quantization_mode: Option<String>,
    use_rms_norm: Option<bool>,
}

impl ModelConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// `has_head` says whether the checkpoint holds `lm_head.weight`; it decides where the file leaves
    /// `tie_word_embeddings` out, because the libraries' defaults for it differ.
    ///
    /// # Errors
    /// [`Error::Json`] for a file that does not parse or lacks a field; [`Error::Config`] for a value that is impossible or
    /// describes a model other than BitNet b1.58.
    pub fn from_hf_json(text: &str, has_head: bool) -> Result<Self> {
        let raw: Raw =
            serde_json::from_str(text).map_err(|source| Error::Json { what: "config.json".to_owned(), source })?;
        let model_type = raw.model_type.as_deref().unwrap_or("absent");
        require(model_type.starts_with("bitnet"), "model_type", model_type, || {
            "only BitNet b1.58 models (\"bitnet\") are supported".to_owned()
        })?;
        let bias = raw.attention_bias.unwrap_or(false);
        require(!bias, "attention_bias", bias, || "BitNet b1.58 has no biases".to_owned())?;
        let head_dim = match raw.head_dim {
            Some(dim) => dim,
            None => derived_head_dim(raw.hidden_size, raw.num_attention_heads)?,
        };
        let config = Self {
            name: raw.name.filter(|n| !n.is_empty()),
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            ffn_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim,
            context_length: raw.max_position_embeddings,
            rope_theta: rope_theta(raw.rope_theta, raw.rope_parameters.as_ref(), raw.rope_scaling.as_ref())? as f32,
            rms_eps: raw.rms_norm_eps as f32,
            activation: activation(&raw.hidden_act)?,
            tied_head: raw.tie_word_embeddings.unwrap_or(!has_head),
            bos_id: raw.bos_token_id.and_then(|ids| ids.into_vec().first().copied()),
            eos_ids: raw.eos_token_id.map(Ids::into_vec).unwrap_or_default(),
            quantization: raw.quantization_config.map(quantization).transpose()?,
        };
        config.validate()?;
        Ok(config)
    }
}

fn activation(name: &str) -> Result<Activation> {
    [Activation::SquaredRelu, Activation::Silu].into_iter().find(|a| a.hf_name() == name).ok_or_else(|| Error::Config {
        key: "hidden_act".to_owned(),
        value: name.to_owned(),
        problem: "known are \"relu2\" and \"silu\"".to_owned(),
    })
}

/// The base of the rotation: a field of its own, or, since transformers 5, part of `rope_parameters`. Any scaling of the
/// positions is refused: BitNet b1.58 has none, and ignoring it would give wrong text far into the context.
fn rope_theta(theta: Option<f64>, parameters: Option<&Json>, scaling: Option<&Json>) -> Result<f64> {
    for (key, value) in [("rope_parameters", parameters), ("rope_scaling", scaling)] {
        let Some(object) = value.filter(|v| !v.is_null()) else { continue };
        let kind = object.get("rope_type").or_else(|| object.get("type")).and_then(Json::as_str);
        require(matches!(kind, None | Some("default")), key, object, || {
            "scaled rotary embeddings are not supported".to_owned()
        })?;
    }
    theta.or_else(|| parameters?.get("rope_theta")?.as_f64()).ok_or_else(|| Error::MissingKey {
        key: "rope_theta".to_owned(),
        why: "the rotary embedding needs its base; looked at the top level and in rope_parameters".to_owned(),
    })
}

/// Defaults are those of transformers' `BitNetQuantConfig`.
fn quantization(raw: RawQuantization) -> Result<QuantizationConfig> {
    let method = raw.quant_method.as_deref().unwrap_or("bitnet");
    require(method == "bitnet", "quantization_config.quant_method", method, || {
        "only \"bitnet\" is supported".to_owned()
    })?;
    let extra_norm = raw.use_rms_norm.unwrap_or(false);
    require(!extra_norm, "quantization_config.use_rms_norm", extra_norm, || {
        "a norm inside each linear layer is not part of BitNet b1.58 2B-4T and not supported".to_owned()
    })?;
    let class = raw.linear_class.as_deref().unwrap_or("bitlinear");
    let linear_class = match class {
        "autobitlinear" => LinearClass::AutoBitLinear,
        "bitlinear" => LinearClass::BitLinear,
        _ => return unknown("quantization_config.linear_class", class, "\"autobitlinear\" and \"bitlinear\""),
    };
    let mode = raw.quantization_mode.as_deref().unwrap_or("offline");
    let mode = match mode {
        "online" => QuantizationMode::Online,
        "offline" => QuantizationMode::Offline,
        _ => return unknown("quantization_config.quantization_mode", mode, "\"online\" and \"offline\""),
    };
    Ok(QuantizationConfig { linear_class, mode })
}

fn unknown<T>(key: &str, value: &str, known: &str) -> Result<T> {
    Err(Error::Config { key: key.to_owned(), value: value.to_owned(), problem: format!("known are {known}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: &str = include_str!("../../assets/fable-26m/packed/config.json");

    fn changed(from: &str, to: &str) -> Result<ModelConfig> {
        assert!(PACKED.contains(from), "{from}");
        ModelConfig::from_hf_json(&PACKED.replace(from, to), false)
    }

    #[test]
    fn the_real_config_reads() {
        let config = ModelConfig::from_hf_json(PACKED, false).unwrap();
        assert_eq!((config.vocab_size, config.hidden_size, config.ffn_size), (4096, 512, 1536));
        assert_eq!((config.heads, config.kv_heads, config.head_dim), (8, 2, 64));
        assert_eq!((config.rope_theta, config.rms_eps, config.tied_head), (10000.0, 1e-5, true));
        assert_eq!((config.bos_id, config.eos_ids.as_slice()), (Some(0), &[1][..]));
        let quantization = config.quantization.unwrap();
        assert_eq!(quantization.linear_class, LinearClass::AutoBitLinear);
        assert_eq!(quantization.mode, QuantizationMode::Offline);
    }

    #[test]
    fn the_scale_divides_unless_the_file_says_autobitlinear() {
        let config = changed("\"linear_class\": \"autobitlinear\",", "").unwrap();
        assert_eq!(config.quantization.unwrap().linear_class, LinearClass::BitLinear);
        assert!(changed("autobitlinear", "bitlinear2").unwrap_err().to_string().contains("bitlinear2"));
    }

    #[test]
    fn several_end_tokens_and_newer_rope_fields_read() {
        let config = changed("\"eos_token_id\": 1", "\"eos_token_id\": [1, 7]").unwrap();
        assert_eq!(config.eos_ids, [1, 7]);
        let rope = "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500000.0}";
        assert_eq!(changed("\"rope_theta\": 10000.0", rope).unwrap().rope_theta, 500_000.0);
    }

    #[test]
    fn models_that_would_run_wrongly_are_refused() {
        let scaled = "\"rope_theta\": 1e4, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}";
        assert!(changed("\"rope_theta\": 10000.0", scaled).unwrap_err().to_string().contains("rope_scaling"));
        assert!(changed("relu2", "gelu").is_err());
        assert!(changed("\"model_type\": \"bitnet\"", "\"model_type\": \"llama\"").is_err());
        assert!(changed("\"attention_bias\": false", "\"attention_bias\": true").is_err());
        assert!(changed("\"num_attention_heads\": 8", "\"num_attention_heads\": 0").is_err());
        assert!(changed("\"hidden_size\": 512", "\"hidden_size\": -1").is_err());
    }

    #[test]
    fn an_absent_tie_is_decided_by_the_presence_of_a_head() {
        let text = PACKED.replace("\"tie_word_embeddings\": true,", "");
        assert!(ModelConfig::from_hf_json(&text, false).unwrap().tied_head);
        assert!(!ModelConfig::from_hf_json(&text, true).unwrap().tied_head);
    }
}
