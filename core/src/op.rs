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

/// Which rows of a cache each row of queries sees, where that is not all up to its last: the sequence that it belongs to, of
/// several that share the cache, or a window.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The first cache row that each row of queries sees; not past its last.
    pub first: In<'a, u32>,
    /// The most cache rows that any row of queries sees.
    pub longest: usize,
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
    /// Writes the keys and values of each row into a cache, at the cache row that `positions` names: the row's position where
    /// the cache has one sequence.
    KvWrite {
        /// `rows x width`.
        k: In<'a, f32>,
        /// `rows x width`.
        v: In<'a, f32>,
        /// Elements of a cache position: key/value heads x head_dim.
        width: usize,
        /// Cache row of each row.
        positions: In<'a, u32>,
        /// `capacity x width`.
        k_cache: Out<'a, f32>,
        /// `capacity x width`.
        v_cache: Out<'a, f32>,
    },
    /// Each row attends to the rows of the cache up to its own position, or to a span that ends there; see
    /// [`crate::reference::attention`]. A span gives the bits that a cache of just these rows would give.
    Attention {
        /// `rows x heads * head_dim`.
        q: In<'a, f32>,
        /// Query heads; a multiple of `kv_heads`.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// Elements of a head.
        head_dim: usize,
        /// The last cache row that each row sees: its position where the cache has one sequence.
        positions: In<'a, u32>,
        /// Where what each row sees begins; `None`: with the first cache row.
        span: Option<Span<'a>>,
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
    #[inline]
    pub fn spec(&self) -> OpSpec {
        self.spec
    }

    /// The op.
    #[inline]
    pub fn op(self) -> Op<'a> {
        self.op
    }
}

impl<'a> Op<'a> {
    /// Validates lengths, shapes, types, indices and memories, and says what is wrong with the first that is not right.
    // Inlined: an op is some 250 bytes, and is checked where it was built rather than moved there and back.
    #[inline]
    pub fn check(self) -> Result<Checked<'a>> {
        let spec = self.validated()?;
        Ok(Checked { op: self, spec })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// Two rows of one head of two elements over a cache of eight rows.
    fn attention(positions: &[u32], first: &[u32], longest: usize) -> Result<OpSpec> {
        let (q, cache, mut y) = ([0.0; 4], [0.0; 16], [0.0; 4]);
        let (heads, kv_heads, head_dim) = (1, 1, 2);
        let (k_cache, v_cache, span) =
            (In::Host(&cache[..]), In::Host(&cache[..]), Span { first: In::Host(first), longest });
        let (q, positions, y) = (In::Host(&q[..]), In::Host(positions), Out::Host(&mut y));
        let op = Op::Attention { q, heads, kv_heads, head_dim, positions, span: Some(span), k_cache, v_cache, y };
        op.check().map(|op| op.spec())
    }

    #[test]
    fn spans_end_where_their_row_is_and_are_no_longer_than_is_said() {
        let spec = attention(&[2, 7], &[0, 4], 4).unwrap();
        assert!(matches!(spec, OpSpec::Attention { rows: 2, capacity: 8, span: Some(4), .. }));
        assert!(matches!(attention(&[2, 7], &[0], 4), Err(Error::Length { what: "first rows", .. })));
        let e = attention(&[2, 7], &[3, 4], 4).unwrap_err();
        assert!(matches!(e, Error::OutOfRange { what: "first rows", at: 0, value: 3, limit: 3 }), "{e}");
        let e = attention(&[2, 7], &[0, 3], 4).unwrap_err();
        assert!(matches!(e, Error::OutOfRange { at: 1, value: 4, limit: 4, .. }), "{e}");
        for longest in [0, 9] {
            assert!(matches!(attention(&[2, 7], &[0, 4], longest), Err(Error::Parameter { what: "longest span", .. })));
        }
    }
}
