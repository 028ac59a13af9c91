//! The one table of keys: name, type, default, meaning, short variable name, and whether it has an effect yet
//! (`Now` or `Later`). A key becomes `Now` in the commit that makes it work, not before: `Later` costs a warning, a `Now`
//! that is not true would be a setting ignored in silence.

use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

use super::allow::AllowedPlugin;
use super::key::{Effect, Key, Section, dotted, place, sections};
use super::setting::Setting;
use super::size::ByteSize;
use super::types::{BackendId, Device, IsaId, MatMulShape, TuneMode};

sections! {
    /// Which backend runs.
    Select [select] {
        /// Use this backend for everything, or fail where it cannot; "auto" leaves the choice to the keys below.
        Now backend: Option<BackendId> = None, alias "TERSOR_BACKEND";
        /// Which kind of device may run; "cuda-or-cpu" is the only value that may fall back, and says when it did.
        Now device: Device = Device::Auto;
        /// Backends in order of preference; those not listed follow in their own order.
        Now order: Vec<BackendId> = Vec::new();
        /// Backends that must not run.
        Now deny: Vec<BackendId> = Vec::new();
        /// The instruction set tier that CPU kernels must use; backends without it are not chosen, and it is an error where
        /// the machine lacks it. "auto" is the best that each backend has.
        Now isa: Option<IsaId> = None;
        sub formats: Formats;
    }

    /// The backend of single formats, stronger than `select.order`. "auto" is no override.
    Formats [select.formats] {
        /// The backend for `i2_s` with one scale per tensor.
        Now i2_s: Option<BackendId> = None;
        /// The backend for `i2_s` with a scale for every 64 values.
        Now i2_s_g64: Option<BackendId> = None;
        /// The backend for `i2_s` with a scale for every 128 values.
        Now i2_s_g128: Option<BackendId> = None;
        /// The backend for `i2_s` with a scale for every 256 values.
        Now i2_s_g256: Option<BackendId> = None;
        /// The backend for `tl1`.
        Now tl1: Option<BackendId> = None;
        /// The backend for `tl2`.
        Now tl2: Option<BackendId> = None;
        /// The backend for `tq1_0`.
        Now tq1_0: Option<BackendId> = None;
        /// The backend for `tq2_0`.
        Now tq2_0: Option<BackendId> = None;
    }

    /// The one thread pool that all backends share.
    Threads [threads] {
        /// The number of threads.
        /// No more are used than the process may use processors. "auto" is one for each core that the process may use. `RAYON_NUM_THREADS` is honoured where nothing of
        /// Tersor's own in the environment or among the flags says otherwise; it is stronger than files.
        Now count: Option<NonZeroU16> = None, alias "TERSOR_THREADS";
        /// The CPU numbers that the threads are bound to, in turn; an empty list leaves that to the system. The thread that
        /// opens the registry is the first of them.
        Now affinity: Vec<u16> = Vec::new();
    }

    /// Memory budgets.
    Memory [memory] {
        /// The most bytes that the pool of host buffers may hold: activations, the KV cache, logits, and the page-locked memory
        /// that copies to and from a GPU go through. Packed weights are not buffers.
        Now pool: Option<ByteSize> = None;
        /// Let backends use weights where they are, memory-mapped, where they need them as they are: embedding and head in
        /// float types, and `i2_s` on portable code. With false they are copied: no page is read from the file later, and
        /// the copy lies in huge pages where the system has them.
        Now zero_copy: bool = true;
    }

    /// How inference runs.
    Run [run] {
        /// The same bits from run to run on one backend, given the same seed.
        Now deterministic: bool = false;
        /// The same bits on every backend; implies `run.deterministic`. Without it, `cuda` multiplies heads in f16 and bf16 by
        /// two rows and more on tensor cores, within the tolerance of docs/numerics.md and with the same bits from run to run;
        /// all else is the same on every backend anyway.
        Now reproducible: bool = false;
        /// The seed of sampling; "auto" takes a new one for each run.
        Now seed: Option<u64> = None, alias "TERSOR_SEED";
        /// The most rows that one step of prefill takes together.
        Now batch: NonZeroU32 = NonZeroU32::MIN.saturating_add(127);
    }

    /// Measuring which kernel is fastest.
    Tune [tune] {
        /// When kernels are measured: "off" is never, "cached" uses the cache and measures what it lacks at start within the
        /// budget, "on-miss" measures a weight shape when it is first packed, "full" measures everything again.
        Now mode: TuneMode = TuneMode::Cached;
        /// The most milliseconds that measuring may take at a cold start.
        Now budget_ms: u64 = 300;
        /// The directory of measured results; "auto" is Tersor's place in the user's cache directory.
        Now cache: Option<PathBuf> = None;
        /// Shapes to measure besides those of the model, as "MxNxK".
        Now shapes: Vec<MatMulShape> = Vec::new();
    }

    /// GPU backends.
    Gpu [gpu] {
        /// The number of tensors that are quantized at once when a model is converted on a GPU: one is on its way to the device
        /// while another is worked on.
        Now streams: NonZeroU16 = NonZeroU16::MIN;
    }

    /// Backends from shared libraries. A plugin is native code with the rights of this process.
    Plugins [plugins] {
        /// Load plugins at all.
        Now enabled: bool = false;
        /// Manifests, or directories that hold them, besides the usual places.
        Now paths: Vec<PathBuf> = Vec::new();
        /// The program that probes a plugin in a process of its own; without one an unprobed plugin is refused.
        Now probe_helper: Option<PathBuf> = None;
        /// The plugins that may be loaded, by name and optionally by hash; an empty list allows all that are found.
        Now allow: Vec<AllowedPlugin> = Vec::new();
    }

    /// Diagnostics.
    Log [log] {
        /// What is logged: a level or `target=level` directives parted by commas.
        Now filter: String = "warn".into(), alias "TERSOR_LOG";
    }
}

impl Formats {
    /// The backend for the format of this id; `None` where the format has no override or is unknown.
    pub fn get(&self, format: &str) -> Option<&BackendId> {
        match format {
            "i2_s" => self.i2_s.as_ref(),
            "i2_s_g64" => self.i2_s_g64.as_ref(),
            "i2_s_g128" => self.i2_s_g128.as_ref(),
            "i2_s_g256" => self.i2_s_g256.as_ref(),
            "tl1" => self.tl1.as_ref(),
            "tl2" => self.tl2.as_ref(),
            "tq1_0" => self.tq1_0.as_ref(),
            "tq2_0" => self.tq2_0.as_ref(),
            _ => None,
        }
    }
}
