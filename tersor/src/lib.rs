//! Ternary (1.58-bit) quantization backends for Rust: the crate that embedders depend on.
