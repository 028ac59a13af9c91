//! x86-64 with AVX-512: F, BW, DQ and VL, with VNNI and VBMI tiers.
//!
//! Its kernels are not written yet. The entry is here so that a list of backends is complete and says so.
#![forbid(unsafe_code)]
