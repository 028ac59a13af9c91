//! Is there a driver, and what does it drive?

use cudarc::driver::{result, sys};
use tersor_core::Probe;

/// What stands in the way even where a GPU is present.
pub(crate) const NOT_BUILT: &str = "this version has no CUDA kernels yet";

/// Asks the driver, if there is one. No context is created.
pub(crate) fn probe() -> Probe {
    Probe::Unusable { reason: reason() }
}

fn reason() -> String {
    // Calls into a library that is missing would panic, so this comes first.
    #[allow(unsafe_code, reason = "loading a shared library runs its initialisers")]
    // SAFETY: the NVIDIA driver library is loaded by the system's own search rules; its initialisers are the vendor's.
    let present = unsafe { sys::is_culib_present() };
    if !present {
        return "the NVIDIA driver library (libcuda.so.1 or nvcuda.dll) is not on this machine".into();
    }
    if let Err(e) = result::init() {
        return format!("the NVIDIA driver does not start: {e}");
    }
    match result::device::get_count() {
        Err(e) => format!("the NVIDIA driver cannot count its devices: {e}"),
        Ok(0) => "the NVIDIA driver finds no GPU".into(),
        Ok(n) => format!("{n} GPU{} found, but {NOT_BUILT}", if n == 1 { "" } else { "s" }),
    }
}
