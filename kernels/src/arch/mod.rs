//! Kernels in intrinsics, a folder an architecture, the same file names and function names in each.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod panels;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
