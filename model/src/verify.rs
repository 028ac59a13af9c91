//! Whether two files hold the same model, whatever their containers and formats.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use tersor_core::{Ternary, codec, f16};

use crate::error::Result;
use crate::names::Role;
use crate::source::{Dense, Linear, ModelFile};

/// One way in which two models differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Difference {
    /// A hyper-parameter.
    Config {
        /// Its name.
        key: &'static str,
        /// The first file's value.
        a: String,
        /// The second file's.
        b: String,
    },
    /// The text of the tokenizer, where both have one.
    Tokenizer,
    /// A tensor that only one of them has.
    Missing {
        /// Its GGUF name.
        tensor: String,
        /// Whether the first file is the one without it.
        from_first: bool,
    },
    /// Ternary values.
    Codes {
        /// Its GGUF name.
        tensor: String,
        /// How many differ.
        count: u64,
        /// Row and column of the first.
        at: (usize, usize),
        /// The first file's value there.
        a: i8,
        /// The second file's.
        b: i8,
    },
    /// Scales of blocks that are not all zero.
    Scale {
        /// Its GGUF name.
        tensor: String,
        /// How many blocks differ; 1 where one scale serves the tensor.
        count: u64,
        /// The first file's scale at the first difference.
        a: f32,
        /// The second file's.
        b: f32,
        /// Each differing pair is a scale and the f16 nearest to it: a `tq` format lies between, which cannot store more.
        f16_rounding: bool,
    },
    /// Values of an embedding, norm or head.
    Dense {
        /// Its GGUF name.
        tensor: String,
        /// How many differ; 0 where the types cannot be compared value by value and the bytes differ.
        count: u64,
        /// What differs first.
        detail: String,
    },
}

/// The comparison of two models.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct VerifyReport {
    /// Linear layers compared code by code.
    pub linear: usize,
    /// Their elements.
    pub elements: u64,
    /// Other tensors compared.
    pub dense: usize,
    /// Layers of which one file has master weights: these were quantized by the rule first.
    pub quantized: usize,
    /// Whether the first and the second file come with a tokenizer. One without is no difference of the model.
    pub tokenizers: (bool, bool),
    /// Everything that differs.
    pub differences: Vec<Difference>,
}

impl VerifyReport {
    /// Whether nothing differs.
    #[must_use]
    pub fn identical(&self) -> bool {
        self.differences.is_empty()
    }

    /// Whether all ternary values are equal, and every scale but for rounding to f16.
    #[must_use]
    pub fn ternary_preserved(&self) -> bool {
        self.differences.iter().all(|d| match d {
            Difference::Codes { .. } | Difference::Missing { .. } => false,
            Difference::Scale { f16_rounding, .. } => *f16_rounding,
            Difference::Config { .. } | Difference::Tokenizer | Difference::Dense { .. } => true,
        })
    }
}

/// Compares two models: hyper-parameters, tokenizer, each tensor.
///
/// # Errors
/// When a tensor of either cannot be read; differences are not errors.
pub fn verify(a: &ModelFile, b: &ModelFile) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    compare_configs(a, b, &mut report.differences);
    report.tokenizers = (a.tokenizer_json().is_some(), b.tokenizer_json().is_some());
    if report.tokenizers == (true, true) && a.tokenizer_json() != b.tokenizer_json() {
        report.differences.push(Difference::Tokenizer);
    }
    let roles: BTreeSet<Role> = Role::all(a.config()).chain(Role::all(b.config())).collect();
    for role in roles {
        let tensor = role.gguf_name();
        if a.entry(role).is_none() || b.entry(role).is_none() {
            report.differences.push(Difference::Missing { tensor, from_first: a.entry(role).is_none() });
        } else if role.is_linear() {
            compare_linear(role, a.linear(role)?, b.linear(role)?, &mut report)?;
        } else {
            report.dense += 1;
            report.differences.extend(
                compare_dense(&a.dense(role)?, &b.dense(role)?)?.map(|(count, detail)| Difference::Dense {
                    tensor,
                    count,
                    detail,
                }),
            );
        }
    }
    Ok(report)
}

/// The name and the source's way of storing are not compared: they are not the model.
fn compare_configs(a: &ModelFile, b: &ModelFile, out: &mut Vec<Difference>) {
    let (a, b) = (a.config(), b.config());
    let mut compare = |key, a: &dyn fmt::Debug, b: &dyn fmt::Debug| {
        let (a, b) = (format!("{a:?}"), format!("{b:?}"));
        if a != b {
            out.push(Difference::Config { key, a, b });
        }
    };
    compare("vocab_size", &a.vocab_size, &b.vocab_size);
    compare("hidden_size", &a.hidden_size, &b.hidden_size);
    compare("ffn_size", &a.ffn_size, &b.ffn_size);
    compare("layers", &a.layers, &b.layers);
    compare("heads", &a.heads, &b.heads);
    compare("kv_heads", &a.kv_heads, &b.kv_heads);
    compare("head_dim", &a.head_dim, &b.head_dim);
    compare("context_length", &a.context_length, &b.context_length);
    compare("rope_theta", &a.rope_theta, &b.rope_theta);
    compare("rms_eps", &a.rms_eps, &b.rms_eps);
    compare("activation", &a.activation, &b.activation);
    compare("tied_head", &a.tied_head, &b.tied_head);
    compare("bos_id", &a.bos_id, &b.bos_id);
    compare("eos_ids", &a.eos_ids, &b.eos_ids);
}

fn compare_linear(role: Role, a: Linear, b: Linear, report: &mut VerifyReport) -> Result<()> {
    let tensor = role.gguf_name();
    let (a, b) = match (a, b) {
        (Linear::Master(a), Linear::Master(b)) => {
            report.dense += 1;
            let difference = compare_dense(&a, &b)?;
            report.differences.extend(difference.map(|(count, detail)| Difference::Dense { tensor, count, detail }));
            return Ok(());
        }
        (a, b) => {
            let masters = [&a, &b].into_iter().filter(|l| matches!(l, Linear::Master(_))).count();
            report.quantized += masters;
            (ternary(a)?, ternary(b)?)
        }
    };
    if a.shape != b.shape {
        let detail = format!("shape {} against {}", a.shape, b.shape);
        report.differences.push(Difference::Dense { tensor, count: 0, detail });
        return Ok(());
    }
    report.linear += 1;
    report.elements += a.codes.len() as u64;
    report.differences.extend(compare_codes(&tensor, &a, &b));
    report.differences.extend(compare_scales(&tensor, &a, &b));
    Ok(())
}

/// Codes and scales; master weights by the rule, whatever the other file's format.
fn ternary(linear: Linear) -> Result<Ternary> {
    let dense = match linear {
        Linear::Packed(weight) => return Ok(codec::decode(&weight)?),
        Linear::Codes(ternary) => return Ok(ternary),
        Linear::Master(dense) => dense,
    };
    let shape = dense.shape;
    let values = dense.to_f32()?;
    let scale = codec::absmean::scale_of(tersor_core::Floats::F32(&values))?;
    let mut codes = vec![0; shape.len()];
    codec::absmean::ternarize(&values, scale, &mut codes);
    Ok(Ternary { shape, codes, block: shape.len(), scales: vec![scale] })
}

fn compare_codes(tensor: &str, a: &Ternary, b: &Ternary) -> Option<Difference> {
    let mut differing = a.codes.iter().zip(&b.codes).enumerate().filter(|(_, (x, y))| x != y);
    let (first, (&x, &y)) = differing.next()?;
    let at = (first / a.shape.cols(), first % a.shape.cols());
    Some(Difference::Codes { tensor: tensor.to_owned(), count: 1 + differing.count() as u64, at, a: x, b: y })
}

fn compare_scales(tensor: &str, a: &Ternary, b: &Ternary) -> Option<Difference> {
    let step = a.block.min(b.block).max(1);
    let mut pairs = a.codes.chunks(step).enumerate().filter_map(|(n, codes)| {
        let (x, y) = (a.scales[n * step / a.block], b.scales[n * step / b.block]);
        // The scale of a block of zeros means nothing, and tools disagree on what to store.
        (x.to_bits() != y.to_bits() && codes.iter().any(|&c| c != 0)).then_some((x, y))
    });
    let rounded = |(x, y): (f32, f32)| f16::from_f32(x).to_f32() == y || f16::from_f32(y).to_f32() == x;
    let first = pairs.next()?;
    let (count, f16_rounding) = pairs.fold((1, rounded(first)), |(n, all), pair| (n + 1, all && rounded(pair)));
    Some(Difference::Scale { tensor: tensor.to_owned(), count, a: first.0, b: first.1, f16_rounding })
}

/// Values where both are floats, bytes where both have the same other type. Count and first difference.
fn compare_dense(a: &Dense, b: &Dense) -> Result<Option<(u64, String)>> {
    if a.shape != b.shape {
        return Ok(Some((0, format!("shape {} against {}", a.shape, b.shape))));
    }
    if a.ty == b.ty && a.data == b.data {
        return Ok(None);
    }
    let (Ok(x), Ok(y)) = (a.to_f32(), b.to_f32()) else {
        return Ok(Some((0, format!("{} bytes of {} against {} of {}", a.data.len(), a.ty, b.data.len(), b.ty))));
    };
    let mut differing = x.iter().zip(&y).enumerate().filter(|(_, (p, q))| p.to_bits() != q.to_bits());
    Ok(differing.next().map(|(at, (p, q))| {
        let (row, col) = (at / a.shape.cols(), at % a.shape.cols());
        let detail = format!("first at row {row}, column {col}: {p} ({}) against {q} ({})", a.ty, b.ty);
        (1 + differing.count() as u64, detail)
    }))
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { key, a, b } => write!(f, "{key}: {a} against {b}"),
            Self::Tokenizer => f.write_str("the tokenizers differ"),
            Self::Missing { tensor, from_first: true } => write!(f, "{tensor}: only in the second file"),
            Self::Missing { tensor, from_first: false } => write!(f, "{tensor}: only in the first file"),
            Self::Codes { tensor, count, at: (row, col), a, b } => {
                write!(f, "{tensor}: {count} codes differ, first at row {row}, column {col}: {a:+} against {b:+}")
            }
            Self::Scale { tensor, count, a, b, f16_rounding } => {
                let why = if *f16_rounding { " (the same but for rounding to f16)" } else { "" };
                write!(f, "{tensor}: {count} scales differ, first {a} against {b}{why}")
            }
            Self::Dense { tensor, count: 0, detail } => write!(f, "{tensor}: {detail}"),
            Self::Dense { tensor, count, detail } => write!(f, "{tensor}: {count} values differ, {detail}"),
        }
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in &self.differences {
            writeln!(f, "{difference}")?;
        }
        let verdict = match self.differences.len() {
            0 => "identical".to_owned(),
            n => format!("{n} differences"),
        };
        match self.tokenizers {
            (true, false) => writeln!(f, "note: only the first file comes with a tokenizer")?,
            (false, true) => writeln!(f, "note: only the second file comes with a tokenizer")?,
            _ => {}
        }
        let (linear, elements, dense) = (self.linear, self.elements, self.dense);
        write!(f, "{linear} ternary tensors ({elements} weights) and {dense} others compared: {verdict}")
    }
}
