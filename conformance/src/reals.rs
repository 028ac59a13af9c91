//! Real-valued data in one of the float types, rounded and widened by the oracle.

use half::{bf16, f16};
use tersor_core::{DType, FloatIn, FloatOut, Floats, FloatsMut};

use crate::compare::same;
use crate::oracle::float::{bf16_bits, bf16_value, f16_bits, f16_value};
use crate::rig::{Operand, Rig, Stop, Verdict};

/// Elements of one type.
#[derive(Debug, Clone)]
pub(crate) enum Reals {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

/// The float types.
pub(crate) const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The type's name in the names of cases.
pub(crate) fn type_id(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => "f32",
    }
}

impl Reals {
    /// `values`, rounded to `dtype`.
    pub(crate) fn new(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F16 => Reals::F16(values.iter().map(|v| f16::from_bits(f16_bits(*v))).collect()),
            DType::BF16 => Reals::BF16(values.iter().map(|v| bf16::from_bits(bf16_bits(*v))).collect()),
            _ => Reals::F32(values.to_vec()),
        }
    }

    /// The elements as f32, which is exact.
    pub(crate) fn values(&self) -> Vec<f32> {
        match self {
            Reals::F32(v) => v.clone(),
            Reals::F16(v) => v.iter().map(|v| f16_value(v.to_bits())).collect(),
            Reals::BF16(v) => v.iter().map(|v| bf16_value(v.to_bits())).collect(),
        }
    }

    /// The elements as a dense format's little-endian bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Reals::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Reals::F16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Reals::BF16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// The elements from `start` on, as the trait's helper methods take them.
    pub(crate) fn slice(&self, start: usize) -> Floats<'_> {
        match self {
            Reals::F32(v) => Floats::F32(&v[start..]),
            Reals::F16(v) => Floats::F16(&v[start..]),
            Reals::BF16(v) => Floats::BF16(&v[start..]),
        }
    }

    /// Likewise for writing.
    pub(crate) fn slice_mut(&mut self, start: usize) -> FloatsMut<'_> {
        match self {
            Reals::F32(v) => FloatsMut::F32(&mut v[start..]),
            Reals::F16(v) => FloatsMut::F16(&mut v[start..]),
            Reals::BF16(v) => FloatsMut::BF16(&mut v[start..]),
        }
    }

    /// Bit equality.
    pub(crate) fn same(&self, what: &str, cols: usize, want: &Reals) -> Verdict {
        match (self, want) {
            (Reals::F32(g), Reals::F32(w)) => same(what, cols, g, w),
            (Reals::F16(g), Reals::F16(w)) => same(what, cols, g, w),
            (Reals::BF16(g), Reals::BF16(w)) => same(what, cols, g, w),
            _ => Err(Stop::Failed(format!("{what}: of another type"))),
        }
    }
}

/// [`Reals`] in the backend's memory.
#[derive(Debug)]
pub(crate) enum RealOperand {
    F32(Operand<f32>),
    F16(Operand<f16>),
    BF16(Operand<bf16>),
}

impl RealOperand {
    pub(crate) fn hold(rig: &mut Rig<'_>, data: &Reals) -> Result<Self, Stop> {
        Ok(match data {
            Reals::F32(v) => RealOperand::F32(rig.hold(v)?),
            Reals::F16(v) => RealOperand::F16(rig.hold(v)?),
            Reals::BF16(v) => RealOperand::BF16(rig.hold(v)?),
        })
    }

    pub(crate) fn blank(rig: &mut Rig<'_>, dtype: DType, len: usize) -> Result<Self, Stop> {
        Ok(match dtype {
            DType::F16 => RealOperand::F16(rig.blank(len)?),
            DType::BF16 => RealOperand::BF16(rig.blank(len)?),
            _ => RealOperand::F32(rig.blank(len)?),
        })
    }

    pub(crate) fn input(&self) -> FloatIn<'_> {
        match self {
            RealOperand::F32(o) => FloatIn::F32(o.input()),
            RealOperand::F16(o) => FloatIn::F16(o.input()),
            RealOperand::BF16(o) => FloatIn::BF16(o.input()),
        }
    }

    pub(crate) fn output(&mut self) -> FloatOut<'_> {
        match self {
            RealOperand::F32(o) => FloatOut::F32(o.output()),
            RealOperand::F16(o) => FloatOut::F16(o.output()),
            RealOperand::BF16(o) => FloatOut::BF16(o.output()),
        }
    }

    pub(crate) fn read(&self, rig: &mut Rig<'_>) -> Result<Reals, Stop> {
        Ok(match self {
            RealOperand::F32(o) => Reals::F32(rig.read(o)?),
            RealOperand::F16(o) => Reals::F16(rig.read(o)?),
            RealOperand::BF16(o) => Reals::BF16(rig.read(o)?),
        })
    }
}
