//! Launches, one file for each family of kernels.

pub(crate) mod attention;
mod matmul;
mod rows;
mod weights;

use tersor_core::{Error, Op, OpSpec, Result};

use crate::ID;
use crate::stream::CudaStream;

impl CudaStream {
    /// Launches what an op needs. It has been checked, and is supported.
    pub(crate) fn run(&mut self, op: Op<'_>, spec: &OpSpec) -> Result<()> {
        match op {
            Op::Quantize { w, shape, format, codes, scales } => self.quantize(w, shape, format, &codes, &scales),
            Op::Dequantize { w, y } => self.dequantize(w, &y),
            Op::MatMul { w, x, y, epilogue } => self.matmul(w, x, &y, epilogue, spec),
            Op::QuantizeRows { x, cols, q, scales } => self.quantize_rows(x, cols, &q, &scales),
            Op::GatherRows { table, ids, y } => self.gather(table, ids, &y),
            Op::RmsNorm { x, w, eps, y } => self.rms_norm(x, w, eps, &y),
            Op::RmsNormQuantize { x, w, eps, q, scales } => self.rms_norm_quantize(x, w, eps, &q, &scales),
            Op::Rope { x, head_dim, positions, cos, sin } => self.rope(&x, head_dim, positions, cos, sin),
            Op::KvWrite { k, v, width, positions, k_cache, v_cache } => {
                self.kv_write((k, v), width, positions, (&k_cache, &v_cache))
            }
            Op::Attention { q, heads, kv_heads, head_dim, positions, span, k_cache, v_cache, y } => {
                let geometry = attention::Geometry { heads, kv_heads, head_dim };
                self.attention(geometry, q, (positions, span), (k_cache, v_cache), &y)
            }
            Op::ReluSquaredMul { gate, up, y } => self.relu_squared_mul(gate, up, &y),
            Op::Add { x, y } => self.add(x, &y),
            Op::Copy { x, y } => self.copy(x, &y),
            Op::Sample { logits, params, steps, ids } => self.sample(logits, params, steps, &ids),
            other => Err(Error::Unsupported {
                backend: ID.into(),
                op: format!("{other:?}"),
                reason: "this op is newer than this backend".into(),
            }),
        }
    }
}
