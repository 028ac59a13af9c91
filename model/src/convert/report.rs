//! What a conversion did, in numbers.

use std::path::PathBuf;

use serde::Serialize;
use tersor_core::{Floats, Ternary};

use crate::error::Result;
use crate::source::Linear;

/// A finished conversion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConvertReport {
    /// The new file.
    pub path: PathBuf,
    /// The format of its linear layers.
    pub format: &'static str,
    /// Who quantized master weights, if there were any.
    pub quantizer: String,
    /// Every tensor, in file order.
    pub tensors: Vec<TensorReport>,
    /// Wall time, writing to disk included.
    pub seconds: f64,
}

impl ConvertReport {
    /// Elements of all linear layers.
    #[must_use]
    pub fn linear_elements(&self) -> u64 {
        self.linear().map(|t| t.shape.0 as u64 * t.shape.1 as u64).sum()
    }

    /// Million linear weights a second: reading, quantizing or encoding, counting; without the time to write the file.
    #[must_use]
    pub fn melem_per_second(&self) -> f64 {
        let seconds: f64 = self.linear().map(|t| t.seconds).sum();
        self.linear_elements() as f64 / 1e6 / seconds.max(1e-9)
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    fn linear(&self) -> impl Iterator<Item = &TensorReport> {
        self.tensors.iter().filter(|t| t.ternary.is_some())
    }
}

/// One tensor of the new file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// Its name in the new file.
    pub name: String,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// How the source stored it.
    pub source: String,
    /// How the new file stores it.
    pub stored: String,
    /// Bytes in the new file.
    pub bytes: u64,
    /// Time to read, convert and count, without writing.
    pub seconds: f64,
    /// For linear layers, their codes in numbers.
    pub ternary: Option<TernaryReport>,
}

/// The codes of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TernaryReport {
    /// Weights that are -1.
    pub minus: u64,
    /// Weights that are 0.
    pub zero: u64,
    /// Weights that are +1.
    pub plus: u64,
    /// The scale of the tensor in the new file; `None` where its blocks have different ones.
    pub scale: Option<f32>,
    /// The scale before it was stored, where storing (as f16) changed it.
    pub rounded_from: Option<f32>,
    /// What quantizing master weights cost; `None` where the source was ternary.
    pub fidelity: Option<Fidelity>,
}

/// How close quantized weights are to the real ones. For Gaussian weights the best possible cosine of a ternary code is
/// 0.900, and this rule reaches 0.887: a loss, and the model was trained for it or not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fidelity {
    /// Cosine of the angle between the two as vectors; 1 is perfect.
    pub cosine: f64,
    /// Signal to noise in decibels; infinite where nothing was lost.
    pub snr_db: f64,
}

impl TernaryReport {
    pub(super) fn new(source: &Linear, written: &Ternary) -> Result<Self> {
        let count = |value: i8| written.codes.iter().filter(|&&c| c == value).count() as u64;
        let (minus, zero, plus) = (count(-1), count(0), count(1));
        let scale = written.uniform_scale();
        let mut report = Self { minus, zero, plus, scale, rounded_from: None, fidelity: None };
        let before = match source {
            Linear::Master(dense) => {
                let (fidelity, unrounded) = dense.with_floats(|w| (Fidelity::new(w, written), rule_scale(w)))?;
                report.fidelity = Some(fidelity);
                unrounded
            }
            Linear::Packed(weight) => weight.uniform_scale(),
            Linear::Codes(ternary) => ternary.uniform_scale(),
        };
        report.rounded_from = before.filter(|b| scale.is_some_and(|s| s.to_bits() != b.to_bits()));
        Ok(report)
    }

    /// The shares of -1, 0 and +1.
    #[must_use]
    pub fn shares(&self) -> [f64; 3] {
        let total = (self.minus + self.zero + self.plus).max(1) as f64;
        [self.minus, self.zero, self.plus].map(|n| n as f64 / total)
    }
}

fn rule_scale(weights: Floats<'_>) -> Option<f32> {
    tersor_core::codec::absmean::scale_of(weights).ok()
}

impl Fidelity {
    fn new(weights: Floats<'_>, written: &Ternary) -> Self {
        let (mut ww, mut qq, mut wq, mut noise) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
        // Runs inside one scale's block; 4,096 f32 stay in the first-level cache.
        let run = written.block.clamp(1, 4096);
        let mut values = vec![0.0; run];
        for (n, codes) in written.codes.chunks(run).enumerate() {
            let scale = f64::from(written.scales[n * run / written.block]);
            weights.read(n * run, &mut values[..codes.len()]);
            for (&w, &t) in values.iter().zip(codes) {
                let (w, q) = (f64::from(w), f64::from(t) * scale);
                ww += w * w;
                qq += q * q;
                wq += w * q;
                noise += (w - q) * (w - q);
            }
        }
        // A tensor of zeros is represented without loss.
        let cosine = if ww == 0.0 && qq == 0.0 { 1.0 } else { wq / (ww * qq).sqrt() };
        let snr_db = if noise == 0.0 { f64::INFINITY } else { 10.0 * (ww / noise).log10() };
        Self { cosine, snr_db }
    }
}
