//! Measures Tersor's backends and reports what was found.
//!
//! [`run`] detects the backends of the program, quantizes real weights in every format on each of them, multiplies with
//! weights that no cache holds, runs a model, and returns a [`Report`]: data first, from which [`output`] makes tables and
//! pictures, and of which [`compare`](fn@compare) takes two.
//!
//! # How a figure is made
//!
//! * Candidates (backend, ISA tier, threads) take turns, sample by sample; medians with spread; warm-up apart ([`schedule`]).
//! * Every output is poisoned before and compared after each sample, all of it, outside the time. NaN never passes.
//! * Beside each figure stands its [`floor`](fn@floor::floor): the larger of bytes over bandwidth and arithmetic over rate.
//!   Both [`limits`] are measured between the samples, at the working set and with the threads of the figure. What was not
//!   measured is absent, with its reason; there are no constants.
//! * The time budget is kept by cutting cases, which are listed.
//!
//! This crate links no backend: a program that uses it names them, for instance through the features of `tersor`.
#![forbid(unsafe_code)]

pub mod candidates;
mod compare;
mod error;
pub mod floor;
pub mod gpu;
pub mod limits;
pub mod machine;
pub mod material;
pub mod output;
mod phase;
pub mod report;
mod run;
pub mod schedule;
pub mod stats;

pub use compare::{Change, Comparison, compare};
pub use error::{Error, Result};
pub use report::{Figure, Report};
pub use run::{Options, Progress, run};
