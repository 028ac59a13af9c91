//! Slices of Rust as slices of C: pointers to the caller's own memory.

use tersor_core::{DType, FloatIn, FloatOut, Floats, FloatsMut, In, Out, Result, Weight};

use crate::codes::Code;
use crate::raw::*;

macro_rules! slices {
    ($($name:ident, $t:ty => $c:ident;)*) => { $(
        pub(super) fn $name(s: &[$t]) -> $c {
            $c { data: s.as_ptr(), len: s.len() as u64 }
        }
    )* };
}
slices! { f32s, f32 => TersorF32; i8s, i8 => TersorI8; u8s, u8 => TersorU8; u32s, u32 => TersorU32; }

macro_rules! slices_mut {
    ($($name:ident, $t:ty => $c:ident;)*) => { $(
        pub(super) fn $name(s: &mut [$t]) -> $c {
            $c { data: s.as_mut_ptr(), len: s.len() as u64 }
        }
    )* };
}
slices_mut! {
    f32s_mut, f32 => TersorF32Mut; i8s_mut, i8 => TersorI8Mut; u8s_mut, u8 => TersorU8Mut; i32s_mut, i32 => TersorI32Mut;
    u32s_mut, u32 => TersorU32Mut;
}

/// Host memory of an operand, or the error that says that it is on a device.
pub(super) struct Host<'b>(pub(super) &'b str);

impl Host<'_> {
    pub(super) fn f32(&self, what: &'static str, x: In<'_, f32>) -> Result<TersorF32> {
        Ok(f32s(x.host(what, self.0)?))
    }
    pub(super) fn u32(&self, what: &'static str, x: In<'_, u32>) -> Result<TersorU32> {
        Ok(u32s(x.host(what, self.0)?))
    }
    pub(super) fn i8(&self, what: &'static str, x: In<'_, i8>) -> Result<TersorI8> {
        Ok(i8s(x.host(what, self.0)?))
    }
    pub(super) fn f32_mut(&self, what: &'static str, x: Out<'_, f32>) -> Result<TersorF32Mut> {
        Ok(f32s_mut(x.host(what, self.0)?))
    }
    pub(super) fn i8_mut(&self, what: &'static str, x: Out<'_, i8>) -> Result<TersorI8Mut> {
        Ok(i8s_mut(x.host(what, self.0)?))
    }
    pub(super) fn u8_mut(&self, what: &'static str, x: Out<'_, u8>) -> Result<TersorU8Mut> {
        Ok(u8s_mut(x.host(what, self.0)?))
    }
    pub(super) fn i32_mut(&self, what: &'static str, x: Out<'_, i32>) -> Result<TersorI32Mut> {
        Ok(i32s_mut(x.host(what, self.0)?))
    }
    pub(super) fn u32_mut(&self, what: &'static str, x: Out<'_, u32>) -> Result<TersorU32Mut> {
        Ok(u32s_mut(x.host(what, self.0)?))
    }

    pub(super) fn floats(&self, what: &'static str, x: FloatIn<'_>) -> Result<TersorFloats> {
        let x = x.host(what, self.0)?;
        let data = match x {
            Floats::F32(s) => s.as_ptr().cast(),
            Floats::F16(s) => s.as_ptr().cast(),
            Floats::BF16(s) => s.as_ptr().cast(),
        };
        Ok(TersorFloats { data, len: x.len() as u64, dtype: number(x.dtype()), reserved: 0 })
    }

    pub(super) fn floats_mut(&self, what: &'static str, y: FloatOut<'_>) -> Result<TersorFloatsMut> {
        let mut y = y.host(what, self.0)?;
        let (len, dtype) = (y.len() as u64, number(y.dtype()));
        let data = match &mut y {
            FloatsMut::F32(s) => s.as_mut_ptr().cast(),
            FloatsMut::F16(s) => s.as_mut_ptr().cast(),
            FloatsMut::BF16(s) => s.as_mut_ptr().cast(),
        };
        Ok(TersorFloatsMut { data, len, dtype, reserved: 0 })
    }
}

/// The number of an element type. 0, which no plugin knows, where the core is newer than this version of the ABI.
pub(super) fn number(dtype: DType) -> u32 {
    dtype.number().unwrap_or(0)
}

/// A weight in place. `scale_block` is 0: only `pack` says more.
pub(super) fn weight(w: &Weight) -> TersorWeight {
    TersorWeight {
        struct_size: size_of::<TersorWeight>() as u32,
        format: w.format().number().unwrap_or(0),
        rows: w.shape().rows() as u64,
        cols: w.shape().cols() as u64,
        codes: u8s(w.codes()),
        scales: f32s(w.scales()),
        scale_block: 0,
    }
}
