//! The struct of an op as [`Op`], and the op submitted.

use std::ffi::c_void;

use tersor_core::{Activations, FloatIn, FloatOut, In, Op, Out, Output, PackedWeight, Ran, SampleParams, Span, Stream};

use super::operands::{floats, floats_mut, format, index, kept, read, shape, slice, slice_mut, weight};
use super::spec::{epilogue, unknown_op};
use super::{Pack, Refusal, invalid};
use crate::raw::*;

macro_rules! input {
    ($e:expr) => {
        In::Host(slice($e.data, $e.len)?)
    };
}
macro_rules! output {
    ($e:expr) => {
        Out::Host(slice_mut($e.data, $e.len)?)
    };
}

/// # Safety
/// `handle` is a pack that is not freed yet, or null.
unsafe fn pack<'a>(handle: *const c_void) -> Result<&'a PackedWeight, Refusal> {
    // SAFETY: the caller's promise; packs are boxes of ours.
    match unsafe { handle.cast::<Pack>().as_ref() } {
        Some(pack) => Ok(&pack.packed),
        None => Err(invalid("a null pack")),
    }
}

/// Inlined, so that an op is built where it is used: ops are some 250 bytes, and moving them is what a call would cost.
#[inline(always)]
fn run(stream: &mut dyn Stream, op: Op<'_>) -> Result<Ran, Refusal> {
    Ok(stream.submit(op.check()?)?)
}

/// Submits the op, and sets the flag if the host's codes are kept.
///
/// # Safety
/// `args` is the struct of the op, with operands that are valid for the call, outputs exclusively.
pub(super) unsafe fn submit(
    stream: &mut dyn Stream,
    op: u32,
    args: *const c_void,
    flags: &mut u32,
) -> Result<Ran, Refusal> {
    *flags = 0;
    // SAFETY: `args` is the struct of this op, and its operands are what the caller promises.
    unsafe {
        match op {
            TERSOR_OP_QUANTIZE => {
                let a = read::<TersorQuantize>(args.cast())?;
                let (shape, format) = (shape(a.rows, a.cols)?, format(a.format)?);
                let w = FloatIn::from(floats(&a.w)?);
                run(stream, Op::Quantize { w, shape, format, codes: output!(a.codes), scales: output!(a.scales) })
            }
            TERSOR_OP_DEQUANTIZE => dequantize(stream, args, flags),
            TERSOR_OP_QUANTIZE_ROWS => {
                let a = read::<TersorQuantizeRows>(args.cast())?;
                run(
                    stream,
                    Op::QuantizeRows {
                        x: input!(a.x),
                        cols: index(a.cols)?,
                        q: output!(a.q),
                        scales: output!(a.scales),
                    },
                )
            }
            TERSOR_OP_MATMUL => {
                let a = read::<TersorMatMul>(args.cast())?;
                let x = if a.x.len > 0 {
                    Activations::F32(input!(a.x))
                } else {
                    Activations::Int8 { q: input!(a.xq), scales: input!(a.x_scales) }
                };
                let y = if a.sums.len > 0 { Output::I32(output!(a.sums)) } else { Output::F32(output!(a.y)) };
                run(stream, Op::MatMul { w: pack(a.w)?, x, y, epilogue: epilogue(a.epilogue)? })
            }
            TERSOR_OP_GATHER_ROWS => {
                let a = read::<TersorGatherRows>(args.cast())?;
                run(stream, Op::GatherRows { table: pack(a.table)?, ids: input!(a.ids), y: output!(a.y) })
            }
            TERSOR_OP_RMS_NORM => {
                let a = read::<TersorRmsNorm>(args.cast())?;
                run(stream, Op::RmsNorm { x: input!(a.x), w: input!(a.w), eps: a.eps, y: output!(a.y) })
            }
            TERSOR_OP_RMS_NORM_QUANTIZE => {
                let a = read::<TersorRmsNormQuantize>(args.cast())?;
                let (q, scales) = (output!(a.q), output!(a.scales));
                run(stream, Op::RmsNormQuantize { x: input!(a.x), w: input!(a.w), eps: a.eps, q, scales })
            }
            TERSOR_OP_ROPE => {
                let a = read::<TersorRope>(args.cast())?;
                let (positions, cos, sin) = (input!(a.positions), input!(a.cos), input!(a.sin));
                run(stream, Op::Rope { x: output!(a.x), head_dim: index(a.head_dim)?, positions, cos, sin })
            }
            TERSOR_OP_KV_WRITE => {
                let a = read::<TersorKvWrite>(args.cast())?;
                let (k_cache, v_cache) = (output!(a.k_cache), output!(a.v_cache));
                let (k, v, positions) = (input!(a.k), input!(a.v), input!(a.positions));
                run(stream, Op::KvWrite { k, v, width: index(a.width)?, positions, k_cache, v_cache })
            }
            TERSOR_OP_ATTENTION => {
                let a = read::<TersorAttention>(args.cast())?;
                let (heads, kv_heads, head_dim) = (index(a.heads)?, index(a.kv_heads)?, index(a.head_dim)?);
                let (k_cache, v_cache) = (input!(a.k_cache), input!(a.v_cache));
                let (q, positions, y) = (input!(a.q), input!(a.positions), output!(a.y));
                run(stream, Op::Attention { q, heads, kv_heads, head_dim, positions, span: None, k_cache, v_cache, y })
            }
            TERSOR_OP_ATTENTION_SPAN => {
                let a = read::<TersorAttentionSpan>(args.cast())?;
                let (heads, kv_heads, head_dim) = (index(a.heads)?, index(a.kv_heads)?, index(a.head_dim)?);
                let (k_cache, v_cache) = (input!(a.k_cache), input!(a.v_cache));
                let (q, positions, y) = (input!(a.q), input!(a.positions), output!(a.y));
                let span = Some(Span { first: input!(a.first), longest: index(a.longest)? });
                run(stream, Op::Attention { q, heads, kv_heads, head_dim, positions, span, k_cache, v_cache, y })
            }
            TERSOR_OP_RELU_SQUARED_MUL => {
                let a = read::<TersorReluSquaredMul>(args.cast())?;
                run(stream, Op::ReluSquaredMul { gate: input!(a.gate), up: input!(a.up), y: output!(a.y) })
            }
            TERSOR_OP_ADD => {
                let a = read::<TersorAddOp>(args.cast())?;
                run(stream, Op::Add { x: input!(a.x), y: output!(a.y) })
            }
            TERSOR_OP_COPY => {
                let a = read::<TersorCopyOp>(args.cast())?;
                run(stream, Op::Copy { x: input!(a.x), y: output!(a.y) })
            }
            TERSOR_OP_SAMPLE => {
                let a = read::<TersorSample>(args.cast())?;
                let top_k = if a.top_k == 0 { None } else { Some(a.top_k) };
                let params = SampleParams { temperature: a.temperature, top_k, seed: a.seed };
                run(
                    stream,
                    Op::Sample { logits: input!(a.logits), params, steps: input!(a.steps), ids: output!(a.ids) },
                )
            }
            _ => Err(unknown_op(op)),
        }
    }
}

/// # Safety
/// As [`submit`].
unsafe fn dequantize(stream: &mut dyn Stream, args: *const c_void, flags: &mut u32) -> Result<Ran, Refusal> {
    // SAFETY: the caller's promise. Codes that the backend keeps are announced by the flag, so that the host keeps them.
    unsafe {
        let a = read::<TersorDequantize>(args.cast())?;
        let (w, witness) = weight(a.w)?;
        *flags = TERSOR_KEEPS_CODES;
        let ran =
            Op::Dequantize { w: &w, y: FloatOut::from(floats_mut(&a.y)?) }.check().and_then(|op| stream.submit(op));
        drop(w);
        *flags = if kept(&witness) { TERSOR_KEEPS_CODES } else { 0 };
        Ok(ran?)
    }
}
