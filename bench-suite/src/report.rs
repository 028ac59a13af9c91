//! The report as data. Tables and pictures are made from it; nothing is in them that is not here.

use serde::{Deserialize, Serialize};

use crate::floor::Floor;
use crate::gpu::GpuUse;
use crate::machine::{Build, Machine};
use crate::stats::Summary;

/// The version of this structure. A reader refuses others.
pub const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Seconds since 1970 at the start of the run.
    pub unix_time: u64,
    /// Seconds that the run took.
    pub wall_s: f64,
    /// Where it ran.
    pub machine: Machine,
    /// What ran.
    pub build: Build,
    /// What was asked for.
    pub settings: Settings,
    /// Every backend in the program: usable, or the reason why not.
    pub backends: Vec<BackendSeen>,
    /// The machine's limits, measured in this run.
    pub limits: Vec<Limit>,
    /// Everything that was measured, and everything that was not, with the reason.
    pub figures: Vec<Figure>,
    /// Processor time of each phase.
    pub phases: Vec<PhaseUse>,
    /// Memory.
    pub memory: MemoryUse,
    /// GPUs.
    #[serde(default)]
    pub gpu: GpuUse,
    /// What the time budget cut, and other things that a reader has to know.
    pub notes: Vec<String>,
}

/// The axes of a run: two reports are comparable where these agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The model's name.
    pub model: String,
    /// Format of embedding and head in the model's file.
    pub head_format: String,
    /// Thread counts measured.
    pub threads: Vec<usize>,
    /// Tokens generated in a decode sample.
    pub tokens: usize,
    /// Samples thrown away before those that count.
    pub warmup: usize,
    /// Samples wanted of each case.
    pub iterations: usize,
    /// Time budget, in seconds.
    pub budget_s: f64,
    /// Elements of the large quantization case.
    pub quantize_elements: usize,
    /// Bytes that the product cases rotate through.
    pub cold_bytes: u64,
}

/// A backend of the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendSeen {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Its kernel revision.
    pub kernel_revision: u32,
    /// Why it was not measured; `None` where it was.
    pub unusable: Option<String>,
    /// Its devices.
    pub devices: Vec<String>,
    /// The ISA tiers that were measured; empty for portable code.
    pub isas: Vec<String>,
}

/// A limit of the machine, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// `int8` (multiply-accumulates a second), or what is counted in bytes a second.
    pub kind: LimitKind,
    /// The phase that it belongs to: it was measured between that phase's samples.
    pub phase: String,
    /// `cpu` or `gpu`: whose memory.
    #[serde(default = "cpu")]
    pub device: String,
    /// Threads.
    pub threads: usize,
    /// The best pattern or instruction.
    pub by: String,
    /// Bytes that were read over and over; 0 for arithmetic.
    pub working_set: u64,
    /// Units a second of the fastest sample: a floor must be something that nothing beats.
    pub best: f64,
    /// Units a second of the median sample, of the way whose median is highest.
    pub median: f64,
    /// Every sample of the best pattern, in units a second.
    pub samples: Vec<f64>,
}

fn cpu() -> String {
    "cpu".to_owned()
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// Bytes read.
    Read,
    /// int8 multiply-accumulates.
    Int8,
    /// Bytes read and written by a copy.
    Copy,
    /// Bytes copied from page-locked host memory to a device.
    Up,
    /// Bytes copied from a device to page-locked host memory.
    Down,
}

/// What a figure measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Real weights to a ternary format.
    Quantize,
    /// A ternary format to f32.
    Dequantize,
    /// Canonical bytes to the backend's packing.
    Pack,
    /// Activations to int8.
    QuantizeRows,
    /// A product with one row of activations.
    Gemv,
    /// A product with more rows.
    Gemm,
    /// A prompt through the model.
    Prefill,
    /// Tokens one by one.
    Decode,
    /// Tokens of several sequences, a step of all of them at a time.
    DecodeBatch,
}

impl Measure {
    /// Its name in case names.
    pub const fn id(self) -> &'static str {
        match self {
            Measure::Quantize => "quantize",
            Measure::Dequantize => "dequantize",
            Measure::Pack => "pack",
            Measure::QuantizeRows => "quantize_rows",
            Measure::Gemv => "gemv",
            Measure::Gemm => "gemm",
            Measure::Prefill => "prefill",
            Measure::Decode => "decode",
            Measure::DecodeBatch => "decode_batch",
        }
    }

    /// Whether it is of the model as a whole.
    pub const fn is_inference(self) -> bool {
        matches!(self, Measure::Prefill | Measure::Decode | Measure::DecodeBatch)
    }

    /// What [`Work::units`] counts, for tables: one million or billion of them a second.
    pub const fn unit(self) -> (&'static str, f64) {
        match self {
            Measure::Quantize | Measure::Dequantize | Measure::Pack | Measure::QuantizeRows => ("Melem/s", 1e6),
            Measure::Gemv | Measure::Gemm => ("GMAC/s", 1e9),
            Measure::Prefill | Measure::Decode | Measure::DecodeBatch => ("tok/s", 1.0),
        }
    }
}

/// The work of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Elements, multiply-accumulates or tokens, as [`Measure::unit`] says.
    pub units: f64,
    /// Bytes that have to move at least.
    pub bytes: f64,
    /// int8 multiply-accumulates that have to be done at least.
    pub macs: f64,
}

/// One case: measured, or absent with a reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What is measured.
    pub measure: Measure,
    /// The weight format.
    pub format: String,
    /// The backend.
    pub backend: String,
    /// Its ISA tier; empty for portable code.
    pub isa: String,
    /// `cpu` or `gpu`. The floor of a GPU's figure is that of its bytes: its rate of arithmetic is not measured. Its
    /// utilisation is in [`Report::gpu`].
    pub device: String,
    /// The shape: `NxK` for weights, `MxNxK` for products, tokens for inference.
    pub shape: String,
    /// Threads.
    pub threads: usize,
    /// The kernels that ran, as the dispatcher named them.
    pub kernels: Vec<String>,
    /// Work of a sample.
    pub work: Work,
    /// Bytes that the phase rotated through.
    pub working_set: u64,
    /// Every sample, in seconds.
    pub samples: Vec<f64>,
    /// What they say; `None` where nothing was measured.
    pub time: Option<Summary>,
    /// The least time that the limits allow.
    pub floor: Option<Floor>,
    /// Processor time over wall time and threads; `None` where the system does not tell.
    pub utilisation: Option<f64>,
    /// What the results were compared with.
    pub checked: Option<String>,
    /// Why there is no figure, or what is wrong with the one that there is.
    pub absent: Option<String>,
    /// Sequences at a time, where there are several. Units are theirs in sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequences: Option<usize>,
}

impl Figure {
    /// The name by which reports are matched: `gemv/i2_s/cpu-avx2.avx-vnni/1x2560x2560/2t`.
    pub fn case(&self) -> String {
        let Figure { measure, format, shape, threads, .. } = self;
        format!("{}/{format}/{}/{shape}/{threads}t", measure.id(), self.candidate())
    }

    /// Backend and tier.
    pub fn candidate(&self) -> String {
        if self.isa.is_empty() { self.backend.clone() } else { format!("{}.{}", self.backend, self.isa) }
    }

    /// Units a second, in the unit of the measure.
    pub fn rate(&self) -> Option<f64> {
        Some(self.work.units / self.time?.median / self.measure.unit().1)
    }

    /// Units a second of each of several sequences.
    pub fn each(&self) -> Option<f64> {
        Some(self.rate()? / self.sequences? as f64)
    }

    /// Gigabytes a second.
    pub fn gigabytes(&self) -> Option<f64> {
        Some(self.work.bytes / self.time?.median / 1e9)
    }

    /// The part of the limits that the median time used, limits by their medians as well.
    pub fn of_limit(&self) -> Option<f64> {
        Some(self.floor.as_ref()?.usual? / self.time?.median)
    }

    /// Median time over the floor.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.time?.median / self.floor.as_ref()?.seconds)
    }
}

/// Processor time of a phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseUse {
    /// The phase.
    pub phase: String,
    /// Wall time, in seconds.
    pub wall_s: f64,
    /// Processor time of all threads; `None` where the system does not tell.
    pub cpu_s: Option<f64>,
}

/// Memory of the process.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MemoryUse {
    /// The most that was resident, in bytes; `None` where the system does not tell.
    pub peak_rss: Option<u64>,
    /// Packed weights of the model, in bytes, on each candidate: name and bytes.
    pub model_weights: Vec<(String, u64)>,
    /// Key/value cache and activations of a session, in bytes.
    pub session: Option<u64>,
    /// GPU memory and utilisation in a sentence; the figures are in [`Report::gpu`].
    pub gpu: String,
}
