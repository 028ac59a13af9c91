//! Every float operation, defined once.
//!
//! Rounding activations to int8 is a cliff: a difference in the last bit of an f32 flips a code at a tie, and the flip
//! grows through the layers. So each operation here has one order of evaluation, and every backend follows it bit for bit:
//!
//! * Multiplication and addition are separate, each correctly rounded, as are division and square root.
//! * Sums put element i into lane `i mod 64`, ascending, and fold the lanes in halves ([`lanes`]). Missing lanes are +0.
//! * exp, ln, sin and cos are the functions of [`math`], never the platform's.
//! * Max and absmax are free of order.
//!
//! 64 lanes are four AVX-512 registers, eight of AVX2, sixteen of NEON, a warp with two elements a lane, or an array that
//! a compiler vectorises: the functions here are `#[inline(always)]` and plain arrays, so that a CPU backend can
//! instantiate them inside a `#[target_feature]` function and get vector code with the same bits.
//!
//! Integer sums are exact and need no order.

pub mod attention;
pub mod lanes;
pub mod math;
pub mod matmul;
pub mod rope;
pub mod rows;
pub mod sample;
