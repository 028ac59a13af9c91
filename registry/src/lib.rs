//! Finds the backends that are linked into a program, says what each can do here, and chooses.
//!
//! ```
//! use tersor_core::{Format, OpSpec};
//! use tersor_registry::{Registry, config::Config};
//! # use tersor_backend_scalar as _; // or depend on the `tersor` crate, which names every backend
//!
//! let registry = Registry::build(Config::default())?;
//! for found in registry.found() {
//!     println!("{}: {:?}", found.entry.id, found.probe);
//! }
//! // What would run a product of 2560 x 2560 weights with one row of activations, and why?
//! let choice = registry.select(&[OpSpec::matmul(Format::I2S, 1, 2560, 2560)])?;
//! println!("{}", choice.decision);
//! let backend = choice.backend; // Arc<dyn QuantBackend>, ready to work
//! # assert!(backend.info().is_host());
//! # Ok::<(), tersor_registry::Error>(())
//! ```
//!
//! # What is chosen
//!
//! Among the backends that are usable here and do all that is asked, the first in `select.order`, then the one of highest
//! static priority. `select.backend` and `select.formats.*` name one backend and never fall back; `select.device` narrows
//! the kinds of device, and only `cuda-or-cpu` may fall back, which the decision then says. Every [`Decision`] lists the
//! candidates that were not chosen, each with its reason. With `tune.mode` other than "off", products go to
//! the kernel that was measured fastest ([`tune`]); the decision then has a [`Route`](tune::Route) for each.
//!
//! # Threads
//!
//! A registry has one pool ([`Pool`]), which it hands to every backend that it opens.
#![deny(unsafe_code)]

pub mod config;
mod decision;
mod entry;
mod error;
mod find;
pub mod plugins;
pub mod tune;

pub use decision::{Choice, Decision, Reason, Rejected};
pub use entry::{Entry, Origin};
pub use error::{Error, Result};
pub use find::{Found, Registry};
pub use tersor_pool::Pool;
