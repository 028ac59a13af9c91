//! The C ABI for backends that live outside Tersor's repository.
//!
//! Three layers, each with one job:
//!
//! * [`raw`]: the C declarations as `repr(C)` structs; `include/tersor_plugin.h` is generated from them.
//! * `guest`: the plugin's side. [`export_backend!`] turns the [`tersor_core::BackendEntry`] of any backend into a plugin.
//! * [`host`]: the host's side. [`host::Plugin`] turns a plugin's tables into [`tersor_core::QuantBackend`]s.
//!
//! Both sides speak `docs/plugin-abi.md`, so either may be replaced by C.
//!
//! # Who trusts whom
//!
//! The host validates every op before it crosses, and the plugin's side validates it again, because `Checked` ops can only be made by
//! `check`; for a product that is a handful of comparisons. A table is read by its size. What a plugin does in its own
//! memory is beyond any check: `tersor-registry` loads nothing that has not worked in a process of its own before.
#![deny(unsafe_code)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the plugin ABI is laid out for 64-bit pointers");

mod codes;
#[doc(hidden)]
pub mod guest;
pub mod host;
pub mod raw;
