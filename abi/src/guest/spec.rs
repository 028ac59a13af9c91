//! `TersorSpec` as [`OpSpec`].

use tersor_core::{DType, Epilogue, OpKind, OpSpec};

use super::operands::{format, index, shape};
use super::{Refusal, invalid};
use crate::codes::Code;
use crate::raw::*;

pub(super) fn epilogue(number: u32) -> Result<Epilogue, Refusal> {
    match number {
        TERSOR_STORE => Ok(Epilogue::Store),
        TERSOR_ADD => Ok(Epilogue::Add),
        _ => Err(Refusal::Status(TERSOR_UNSUPPORTED, format!("this plugin knows no epilogue of number {number}"))),
    }
}

pub(super) fn unknown_op(number: u32) -> Refusal {
    Refusal::Status(TERSOR_UNSUPPORTED, format!("this plugin knows no op of number {number}"))
}

fn dtype(number: u32) -> Result<DType, Refusal> {
    DType::named(number).ok_or_else(|| invalid(format!("no element type has the number {number}")))
}

pub(super) fn spec(s: &TersorSpec) -> Result<OpSpec, Refusal> {
    let (m, n, k) = (index(s.m)?, index(s.n)?, index(s.k)?);
    let (heads, kv_heads, head_dim) = (index(s.heads)?, index(s.kv_heads)?, index(s.head_dim)?);
    let attention =
        |span| Ok(OpSpec::Attention { rows: m, heads, kv_heads, head_dim, capacity: index(s.capacity)?, span });
    if s.op == TERSOR_OP_ATTENTION_SPAN {
        return attention(Some(k));
    }
    Ok(match OpKind::named(s.op).ok_or_else(|| unknown_op(s.op))? {
        OpKind::Quantize => {
            OpSpec::Quantize { from: dtype(s.input)?, format: format(s.format)?, shape: shape(s.n, s.k)? }
        }
        OpKind::Dequantize => {
            OpSpec::Dequantize { to: dtype(s.output)?, format: format(s.format)?, shape: shape(s.n, s.k)? }
        }
        OpKind::QuantizeRows => OpSpec::QuantizeRows { rows: m, cols: k },
        OpKind::MatMul => OpSpec::MatMul {
            format: format(s.format)?,
            scale_block: if s.scale_block == 0 { None } else { Some(index(s.scale_block)?) },
            activations: dtype(s.input)?,
            output: dtype(s.output)?,
            m,
            n,
            k,
            epilogue: epilogue(s.epilogue)?,
        },
        OpKind::GatherRows => OpSpec::GatherRows { format: format(s.format)?, rows: m, cols: k },
        OpKind::RmsNorm => OpSpec::RmsNorm { rows: m, cols: k },
        OpKind::RmsNormQuantize => OpSpec::RmsNormQuantize { rows: m, cols: k },
        OpKind::Rope => OpSpec::Rope { rows: m, heads, head_dim },
        OpKind::KvWrite => OpSpec::KvWrite { rows: m, width: k },
        OpKind::Attention => return attention(None),
        OpKind::ReluSquaredMul => OpSpec::ReluSquaredMul { len: k },
        OpKind::Add => OpSpec::Add { len: k },
        OpKind::Copy => OpSpec::Copy { len: k },
        OpKind::Sample => OpSpec::Sample { rows: m, vocab: k },
        _ => return Err(unknown_op(s.op)),
    })
}
