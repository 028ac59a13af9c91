//! GGUF, the single-file container of ggml and bitnet.cpp: reading versions 2 and 3, writing version 3.
//!
//! The container is described in ggml's `docs/gguf.md`. This module knows the container only: key-value metadata, tensor
//! descriptions, aligned tensor bytes. What the bytes of a ternary tensor mean is the business of `tersor_core`'s codecs and
//! of [`crate::source`].
//!
//! Reading trusts nothing: every length is compared with what the file holds before memory is reserved for it, every sum and
//! product is overflow-checked, and a damaged file gives an error with the byte offset, never a panic.

mod cursor;
mod metadata;
mod reader;
mod table;
mod types;
mod writer;

pub use metadata::{Array, Metadata, Value, ValueType};
pub use reader::Gguf;
pub use table::TensorInfo;
pub use types::{Dialect, GgmlType, Sizing};
pub use writer::{GgufWriter, TensorPlan, write_vec};

/// The file's first four bytes.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that [`GgufWriter`] writes.
pub const VERSION: u32 = 3;
/// Alignment of tensor data where `general.alignment` says nothing else.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// A tensor has at most this many dimensions in ggml.
pub const MAX_DIMS: usize = 4;
