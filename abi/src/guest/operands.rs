//! Slices of C as slices of Rust.

use std::sync::Arc;

use tersor_core::{Bytes, DType, Floats, FloatsMut, Format, Shape, Weight};

use super::{Refusal, invalid};
use crate::codes::Code;
use crate::raw::*;

fn checked<T>(data: *const T, len: u64) -> Result<usize, Refusal> {
    let len = usize::try_from(len).map_err(|_| invalid("a length beyond the address range"))?;
    if len > 0 && (data.is_null() || !data.is_aligned() || len.checked_mul(size_of::<T>()).is_none_or(too_long)) {
        return Err(invalid(format!("a slice of {len} elements at {data:p} is no slice of its element type")));
    }
    Ok(len)
}

fn too_long(bytes: usize) -> bool {
    bytes > isize::MAX as usize
}

/// # Safety
/// `data` points to `len` elements that nobody writes for `'a`, or is null or misaligned, which is an error.
pub(super) unsafe fn slice<'a, T>(data: *const T, len: u64) -> Result<&'a [T], Refusal> {
    match checked(data, len)? {
        0 => Ok(&[]),
        // SAFETY: checked for null, alignment and size; the rest is the caller's promise.
        len => Ok(unsafe { std::slice::from_raw_parts(data, len) }),
    }
}

/// # Safety
/// As [`slice`], and nobody else reads or writes the elements for `'a`.
pub(super) unsafe fn slice_mut<'a, T>(data: *mut T, len: u64) -> Result<&'a mut [T], Refusal> {
    match checked(data, len)? {
        0 => Ok(&mut []),
        // SAFETY: as in `slice`, exclusively.
        len => Ok(unsafe { std::slice::from_raw_parts_mut(data, len) }),
    }
}

/// # Safety
/// As [`slice`].
pub(super) unsafe fn floats<'a>(f: &TersorFloats) -> Result<Floats<'a>, Refusal> {
    // SAFETY: the caller's promise, for elements of the type that the operand states.
    unsafe {
        match DType::named(f.dtype) {
            Some(DType::F32) => Ok(Floats::F32(slice(f.data.cast(), f.len)?)),
            Some(DType::F16) => Ok(Floats::F16(slice(f.data.cast(), f.len)?)),
            Some(DType::BF16) => Ok(Floats::BF16(slice(f.data.cast(), f.len)?)),
            _ => Err(invalid(format!("element type {} is none of the float types", f.dtype))),
        }
    }
}

/// # Safety
/// As [`slice_mut`].
pub(super) unsafe fn floats_mut<'a>(f: &TersorFloatsMut) -> Result<FloatsMut<'a>, Refusal> {
    // SAFETY: as in `floats`, exclusively.
    unsafe {
        match DType::named(f.dtype) {
            Some(DType::F32) => Ok(FloatsMut::F32(slice_mut(f.data.cast(), f.len)?)),
            Some(DType::F16) => Ok(FloatsMut::F16(slice_mut(f.data.cast(), f.len)?)),
            Some(DType::BF16) => Ok(FloatsMut::BF16(slice_mut(f.data.cast(), f.len)?)),
            _ => Err(invalid(format!("element type {} is none of the float types", f.dtype))),
        }
    }
}

pub(super) fn format(number: u32) -> Result<Format, Refusal> {
    let unknown = || Refusal::Status(TERSOR_UNSUPPORTED, format!("this plugin knows no format of number {number}"));
    Format::named(number).ok_or_else(unknown)
}

pub(super) fn shape(rows: u64, cols: u64) -> Result<Shape, Refusal> {
    Ok(Shape::new(index(rows)?, index(cols)?)?)
}

pub(super) fn index(n: u64) -> Result<usize, Refusal> {
    usize::try_from(n).map_err(|_| invalid("a number beyond the address range"))
}

/// Checks a struct's pointer and size, and reads it.
///
/// # Safety
/// `data` is null or points to a `T` of the size that its first field states.
pub(super) unsafe fn read<'a, T: Prefixed>(data: *const T) -> Result<&'a T, Refusal> {
    if data.is_null() || !data.is_aligned() {
        return Err(invalid("a null or misaligned struct"));
    }
    // SAFETY: every such struct begins with its size in 32 bits.
    let size = unsafe { *data.cast::<u32>() };
    if size < T::V1 {
        return Err(invalid(format!("a struct of {size} bytes; version 1.0 has {}", T::V1)));
    }
    // SAFETY: it is at least as long as version 1.0 knows it, and we read no later field.
    Ok(unsafe { &*data })
}

/// The host's bytes, used in place. `alive` is dropped with the last handle to them.
struct HostBytes {
    bytes: &'static [u8],
    _alive: Arc<()>,
}

impl AsRef<[u8]> for HostBytes {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

/// A weight over the host's codes, and a witness that shows afterwards whether the backend kept them.
///
/// # Safety
/// `w` is a weight of the ABI. Its codes stay valid as long as the witness says that they are kept: the host is told by
/// `TERSOR_KEEPS_CODES` before its promise for the call ends.
pub(super) unsafe fn weight(w: *const TersorWeight) -> Result<(Weight, Arc<()>), Refusal> {
    // SAFETY: the caller's promise.
    let w = unsafe { read(w)? };
    // SAFETY: the caller's promise; the lifetime is that of the witness.
    let (bytes, scales) = unsafe { (slice(w.codes.data, w.codes.len)?, slice(w.scales.data, w.scales.len)?) };
    let witness = Arc::new(());
    let codes = Bytes::from_owner(HostBytes { bytes, _alive: witness.clone() });
    Ok((Weight::new(format(w.format)?, shape(w.rows, w.cols)?, codes, scales)?, witness))
}

/// Whether anybody but us still holds the host's bytes.
pub(super) fn kept(witness: &Arc<()>) -> bool {
    Arc::strong_count(witness) > 1
}
