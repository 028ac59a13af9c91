//! NEON, DotProd and I8MM.

mod attention;
mod codes;
mod i8mm;
mod lanes;
mod panels;

pub use i8mm::{scaled_neon_i8mm, sums_neon_i8mm};
pub use lanes::F32x64;
pub use panels::*;
