//! What a model asks of a backend.

use tersor_core::{DType, Epilogue, Format, OpSpec, QuantBackend, Shape, Support};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::names::{LayerPart, Role};

/// The product with the matrix in `role`, for `rows` tokens.
pub(crate) fn product(role: Role, format: Format, scale_block: Option<usize>, shape: Shape, rows: usize) -> OpSpec {
    let residual = matches!(role, Role::Layer(_, LayerPart::AttnOutput | LayerPart::FfnDown));
    OpSpec::MatMul {
        format,
        scale_block,
        activations: format.activations(),
        output: DType::F32,
        m: rows,
        n: shape.rows(),
        k: shape.cols(),
        epilogue: if residual { Epilogue::Add } else { Epilogue::Store },
    }
}

/// Every operation, each once, that the pass over `rows` tokens consists of, with logits for the last row.
///
/// `format_of` tells a matrix's format and its weights per scale (`None` for single-scale and dense ones), so that a
/// backend can be asked about a model before it is loaded.
///
/// # Errors
/// [`Error::Core`] for a configuration whose shapes are impossible.
pub fn required_ops(
    config: &ModelConfig,
    format_of: impl Fn(Role) -> (Format, Option<usize>),
    rows: usize,
    capacity: usize,
) -> Result<Vec<OpSpec>> {
    ops(config, format_of, (rows, 1), (capacity, None))
}

/// The same for a pass over rows of several sequences, each with `capacity` positions, and with logits for the last row of
/// each.
///
/// # Errors
/// As [`required_ops`].
pub fn required_batch_ops(
    config: &ModelConfig,
    format_of: impl Fn(Role) -> (Format, Option<usize>),
    rows: usize,
    capacity: usize,
    sequences: usize,
) -> Result<Vec<OpSpec>> {
    let cached = capacity.saturating_mul(sequences);
    let mut specs = ops(config, format_of, (rows, sequences), (cached, Some(capacity)))?;
    specs.push(OpSpec::Copy { len: config.hidden_size });
    Ok(specs)
}

/// Rows, and of those with logits; cache rows, and the most that a row sees of them.
fn ops(
    config: &ModelConfig,
    format_of: impl Fn(Role) -> (Format, Option<usize>),
    (rows, logits): (usize, usize),
    (capacity, span): (usize, Option<usize>),
) -> Result<Vec<OpSpec>> {
    let (hidden, ffn, head_dim) = (config.hidden_size, config.ffn_size, config.head_dim);
    let (heads, kv_heads) = (config.heads, config.kv_heads);
    let mut specs = vec![
        OpSpec::GatherRows { format: format_of(Role::TokenEmbedding).0, rows, cols: hidden },
        OpSpec::RmsNormQuantize { rows, cols: hidden },
        OpSpec::RmsNormQuantize { rows, cols: heads * head_dim },
        OpSpec::RmsNormQuantize { rows, cols: ffn },
        OpSpec::Rope { rows, heads, head_dim },
        OpSpec::Rope { rows, heads: kv_heads, head_dim },
        OpSpec::KvWrite { rows, width: kv_heads * head_dim },
        OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, span },
        OpSpec::ReluSquaredMul { len: rows * ffn },
        OpSpec::Sample { rows: logits, vocab: config.vocab_size },
    ];
    let head = if config.tied_head { Role::TokenEmbedding } else { Role::Output };
    // What the head is multiplied by: the normed row, as int8 where its weights are integers.
    specs.push(match format_of(head).0.activations() {
        DType::I8 => OpSpec::RmsNormQuantize { rows: logits, cols: hidden },
        _ => OpSpec::RmsNorm { rows: logits, cols: hidden },
    });
    for role in Role::all(config).filter(|r| r.is_linear() || *r == head) {
        let (format, scale_block) = format_of(role);
        let (n, k) = role.shape(config);
        specs.push(product(role, format, scale_block, Shape::new(n, k)?, if role == head { logits } else { rows }));
    }
    let mut once = Vec::with_capacity(32);
    specs.into_iter().for_each(|s| {
        if !once.contains(&s) {
            once.push(s);
        }
    });
    Ok(once)
}

/// Fails with every operation that `backend` refuses, and its reasons.
pub(crate) fn require(backend: &dyn QuantBackend, specs: &[OpSpec]) -> Result<()> {
    let missing: Vec<String> = specs
        .iter()
        .filter_map(|spec| match backend.supports(spec) {
            Support::Yes { .. } => None,
            Support::No { reason } => Some(format!("{spec}: {reason}")),
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Backend { backend: backend.info().id.to_string(), missing: missing.join("; ") })
}
