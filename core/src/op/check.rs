//! The rules of [`Op::check`].

use std::fmt;

use super::spec::{check_activations, valid_span};
use super::{Activations, Epilogue, Op, OpKind, OpSpec, Output, Span};
use crate::{DType, Error, Format, In, Out, PackedWeight, Result, codec};

fn need(what: &'static str, got: usize, want: usize, why: &dyn fmt::Display) -> Result<()> {
    Error::expect_len(what, got, want, || why.to_string())
}

/// `len / cols`, which must come out even and at least 1.
fn rows_of(what: &'static str, len: usize, cols: usize) -> Result<usize> {
    if cols == 0 || len == 0 || !len.is_multiple_of(cols) {
        let want = len.div_ceil(cols.max(1)).max(1) * cols.max(1);
        return Err(Error::Length { what, need: want, got: len, why: format!("one or more rows of {cols}") });
    }
    Ok(len / cols)
}

/// Host indices must be below `limit`. Device indices are the device kernel's to guard.
fn below(what: &'static str, ids: &In<'_, u32>, limit: usize) -> Result<()> {
    if let In::Host(ids) = ids
        && let Some((at, &value)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= limit)
    {
        return Err(Error::OutOfRange { what, at, value: value as usize, limit });
    }
    Ok(())
}

fn same_memory(kind: OpKind, operands: &[(&'static str, bool)]) -> Result<()> {
    let host = operands[0].1;
    match operands.iter().find(|(_, h)| *h != host) {
        None => Ok(()),
        Some((what, found)) => {
            let name = |h: bool| if h { "host" } else { "device" };
            Err(Error::Memory {
                what,
                found: name(*found),
                backend: kind.id().into(),
                need: name(host),
                remedy: "all operands of an op must be in one memory; write or read the buffer first",
            })
        }
    }
}

fn positive(what: &'static str, value: usize) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::Parameter { what, value: value.to_string(), need: "at least 1" }) }
}

fn valid_eps(eps: f32) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::Parameter { what: "eps", value: eps.to_string(), need: "finite and not negative" })
}

impl Op<'_> {
    /// The op's spec, if everything about it is right.
    pub(super) fn validated(&self) -> Result<OpSpec> {
        match self {
            Op::Quantize { w, shape, format, codes, scales } => {
                codec::check_lengths(*format, *shape, codes.len(), scales.len())?;
                let (from, len, host) = w.meta();
                need("weights", len, shape.len(), &format_args!("shape {shape}"))?;
                if !format.is_ternary() {
                    let valid = Format::TERNARY.map(Format::id).join(", ");
                    return Err(Error::UnknownName { kind: "ternary format", given: format.id().into(), valid });
                }
                let scales = if scales.is_empty() { host } else { scales.is_host() };
                same_memory(OpKind::Quantize, &[("weights", host), ("codes", codes.is_host()), ("scales", scales)])?;
                Ok(OpSpec::Quantize { from, format: *format, shape: *shape })
            }
            Op::Dequantize { w, y } => {
                let (to, len, _) = y.meta();
                need("dequantized values", len, w.shape().len(), &format_args!("shape {}", w.shape()))?;
                Ok(OpSpec::Dequantize { format: w.format(), to, shape: w.shape() })
            }
            Op::QuantizeRows { x, cols, q, scales } => {
                let rows = quantized_rows(OpKind::QuantizeRows, x, *cols, q, scales)?;
                Ok(OpSpec::QuantizeRows { rows, cols: *cols })
            }
            Op::MatMul { w, x, y, epilogue } => matmul_spec(w, x, y, *epilogue),
            Op::GatherRows { table, ids, y } => {
                let (entries, cols) = (table.shape().rows(), table.shape().cols());
                if table.format().is_ternary() {
                    return Err(Error::UnknownName {
                        kind: "table format",
                        given: table.format().id().into(),
                        valid: Format::tables().map(Format::id).collect::<Vec<_>>().join(", "),
                    });
                }
                let rows = rows_of("gathered rows", y.len(), cols)?;
                need("ids", ids.len(), rows, &format_args!("one for each of {rows} rows"))?;
                below("ids", ids, entries)?;
                same_memory(OpKind::GatherRows, &[("ids", ids.is_host()), ("y", y.is_host())])?;
                Ok(OpSpec::GatherRows { format: table.format(), rows, cols })
            }
            Op::RmsNorm { x, w, eps, y } => {
                valid_eps(*eps)?;
                let rows = rows_of("x", x.len(), w.len())?;
                need("y", y.len(), x.len(), &"as long as x")?;
                same_memory(OpKind::RmsNorm, &[("x", x.is_host()), ("w", w.is_host()), ("y", y.is_host())])?;
                Ok(OpSpec::RmsNorm { rows, cols: w.len() })
            }
            Op::RmsNormQuantize { x, w, eps, q, scales } => {
                valid_eps(*eps)?;
                same_memory(OpKind::RmsNormQuantize, &[("x", x.is_host()), ("w", w.is_host())])?;
                let rows = quantized_rows(OpKind::RmsNormQuantize, x, w.len(), q, scales)?;
                Ok(OpSpec::RmsNormQuantize { rows, cols: w.len() })
            }
            Op::Rope { x, head_dim, positions, cos, sin } => {
                positive("head_dim", *head_dim)?;
                if !head_dim.is_multiple_of(2) {
                    return Err(Error::Parameter { what: "head_dim", value: head_dim.to_string(), need: "even" });
                }
                let rows = positions.len();
                positive("rows of positions", rows)?;
                if !x.len().is_multiple_of(rows) {
                    let why = format!("{rows} equal rows, one for each position");
                    return Err(Error::Length { what: "x", need: x.len().div_ceil(rows) * rows, got: x.len(), why });
                }
                let heads = rows_of("row of x", x.len() / rows, *head_dim)?;
                let known = rows_of("cos", cos.len(), head_dim / 2)?;
                need("sin", sin.len(), cos.len(), &"as long as cos")?;
                below("positions", positions, known)?;
                same_memory(
                    OpKind::Rope,
                    &[
                        ("x", x.is_host()),
                        ("positions", positions.is_host()),
                        ("cos", cos.is_host()),
                        ("sin", sin.is_host()),
                    ],
                )?;
                Ok(OpSpec::Rope { rows, heads, head_dim: *head_dim })
            }
            Op::KvWrite { k, v, width, positions, k_cache, v_cache } => {
                let rows = rows_of("k", k.len(), *width)?;
                need("v", v.len(), k.len(), &"as long as k")?;
                need("positions", positions.len(), rows, &format_args!("one for each of {rows} rows"))?;
                let capacity = rows_of("k_cache", k_cache.len(), *width)?;
                need("v_cache", v_cache.len(), k_cache.len(), &"as long as k_cache")?;
                below("positions", positions, capacity)?;
                same_memory(
                    OpKind::KvWrite,
                    &[
                        ("k", k.is_host()),
                        ("v", v.is_host()),
                        ("positions", positions.is_host()),
                        ("k_cache", k_cache.is_host()),
                        ("v_cache", v_cache.is_host()),
                    ],
                )?;
                Ok(OpSpec::KvWrite { rows, width: *width })
            }
            Op::Attention { q, heads, kv_heads, head_dim, positions, span, k_cache, v_cache, y } => {
                positive("head_dim", *head_dim)?;
                positive("kv_heads", *kv_heads)?;
                positive("heads", *heads)?;
                let overflow =
                    || Error::Parameter { what: "heads x head_dim", value: "overflow".into(), need: "addressable" };
                let width = heads.checked_mul(*head_dim).ok_or_else(overflow)?;
                if !heads.is_multiple_of(*kv_heads) {
                    let value = heads.to_string();
                    return Err(Error::Parameter { what: "heads", value, need: "a multiple of kv_heads" });
                }
                let rows = rows_of("q", q.len(), width)?;
                need("y", y.len(), q.len(), &"as long as q")?;
                need("positions", positions.len(), rows, &format_args!("one for each of {rows} rows"))?;
                let capacity = rows_of("k_cache", k_cache.len(), kv_heads * head_dim)?;
                need("v_cache", v_cache.len(), k_cache.len(), &"as long as k_cache")?;
                below("positions", positions, capacity)?;
                if let Some(span) = span {
                    valid_span(Some(span.longest), capacity)?;
                    check_span(span, positions)?;
                }
                let first = span.as_ref().map_or(q.is_host(), |s| s.first.is_host());
                same_memory(
                    OpKind::Attention,
                    &[
                        ("q", q.is_host()),
                        ("positions", positions.is_host()),
                        ("first rows", first),
                        ("k_cache", k_cache.is_host()),
                        ("v_cache", v_cache.is_host()),
                        ("y", y.is_host()),
                    ],
                )?;
                let (heads, kv_heads, head_dim) = (*heads, *kv_heads, *head_dim);
                let span = span.map(|s| s.longest);
                Ok(OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, span })
            }
            Op::ReluSquaredMul { gate, up, y } => {
                need("up", up.len(), gate.len(), &"as long as gate")?;
                need("y", y.len(), gate.len(), &"as long as gate")?;
                same_memory(
                    OpKind::ReluSquaredMul,
                    &[("gate", gate.is_host()), ("up", up.is_host()), ("y", y.is_host())],
                )?;
                Ok(OpSpec::ReluSquaredMul { len: gate.len() })
            }
            Op::Add { x, y } => {
                need("y", y.len(), x.len(), &"as long as x")?;
                same_memory(OpKind::Add, &[("x", x.is_host()), ("y", y.is_host())])?;
                Ok(OpSpec::Add { len: x.len() })
            }
            Op::Copy { x, y } => {
                need("y", y.len(), x.len(), &"as long as x")?;
                same_memory(OpKind::Copy, &[("x", x.is_host()), ("y", y.is_host())])?;
                Ok(OpSpec::Copy { len: x.len() })
            }
            Op::Sample { logits, params, steps, ids } => {
                let rows = ids.len();
                positive("rows of ids", rows)?;
                need("steps", steps.len(), rows, &"one for each row")?;
                if logits.is_empty() || !logits.len().is_multiple_of(rows) {
                    let why = format!("equal rows of logits for {rows} ids");
                    let want = logits.len().div_ceil(rows).max(1) * rows;
                    return Err(Error::Length { what: "logits", need: want, got: logits.len(), why });
                }
                if !(params.temperature.is_finite() && params.temperature >= 0.0) {
                    let value = params.temperature.to_string();
                    return Err(Error::Parameter { what: "temperature", value, need: "finite and not negative" });
                }
                if params.top_k == Some(0) {
                    return Err(Error::Parameter { what: "top_k", value: "0".into(), need: "at least 1, or none" });
                }
                same_memory(
                    OpKind::Sample,
                    &[("logits", logits.is_host()), ("steps", steps.is_host()), ("ids", ids.is_host())],
                )?;
                Ok(OpSpec::Sample { rows, vocab: logits.len() / rows })
            }
        }
    }
}

/// Every row has a span that ends where the row is. Indices in device memory are the device kernel's to guard.
fn check_span(span: &Span<'_>, positions: &In<'_, u32>) -> Result<()> {
    let Span { first, longest } = span;
    need("first rows", first.len(), positions.len(), &"one for each of the positions")?;
    let (In::Host(first), In::Host(positions)) = (first, positions) else { return Ok(()) };
    for (at, (&from, &to)) in first.iter().zip(*positions).enumerate() {
        let (from, to) = (from as usize, to as usize);
        if from > to {
            return Err(Error::OutOfRange { what: "first rows", at, value: from, limit: to + 1 });
        }
        if to - from >= *longest {
            return Err(Error::OutOfRange {
                what: "positions, less first rows,",
                at,
                value: to - from,
                limit: *longest,
            });
        }
    }
    Ok(())
}

fn quantized_rows(kind: OpKind, x: &In<'_, f32>, cols: usize, q: &Out<'_, i8>, scales: &Out<'_, f32>) -> Result<usize> {
    let rows = rows_of("x", x.len(), cols)?;
    need("q", q.len(), x.len(), &"as long as x")?;
    need("scales", scales.len(), rows, &format_args!("one for each of {rows} rows"))?;
    same_memory(kind, &[("x", x.is_host()), ("q", q.is_host()), ("scales", scales.is_host())])?;
    Ok(rows)
}

fn matmul_spec(w: &PackedWeight, x: &Activations<'_>, y: &Output<'_>, epilogue: Epilogue) -> Result<OpSpec> {
    let (n, k) = (w.shape().rows(), w.shape().cols());
    let ternary = w.format().is_ternary();
    let (activations, m, x_host) = match x {
        Activations::Int8 { q, scales } => {
            let m = rows_of("activations", q.len(), k)?;
            need("activation scales", scales.len(), m, &format_args!("one for each of {m} rows"))?;
            same_memory(OpKind::MatMul, &[("activations", q.is_host()), ("activation scales", scales.is_host())])?;
            (DType::I8, m, q.is_host())
        }
        Activations::F32(x) => (DType::F32, rows_of("activations", x.len(), k)?, x.is_host()),
    };
    check_activations(w.format(), activations)?;
    let (output, len, y_host) = match y {
        Output::F32(y) => (DType::F32, y.len(), y.is_host()),
        Output::I32(y) => (DType::I32, y.len(), y.is_host()),
    };
    if output == DType::I32 && !ternary {
        return Err(Error::Type { what: "y", got: output, need: "f32, because the weight is not ternary" });
    }
    need("y", len, m.saturating_mul(n), &format_args!("M={m} x N={n}"))?;
    same_memory(OpKind::MatMul, &[("activations", x_host), ("y", y_host)])?;
    let (format, scale_block) = (w.format(), w.scale_block());
    Ok(OpSpec::MatMul { format, scale_block, activations, output, m, n, k, epilogue })
}
