//! Reading: header, tensor table, tensor bytes.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;

use super::cursor::{Cursor, malformed};
use super::metadata::{Metadata, Value};
use super::table::{TensorInfo, index_by_name, read_tensor_info, set_lengths};
use super::types::Dialect;
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::error::{Error, Result};
use crate::mmap::map_file;

/// The largest `general.alignment` accepted; real files use 32 to 4096.
const MAX_ALIGNMENT: u64 = 1 << 16;
/// The fewest bytes a tensor's description takes: name length, dimension count, one dimension, type, offset.
const MIN_TENSOR_INFO: u64 = 8 + 4 + 8 + 4 + 8;
/// The fewest bytes a metadata entry takes: key length, type, one byte.
const MIN_ENTRY: u64 = 8 + 4 + 1;

/// An opened GGUF file.
///
/// Tensor bytes are slices of the file's memory map (or of the buffer given): nothing is copied.
#[derive(Debug, Clone)]
pub struct Gguf {
    data: Bytes,
    version: u32,
    dialect: Dialect,
    alignment: u64,
    data_start: usize,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Maps and reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be mapped; otherwise what is wrong in it, as [`Error::InFile`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(map_file(path)?).map_err(|e| e.in_file(path))
    }

    /// Reads a file that is in memory already: embedded in the program, or received.
    ///
    /// # Errors
    /// Says what is wrong and at which offset: [`Error::BadMagic`], [`Error::GgufVersion`], [`Error::Truncated`],
    /// [`Error::Malformed`], [`Error::KeyType`].
    pub fn from_bytes(data: Bytes) -> Result<Self> {
        let mut cursor = Cursor::new(&data);
        let version = read_version(&mut cursor)?;
        let tensor_count = read_count(&mut cursor, "tensor count", MIN_TENSOR_INFO)?;
        let entry_count = read_count(&mut cursor, "metadata count", MIN_ENTRY)?;
        let metadata = read_metadata(&mut cursor, entry_count)?;
        let alignment = read_alignment(&metadata)?;
        let dialect = Dialect::of_architecture(metadata.str("general.architecture")?);
        let mut tensors = (0..tensor_count)
            .map(|i| read_tensor_info(&mut cursor, i, dialect, alignment))
            .collect::<Result<Vec<_>>>()?;
        let header_end = cursor.at();
        let data_start = header_end.next_multiple_of(alignment);
        let size = data.len() as u64;
        if !tensors.is_empty() && data_start > size {
            return Err(Error::Truncated {
                at: header_end,
                reading: "padding before the tensor data".to_owned(),
                needed: data_start - header_end,
                available: size - header_end,
            });
        }
        let data_start = data_start.min(size);
        set_lengths(&mut tensors, data_start, size)?;
        let index = index_by_name(&tensors)?;
        Ok(Self {
            version,
            dialect,
            alignment,
            data_start: data_start as usize, // at most data.len()
            metadata,
            tensors,
            index,
            data,
        })
    }

    /// 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whose type ids the file uses, decided by its architecture.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Alignment of tensor data in bytes.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// All metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A tensor by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor's bytes, [`TensorInfo::len`] of them, without a copy. `None` when this file has no tensor of that name.
    #[must_use]
    pub fn tensor_data(&self, name: &str) -> Option<Bytes> {
        let info = self.tensor(name)?;
        // `set_lengths` has checked that offset + len lies inside the data, so neither cast nor slice can fail.
        let start = self.data_start + info.offset as usize;
        Some(self.data.slice(start..start + info.len as usize))
    }

    /// Whether `tersor.layout` marks the file as one whose `tl1` and `tl2` tensors are row-major, as this program writes them.
    ///
    /// # Errors
    /// [`Error::Config`] for a layout version or name this program does not know.
    pub fn is_row_major(&self) -> Result<bool> {
        let m = &self.metadata;
        let Some(layout) = m.get("tersor.layout") else {
            return Ok(false);
        };
        let version = m.u64("tersor.layout.version")?;
        if version == Some(1) && *layout == Value::String("row-major".to_owned()) {
            return Ok(true);
        }
        Err(Error::Config {
            key: "tersor.layout".to_owned(),
            value: format!("{layout:?} version {version:?}"),
            problem: "this program knows layout \"row-major\", version 1; the file was written by a newer one"
                .to_owned(),
        })
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let found = cursor.left().min(4);
    let magic = cursor.take(found, &|| "magic".to_owned())?;
    if magic != MAGIC {
        return Err(Error::BadMagic { found: magic.to_vec() });
    }
    let version = cursor.u32(&|| "version".to_owned())?;
    let hint = match version {
        2 | 3 => return Ok(version),
        1 => "; version 1 had 32-bit lengths and is long obsolete: convert the model again",
        v if matches!(v.swap_bytes(), 1..=3) => {
            "; this file is big endian: convert the model again on a little-endian machine"
        }
        _ => "",
    };
    Err(Error::GgufVersion { found: version, hint })
}

/// A count of things that take at least `min_len` bytes each; more than the file can hold is an error here already.
fn read_count(cursor: &mut Cursor<'_>, item: &str, min_len: u64) -> Result<u64> {
    let what = || item.to_owned();
    let count = cursor.u64(&what)?;
    cursor.require(count.saturating_mul(min_len), &|| format!("{item} {count}"))?;
    Ok(count)
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata> {
    let mut metadata = Metadata::new();
    for i in 0..count {
        let at = cursor.at();
        let key = cursor.string(&|| format!("key {i} of {count}"))?;
        let what = || format!("metadata key {key:?}");
        if metadata.get(&key).is_some() {
            return Err(malformed(at, &what, "occurs twice".to_owned()));
        }
        let ty = cursor.value_type(&what)?;
        let value = cursor.value(ty, &what)?;
        metadata.set(key, value);
    }
    Ok(metadata)
}

fn read_alignment(metadata: &Metadata) -> Result<u64> {
    let Some(alignment) = metadata.u64("general.alignment")? else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    if alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) {
        return Ok(alignment);
    }
    Err(Error::Config {
        key: "general.alignment".to_owned(),
        value: alignment.to_string(),
        problem: format!("must be a power of two from 8 to {MAX_ALIGNMENT}"),
    })
}
