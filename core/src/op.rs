//! What can be computed: [`Op`], the same as a question: [`OpSpec`], and the seal of validation: [`Checked`].

mod check;
mod reborrow;
mod spec;

use half::{bf16, f16};

pub use spec::{OpKind, OpSpec};

use crate::{DType, Floats, FloatsMut, Format, In, Out, PackedWeight, Result, Shape, Weight};

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
    /// Int8 with one scale a row, as `QuantizeRows` makes them; for ternary weights and those of `q8_0` and `q6_k`.
    Int8 {
        /// `m x k` codes.
        q: In<'a, i8>,
        /// `m` scales, by which results are divided.
        scales: In<'a, f32>,
    },
    /// Real values, for float weights.
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
    /// Real weights to canonical bytes; see [`crate::codec::quantize_into`].
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
    /// Canonical bytes to real weights; see [`crate::codec::dequantize_into`].
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
    /// Rows of a table that is not ternary, as f32.
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

impl<'a> Op<'a> {
    /// Validates lengths, shapes, types, indices and memories, and says what is wrong with the first that is not right.
    pub fn check(self) -> Result<Checked<'a>> {
        let spec = self.validated()?;
        Ok(Checked { op: self, spec })
    }
}
