//! Weights, specs, and the struct of each op.

use std::ffi::c_void;

use super::{
    TersorF32, TersorF32Mut, TersorFloats, TersorFloatsMut, TersorI8, TersorI8Mut, TersorI32Mut, TersorU8, TersorU8Mut,
    TersorU32, TersorU32Mut,
};

/// A weight in canonical bytes; see formats.md.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorWeight {
    /// Size of this struct.
    pub struct_size: u32,
    /// Number of the format.
    pub format: u32,
    /// Rows (N).
    pub rows: u64,
    /// Columns (K).
    pub cols: u64,
    /// The bytes, tail included.
    pub codes: TersorU8,
    /// Separate scales (group forms only).
    pub scales: TersorF32,
    /// For `pack`: weights of a row that share a scale; 0 for a single-scale (or dense) weight, where one scale serves all.
    pub scale_block: u64,
}

/// An op as a question; which fields count is said by the table of plugin-abi.md.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorSpec {
    /// Size of this struct.
    pub struct_size: u32,
    /// Number of the op.
    pub op: u32,
    /// Format, or 0.
    pub format: u32,
    /// Element type read, or 0.
    pub input: u32,
    /// Element type written, or 0.
    pub output: u32,
    /// Store or add.
    pub epilogue: u32,
    /// Weights of a row that share a scale; 0: one scale.
    pub scale_block: u64,
    /// Rows of activations.
    pub m: u64,
    /// Rows of the weight.
    pub n: u64,
    /// Columns, or length.
    pub k: u64,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Positions of the cache.
    pub capacity: u64,
}

/// Real weights to canonical bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorQuantize {
    /// Size of this struct.
    pub struct_size: u32,
    /// Format to write.
    pub format: u32,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// `rows * cols` weights.
    pub w: TersorFloats,
    /// Bytes.
    pub codes: TersorU8Mut,
    /// Separate scales (group forms only).
    pub scales: TersorF32Mut,
}

/// Canonical bytes to real weights.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorDequantize {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The weight.
    pub w: *const TersorWeight,
    /// `rows * cols` values.
    pub y: TersorFloatsMut,
}

/// Each row to int8 with a scale.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorQuantizeRows {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Columns.
    pub cols: u64,
    /// `rows * cols`.
    pub x: TersorF32,
    /// `rows * cols`.
    pub q: TersorI8Mut,
    /// `rows`.
    pub scales: TersorF32Mut,
}

/// `y = x * w^T`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorMatMul {
    /// Size of this struct.
    pub struct_size: u32,
    /// Store or add.
    pub epilogue: u32,
    /// A pack of this instance, `n x k`.
    pub w: *const c_void,
    /// `m x k` int8 activations, for ternary weights; else empty.
    pub xq: TersorI8,
    /// `m` scales, by which results are divided.
    pub x_scales: TersorF32,
    /// `m x k` activations, for dense weights; else empty.
    pub x: TersorF32,
    /// `m x n` scaled results, or empty.
    pub y: TersorF32Mut,
    /// `m x n` exact sums with no scale applied, or empty. One of `y` and `sums` is given.
    pub sums: TersorI32Mut,
}

/// Rows of a dense table, as f32.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorGatherRows {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// A pack of this instance.
    pub table: *const c_void,
    /// Which rows.
    pub ids: TersorU32,
    /// `ids.len x cols`.
    pub y: TersorF32Mut,
}

/// RMSNorm of each row.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorRmsNorm {
    /// Size of this struct.
    pub struct_size: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// `rows x w.len`.
    pub x: TersorF32,
    /// Weights; their number is the row length.
    pub w: TersorF32,
    /// As long as x.
    pub y: TersorF32Mut,
}

/// RMSNorm, then QuantizeRows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorRmsNormQuantize {
    /// Size of this struct.
    pub struct_size: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// `rows x w.len`.
    pub x: TersorF32,
    /// Weights.
    pub w: TersorF32,
    /// As long as x.
    pub q: TersorI8Mut,
    /// `rows`.
    pub scales: TersorF32Mut,
}

/// Rotates heads in place.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorRope {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Elements of a head; even.
    pub head_dim: u64,
    /// `rows x heads * head_dim`.
    pub x: TersorF32Mut,
    /// Position of each row.
    pub positions: TersorU32,
    /// `positions x head_dim / 2`.
    pub cos: TersorF32,
    /// Likewise.
    pub sin: TersorF32,
}

/// Writes keys and values into a cache.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorKvWrite {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Elements of a cache position.
    pub width: u64,
    /// `rows x width`.
    pub k: TersorF32,
    /// `rows x width`.
    pub v: TersorF32,
    /// Position of each row.
    pub positions: TersorU32,
    /// `capacity x width`.
    pub k_cache: TersorF32Mut,
    /// `capacity x width`.
    pub v_cache: TersorF32Mut,
}

/// Each row attends to the cache up to its own position.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorAttention {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// `rows x heads * head_dim`.
    pub q: TersorF32,
    /// Position of each row.
    pub positions: TersorU32,
    /// `capacity x kv_heads * head_dim`.
    pub k_cache: TersorF32,
    /// Likewise.
    pub v_cache: TersorF32,
    /// As long as q.
    pub y: TersorF32Mut,
}

/// Each row attends to a span of the cache that ends at its own position: to its sequence, of several that share the cache,
/// or to a window. Since 1.1.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorAttentionSpan {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// `rows x heads * head_dim`.
    pub q: TersorF32,
    /// The last cache row that each row sees.
    pub positions: TersorU32,
    /// `capacity x kv_heads * head_dim`.
    pub k_cache: TersorF32,
    /// Likewise.
    pub v_cache: TersorF32,
    /// As long as q.
    pub y: TersorF32Mut,
    /// The first cache row that each row sees.
    pub first: TersorU32,
    /// The most cache rows that any row sees.
    pub longest: u64,
}

/// `y = max(gate, 0)^2 * up`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorReluSquaredMul {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Gate.
    pub gate: TersorF32,
    /// As long.
    pub up: TersorF32,
    /// As long.
    pub y: TersorF32Mut,
}

/// `y += x`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorAddOp {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Addend.
    pub x: TersorF32,
    /// As long.
    pub y: TersorF32Mut,
}

/// `y = x`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorCopyOp {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Source.
    pub x: TersorF32,
    /// As long.
    pub y: TersorF32Mut,
}

/// Draws a token from each row of logits.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorSample {
    /// Size of this struct.
    pub struct_size: u32,
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Only so many largest take part; 0: all.
    pub top_k: u32,
    /// Zero.
    pub reserved: u32,
    /// Seed of the noise.
    pub seed: u64,
    /// `rows x vocabulary`.
    pub logits: TersorF32,
    /// Tokens before the drawn one, for each row.
    pub steps: TersorU32,
    /// `rows`.
    pub ids: TersorU32Mut,
}
