//! The vocabulary of Tersor: what a ternary weight format is, what a backend can be asked, and what it answers.
//!
//! Ternary (1.58-bit) weights take the values `-1`, `0`, `+1` times a scale. This crate defines
//!
//! * [`Format`]: the byte layouts (`i2_s`, `tl1`, `tl2`, `tq1_0`, `tq2_0`, and the formats of heads and embeddings),
//!   with reference codecs in [`codec`];
//! * [`Op`] and [`OpSpec`]: what can be computed, and the same thing as a question;
//! * [`QuantBackend`] and [`Stream`]: the object-safe traits that a backend implements;
//! * [`BackendEntry`]: how a backend announces itself, through `inventory`;
//! * [`reference`](mod@reference): every float operation, defined once, with its order of reduction.
//!
//! # Who validates what
//!
//! An [`Op`] is plain data that anybody can build. [`Op::check`] is the only way to a [`Checked`] op, and a [`Stream`]
//! takes nothing else, so a kernel may rely on lengths, shapes and indices. The codes of a [`Weight`] are validated when
//! the weight is made. What a backend packed carries its maker's tag; another backend answers [`Error::ForeignPack`].
//!
//! # Exactness
//!
//! Integer x int8 products accumulate in `i32` and are bit-identical everywhere. Float operations follow the one order of
//! [`reference`](mod@reference), so they are bit-identical on every backend that says so. Choosing another backend, or
//! another number of threads, changes speed and never a number.
//!
//! # Example
//!
//! ```
//! use tersor_core::{codec, Floats, Format, Shape};
//!
//! let w: Vec<f32> = (0..256).map(|i| [0.5, -0.5, 0.0][i % 3]).collect();
//! let shape = Shape::new(2, 128)?;
//! let q = codec::quantize(Floats::F32(&w), shape, Format::I2S)?;
//! assert_eq!(q.codes().len(), 256 / 4 + 32);        // four codes a byte, then the tail with the scale
//! assert_eq!(codec::dequantize(&q)?, w);            // already ternary: nothing is lost
//! # Ok::<(), tersor_core::Error>(())
//! ```
//!
//! This crate does no I/O, starts no threads and contains no `unsafe`.
#![forbid(unsafe_code)]

pub mod backend;
pub mod buffer;
pub mod codec;
pub mod entry;
pub mod error;
pub mod format;
pub mod host;
pub mod isa;
pub mod memory;
pub mod op;
pub mod reference;
pub mod stream;
pub mod weight;

pub use backend::{BackendInfo, PackTag, PackedWeight, QuantBackend, Ran, Support, intern};
pub use buffer::{Buffer, DType, DeviceMemory, DeviceSlice, Element, In, Out, PinnedMemory, RawBuffer};
pub use bytes::Bytes;
pub use entry::{BackendEntry, DeviceInfo, DeviceKind, Probe, entries};
pub use error::{Error, Result};
pub use format::{EncodedLen, Format, GroupSize, Shape};
pub use half::{bf16, f16};
pub use host::{Executor, HostContext, Inline};
pub use isa::Isa;
pub use memory::{HostMemory, MemoryUsage, Reserved};
pub use op::{Activations, Checked, Epilogue, FloatIn, FloatOut, Op, OpKind, OpSpec, Output, SampleParams, Span};
pub use stream::{Download, Stream};
pub use weight::{Floats, FloatsMut, Ternary, Weight};
