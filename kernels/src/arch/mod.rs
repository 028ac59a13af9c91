//! Kernels in intrinsics, a folder an architecture, the same file names in each.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
