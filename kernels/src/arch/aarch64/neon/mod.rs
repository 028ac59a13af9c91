//! NEON and DotProd.

mod lanes;
mod panels;

pub use lanes::F32x64;
pub use panels::*;
