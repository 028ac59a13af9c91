//! Ternary (1.58-bit) quantization backends for Rust.
//!
//! This is the crate to depend on: it links the backends that its features name (`cpu`, which is a default, and `cuda`) and
//! offers a [`Runtime`] that finds them, chooses among them and says why.
//!
//! ```
//! use tersor::{Format, Runtime, Shape};
//!
//! let rt = Runtime::new()?;                                   // tersor.toml, TERSOR_* variables, defaults
//! let (n, k) = (64, 256);
//! let w: Vec<f32> = (0..n * k).map(|i| (i % 7) as f32 - 3.0).collect();
//! let q = rt.quantize(&w, Shape::new(n, k)?, Format::I2S)?;   // absmean, BitNet b1.58
//! let linear = rt.linear(&q)?;                                // packed for the backend chosen for this format and shape
//! let x = vec![0.5; k];                                       // one row of activations
//! let y = linear.forward(&x)?;                                // int8 activations, exact i32 sums, f32 results
//! assert_eq!(y.len(), n);
//! println!("{}", linear.decision());                          // which backend, and why not the others
//! # Ok::<(), tersor::Error>(())
//! ```
//!
//! * [`core`]: formats, ops, the traits of a backend.
//! * [`registry`]: discovery, configuration, selection.
//! * [`model`], with the feature of that name: model files and generation.
#![forbid(unsafe_code)]

mod runtime;

// A crate that no code mentions is not linked, and its entry would be missing from the list.
#[cfg(feature = "cpu")]
use tersor_backend_cpu_avx2 as _;
#[cfg(feature = "cpu")]
use tersor_backend_cpu_avx512 as _;
#[cfg(feature = "cpu")]
use tersor_backend_cpu_neon as _;
#[cfg(feature = "cuda")]
use tersor_backend_cuda as _;
#[cfg(feature = "cpu")]
use tersor_backend_scalar as _;

pub use runtime::{Linear, Runtime};
pub use tersor_core as core;
pub use tersor_core::{Floats, Format, GroupSize, Isa, QuantBackend, Shape, Weight};
#[cfg(feature = "model")]
pub use tersor_model as model;
pub use tersor_registry as registry;
pub use tersor_registry::{Decision, Error, Registry, Result, config::Config};
