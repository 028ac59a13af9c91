//! The ops of CPU backends: each splits its work into tasks and runs a body through the backend's token.

mod attention;
mod dense;
mod dequantize;
mod float;
mod matmul;
mod panels;
mod quantize;
mod single_read;

use tersor_core::reference::sample;
use tersor_core::{Error, Executor, Op, Out, Result};

use crate::backend::Kernels;
use crate::isa::Simd;

/// Memory that a stream keeps from op to op, so that a decode loop allocates nothing once it has grown.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Activations padded to whole blocks or steps, in the order that the product wants.
    padded: Vec<i8>,
    /// Sums of activation rows, or of their blocks.
    sums: Vec<i32>,
    /// Attention scores, a row of them for each task.
    scores: Vec<f32>,
}

/// What an op runs with.
pub(crate) struct Context<'a, S: 'static> {
    pub(crate) kernels: Kernels<S>,
    pub(crate) executor: &'a dyn Executor,
    pub(crate) scratch: &'a mut Scratch,
}

impl<S: Simd> Context<'_, S> {
    /// Runs an op that has been checked.
    pub(crate) fn run(self, op: Op<'_>) -> Result<()> {
        let id = self.kernels.backend;
        match op {
            Op::Quantize { w, shape, format, codes, scales } => {
                let codes = codes.host("codes", id)?;
                // An operand that the format does not use may be of any memory, as it is empty.
                let scales = if let Out::Host(s) = scales { s } else { &mut [] };
                self.quantize(w.host("weights", id)?, shape, format, codes, scales)
            }
            Op::Dequantize { w, y } => self.dequantize(w, y.host("dequantized values", id)?),
            Op::QuantizeRows { x, cols, q, scales } => {
                self.quantize_rows(x.host("x", id)?, cols, q.host("q", id)?, scales.host("scales", id)?)
            }
            Op::MatMul { w, x, y, epilogue } => self.matmul(w, x, y, epilogue),
            Op::GatherRows { table, ids, y } => self.gather(table, ids.host("ids", id)?, y.host("y", id)?),
            Op::RmsNorm { x, w, eps, y } => {
                self.rms_norm(x.host("x", id)?, w.host("w", id)?, eps, y.host("y", id)?);
                Ok(())
            }
            Op::RmsNormQuantize { x, w, eps, q, scales } => {
                let (q, scales) = (q.host("q", id)?, scales.host("scales", id)?);
                self.rms_norm_quantize(x.host("x", id)?, w.host("w", id)?, eps, q, scales)
            }
            Op::Rope { x, head_dim, positions, cos, sin } => {
                let (cos, sin) = (cos.host("cos", id)?, sin.host("sin", id)?);
                self.rope(x.host("x", id)?, head_dim, positions.host("positions", id)?, cos, sin);
                Ok(())
            }
            Op::KvWrite { k, v, width, positions, k_cache, v_cache } => {
                let (k_cache, v_cache) = (k_cache.host("k_cache", id)?, v_cache.host("v_cache", id)?);
                let (k, v) = (k.host("k", id)?, v.host("v", id)?);
                for (row, &p) in positions.host("positions", id)?.iter().enumerate() {
                    let (from, to) = (row * width..(row + 1) * width, p as usize * width..(p as usize + 1) * width);
                    k_cache[to.clone()].copy_from_slice(&k[from.clone()]);
                    v_cache[to].copy_from_slice(&v[from]);
                }
                Ok(())
            }
            Op::Attention { q, heads, kv_heads, head_dim, positions, span, k_cache, v_cache, y } => {
                let geometry = attention::Geometry { heads, kv_heads, head_dim };
                let cache = (k_cache.host("k_cache", id)?, v_cache.host("v_cache", id)?);
                let first = span.map(|s| s.first.host("first rows", id)).transpose()?;
                let spans = attention::Spans { first, last: positions.host("positions", id)? };
                self.attention(geometry, q.host("q", id)?, spans, cache, y.host("y", id)?);
                Ok(())
            }
            Op::ReluSquaredMul { gate, up, y } => {
                self.relu_squared_mul(gate.host("gate", id)?, up.host("up", id)?, y.host("y", id)?);
                Ok(())
            }
            Op::Add { x, y } => {
                self.add(x.host("x", id)?, y.host("y", id)?);
                Ok(())
            }
            Op::Copy { x, y } => {
                y.host("y", id)?.copy_from_slice(x.host("x", id)?);
                Ok(())
            }
            Op::Sample { logits, params, steps, ids } => {
                let (logits, ids) = (logits.host("logits", id)?, ids.host("ids", id)?);
                let vocab = logits.len() / ids.len();
                let rows = logits.chunks_exact(vocab).zip(steps.host("steps", id)?).zip(ids);
                for (row, ((logits, &step), token)) in rows.enumerate() {
                    *token = sample::sample(logits, &params, u64::from(step)).ok_or_else(|| {
                        let at = logits.iter().position(|l| l.is_nan()).unwrap_or(0);
                        Error::NotFinite { what: "logits", index: row * vocab + at, value: logits[at] }
                    })?;
                }
                Ok(())
            }
            other => Err(Error::Unsupported {
                backend: id.into(),
                op: format!("{other:?}"),
                reason: "this op is newer than the CPU backends".into(),
            }),
        }
    }
}
