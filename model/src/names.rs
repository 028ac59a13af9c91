//! What each tensor of a BitNet model is for, and what GGUF and Hugging Face call it.
//!
//! | role | GGUF | Hugging Face |
//! |---|---|---|
//! | embedding | `token_embd.weight` | `model.embed_tokens.weight` |
//! | query projection of layer 3 | `blk.3.attn_q.weight` | `model.layers.3.self_attn.q_proj.weight` |
//! | final norm, head | `output_norm.weight`, `output.weight` | `model.norm.weight`, `lm_head.weight` |
//!
//! The GGUF names are those of llama.cpp and bitnet.cpp.

use std::fmt;

use crate::config::ModelConfig;

/// A tensor's place in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The embedding table, `[vocab, hidden]`; also the head where the model ties them.
    TokenEmbedding,
    /// A tensor of one layer.
    Layer(usize, LayerPart),
    /// The RMS norm before the head, `[hidden]`.
    OutputNorm,
    /// The head where it is separate, `[vocab, hidden]`.
    Output,
}

/// A tensor's place in its layer, in the order of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerPart {
    /// RMS norm before attention, `[hidden]`.
    AttnNorm,
    /// Query projection, `[heads * head_dim, hidden]`.
    AttnQ,
    /// Key projection, `[kv_heads * head_dim, hidden]`.
    AttnK,
    /// Value projection, `[kv_heads * head_dim, hidden]`.
    AttnV,
    /// RMS norm before the attention output projection, `[hidden]`.
    AttnSubNorm,
    /// Attention output projection, `[hidden, heads * head_dim]`.
    AttnOutput,
    /// RMS norm before the feed-forward block, `[hidden]`.
    FfnNorm,
    /// Gate projection, `[ffn, hidden]`.
    FfnGate,
    /// Up projection, `[ffn, hidden]`.
    FfnUp,
    /// RMS norm before the down projection, `[ffn]`.
    FfnSubNorm,
    /// Down projection, `[hidden, ffn]`.
    FfnDown,
}

/// Part, GGUF stem, Hugging Face stem, and the name that the first BitNet checkpoints used.
const PARTS: [(LayerPart, &str, &str, Option<&str>); 11] = [
    (LayerPart::AttnNorm, "attn_norm", "input_layernorm", None),
    (LayerPart::AttnQ, "attn_q", "self_attn.q_proj", None),
    (LayerPart::AttnK, "attn_k", "self_attn.k_proj", None),
    (LayerPart::AttnV, "attn_v", "self_attn.v_proj", None),
    (LayerPart::AttnSubNorm, "attn_sub_norm", "self_attn.attn_sub_norm", Some("self_attn.inner_attn_ln")),
    (LayerPart::AttnOutput, "attn_output", "self_attn.o_proj", None),
    (LayerPart::FfnNorm, "ffn_norm", "post_attention_layernorm", None),
    (LayerPart::FfnGate, "ffn_gate", "mlp.gate_proj", None),
    (LayerPart::FfnUp, "ffn_up", "mlp.up_proj", None),
    (LayerPart::FfnSubNorm, "ffn_sub_norm", "mlp.ffn_sub_norm", Some("mlp.ffn_layernorm")),
    (LayerPart::FfnDown, "ffn_down", "mlp.down_proj", None),
];

impl LayerPart {
    /// All parts in the order of the forward pass.
    pub fn all() -> impl Iterator<Item = Self> {
        PARTS.iter().map(|p| p.0)
    }

    /// Whether it is one of the seven ternary projections.
    #[must_use]
    pub fn is_linear(self) -> bool {
        !matches!(self, Self::AttnNorm | Self::AttnSubNorm | Self::FfnNorm | Self::FfnSubNorm)
    }

    fn row(self) -> &'static (Self, &'static str, &'static str, Option<&'static str>) {
        // PARTS stands in declaration order; a test holds it to that.
        &PARTS[self as usize]
    }
}

impl Role {
    /// Every tensor of a model, in the order in which files are written: embedding, layers, final norm, separate head.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = Self> {
        let layers = (0..config.layers).flat_map(|l| LayerPart::all().map(move |p| Self::Layer(l, p)));
        let head = (!config.tied_head).then_some(Self::Output);
        std::iter::once(Self::TokenEmbedding).chain(layers).chain([Self::OutputNorm]).chain(head)
    }

    /// Whether it is a ternary projection.
    #[must_use]
    pub fn is_linear(self) -> bool {
        matches!(self, Self::Layer(_, part) if part.is_linear())
    }

    /// Whether it is a norm's vector of weights.
    #[must_use]
    pub fn is_norm(self) -> bool {
        match self {
            Self::OutputNorm => true,
            Self::Layer(_, part) => !part.is_linear(),
            Self::TokenEmbedding | Self::Output => false,
        }
    }

    /// Rows and columns that the tensor has in this model; norms are one row.
    #[must_use]
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        use LayerPart as P;
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Self::TokenEmbedding | Self::Output => (config.vocab_size, hidden),
            Self::OutputNorm | Self::Layer(_, P::AttnNorm | P::FfnNorm) => (1, hidden),
            Self::Layer(_, P::AttnSubNorm) => (1, q),
            Self::Layer(_, P::FfnSubNorm) => (1, ffn),
            Self::Layer(_, P::AttnQ) => (q, hidden),
            Self::Layer(_, P::AttnK | P::AttnV) => (kv, hidden),
            Self::Layer(_, P::AttnOutput) => (hidden, q),
            Self::Layer(_, P::FfnGate | P::FfnUp) => (ffn, hidden),
            Self::Layer(_, P::FfnDown) => (hidden, ffn),
        }
    }

    /// Its name in GGUF files.
    #[must_use]
    pub fn gguf_name(self) -> String {
        match self {
            Self::TokenEmbedding => "token_embd.weight".to_owned(),
            Self::OutputNorm => "output_norm.weight".to_owned(),
            Self::Output => "output.weight".to_owned(),
            Self::Layer(l, part) => format!("blk.{l}.{}.weight", part.row().1),
        }
    }

    /// Its name in Hugging Face checkpoints.
    #[must_use]
    pub fn hf_name(self) -> String {
        match self {
            Self::TokenEmbedding => "model.embed_tokens.weight".to_owned(),
            Self::OutputNorm => "model.norm.weight".to_owned(),
            Self::Output => "lm_head.weight".to_owned(),
            Self::Layer(l, part) => format!("model.layers.{l}.{}.weight", part.row().2),
        }
    }

    /// The role behind a GGUF name; `None` for names that are no tensor of the model.
    #[must_use]
    pub fn from_gguf(name: &str) -> Option<Self> {
        match name {
            "token_embd.weight" => Some(Self::TokenEmbedding),
            "output_norm.weight" => Some(Self::OutputNorm),
            "output.weight" => Some(Self::Output),
            _ => {
                let (layer, stem) = name.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
                let part = PARTS.iter().find(|p| p.1 == stem)?.0;
                Some(Self::Layer(parse_layer(layer)?, part))
            }
        }
    }

    /// The role behind a Hugging Face name; `None` for names that are no tensor of the model.
    #[must_use]
    pub fn from_hf(name: &str) -> Option<Self> {
        match name {
            "model.embed_tokens.weight" => Some(Self::TokenEmbedding),
            "model.norm.weight" => Some(Self::OutputNorm),
            "lm_head.weight" => Some(Self::Output),
            _ => {
                let (layer, stem) = name.strip_prefix("model.layers.")?.strip_suffix(".weight")?.split_once('.')?;
                let part = PARTS.iter().find(|p| p.2 == stem || p.3 == Some(stem))?.0;
                Some(Self::Layer(parse_layer(layer)?, part))
            }
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.gguf_name())
    }
}

/// A layer number as the names write it: `+3` and `03` parse as numbers but are not names of layer 3.
fn parse_layer(text: &str) -> Option<usize> {
    let layer: usize = text.parse().ok()?;
    (layer.to_string() == text).then_some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stands_in_declaration_order() {
        for (i, row) in PARTS.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
        }
    }

    #[test]
    fn names_of_both_conventions_lead_back_to_the_role() {
        let layers = LayerPart::all().map(|p| Role::Layer(29, p));
        for role in layers.chain([Role::TokenEmbedding, Role::OutputNorm, Role::Output]) {
            assert_eq!(Role::from_gguf(&role.gguf_name()), Some(role));
            assert_eq!(Role::from_hf(&role.hf_name()), Some(role));
        }
        assert_eq!(Role::Layer(3, LayerPart::AttnQ).hf_name(), "model.layers.3.self_attn.q_proj.weight");
    }

    #[test]
    fn older_checkpoints_named_the_sub_norms_otherwise() {
        let role = Role::from_hf("model.layers.0.self_attn.inner_attn_ln.weight");
        assert_eq!(role, Some(Role::Layer(0, LayerPart::AttnSubNorm)));
    }

    #[test]
    fn near_misses_are_not_tensors_of_the_model() {
        for name in ["blk.03.attn_q.weight", "blk.+1.attn_q.weight", "blk.0.attn_q.bias", "blk.0.attn_q.scale", "blk.x"]
        {
            assert_eq!(Role::from_gguf(name), None, "{name}");
        }
        assert_eq!(Role::from_hf("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }
}
