//! Weights as values: real-valued slices, ternary codes with scales, and validated encodings.

use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};

use crate::{DType, Format, Result, Shape, codec};

/// Real-valued elements in one of the float types, borrowed.
#[derive(Debug, Clone, Copy)]
pub enum Floats<'a> {
    /// binary32.
    F32(&'a [f32]),
    /// binary16.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
}

impl Floats<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(s) => s.len(),
            Floats::F16(s) => s.len(),
            Floats::BF16(s) => s.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Floats::F32(_) => DType::F32,
            Floats::F16(_) => DType::F16,
            Floats::BF16(_) => DType::BF16,
        }
    }

    /// Converts `out.len()` elements from `start` to f32, which is exact.
    ///
    /// # Panics
    /// Never for `start + out.len() <= self.len()`; a longer range is cut to what there is.
    #[inline(always)]
    pub fn read(&self, start: usize, out: &mut [f32]) {
        let n = out.len().min(self.len().saturating_sub(start));
        let out = &mut out[..n];
        match self {
            Floats::F32(s) => out.copy_from_slice(&s[start..start + n]),
            Floats::F16(s) => out.iter_mut().zip(&s[start..start + n]).for_each(|(o, v)| *o = v.to_f32()),
            // A bfloat16 is the upper half of the same f32; spelled out so that it vectorises.
            Floats::BF16(s) => out
                .iter_mut()
                .zip(&s[start..start + n])
                .for_each(|(o, v)| *o = f32::from_bits(u32::from(v.to_bits()) << 16)),
        }
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read(0, &mut out);
        out
    }
}

/// Real-valued elements in one of the float types, borrowed for writing.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// binary32.
    F32(&'a mut [f32]),
    /// binary16.
    F16(&'a mut [f16]),
    /// bfloat16.
    BF16(&'a mut [bf16]),
}

impl FloatsMut<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::F32(s) => s.len(),
            FloatsMut::F16(s) => s.len(),
            FloatsMut::BF16(s) => s.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            FloatsMut::F32(_) => DType::F32,
            FloatsMut::F16(_) => DType::F16,
            FloatsMut::BF16(_) => DType::BF16,
        }
    }

    /// Writes `values` from `start`, rounding to nearest even.
    #[inline(always)]
    pub fn write(&mut self, start: usize, values: &[f32]) {
        let n = values.len().min(self.len().saturating_sub(start));
        let values = &values[..n];
        match self {
            FloatsMut::F32(s) => s[start..start + n].copy_from_slice(values),
            FloatsMut::F16(s) => {
                s[start..start + n].iter_mut().zip(values).for_each(|(o, v)| *o = f16::from_f32(*v));
            }
            FloatsMut::BF16(s) => {
                s[start..start + n].iter_mut().zip(values).for_each(|(o, v)| *o = bf16::from_f32(*v));
            }
        }
    }
}

/// A decoded ternary matrix: one i8 in {-1, 0, +1} per weight, and a scale for every `block` consecutive weights
/// (`block == shape.len()` where one scale serves the whole tensor). A weight's real value is `code * scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Ternary {
    /// Rows and columns.
    pub shape: Shape,
    /// The codes, row-major.
    pub codes: Vec<i8>,
    /// Weights that share a scale.
    pub block: usize,
    /// `ceil(len / block)` multipliers.
    pub scales: Vec<f32>,
}

impl Ternary {
    /// The scale, if all blocks with a code other than zero have the same one, bit for bit.
    pub fn uniform_scale(&self) -> Option<f32> {
        let mut found = None;
        let agree = codec::agree(self.codes.chunks(self.block.max(1)).zip(&self.scales), &mut found);
        if agree { found.or(self.scales.first().copied()) } else { None }
    }

    /// The real value of each weight.
    pub fn values(&self) -> Vec<f32> {
        self.codes
            .chunks(self.block)
            .zip(&self.scales)
            .flat_map(|(c, s)| c.iter().map(move |&t| f32::from(t) * s))
            .collect()
    }
}

/// The value that all elements share bit for bit, if there is one.
pub(crate) fn uniform(scales: &[f32]) -> Option<f32> {
    let (first, rest) = scales.split_first()?;
    rest.iter().all(|s| s.to_bits() == first.to_bits()).then_some(*first)
}

/// A weight matrix in canonical bytes, validated: lengths fit the shape, every code is one that the format defines, every
/// scale is finite. Cloning shares the bytes, which may be memory-mapped or static.
#[derive(Debug, Clone)]
pub struct Weight {
    format: Format,
    shape: Shape,
    codes: Bytes,
    scales: Arc<[f32]>,
}

impl Weight {
    /// Takes canonical bytes, checking lengths, codes and scales. `scales` is empty unless the format keeps its scales in
    /// a slice of their own ([`Format::I2SGroup`]).
    pub fn new(format: Format, shape: Shape, codes: impl Into<Bytes>, scales: impl Into<Arc<[f32]>>) -> Result<Self> {
        let (codes, scales) = (codes.into(), scales.into());
        codec::validate(format, shape, &codes, &scales)?;
        Ok(Weight { format, shape, codes, scales })
    }

    /// Weights that are not ternary, in `format` (`f32`, `f16`, `bf16`, `q8_0` or `q6_k`), from its little-endian bytes.
    pub fn dense(format: Format, shape: Shape, bytes: impl Into<Bytes>) -> Result<Self> {
        Self::new(format, shape, bytes, Vec::new())
    }

    pub(crate) fn trusted(format: Format, shape: Shape, codes: Vec<u8>, scales: Vec<f32>) -> Self {
        Weight { format, shape, codes: codes.into(), scales: scales.into() }
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows (N) and columns (K).
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The canonical bytes, tail included.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The canonical bytes as a shared handle: keeping it keeps the mapping alive.
    pub fn shared_codes(&self) -> Bytes {
        self.codes.clone()
    }

    /// The separate scales (group forms only).
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Bytes of codes and scales together.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }

    /// The multiplier of every scale block, whatever the format keeps them in; one element where one scale serves the
    /// whole tensor, none for formats that are not ternary. Second: weights per block.
    pub fn block_scales(&self) -> (Vec<f32>, usize) {
        codec::scales_of(self)
    }

    /// The one scale of the whole tensor: stored as such, or equal bit for bit in all blocks that have a code other than
    /// zero. Such a weight is *single-scale*: a matrix product sums whole rows in i32 and multiplies once. `None` for
    /// formats that are not ternary; products with `q8_0` and `q6_k` go by blocks whatever their scales.
    pub fn uniform_scale(&self) -> Option<f32> {
        if self.format.is_ternary() { codec::uniform_scale(self) } else { None }
    }
}
