//! What was measured, as it is kept and shown.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::candidate::Identity;

/// The outcome for one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Who won. It is one of `measured`.
    pub winner: Identity,
    /// Rows of the weight that was measured: fewer than the key's where those fill the cache already.
    pub rows: usize,
    /// Bytes of packed weights that the samples rotated through.
    pub cold_bytes: u64,
    /// Every candidate, in the fixed order.
    pub measured: Vec<Measured>,
}

/// What is known of one candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Who.
    pub who: Identity,
    /// Median time of a product in nanoseconds; `None` where its time does not count.
    pub median_ns: Option<f64>,
    /// Median of its time over that of the fastest, sample by sample.
    pub ratio: Option<f64>,
    /// How far the ratio may be off (95 % confidence); `None` where there were too few samples to say.
    pub margin: Option<f64>,
    /// Samples.
    pub samples: usize,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Fate {
    /// It won.
    Won,
    /// It is as fast as the winner, as far as can be told; the fixed order decided.
    Tied,
    /// It is slower.
    Slower,
    /// It is so much slower that sampling it stopped early.
    FarBehind,
    /// It must not run: it failed, or its results are not the oracle's.
    Barred {
        /// What it did.
        reason: String,
    },
}

impl Record {
    /// The winner's entry.
    pub fn won(&self) -> Option<&Measured> {
        self.measured.iter().find(|m| m.who == self.winner)
    }

    /// The entry of a candidate, if it was measured as it is now.
    pub fn of(&self, who: &Identity) -> Option<&Measured> {
        self.measured.iter().find(|m| m.who == *who)
    }

    /// The best of those that did not win and may run.
    pub fn runner_up(&self) -> Option<&Measured> {
        let others = self.measured.iter().filter(|m| m.who != self.winner && !matches!(m.fate, Fate::Barred { .. }));
        others.filter(|m| m.ratio.is_some()).min_by(|a, b| a.ratio.unwrap_or(0.0).total_cmp(&b.ratio.unwrap_or(0.0)))
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Fate::Barred { reason } = &self.fate {
            return write!(f, "{reason}");
        }
        match self.median_ns {
            None => write!(f, "no time")?,
            Some(ns) => write!(f, "{}", Time(ns))?,
        }
        if let Some(ratio) = self.ratio {
            write!(f, ", {ratio:.2} x the fastest")?;
        }
        match self.margin {
            Some(margin) => write!(f, " (+- {:.1} %, {} samples)", 100.0 * margin, self.samples)?,
            None => write!(f, " ({} samples)", self.samples)?,
        }
        match self.fate {
            Fate::Tied => write!(f, ": equal as far as can be told; the fixed order decides"),
            Fate::FarBehind => write!(f, ": far behind, sampling stopped early"),
            _ => Ok(()),
        }
    }
}

/// Nanoseconds for people.
#[derive(Debug, Clone, Copy)]
pub struct Time(pub f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ns if ns < 1e3 => write!(f, "{ns:.0} ns"),
            ns if ns < 1e6 => write!(f, "{:.1} us", ns / 1e3),
            ns => write!(f, "{:.2} ms", ns / 1e6),
        }
    }
}
