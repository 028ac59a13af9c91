//! The C ABI for backends that live outside Tersor's repository.
//!
//! Not built yet. The plan: one exported symbol, `tersor_plugin_v1`, that exchanges size-prefixed `repr(C)` tables; a
//! generated C header; a macro that turns any [`tersor_core::QuantBackend`] into a plugin; an adapter that turns a plugin
//! into one. Until then, a backend outside this repository is a crate that submits a [`tersor_core::BackendEntry`] and is
//! linked into the program.
#![forbid(unsafe_code)]
