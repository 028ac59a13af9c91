//! Algorithm bodies of Tersor's CPU backends, written once.
//!
//! A body is plain Rust over arrays: no intrinsics, no thread. An ISA *token* ([`isa`]) proves that this CPU, and its
//! operating system, support what the token stands for; running a body through a token instantiates it inside a
//! `#[target_feature]` function, where the compiler vectorises it for that ISA. The bits do not change, because the order
//! of every float operation is spelled out and Rust never contracts. Where measurement says that the compiler does worse
//! than we do, a backend brings its own: the int8 products of [`Kernels::panels`].
//!
//! [`CpuBackend`] turns a set of kernels into a [`tersor_core::QuantBackend`]: it splits work into tasks, hands each
//! to the host's executor, and names what ran. A backend crate is therefore an entry, a probe and its kernels.
//!
//! `unsafe` here has five reasons: calling a `#[target_feature]` function for which a token is proof, vector loads in
//! kernels, handing disjoint parts of one output to several tasks ([`split`]), and of one mapping to several weights
//! ([`arena`]), and rows whose bounds were checked together ([`positions`]).

pub mod arch;
pub mod arena;
pub mod backend;
pub mod ceiling;
pub mod codes;
pub mod heads;
pub mod isa;
pub mod lanes;
pub mod ops;
pub mod pack;
pub mod positions;
pub mod split;
pub mod stream;
pub mod tiers;

pub use backend::{CpuBackend, Kernels, PanelKernels};
pub use isa::{Body, Portable, Simd};
pub use tiers::Tiers;
