//! [`OpSpec`] as `TersorSpec`.

use tersor_core::{Epilogue, OpSpec};

use super::operands::number;
use crate::codes::Code;
use crate::raw::*;

/// The number of an epilogue; one that no plugin knows where the core is newer than this version of the ABI.
pub(super) fn epilogue(e: Epilogue) -> u32 {
    match e {
        Epilogue::Store => TERSOR_STORE,
        Epilogue::Add => TERSOR_ADD,
        _ => u32::MAX,
    }
}

/// The number of an op; 0, which every plugin answers with "unsupported", where the core is newer than this version of the
/// ABI. Attention over spans has a number of its own, so that a plugin older than spans says that it does not know them.
fn op_number(spec: &OpSpec) -> u32 {
    match spec {
        OpSpec::Attention { span: Some(_), .. } => TERSOR_OP_ATTENTION_SPAN,
        spec => spec.kind().number().unwrap_or(0),
    }
}

pub(super) fn spec(spec: &OpSpec) -> TersorSpec {
    let mut s = TersorSpec {
        struct_size: size_of::<TersorSpec>() as u32,
        op: op_number(spec),
        format: 0,
        input: 0,
        output: 0,
        epilogue: 0,
        scale_block: 0,
        m: 0,
        n: 0,
        k: 0,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        capacity: 0,
    };
    let rows_cols = |s: &mut TersorSpec, rows: usize, cols: usize| (s.m, s.k) = (rows as u64, cols as u64);
    match *spec {
        OpSpec::Quantize { from, format, shape } => {
            (s.input, s.format) = (number(from), format.number().unwrap_or(0));
            (s.n, s.k) = (shape.rows() as u64, shape.cols() as u64);
        }
        OpSpec::Dequantize { format, to, shape } => {
            (s.output, s.format) = (number(to), format.number().unwrap_or(0));
            (s.n, s.k) = (shape.rows() as u64, shape.cols() as u64);
        }
        OpSpec::MatMul { format, scale_block, activations, output, m, n, k, epilogue: e } => {
            s.format = format.number().unwrap_or(0);
            (s.input, s.output, s.epilogue) = (number(activations), number(output), epilogue(e));
            s.scale_block = scale_block.unwrap_or(0) as u64;
            (s.m, s.n, s.k) = (m as u64, n as u64, k as u64);
        }
        OpSpec::GatherRows { format, rows, cols } => {
            s.format = format.number().unwrap_or(0);
            rows_cols(&mut s, rows, cols);
        }
        OpSpec::QuantizeRows { rows, cols }
        | OpSpec::RmsNorm { rows, cols }
        | OpSpec::RmsNormQuantize { rows, cols } => rows_cols(&mut s, rows, cols),
        OpSpec::Rope { rows, heads, head_dim } => {
            (s.m, s.heads, s.head_dim) = (rows as u64, heads as u64, head_dim as u64);
        }
        OpSpec::KvWrite { rows, width } => rows_cols(&mut s, rows, width),
        OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, span } => {
            (s.m, s.k) = (rows as u64, span.unwrap_or(0) as u64);
            (s.heads, s.kv_heads, s.head_dim) = (heads as u64, kv_heads as u64, head_dim as u64);
            s.capacity = capacity as u64;
        }
        OpSpec::ReluSquaredMul { len } | OpSpec::Add { len } | OpSpec::Copy { len } => s.k = len as u64,
        OpSpec::Sample { rows, vocab } => rows_cols(&mut s, rows, vocab),
        // Of number 0, which every plugin answers with "unsupported".
        _ => {}
    }
    s
}
