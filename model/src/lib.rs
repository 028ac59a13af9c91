//! Ternary models for Tersor: GGUF and safetensors, converters, the BitNet b1.58 graph, generation.
//!
//! Files come first. A model is either one GGUF file or a Hugging Face checkpoint (safetensors shards beside a
//! `config.json`); both are memory-mapped, so opening a model of any size takes milliseconds and copies nothing.
//!
//! - [`gguf`] and [`checkpoint`]: the two containers, read without trust in a single byte of them
//! - [`config`] and [`names`]: hyper-parameters and tensor names, the same for both
//! - [`source`]: a model's tensors by role, whatever the container and the layout
//! - [`graph`] and [`generate`](mod@generate): the model on a backend, and text from it; [`continue_many`]: many at once
//! - [`tokenizer`], [`perplexity`], and the model that comes along, [`embedded`]
//! - [`mod@convert`], [`mod@verify`], [`quantizer`]: to GGUF in any ternary format, and the proof that nothing was lost
//! - [`synth`]: models of random weights, to measure what shapes cost
//! - [`error`]: one error type, whose messages say what is wrong, where, and what would be right
#![deny(unsafe_code)]

mod atomic;
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod embedded;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod graph;
mod many;
mod mmap;
pub mod names;
pub mod perplexity;
pub mod quantizer;
pub mod source;
pub mod synth;
pub mod tokenizer;
pub mod verify;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use convert::{ConvertOptions, ConvertReport, convert};
pub use error::{Error, Result};
pub use generate::{Generation, generate};
pub use gguf::Gguf;
pub use graph::{Batch, BatchOptions, LoadProgress, Model, Profile, Session, SessionOptions, TensorSource};
pub use many::{Many, Text, continue_many};
pub use mmap::map_file;
pub use names::{LayerPart, Role};
pub use quantizer::{OnBackend, Quantizer, Reference};
pub use source::{Linear, ModelFile, OpenOptions};
pub use tokenizer::Tokenizer;
pub use verify::{VerifyReport, verify};
