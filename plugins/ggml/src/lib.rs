//! ggml's ternary kernels as a Tersor backend, so that a peer is measured, cross-checked and explained like any other.
//!
//! What is ggml's: the layout of quantized rows (`quantize_row_tq*_ref`), their values (`dequantize_row_tq*`), and every
//! product (`ggml_vec_dot_tq*_q8_K`, in tiles of 16 by 16 as in its own loop over a matrix). What is Tersor's: the rule by
//! which weights and activations become integers, because ggml's own are other rules (each block of weights by its largest
//! magnitude, each block of 256 activations by its own), and `quantize_rows`, where it has no such op.
//!
//! # Tolerance
//!
//! **0 for every op that this backend answers.** Scales stay out of ggml's arithmetic: weights and activations go in with
//! scale 1, so that its f32 sums are whole numbers below 2^24 and therefore exact, and the scales follow in the order of
//! Tersor's definition. Rows longer than [`MAX_K`] are refused, since there that would end.
//!
//! ggml's *native* path, with its own activations and scales inside of the sum, is not offered, because it is no answer to
//! the same question: [`NATIVE_NMSE`] states how far it is from ours, and `tests/peer.rs` holds it to that.

mod backend;
pub mod ffi;

use std::sync::Arc;

use tersor_core::{BackendEntry, DeviceInfo, DeviceKind, Error, Probe};

pub use backend::Backend;

/// Backend id.
pub const ID: &str = "ggml";
/// Version of this crate. The sources are those of [`SOURCES`].
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Name and version of the published crate that ships ggml's sources.
pub const SOURCES: &str = env!("GGML_SOURCES");
const KERNEL_REVISION: u32 = 1;

/// Longest row whose sums are exact in f32: `MAX_K * 128 = 2^24`.
pub const MAX_K: usize = 131_072;

/// Normalised mean square error of ggml's native product of Gaussian activations against Tersor's definition, at most. Both
/// round activations to 8 bits, ggml by blocks of 256 and Tersor by rows, so that each is off by some 1e-5 of its own.
pub const NATIVE_NMSE: f64 = 1e-4;

static ENTRY: BackendEntry = BackendEntry {
    id: ID,
    version: VERSION,
    kernel_revision: KERNEL_REVISION,
    // Below all backends of this repository: it is chosen when it is named, or measured to be faster.
    priority: -30,
    probe: || match missing() {
        None => Probe::Usable { devices: vec![device()] },
        Some(reason) => Probe::Unusable { reason },
    },
    open: |host| match (missing(), host.isa) {
        (None, None) => Ok(Arc::new(Backend::new(host))),
        (Some(reason), _) => Err(Error::Unusable { backend: ID.into(), reason }),
        (None, Some(isa)) => Err(Error::Unusable { backend: ID.into(), reason: format!("it has no {isa} kernels") }),
    },
};
tersor_abi::export_backend!(&ENTRY);

fn device() -> DeviceInfo {
    let name = format!("{} processor, kernels of ggml from {SOURCES}", std::env::consts::ARCH);
    DeviceInfo { index: 0, kind: DeviceKind::Cpu, name, isas: Vec::new(), memory: None }
}

/// Why the processor cannot run what build.rs compiled.
#[cfg(target_arch = "x86_64")]
fn missing() -> Option<String> {
    let has = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("bmi2", is_x86_feature_detected!("bmi2")),
    ];
    has.into_iter().find(|(_, has)| !has).map(|(name, _)| format!("ggml was compiled for {name}, which this CPU lacks"))
}

/// The others are compiled for what every processor of the architecture has.
#[cfg(not(target_arch = "x86_64"))]
fn missing() -> Option<String> {
    None
}
