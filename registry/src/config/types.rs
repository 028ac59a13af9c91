//! The types of values that have a syntax of their own. Ids are checked for form only: a backend may come from a plugin
//! that is found later, so that a name nobody here knows is not yet an error.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value as Json, json};

use super::setting::{Problem, Raw, Setting, Value};

/// Ids of the instruction set tiers that `select.isa` accepts.
pub const ISA_IDS: [&str; 9] =
    ["avx2", "avx-vnni", "avx512", "avx512-vnni", "avx512-vbmi", "neon", "neon-dotprod", "neon-i8mm", "amx-int8"];

/// What a backend or plugin may be called: a lowercase letter, then lowercase letters, digits, `-`, `_` or `.`; `auto` is
/// taken, it means "let Tersor choose".
pub(super) fn is_id(text: &str) -> bool {
    let rest_is_fine = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(rest_is_fine) && text != "auto"
}

pub(super) const ID_PATTERN: &str = "^[a-z][a-z0-9._-]*$";

/// The id of a backend, of this repository or of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(String);

impl BackendId {
    /// The id as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of an instruction set tier, one of [`ISA_IDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IsaId(&'static str);

impl IsaId {
    /// The id as written.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

/// Which kind of device may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// Whatever the chosen backend runs on.
    #[default]
    Auto,
    /// CPU backends only.
    Cpu,
    /// An NVIDIA GPU, and an error where there is none.
    Cuda {
        /// The device number, where one is asked for.
        index: Option<u32>,
    },
    /// An NVIDIA GPU where there is one, else the CPU; what ran and why is reported.
    CudaOrCpu,
}

/// When kernels are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TuneMode {
    /// Never: static priority decides.
    #[default]
    Off,
    /// Use the cache, measure what it lacks within the budget at start.
    Cached,
    /// Measure a shape when it is first used.
    OnMiss,
    /// Measure every candidate again.
    Full,
}

/// A matrix product: `m` rows of activations times the transpose of an `n x k` weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatMulShape {
    /// Rows of activations; 1 is GEMV.
    pub m: u32,
    /// Rows of the weight.
    pub n: u32,
    /// Columns of the weight.
    pub k: u32,
}

/// A value that is written as one string; the text is the whole of it.
trait Word: fmt::Display + FromStr {
    const EXPECTED: &'static str;
    fn schema() -> Json;
}

macro_rules! word_settings {
    ($($ty:ty),+) => { $(
        impl Setting for $ty {
            fn expected() -> String {
                Self::EXPECTED.into()
            }
            fn read(raw: Raw<'_>) -> Result<Self, Problem> {
                let parsed = raw.text().and_then(|text| text.parse().ok());
                parsed.ok_or_else(|| raw.problem(<Self as Setting>::expected()))
            }
            fn value(&self) -> Value {
                Value::Text(self.to_string())
            }
            fn schema() -> Json {
                <Self as Word>::schema()
            }
        }
    )+ };
}

word_settings!(BackendId, IsaId, Device, TuneMode, MatMulShape);

/// The text does not name a value of the type. What would be right is known to the reader of the key.
#[derive(Debug)]
pub struct NotAValue;

impl FromStr for BackendId {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        if is_id(text) { Ok(BackendId(text.into())) } else { Err(NotAValue) }
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Word for BackendId {
    const EXPECTED: &'static str = "a backend id (lowercase letters, digits, \"-\", \"_\", \".\") such as \"cpu-avx2\"";
    fn schema() -> Json {
        json!({ "type": "string", "pattern": ID_PATTERN, "not": { "const": "auto" } })
    }
}

impl FromStr for IsaId {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        ISA_IDS.into_iter().find(|id| *id == text).map(IsaId).ok_or(NotAValue)
    }
}

impl fmt::Display for IsaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl Word for IsaId {
    const EXPECTED: &'static str =
        "one of avx2, avx-vnni, avx512, avx512-vnni, avx512-vbmi, neon, neon-dotprod, neon-i8mm, amx-int8";
    fn schema() -> Json {
        json!({ "enum": ISA_IDS })
    }
}

impl FromStr for Device {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda { index: None }),
            "cuda-or-cpu" => Ok(Device::CudaOrCpu),
            _ => {
                let index = text.strip_prefix("cuda:").and_then(number).ok_or(NotAValue)?;
                Ok(Device::Cuda { index: Some(index) })
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.pad("auto"),
            Device::Cpu => f.pad("cpu"),
            Device::Cuda { index: None } => f.pad("cuda"),
            Device::Cuda { index: Some(index) } => f.pad(&format!("cuda:{index}")),
            Device::CudaOrCpu => f.pad("cuda-or-cpu"),
        }
    }
}

impl Word for Device {
    const EXPECTED: &'static str = "\"auto\", \"cpu\", \"cuda\", \"cuda:N\" with a device number N, or \"cuda-or-cpu\"";
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^(auto|cpu|cuda|cuda:[0-9]+|cuda-or-cpu)$" })
    }
}

impl FromStr for TuneMode {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        match text {
            "off" => Ok(TuneMode::Off),
            "cached" => Ok(TuneMode::Cached),
            "on-miss" => Ok(TuneMode::OnMiss),
            "full" => Ok(TuneMode::Full),
            _ => Err(NotAValue),
        }
    }
}

impl fmt::Display for TuneMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TuneMode::Off => "off",
            TuneMode::Cached => "cached",
            TuneMode::OnMiss => "on-miss",
            TuneMode::Full => "full",
        })
    }
}

impl Word for TuneMode {
    const EXPECTED: &'static str = "\"off\", \"cached\", \"on-miss\" or \"full\"";
    fn schema() -> Json {
        json!({ "enum": ["off", "cached", "on-miss", "full"] })
    }
}

/// Digits only: `str::parse` would let a sign through.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|c| c.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl FromStr for MatMulShape {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        let mut sides = text.split('x').map(|side| number(side).filter(|n| *n > 0));
        match (sides.next().flatten(), sides.next().flatten(), sides.next().flatten(), sides.next()) {
            (Some(m), Some(n), Some(k), None) => Ok(MatMulShape { m, n, k }),
            _ => Err(NotAValue),
        }
    }
}

impl fmt::Display for MatMulShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}x{}x{}", self.m, self.n, self.k))
    }
}

impl Word for MatMulShape {
    const EXPECTED: &'static str = "a shape \"MxNxK\" such as \"1x2560x6912\"";
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[1-9][0-9]*x[1-9][0-9]*x[1-9][0-9]*$" })
    }
}
