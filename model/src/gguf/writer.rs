//! Writing: header first, then each tensor's bytes as they become ready.
//!
//! The header holds every tensor's offset, so a writer is told all names, shapes and lengths at the start; the bytes may then
//! be made one tensor at a time, or one part of it, and memory never holds more than that.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::metadata::{Array, Metadata, Value, ValueType};
use super::types::{GgmlType, Sizing};
use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, VERSION};
use crate::atomic::AtomicFile;
use crate::error::{Error, Result};

/// What a writer needs to know about a tensor before its bytes exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// The name.
    pub name: String,
    /// Dimensions, the contiguous one first.
    pub dims: Vec<u64>,
    /// The type.
    pub ty: GgmlType,
    /// How many bytes will be written.
    pub len: u64,
}

/// Writes a GGUF file of version 3 with 32-byte alignment.
///
/// The bytes go to a temporary file in the destination's directory; [`GgufWriter::finish`] renames it. A writer that is
/// dropped unfinished leaves nothing behind.
#[derive(Debug)]
pub struct GgufWriter {
    out: AtomicFile,
    tensors: Vec<TensorPlan>,
    next: usize,
    /// Bytes of the next tensor that were written.
    written: u64,
}

impl GgufWriter {
    /// Begins a file that will appear at `path`.
    ///
    /// # Errors
    /// [`Error::Writer`] when the plan contradicts itself or the format; [`Error::Io`].
    pub fn create(path: &Path, metadata: &Metadata, tensors: Vec<TensorPlan>) -> Result<Self> {
        let header = encode_header(metadata, &tensors)?;
        let mut out = AtomicFile::create(path)?;
        out.write(&header)?;
        Ok(Self { out, tensors, next: 0, written: 0 })
    }

    /// The tensor whose bytes come next, `None` after the last.
    #[must_use]
    pub fn next_tensor(&self) -> Option<&TensorPlan> {
        self.tensors.get(self.next)
    }

    /// Writes the bytes of the next tensor in the plan.
    ///
    /// # Errors
    /// [`Error::Writer`] when `name` is not the next one or the length is not the one announced; [`Error::Io`].
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let left = self.next_tensor().map(|plan| plan.len - self.written);
        if left.is_some_and(|left| left > bytes.len() as u64) {
            return Err(self.unexpected(name, bytes.len()));
        }
        self.write_part(name, bytes)
    }

    /// Writes some bytes of the next tensor in the plan, whose bytes may come in any number of parts.
    ///
    /// # Errors
    /// [`Error::Writer`] when `name` is not the next one or has more bytes than announced; [`Error::Io`].
    pub fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let plan = self
            .tensors
            .get(self.next)
            .ok_or_else(|| Error::Writer { problem: format!("tensor {name:?} comes after the last one announced") })?;
        let len = plan.len;
        if plan.name != name || bytes.len() as u64 > len - self.written {
            return Err(self.unexpected(name, bytes.len()));
        }
        self.out.write(bytes)?;
        self.written += bytes.len() as u64;
        if self.written == len {
            self.out.write(padding(len))?;
            (self.next, self.written) = (self.next + 1, 0);
        }
        Ok(())
    }

    fn unexpected(&self, name: &str, given: usize) -> Error {
        let (left, next) = self.next_tensor().map_or((0, ""), |plan| (plan.len - self.written, &plan.name));
        Error::Writer {
            problem: format!(
                "{given} bytes of tensor {name:?} were given; announced next are {left} bytes of {next:?}"
            ),
        }
    }

    /// Makes the file durable and visible under its name.
    ///
    /// # Errors
    /// [`Error::Writer`] when tensors are missing; [`Error::Io`].
    pub fn finish(self) -> Result<PathBuf> {
        if let Some(plan) = self.next_tensor() {
            return Err(Error::Writer {
                problem: format!(
                    "{} announced tensors were not written, the first is {:?}",
                    self.tensors.len() - self.next,
                    plan.name
                ),
            });
        }
        self.out.commit()
    }
}

/// A whole file in memory: for small files and for tests.
///
/// # Errors
/// [`Error::Writer`] when the plan contradicts itself, or data and plan differ in number or length.
pub fn write_vec(metadata: &Metadata, tensors: &[(TensorPlan, &[u8])]) -> Result<Vec<u8>> {
    let plans: Vec<TensorPlan> = tensors.iter().map(|(plan, _)| plan.clone()).collect();
    let mut out = encode_header(metadata, &plans)?;
    for (plan, bytes) in tensors {
        if plan.len != bytes.len() as u64 {
            return Err(Error::Writer {
                problem: format!("tensor {:?}: {} bytes given, {} announced", plan.name, bytes.len(), plan.len),
            });
        }
        out.extend_from_slice(bytes);
        out.extend_from_slice(padding(plan.len));
    }
    Ok(out)
}

/// The zero bytes after `len` bytes of data.
fn padding(len: u64) -> &'static [u8] {
    const ZEROS: [u8; DEFAULT_ALIGNMENT as usize] = [0; DEFAULT_ALIGNMENT as usize];
    &ZEROS[..(len.next_multiple_of(DEFAULT_ALIGNMENT) - len) as usize]
}

/// Everything before the tensor data, padding included.
fn encode_header(metadata: &Metadata, tensors: &[TensorPlan]) -> Result<Vec<u8>> {
    if metadata.get("general.alignment").is_some_and(|v| v.as_u64() != Some(DEFAULT_ALIGNMENT)) {
        return Err(Error::Writer { problem: format!("general.alignment must be {DEFAULT_ALIGNMENT} or absent") });
    }
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    let mut names = HashSet::new();
    let mut offset = 0u64;
    for plan in tensors {
        check_plan(plan)?;
        if !names.insert(plan.name.as_str()) {
            return Err(Error::Writer { problem: format!("tensor {:?} is announced twice", plan.name) });
        }
        put_string(&mut out, &plan.name);
        out.extend_from_slice(&(plan.dims.len() as u32).to_le_bytes());
        for dim in &plan.dims {
            out.extend_from_slice(&dim.to_le_bytes());
        }
        out.extend_from_slice(&plan.ty.id().to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        offset =
            plan.len.checked_next_multiple_of(DEFAULT_ALIGNMENT).and_then(|len| offset.checked_add(len)).ok_or_else(
                || Error::Writer {
                    problem: format!("tensor {:?}: the file would be larger than 2^64 bytes", plan.name),
                },
            )?;
    }
    let padding = padding(out.len() as u64);
    out.extend_from_slice(padding);
    Ok(out)
}

fn check_plan(plan: &TensorPlan) -> Result<()> {
    let problem = if !(1..=MAX_DIMS).contains(&plan.dims.len()) || plan.dims.contains(&0) {
        format!("dimensions {:?}; 1 to {MAX_DIMS} of at least 1 are possible", plan.dims)
    } else if plan.ty.sizing() != Sizing::Layout && plan.ty.byte_len(&plan.dims) != Some(plan.len) {
        let expected = plan.ty.byte_len(&plan.dims);
        format!("{} {:?} takes {expected:?} bytes, {} were announced", plan.ty, plan.dims, plan.len)
    } else if plan.len == 0 {
        "no bytes".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Writer { problem: format!("tensor {:?}: {problem}", plan.name) })
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |ty: ValueType, bytes: &[u8]| {
        out.extend_from_slice(&(ty as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        Value::U8(v) => put(ValueType::U8, &v.to_le_bytes()),
        Value::I8(v) => put(ValueType::I8, &v.to_le_bytes()),
        Value::U16(v) => put(ValueType::U16, &v.to_le_bytes()),
        Value::I16(v) => put(ValueType::I16, &v.to_le_bytes()),
        Value::U32(v) => put(ValueType::U32, &v.to_le_bytes()),
        Value::I32(v) => put(ValueType::I32, &v.to_le_bytes()),
        Value::F32(v) => put(ValueType::F32, &v.to_le_bytes()),
        Value::Bool(v) => put(ValueType::Bool, &[u8::from(*v)]),
        Value::U64(v) => put(ValueType::U64, &v.to_le_bytes()),
        Value::I64(v) => put(ValueType::I64, &v.to_le_bytes()),
        Value::F64(v) => put(ValueType::F64, &v.to_le_bytes()),
        Value::String(v) => {
            put(ValueType::String, &[]);
            put_string(out, v);
        }
        Value::Array(v) => {
            put(ValueType::Array, &[]);
            put_array(out, v);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn put<T>(out: &mut Vec<u8>, ty: ValueType, items: &[T], mut one: impl FnMut(&mut Vec<u8>, &T)) {
        out.extend_from_slice(&(ty as u32).to_le_bytes());
        out.extend_from_slice(&(items.len() as u64).to_le_bytes());
        for item in items {
            one(out, item);
        }
    }
    match array {
        Array::U8(v) => put(out, ValueType::U8, v, |o, x| o.push(*x)),
        Array::I8(v) => put(out, ValueType::I8, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
        Array::U16(v) => put(out, ValueType::U16, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
        Array::I16(v) => put(out, ValueType::I16, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
        Array::U32(v) => put(out, ValueType::U32, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
        Array::I32(v) => put(out, ValueType::I32, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
        Array::F32(v) => put(out, ValueType::F32, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
        Array::Bool(v) => put(out, ValueType::Bool, v, |o, x| o.push(u8::from(*x))),
        Array::String(v) => put(out, ValueType::String, v, |o, x| put_string(o, x)),
        Array::Array(v) => put(out, ValueType::Array, v, put_array),
        Array::U64(v) => put(out, ValueType::U64, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
        Array::I64(v) => put(out, ValueType::I64, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
        Array::F64(v) => put(out, ValueType::F64, v, |o, x| o.extend_from_slice(&x.to_le_bytes())),
    }
}
