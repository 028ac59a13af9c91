//! What can be computed: [`Op`], the same as a question: [`OpSpec`], and the seal of validation: [`Checked`].

mod reborrow;

use std::fmt;

use half::{bf16, f16};

use crate::{DType, Error, Floats, FloatsMut, Format, In, Out, PackedWeight, Result, Shape, Weight, codec};

/// Real-valued input in one of the float types.
#[derive(Debug, Clone, Copy)]
pub enum FloatIn<'a> {
    /// binary32.
    F32(In<'a, f32>),
    /// binary16.
    F16(In<'a, f16>),
    /// bfloat16.
    BF16(In<'a, bf16>),
}

/// Real-valued output in one of the float types.
#[derive(Debug)]
pub enum FloatOut<'a> {
    /// binary32.
    F32(Out<'a, f32>),
    /// binary16.
    F16(Out<'a, f16>),
    /// bfloat16.
    BF16(Out<'a, bf16>),
}

impl<'a> From<Floats<'a>> for FloatIn<'a> {
    fn from(f: Floats<'a>) -> Self {
        match f {
            Floats::F32(s) => FloatIn::F32(In::Host(s)),
            Floats::F16(s) => FloatIn::F16(In::Host(s)),
            Floats::BF16(s) => FloatIn::BF16(In::Host(s)),
        }
    }
}

impl<'a> From<FloatsMut<'a>> for FloatOut<'a> {
    fn from(f: FloatsMut<'a>) -> Self {
        match f {
            FloatsMut::F32(s) => FloatOut::F32(Out::Host(s)),
            FloatsMut::F16(s) => FloatOut::F16(Out::Host(s)),
            FloatsMut::BF16(s) => FloatOut::BF16(Out::Host(s)),
        }
    }
}

impl<'a> FloatIn<'a> {
    fn meta(&self) -> (DType, usize, bool) {
        match self {
            FloatIn::F32(s) => (DType::F32, s.len(), s.is_host()),
            FloatIn::F16(s) => (DType::F16, s.len(), s.is_host()),
            FloatIn::BF16(s) => (DType::BF16, s.len(), s.is_host()),
        }
    }

    /// The slice; an error for device memory. For host backends.
    pub fn host(self, what: &'static str, backend: &str) -> Result<Floats<'a>> {
        Ok(match self {
            FloatIn::F32(s) => Floats::F32(s.host(what, backend)?),
            FloatIn::F16(s) => Floats::F16(s.host(what, backend)?),
            FloatIn::BF16(s) => Floats::BF16(s.host(what, backend)?),
        })
    }
}

impl<'a> FloatOut<'a> {
    fn meta(&self) -> (DType, usize, bool) {
        match self {
            FloatOut::F32(s) => (DType::F32, s.len(), s.is_host()),
            FloatOut::F16(s) => (DType::F16, s.len(), s.is_host()),
            FloatOut::BF16(s) => (DType::BF16, s.len(), s.is_host()),
        }
    }

    /// The slice; an error for device memory. For host backends.
    pub fn host(self, what: &'static str, backend: &str) -> Result<FloatsMut<'a>> {
        Ok(match self {
            FloatOut::F32(s) => FloatsMut::F32(s.host(what, backend)?),
            FloatOut::F16(s) => FloatsMut::F16(s.host(what, backend)?),
            FloatOut::BF16(s) => FloatsMut::BF16(s.host(what, backend)?),
        })
    }
}

/// The activations of a matrix product, `m x k` row-major.
#[derive(Debug, Clone, Copy)]
pub enum Activations<'a> {
    /// Int8 with one scale a row, as `QuantizeRows` makes them; for ternary weights.
    Int8 {
        /// `m x k` codes.
        q: In<'a, i8>,
        /// `m` scales, by which results are divided.
        scales: In<'a, f32>,
    },
    /// Real values, for dense weights.
    F32(In<'a, f32>),
}

/// Where a matrix product goes, `m x n` row-major.
#[derive(Debug)]
pub enum Output<'a> {
    /// Real values, after scaling.
    F32(Out<'a, f32>),
    /// The exact sums of code x activation over each row, no scale applied. Ternary weights only.
    I32(Out<'a, i32>),
}

/// What is done with a result before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Epilogue {
    /// Store it.
    Store,
    /// Add it to what the output holds (the residual stream).
    Add,
}

/// How a token is drawn from logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleParams {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Only the k largest logits take part; `None`: all.
    pub top_k: Option<u32>,
    /// Seed of the noise.
    pub seed: u64,
}

/// An operation with its operands. `rows` counts tokens throughout.
#[derive(Debug)]
#[non_exhaustive]
pub enum Op<'a> {
    /// Real weights to canonical bytes; see [`codec::quantize_into`].
    Quantize {
        /// `shape.len()` weights.
        w: FloatIn<'a>,
        /// Rows and columns.
        shape: Shape,
        /// The ternary format to write.
        format: Format,
        /// Bytes, as [`Format::encoded_len`] states.
        codes: Out<'a, u8>,
        /// Separate scales, likewise; empty for formats that have none.
        scales: Out<'a, f32>,
    },
    /// Canonical bytes to real weights; see [`codec::dequantize_into`].
    Dequantize {
        /// The weight.
        w: &'a Weight,
        /// `w.shape().len()` values.
        y: FloatOut<'a>,
    },
    /// Each row to int8; see [`crate::reference::rows::quantize`].
    QuantizeRows {
        /// `rows x cols`.
        x: In<'a, f32>,
        /// Columns.
        cols: usize,
        /// `rows x cols`.
        q: Out<'a, i8>,
        /// `rows`.
        scales: Out<'a, f32>,
    },
    /// `y = x * w^T`; see [`crate::reference::matmul`].
    MatMul {
        /// `n x k`, packed by the backend that gets this op.
        w: &'a PackedWeight,
        /// `m x k`.
        x: Activations<'a>,
        /// `m x n`.
        y: Output<'a>,
        /// Store or add.
        epilogue: Epilogue,
    },
    /// Rows of a dense table, as f32.
    GatherRows {
        /// `entries x cols`, packed by the backend that gets this op.
        table: &'a PackedWeight,
        /// Which entries.
        ids: In<'a, u32>,
        /// `ids.len() x cols`.
        y: Out<'a, f32>,
    },
    /// See [`crate::reference::rows::rms_norm`].
    RmsNorm {
        /// `rows x cols`.
        x: In<'a, f32>,
        /// `cols`.
        w: In<'a, f32>,
        /// Added to the mean square.
        eps: f32,
        /// `rows x cols`.
        y: Out<'a, f32>,
    },
    /// `RmsNorm`, then `QuantizeRows` of its result.
    RmsNormQuantize {
        /// `rows x cols`.
        x: In<'a, f32>,
        /// `cols`.
        w: In<'a, f32>,
        /// Added to the mean square.
        eps: f32,
        /// `rows x cols`.
        q: Out<'a, i8>,
        /// `rows`.
        scales: Out<'a, f32>,
    },
    /// Rotates the heads of each row in place; see [`crate::reference::rope`].
    Rope {
        /// `rows x heads * head_dim`.
        x: Out<'a, f32>,
        /// Elements of a head; even.
        head_dim: usize,
        /// Position of each row.
        positions: In<'a, u32>,
        /// `positions x head_dim / 2`.
        cos: In<'a, f32>,
        /// Like `cos`.
        sin: In<'a, f32>,
    },
    /// Writes the keys and values of each row into a cache, at the row's position.
    KvWrite {
        /// `rows x width`.
        k: In<'a, f32>,
        /// `rows x width`.
        v: In<'a, f32>,
        /// Elements of a cache position: key/value heads x head_dim.
        width: usize,
        /// Position of each row.
        positions: In<'a, u32>,
        /// `capacity x width`.
        k_cache: Out<'a, f32>,
        /// `capacity x width`.
        v_cache: Out<'a, f32>,
    },
    /// Each row attends to the cache up to its own position; see [`crate::reference::attention`].
    Attention {
        /// `rows x heads * head_dim`.
        q: In<'a, f32>,
        /// Query heads; a multiple of `kv_heads`.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// Elements of a head.
        head_dim: usize,
        /// Position of each row.
        positions: In<'a, u32>,
        /// `capacity x kv_heads * head_dim`.
        k_cache: In<'a, f32>,
        /// Likewise.
        v_cache: In<'a, f32>,
        /// `rows x heads * head_dim`.
        y: Out<'a, f32>,
    },
    /// See [`crate::reference::rows::relu_squared_mul`].
    ReluSquaredMul {
        /// Gate.
        gate: In<'a, f32>,
        /// As long.
        up: In<'a, f32>,
        /// As long.
        y: Out<'a, f32>,
    },
    /// `y += x`.
    Add {
        /// Addend.
        x: In<'a, f32>,
        /// As long.
        y: Out<'a, f32>,
    },
    /// `y = x`.
    Copy {
        /// Source.
        x: In<'a, f32>,
        /// As long.
        y: Out<'a, f32>,
    },
    /// Draws a token from each row of logits; see [`crate::reference::sample`].
    Sample {
        /// `rows x vocab`.
        logits: In<'a, f32>,
        /// How.
        params: SampleParams,
        /// Tokens before the drawn one in its sequence, for each row.
        steps: In<'a, u32>,
        /// `rows`.
        ids: Out<'a, u32>,
    },
}

/// The name of an op without its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is documented at the variant of `Op` of the same name")]
pub enum OpKind {
    Quantize,
    Dequantize,
    QuantizeRows,
    MatMul,
    GatherRows,
    RmsNorm,
    RmsNormQuantize,
    Rope,
    KvWrite,
    Attention,
    ReluSquaredMul,
    Add,
    Copy,
    Sample,
}

impl OpKind {
    /// Every kind.
    pub const ALL: [OpKind; 14] = [
        OpKind::Quantize,
        OpKind::Dequantize,
        OpKind::QuantizeRows,
        OpKind::MatMul,
        OpKind::GatherRows,
        OpKind::RmsNorm,
        OpKind::RmsNormQuantize,
        OpKind::Rope,
        OpKind::KvWrite,
        OpKind::Attention,
        OpKind::ReluSquaredMul,
        OpKind::Add,
        OpKind::Copy,
        OpKind::Sample,
    ];

    /// The name in snake case, as kernel names use it. Matrix products are `matmul` here; their kernels are named `gemv` for
    /// one row and `gemm` for more.
    pub const fn id(self) -> &'static str {
        match self {
            OpKind::Quantize => "quantize",
            OpKind::Dequantize => "dequantize",
            OpKind::QuantizeRows => "quantize_rows",
            OpKind::MatMul => "matmul",
            OpKind::GatherRows => "gather_rows",
            OpKind::RmsNorm => "rms_norm",
            OpKind::RmsNormQuantize => "rms_norm_quantize",
            OpKind::Rope => "rope",
            OpKind::KvWrite => "kv_write",
            OpKind::Attention => "attention",
            OpKind::ReluSquaredMul => "relu_squared_mul",
            OpKind::Add => "add",
            OpKind::Copy => "copy",
            OpKind::Sample => "sample",
        }
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

/// An op without its data: what [`crate::QuantBackend::supports`] is asked, what kernels are chosen and tuned by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of the variant of `Op` of the same name")]
pub enum OpSpec {
    Quantize {
        from: DType,
        format: Format,
        shape: Shape,
    },
    Dequantize {
        format: Format,
        to: DType,
        shape: Shape,
    },
    QuantizeRows {
        rows: usize,
        cols: usize,
    },
    MatMul {
        format: Format,
        /// Weights of a row that share a scale; `None` for a single-scale weight, see [`crate::Weight::uniform_scale`].
        scale_block: Option<usize>,
        activations: DType,
        output: DType,
        m: usize,
        n: usize,
        k: usize,
        epilogue: Epilogue,
    },
    GatherRows {
        format: Format,
        rows: usize,
        cols: usize,
    },
    RmsNorm {
        rows: usize,
        cols: usize,
    },
    RmsNormQuantize {
        rows: usize,
        cols: usize,
    },
    Rope {
        rows: usize,
        heads: usize,
        head_dim: usize,
    },
    KvWrite {
        rows: usize,
        width: usize,
    },
    Attention {
        rows: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    },
    ReluSquaredMul {
        len: usize,
    },
    Add {
        len: usize,
    },
    Copy {
        len: usize,
    },
    Sample {
        rows: usize,
        vocab: usize,
    },
}

impl OpSpec {
    /// The usual product of a model: single-scale ternary weights with int8 activations, or dense ones with f32, stored as
    /// f32.
    pub fn matmul(format: Format, m: usize, n: usize, k: usize) -> Self {
        let activations = if format.is_ternary() { DType::I8 } else { DType::F32 };
        let (output, epilogue) = (DType::F32, Epilogue::Store);
        OpSpec::MatMul { format, scale_block: None, activations, output, m, n, k, epilogue }
    }

    /// The op's name.
    pub const fn kind(&self) -> OpKind {
        match self {
            OpSpec::Quantize { .. } => OpKind::Quantize,
            OpSpec::Dequantize { .. } => OpKind::Dequantize,
            OpSpec::QuantizeRows { .. } => OpKind::QuantizeRows,
            OpSpec::MatMul { .. } => OpKind::MatMul,
            OpSpec::GatherRows { .. } => OpKind::GatherRows,
            OpSpec::RmsNorm { .. } => OpKind::RmsNorm,
            OpSpec::RmsNormQuantize { .. } => OpKind::RmsNormQuantize,
            OpSpec::Rope { .. } => OpKind::Rope,
            OpSpec::KvWrite { .. } => OpKind::KvWrite,
            OpSpec::Attention { .. } => OpKind::Attention,
            OpSpec::ReluSquaredMul { .. } => OpKind::ReluSquaredMul,
            OpSpec::Add { .. } => OpKind::Add,
            OpSpec::Copy { .. } => OpKind::Copy,
            OpSpec::Sample { .. } => OpKind::Sample,
        }
    }
}

impl fmt::Display for OpSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpSpec::Quantize { from, format, shape } => write!(f, "quantize {from:?} -> {format} {shape}"),
            OpSpec::Dequantize { format, to, shape } => write!(f, "dequantize {format} -> {to:?} {shape}"),
            OpSpec::MatMul { format, activations, output, m, n, k, .. } => {
                write!(f, "matmul {format} x {activations:?} -> {output:?} M={m} N={n} K={k}")
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// An op that [`Op::check`] has validated. Kernels may rely on it.
#[derive(Debug)]
pub struct Checked<'a> {
    op: Op<'a>,
    spec: OpSpec,
}

impl<'a> Checked<'a> {
    /// The op's spec.
    pub fn spec(&self) -> OpSpec {
        self.spec
    }

    /// The op.
    pub fn op(self) -> Op<'a> {
        self.op
    }
}

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

impl<'a> Op<'a> {
    /// Validates lengths, shapes, types, indices and memories, and says what is wrong with the first that is not right.
    pub fn check(self) -> Result<Checked<'a>> {
        let spec = self.validated()?;
        Ok(Checked { op: self, spec })
    }

    fn validated(&self) -> Result<OpSpec> {
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
                        valid: Format::DENSE.map(Format::id).join(", "),
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
            Op::Attention { q, heads, kv_heads, head_dim, positions, k_cache, v_cache, y } => {
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
                same_memory(
                    OpKind::Attention,
                    &[
                        ("q", q.is_host()),
                        ("positions", positions.is_host()),
                        ("k_cache", k_cache.is_host()),
                        ("v_cache", v_cache.is_host()),
                        ("y", y.is_host()),
                    ],
                )?;
                let (heads, kv_heads, head_dim) = (*heads, *kv_heads, *head_dim);
                Ok(OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity })
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
    if ternary != (activations == DType::I8) {
        let needed = if ternary { "int8, because the weight is ternary" } else { "f32, because the weight is dense" };
        return Err(Error::Type { what: "activations", got: activations, need: needed });
    }
    let (output, len, y_host) = match y {
        Output::F32(y) => (DType::F32, y.len(), y.is_host()),
        Output::I32(y) => (DType::I32, y.len(), y.is_host()),
    };
    if output == DType::I32 && !ternary {
        return Err(Error::Type { what: "y", got: output, need: "f32, because the weight is dense" });
    }
    need("y", len, m.saturating_mul(n), &format_args!("M={m} x N={n}"))?;
    same_memory(OpKind::MatMul, &[("activations", x_host), ("y", y_host)])?;
    let (format, scale_block) = (w.format(), w.scale_block());
    Ok(OpSpec::MatMul { format, scale_block, activations, output, m, n, k, epilogue })
}
