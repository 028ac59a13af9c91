//! AVX-512 (BW, DQ, VL), VNNI and VBMI.

mod attention;
mod codes;
mod lanes;
mod panels;
mod weights;

pub use lanes::F32x64;
pub use panels::*;
