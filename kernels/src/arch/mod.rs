//! Kernels in intrinsics, a folder an architecture, the same file names and function names in each.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod panels;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

/// Asks for the line at an address to be brought into the first-level cache, wherever the address points.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of any address is allowed.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    // No stable intrinsic elsewhere.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
