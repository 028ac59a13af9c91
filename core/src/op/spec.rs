//! An op as a question.

use std::fmt;

use crate::{DType, Epilogue, Error, Format, Result, Shape};

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
        /// Weights of a row that share a scale; `None` for a single-scale weight, see [`crate::Weight::uniform_scale`],
        /// and for floats.
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
        /// The longest span; `None`: rows see the cache from its first row on.
        span: Option<usize>,
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
    /// The usual product of a model: single-scale ternary weights or block formats with int8 activations, or floats with
    /// f32, stored as f32.
    pub fn matmul(format: Format, m: usize, n: usize, k: usize) -> Self {
        let scale_block = if format.is_block() { format.scale_block() } else { None };
        let (activations, output, epilogue) = (format.activations(), DType::F32, Epilogue::Store);
        OpSpec::MatMul { format, scale_block, activations, output, m, n, k, epilogue }
    }

    /// Whether an op of this spec can be: shapes that the formats hold, dimensions that are not zero, types that go together.
    /// [`Op::check`](crate::Op::check) lets no other through, and a backend need not support others.
    pub fn check(&self) -> Result<()> {
        let positive = |what, value: usize| match value {
            0 => Err(Error::Parameter { what, value: "0".into(), need: "at least 1" }),
            _ => Ok(()),
        };
        let float = |what, dtype: DType| match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Ok(()),
            got => Err(Error::Type { what, got, need: "f32, f16 or bf16" }),
        };
        let ternary = |format: Format| match format.is_ternary() {
            true => Ok(()),
            false => Err(unfit("ternary format", format, Format::TERNARY.into_iter().chain(Format::GROUPED))),
        };
        match *self {
            OpSpec::Quantize { from, format, shape } => {
                ternary(format)?;
                float("weights", from)?;
                format.encoded_len(shape).map(drop)
            }
            OpSpec::Dequantize { format, to, shape } => {
                float("dequantized values", to)?;
                format.encoded_len(shape).map(drop)
            }
            OpSpec::MatMul { format, scale_block, activations, output, m, n, k, epilogue: _ } => {
                positive("M", m)?;
                format.encoded_len(Shape::new(n, k)?)?;
                check_activations(format, activations)?;
                if output != DType::F32 && !(output == DType::I32 && format.is_ternary()) {
                    let need = "f32, or i32 where the weight is ternary";
                    return Err(Error::Type { what: "y", got: output, need });
                }
                if (scale_block.is_some() || format.is_block()) && scale_block != format.scale_block() {
                    let value = format!("{scale_block:?}");
                    return Err(Error::Parameter {
                        what: "scale_block",
                        value,
                        need: "that of the format; or none, for one scale",
                    });
                }
                Ok(())
            }
            OpSpec::GatherRows { format, rows, cols } => {
                if format.is_ternary() {
                    return Err(unfit("table format", format, Format::tables()));
                }
                positive("rows", rows)?;
                positive("columns", cols)?;
                format.encoded_len(Shape::new(1, cols)?).map(drop)
            }
            OpSpec::QuantizeRows { rows, cols }
            | OpSpec::RmsNorm { rows, cols }
            | OpSpec::RmsNormQuantize { rows, cols } => {
                positive("rows", rows)?;
                positive("columns", cols)
            }
            OpSpec::Rope { rows, heads, head_dim } => {
                positive("rows", rows)?;
                positive("heads", heads)?;
                positive("head_dim", head_dim)?;
                match head_dim % 2 {
                    0 => Ok(()),
                    _ => Err(Error::Parameter { what: "head_dim", value: head_dim.to_string(), need: "even" }),
                }
            }
            OpSpec::KvWrite { rows, width } => {
                positive("rows", rows)?;
                positive("width", width)
            }
            OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, span } => {
                positive("rows", rows)?;
                positive("heads", heads)?;
                positive("kv_heads", kv_heads)?;
                positive("head_dim", head_dim)?;
                positive("capacity", capacity)?;
                valid_span(span, capacity)?;
                match heads % kv_heads {
                    0 => Ok(()),
                    _ => {
                        let value = heads.to_string();
                        Err(Error::Parameter { what: "heads", value, need: "a multiple of kv_heads" })
                    }
                }
            }
            OpSpec::ReluSquaredMul { .. } | OpSpec::Add { .. } | OpSpec::Copy { .. } => Ok(()),
            OpSpec::Sample { rows, vocab } => {
                positive("rows", rows)?;
                positive("vocabulary", vocab)
            }
        }
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

/// Whether a span can be that long in a cache of `capacity` rows.
pub(super) fn valid_span(span: Option<usize>, capacity: usize) -> Result<()> {
    match span {
        Some(longest) if longest == 0 || longest > capacity => Err(Error::Parameter {
            what: "longest span",
            value: longest.to_string(),
            need: "at least 1, and at most the rows of the cache",
        }),
        _ => Ok(()),
    }
}

/// Whether a product with `format` takes such activations.
pub(super) fn check_activations(format: Format, got: DType) -> Result<()> {
    let need = match format {
        _ if got == format.activations() => return Ok(()),
        f if f.is_ternary() => "int8, because the weight is ternary",
        f if f.is_block() => "int8, because the weight's codes are integers: quantize the rows first",
        _ => "f32, because the weight is float",
    };
    Err(Error::Type { what: "activations", got, need })
}

fn unfit(kind: &'static str, given: Format, valid: impl Iterator<Item = Format>) -> Error {
    let valid = valid.map(Format::id).collect::<Vec<_>>().join(", ");
    Error::UnknownName { kind, given: given.id().into(), valid }
}
