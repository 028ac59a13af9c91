//! A bounds-checked reading position in the header of a GGUF file.

use bytes::Bytes;

use super::metadata::{Array, Value, ValueType};
use crate::error::{Error, Result};

/// Arrays may nest this deep; the format allows it, no known file goes beyond one level.
const MAX_DEPTH: u32 = 4;

/// Reads little-endian fields one after another; never past the end.
pub(super) struct Cursor<'a> {
    data: &'a Bytes,
    at: usize,
}

macro_rules! scalar {
    ($($name:ident -> $ty:ty),*) => {$(
        pub(super) fn $name(&mut self, what: &dyn Fn() -> String) -> Result<$ty> {
            self.array(what).map(<$ty>::from_le_bytes)
        }
    )*};
}

impl<'a> Cursor<'a> {
    pub(super) fn new(data: &'a Bytes) -> Self {
        Self { data, at: 0 }
    }

    /// The offset of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at as u64
    }

    /// The bytes left.
    pub(super) fn left(&self) -> u64 {
        (self.data.len() - self.at) as u64
    }

    /// Takes `len` bytes.
    pub(super) fn take(&mut self, len: u64, what: &dyn Fn() -> String) -> Result<&'a [u8]> {
        self.require(len, what)?;
        // `require` has compared `len` with a `usize`, so it fits one.
        let end = self.at + len as usize;
        let bytes = &self.data[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// Fails unless `len` more bytes are there; nothing is consumed.
    pub(super) fn require(&self, len: u64, what: &dyn Fn() -> String) -> Result<()> {
        if len <= self.left() {
            return Ok(());
        }
        Err(Error::Truncated { at: self.at(), reading: what(), needed: len, available: self.left() })
    }

    fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    scalar! {
        u8 -> u8, i8 -> i8, u16 -> u16, i16 -> i16, u32 -> u32, i32 -> i32, f32 -> f32,
        u64 -> u64, i64 -> i64, f64 -> f64
    }

    fn bool(&mut self, what: &dyn Fn() -> String) -> Result<bool> {
        let at = self.at();
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(malformed(at, what, format!("a bool is 0 or 1, found {other}"))),
        }
    }

    /// A string with a 64-bit length in front.
    pub(super) fn string(&mut self, what: &dyn Fn() -> String) -> Result<String> {
        let len = self.u64(what)?;
        let at = self.at();
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(malformed(at + e.valid_up_to() as u64, what, "not UTF-8, which GGUF strings are".to_owned())),
        }
    }

    /// A type tag.
    pub(super) fn value_type(&mut self, what: &dyn Fn() -> String) -> Result<ValueType> {
        let at = self.at();
        let id = self.u32(what)?;
        ValueType::from_id(id).ok_or_else(|| malformed(at, what, format!("value type {id}; types are 0 to 12")))
    }

    /// A value of a type.
    pub(super) fn value(&mut self, ty: ValueType, what: &dyn Fn() -> String) -> Result<Value> {
        Ok(match ty {
            ValueType::U8 => Value::U8(self.u8(what)?),
            ValueType::I8 => Value::I8(self.i8(what)?),
            ValueType::U16 => Value::U16(self.u16(what)?),
            ValueType::I16 => Value::I16(self.i16(what)?),
            ValueType::U32 => Value::U32(self.u32(what)?),
            ValueType::I32 => Value::I32(self.i32(what)?),
            ValueType::F32 => Value::F32(self.f32(what)?),
            ValueType::Bool => Value::Bool(self.bool(what)?),
            ValueType::String => Value::String(self.string(what)?),
            ValueType::Array => Value::Array(self.array_value(what, 0)?),
            ValueType::U64 => Value::U64(self.u64(what)?),
            ValueType::I64 => Value::I64(self.i64(what)?),
            ValueType::F64 => Value::F64(self.f64(what)?),
        })
    }

    fn array_value(&mut self, what: &dyn Fn() -> String, depth: u32) -> Result<Array> {
        if depth == MAX_DEPTH {
            return Err(malformed(self.at(), what, format!("arrays nested deeper than {MAX_DEPTH}")));
        }
        let ty = self.value_type(what)?;
        let count = self.u64(what)?;
        // Before any memory is reserved: a file of 100 bytes cannot hold a billion elements.
        self.require(count.saturating_mul(ty.min_len()), what)?;
        Ok(match ty {
            ValueType::U8 => Array::U8(self.take(count, what)?.to_vec()),
            ValueType::I8 => Array::I8(self.many(count, |c| c.i8(what))?),
            ValueType::U16 => Array::U16(self.many(count, |c| c.u16(what))?),
            ValueType::I16 => Array::I16(self.many(count, |c| c.i16(what))?),
            ValueType::U32 => Array::U32(self.many(count, |c| c.u32(what))?),
            ValueType::I32 => Array::I32(self.many(count, |c| c.i32(what))?),
            ValueType::F32 => Array::F32(self.many(count, |c| c.f32(what))?),
            ValueType::Bool => Array::Bool(self.many(count, |c| c.bool(what))?),
            ValueType::String => Array::String(self.many(count, |c| c.string(what))?),
            ValueType::Array => Array::Array(self.many(count, |c| c.array_value(what, depth + 1))?),
            ValueType::U64 => Array::U64(self.many(count, |c| c.u64(what))?),
            ValueType::I64 => Array::I64(self.many(count, |c| c.i64(what))?),
            ValueType::F64 => Array::F64(self.many(count, |c| c.f64(what))?),
        })
    }

    fn many<T>(&mut self, count: u64, mut read: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        (0..count).map(|_| read(self)).collect()
    }
}

/// A [`Error::Malformed`] for the item that `what` describes.
pub(super) fn malformed(at: u64, what: &dyn Fn() -> String, problem: String) -> Error {
    Error::Malformed { at, item: what(), problem }
}
