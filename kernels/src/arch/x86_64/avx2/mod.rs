//! AVX2 and AVX-VNNI.

mod attention;
mod codes;
mod lanes;
mod panels;
mod weights;

pub use lanes::F32x64;
pub(in crate::arch::x86_64) use lanes::fold8;
pub use panels::*;
