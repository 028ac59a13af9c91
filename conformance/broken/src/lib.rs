//! A backend with one planted [`Fault`] at a time, for testing the conformance kit: every fault has to be caught, and by a
//! case whose name says what is wrong. Without a fault the backend is correct and passes.
//!
//! It is written to be read, on the reference codecs and operations of `tersor-core`, and so doubles as the shortest
//! complete backend there is. It is never registered; a program gets one by [`backend`] alone.
#![forbid(unsafe_code)]

mod backend;
mod fault;
mod ops;
mod product;

pub use backend::{ID, backend};
pub use fault::Fault;
