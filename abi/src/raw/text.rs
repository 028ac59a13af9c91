//! Text and operand slices.

use std::ffi::c_char;
use std::ffi::c_void;

/// Static UTF-8 text of whoever wrote it; never freed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorStr {
    /// Bytes; not terminated.
    pub data: *const c_char,
    /// How many.
    pub len: u64,
}

/// A buffer of the caller for UTF-8 text.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorText {
    /// The buffer.
    pub data: *mut c_char,
    /// Its size in bytes.
    pub capacity: u64,
    /// Out: length of the whole text, more than `capacity` where it was cut.
    pub len: u64,
}

/// What went wrong beyond the status. The caller owns it; a callee that succeeds leaves it alone. May be null.
#[repr(C)]
#[derive(Debug)]
pub struct TersorError {
    /// Size of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Element that the error is about.
    pub index: u64,
    /// Value that the error is about.
    pub value: f32,
    /// Zero.
    pub reserved2: u32,
    /// The message.
    pub message: TersorText,
}

/// Real values in one of the float types.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorFloats {
    /// The values.
    pub data: *const c_void,
    /// Number of values.
    pub len: u64,
    /// Their type, such as `TERSOR_F32`.
    pub dtype: u32,
    /// Zero.
    pub reserved: u32,
}

/// The same for writing.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorFloatsMut {
    /// The values.
    pub data: *mut c_void,
    /// Number of values.
    pub len: u64,
    /// Their type.
    pub dtype: u32,
    /// Zero.
    pub reserved: u32,
}

/// Binary32 values to read.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorF32 {
    /// First element.
    pub data: *const f32,
    /// Number of elements.
    pub len: u64,
}

/// Binary32 values to write.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorF32Mut {
    /// First element.
    pub data: *mut f32,
    /// Number of elements.
    pub len: u64,
}

/// Signed bytes to read.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorI8 {
    /// First element.
    pub data: *const i8,
    /// Number of elements.
    pub len: u64,
}

/// Signed bytes to write.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorI8Mut {
    /// First element.
    pub data: *mut i8,
    /// Number of elements.
    pub len: u64,
}

/// Signed 32-bit integers to write.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorI32Mut {
    /// First element.
    pub data: *mut i32,
    /// Number of elements.
    pub len: u64,
}

/// Bytes to read.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorU8 {
    /// First element.
    pub data: *const u8,
    /// Number of elements.
    pub len: u64,
}

/// Bytes to write.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorU8Mut {
    /// First element.
    pub data: *mut u8,
    /// Number of elements.
    pub len: u64,
}

/// Unsigned 32-bit integers to read.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorU32 {
    /// First element.
    pub data: *const u32,
    /// Number of elements.
    pub len: u64,
}

/// Unsigned 32-bit integers to write.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorU32Mut {
    /// First element.
    pub data: *mut u32,
    /// Number of elements.
    pub len: u64,
}
