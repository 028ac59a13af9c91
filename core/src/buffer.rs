//! Memory: typed buffers on a host or a device, and the operand slices that ops take.
//!
//! A [`Buffer`] owns memory that a backend allocated. Host backends also take plain slices, with no copy. Crossing between
//! host and device is explicit: [`Buffer::write`] and [`Buffer::read`] go through a stream.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use crate::memory::HostMemory;
use crate::{Download, Error, QuantBackend, Result, Stream};

/// Element types of operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// binary32.
    F32,
    /// binary16.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 8-bit.
    I8,
    /// Unsigned 8-bit.
    U8,
    /// Signed 32-bit.
    I32,
    /// Unsigned 32-bit.
    U32,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type that buffers can hold.
pub trait Element: Pod + Send + Sync + fmt::Debug + sealed::Sealed {
    /// Its name at run time.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(
        impl sealed::Sealed for $t {}
        impl Element for $t { const DTYPE: DType = DType::$d; }
    )* };
}
elements!(f32 => F32, f16 => F16, bf16 => BF16, i8 => I8, u8 => U8, i32 => I32, u32 => U32);

/// Memory of a device, as its backend made it. Dropping it gives the memory back to the backend's pool, in stream order.
pub trait DeviceMemory: Any + Send + Sync + fmt::Debug {
    /// Id of the backend that made it.
    fn backend(&self) -> &str;
    /// Size in bytes.
    fn bytes(&self) -> usize;
    /// For the backend's downcast.
    fn as_any(&self) -> &dyn Any;
}

/// Host memory that a backend made for its copies: page-locked, so that the device reads and writes it by itself. Dropping it
/// gives the memory back.
pub trait PinnedMemory: Send + Sync + fmt::Debug {
    /// The bytes, aligned to 64.
    fn bytes(&self) -> &[u8];
    /// The bytes for writing.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// A cache line: host allocations are made of these, so that they are aligned for every vector width.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

impl Line {
    pub(crate) const ZERO: Line = Line([0; 64]);
}

/// Untyped memory, as [`QuantBackend::alloc`] returns it.
#[derive(Debug)]
pub struct RawBuffer(Storage);

#[derive(Debug)]
enum Storage {
    Host { lines: Lines, bytes: usize },
    Pinned(Box<dyn PinnedMemory>),
    Device(Box<dyn DeviceMemory>),
}

/// Host memory, and the pool that it goes back to.
#[derive(Debug)]
struct Lines {
    lines: Vec<Line>,
    home: Option<Arc<HostMemory>>,
}

impl std::ops::Deref for Lines {
    type Target = [Line];
    fn deref(&self) -> &[Line] {
        &self.lines
    }
}

impl std::ops::DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.give_back(std::mem::take(&mut self.lines));
        }
    }
}

impl RawBuffer {
    /// Zeroed host memory of no pool, aligned to 64 bytes.
    pub fn host(bytes: usize) -> Self {
        let lines = Lines { lines: vec![Line::ZERO; bytes.div_ceil(64)], home: None };
        RawBuffer(Storage::Host { lines, bytes })
    }

    /// Memory of a pool.
    pub(crate) fn pooled(lines: Vec<Line>, bytes: usize, home: Arc<HostMemory>) -> Self {
        RawBuffer(Storage::Host { lines: Lines { lines, home: Some(home) }, bytes })
    }

    /// Page-locked host memory. Everything takes it as host memory.
    pub fn pinned(memory: Box<dyn PinnedMemory>) -> Self {
        RawBuffer(Storage::Pinned(memory))
    }

    /// Memory of a device.
    pub fn device(memory: Box<dyn DeviceMemory>) -> Self {
        RawBuffer(Storage::Device(memory))
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Storage::Host { bytes, .. } => *bytes,
            Storage::Pinned(m) => m.bytes().len(),
            Storage::Device(m) => m.bytes(),
        }
    }

    /// The bytes, if this is host memory.
    pub fn as_host(&self) -> Option<&[u8]> {
        match &self.0 {
            Storage::Host { lines, bytes } => Some(&bytemuck::cast_slice(&lines[..])[..*bytes]),
            Storage::Pinned(m) => Some(m.bytes()),
            Storage::Device(_) => None,
        }
    }

    /// The bytes for writing, if this is host memory.
    pub fn as_host_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.0 {
            Storage::Host { lines, bytes } => Some(&mut bytemuck::cast_slice_mut(&mut lines[..])[..*bytes]),
            Storage::Pinned(m) => Some(m.bytes_mut()),
            Storage::Device(_) => None,
        }
    }

    /// The device memory, if this is device memory.
    pub fn as_device(&self) -> Option<&dyn DeviceMemory> {
        match &self.0 {
            Storage::Host { .. } | Storage::Pinned(_) => None,
            Storage::Device(m) => Some(&**m),
        }
    }
}

/// Memory for `len` elements of `T`, on the host or on a device.
#[derive(Debug)]
pub struct Buffer<T: Element> {
    raw: RawBuffer,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// Asks `backend` for zeroed memory.
    pub fn alloc(backend: &dyn QuantBackend, len: usize) -> Result<Self> {
        Ok(Buffer { raw: backend.alloc(bytes_of::<T>(len)?)?, len, element: std::marker::PhantomData })
    }

    /// Asks `backend` for zeroed host memory that its copies are fastest from and to; see [`QuantBackend::alloc_pinned`].
    pub fn pinned(backend: &dyn QuantBackend, len: usize) -> Result<Self> {
        Ok(Buffer { raw: backend.alloc_pinned(bytes_of::<T>(len)?)?, len, element: std::marker::PhantomData })
    }

    /// Zeroed host memory.
    pub fn host(len: usize) -> Self {
        Buffer { raw: RawBuffer::host(len * T::DTYPE.size()), len, element: std::marker::PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, if this is host memory.
    pub fn as_host(&self) -> Option<&[T]> {
        self.raw.as_host().map(bytemuck::cast_slice)
    }

    /// The elements for writing, if this is host memory.
    pub fn as_host_mut(&mut self) -> Option<&mut [T]> {
        self.raw.as_host_mut().map(bytemuck::cast_slice_mut)
    }

    /// All of it as an input operand.
    pub fn input(&self) -> In<'_, T> {
        self.input_range(0..self.len)
    }

    /// A part of it as an input operand. A range outside the buffer gives an operand that fails [`crate::Op::check`],
    /// because its length is cut to what there is.
    pub fn input_range(&self, range: Range<usize>) -> In<'_, T> {
        let range = clamp(range, self.len);
        match &self.raw.0 {
            Storage::Host { lines, bytes } => {
                In::Host(&bytemuck::cast_slice::<u8, T>(&bytemuck::cast_slice(&lines[..])[..*bytes])[range])
            }
            Storage::Pinned(m) => In::Host(&bytemuck::cast_slice::<u8, T>(m.bytes())[range]),
            Storage::Device(m) => In::Device(DeviceSlice { memory: &**m, offset: range.start, len: range.len() }),
        }
    }

    /// All of it as an output operand.
    pub fn output(&mut self) -> Out<'_, T> {
        self.output_range(0..self.len)
    }

    /// A part of it as an output operand; see [`Buffer::input_range`].
    pub fn output_range(&mut self, range: Range<usize>) -> Out<'_, T> {
        let range = clamp(range, self.len);
        match &mut self.raw.0 {
            Storage::Host { lines, bytes } => Out::Host(
                &mut bytemuck::cast_slice_mut::<u8, T>(&mut bytemuck::cast_slice_mut(&mut lines[..])[..*bytes])[range],
            ),
            Storage::Pinned(m) => Out::Host(&mut bytemuck::cast_slice_mut::<u8, T>(m.bytes_mut())[range]),
            Storage::Device(m) => Out::Device(DeviceSlice { memory: &**m, offset: range.start, len: range.len() }),
        }
    }

    /// Copies `data` to the start of the buffer, in stream order.
    pub fn write(&mut self, stream: &mut dyn Stream, data: &[T]) -> Result<()> {
        if data.len() > self.len {
            return Err(Error::Length { what: "buffer", need: data.len(), got: self.len, why: "data to write".into() });
        }
        stream.upload(bytemuck::cast_slice(data), &mut self.raw, 0)
    }

    /// Copies the elements from `start` into `out` and waits for them.
    pub fn read(&self, stream: &mut dyn Stream, start: usize, out: &mut [T]) -> Result<()> {
        if start.checked_add(out.len()).is_none_or(|end| end > self.len) {
            let why = format!("{} elements from {start} on", out.len());
            return Err(Error::Length { what: "buffer", need: start.saturating_add(out.len()), got: self.len, why });
        }
        stream.download(&self.raw, start * T::DTYPE.size(), bytemuck::cast_slice_mut(out))
    }

    /// Begins to copy `len` elements from `start` on; see [`Stream::begin_download`].
    pub fn begin_read(&self, stream: &mut dyn Stream, start: usize, len: usize) -> Result<Download> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            let why = format!("{len} elements from {start} on");
            return Err(Error::Length { what: "buffer", need: start.saturating_add(len), got: self.len, why });
        }
        stream.begin_download(&self.raw, start * T::DTYPE.size(), len * T::DTYPE.size())
    }

    /// Waits for a copy that [`Buffer::begin_read`] began.
    pub fn finish_read(stream: &mut dyn Stream, copy: Download, out: &mut [T]) -> Result<()> {
        stream.finish_download(copy, bytemuck::cast_slice_mut(out))
    }
}

fn bytes_of<T: Element>(len: usize) -> Result<usize> {
    let need = "small enough to address";
    let too_long = || Error::Parameter { what: "buffer length", value: len.to_string(), need };
    len.checked_mul(T::DTYPE.size()).ok_or_else(too_long)
}

fn clamp(range: Range<usize>, len: usize) -> Range<usize> {
    let start = range.start.min(len);
    start..range.end.clamp(start, len)
}

/// A part of a device's memory, in elements of the operand's type.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice<'a> {
    /// The allocation.
    pub memory: &'a dyn DeviceMemory,
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// An input operand.
#[derive(Debug, Clone, Copy)]
pub enum In<'a, T: Element> {
    /// The caller's slice.
    Host(&'a [T]),
    /// Device memory.
    Device(DeviceSlice<'a>),
}

/// An output operand. Exclusive for the length of the call; on a device, in stream order.
#[derive(Debug)]
pub enum Out<'a, T: Element> {
    /// The caller's slice.
    Host(&'a mut [T]),
    /// Device memory.
    Device(DeviceSlice<'a>),
}

macro_rules! operand {
    ($name:ident) => {
        impl<T: Element> $name<'_, T> {
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $name::Host(s) => s.len(),
                    $name::Device(d) => d.len,
                }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Whether this is host memory.
            pub fn is_host(&self) -> bool {
                matches!(self, $name::Host(_))
            }
        }
    };
}
operand!(In);
operand!(Out);

impl<'a, T: Element> In<'a, T> {
    /// The slice; an error for device memory. For host backends.
    pub fn host(self, what: &'static str, backend: &str) -> Result<&'a [T]> {
        match self {
            In::Host(s) => Ok(s),
            In::Device(_) => Err(not_host(what, backend)),
        }
    }
}

impl<'a, T: Element> Out<'a, T> {
    /// The slice; an error for device memory. For host backends.
    pub fn host(self, what: &'static str, backend: &str) -> Result<&'a mut [T]> {
        match self {
            Out::Host(s) => Ok(s),
            Out::Device(_) => Err(not_host(what, backend)),
        }
    }
}

fn not_host(what: &'static str, backend: &str) -> Error {
    Error::Memory {
        what,
        found: "device",
        backend: backend.into(),
        need: "host",
        remedy: "read the buffer through the stream of the backend that made it",
    }
}

impl<'a, T: Element> From<&'a [T]> for In<'a, T> {
    fn from(s: &'a [T]) -> Self {
        In::Host(s)
    }
}

impl<'a, T: Element> From<&'a Vec<T>> for In<'a, T> {
    fn from(s: &'a Vec<T>) -> Self {
        In::Host(s)
    }
}

impl<'a, T: Element> From<&'a mut [T]> for Out<'a, T> {
    fn from(s: &'a mut [T]) -> Self {
        Out::Host(s)
    }
}

impl<'a, T: Element> From<&'a mut Vec<T>> for Out<'a, T> {
    fn from(s: &'a mut Vec<T>) -> Self {
        Out::Host(s)
    }
}
