//! Models of random weights: the shape of a model whose weights are not at hand, to measure its speed and memory.
//!
//! Every tensor has a stream of its own, made from the seed and its name, so a file depends on nothing but its options, and
//! its projections do not depend on the head's format. Rows are made and written one after another; memory holds a row, or
//! one projection. The tokenizer is that of the embedded model; tokens beyond its vocabulary have no text.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use serde::Serialize;
use tersor_core::{Format, Shape, Ternary, codec};

use crate::config::{Activation, ModelConfig, TOKENIZER_KEY};
use crate::convert::head;
use crate::embedded;
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, GgufWriter, Metadata, TensorPlan, Value};
use crate::names::Role;

/// Hyper-parameters to imitate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthShape {
    /// BitNet b1.58 2B-4T.
    B1582B4T,
    /// Two small layers with the embedded model's vocabulary, for tests.
    Tiny,
}

impl SynthShape {
    /// Their names.
    pub const NAMES: [(&'static str, SynthShape); 2] = [("2b4t", SynthShape::B1582B4T), ("tiny", SynthShape::Tiny)];

    /// Its name.
    #[must_use]
    pub fn id(self) -> &'static str {
        Self::NAMES.iter().find(|(_, shape)| *shape == self).map_or("", |(name, _)| name)
    }

    /// The configuration, special tokens being those of the embedded tokenizer.
    fn config(self, special: &ModelConfig) -> ModelConfig {
        let base = ModelConfig {
            name: Some(format!("synthetic-{}", self.id())),
            vocab_size: 128_256,
            hidden_size: 2560,
            ffn_size: 6912,
            layers: 30,
            heads: 20,
            kv_heads: 5,
            head_dim: 128,
            context_length: 4096,
            rope_theta: 500_000.0,
            rms_eps: 1e-5,
            activation: Activation::SquaredRelu,
            tied_head: true,
            bos_id: special.bos_id,
            eos_ids: special.eos_ids.clone(),
            quantization: None,
        };
        match self {
            SynthShape::B1582B4T => base,
            SynthShape::Tiny => ModelConfig {
                vocab_size: special.vocab_size,
                hidden_size: 256,
                ffn_size: 768,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                context_length: 512,
                ..base
            },
        }
    }
}

impl FromStr for SynthShape {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == s);
        found.map(|(_, shape)| *shape).ok_or_else(|| Error::Argument {
            what: "shape",
            value: s.to_owned(),
            need: format!("one of {}", Self::NAMES.map(|(name, _)| name).join(", ")),
        })
    }
}

/// What to make.
#[derive(Debug, Clone, Copy)]
pub struct SynthOptions {
    /// The shape.
    pub shape: SynthShape,
    /// The format of the linear layers: one of [`Format::TERNARY`].
    pub format: Format,
    /// The format of the embedding, which is the head too: one of [`Format::tables`].
    pub head: Format,
    /// Seed of every weight.
    pub seed: u64,
}

/// What was made.
#[derive(Debug, Clone, Serialize)]
pub struct SynthReport {
    /// The file.
    pub path: PathBuf,
    /// Name of the shape.
    pub shape: &'static str,
    /// The format of the linear layers.
    pub format: &'static str,
    /// The format of the embedding and head.
    pub head: &'static str,
    /// The seed.
    pub seed: u64,
    /// Tensors.
    pub tensors: usize,
    /// Weights of the linear layers.
    pub linear_weights: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Writes the model to `out`, which appears when it is complete and not before. `progress` is told bytes written, bytes in
/// all, and the tensor.
///
/// ```
/// use tersor_core::Format;
/// use tersor_model::synth::{SynthOptions, SynthShape, synth};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let out = &directory.path().join("tiny.gguf");
/// let options = SynthOptions { shape: SynthShape::Tiny, format: Format::I2S, head: Format::Q6K, seed: 1 };
/// synth(out, &options, &mut |_, _, _| {})?;
/// assert_eq!(tersor_model::ModelFile::open(out)?.config().layers, 2);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Config`] for formats that such tensors do not have, [`Error::InTensor`] where a row does not fit one,
/// [`Error::Io`].
pub fn synth(out: &Path, options: &SynthOptions, progress: &mut dyn FnMut(u64, u64, &str)) -> Result<SynthReport> {
    let start = Instant::now();
    let special = embedded::fable_26m()?;
    let config = options.shape.config(special.config());
    config.validate()?;
    let roles: Vec<Role> = Role::all(&config).collect();
    let plans = roles.iter().map(|role| plan(*role, &config, options)).collect::<Result<Vec<_>>>()?;
    let total: u64 = plans.iter().map(|p| p.len).sum();
    let mut metadata = Metadata::new();
    config.write_metadata(&mut metadata);
    metadata.set("general.quantization_version", Value::U32(2));
    metadata.set("general.description", Value::String(format!("random weights, seed {}", options.seed)));
    metadata.set("tersor.layout.version", Value::U32(1));
    metadata.set("tersor.layout", Value::String("row-major".to_owned()));
    if let Some(json) = special.tokenizer_json() {
        metadata.set(TOKENIZER_KEY, Value::String(json.to_owned()));
    }
    let mut writer = GgufWriter::create(out, &metadata, plans)?;
    let mut done = 0;
    for &role in &roles {
        let name = role.gguf_name();
        let mut noise = Noise::new(options.seed, &name);
        let mut write = |bytes: &[u8]| {
            writer.write_part(&name, bytes)?;
            done += bytes.len() as u64;
            progress(done, total, &name);
            Ok(())
        };
        let (rows, cols) = role.shape(&config);
        if role.is_linear() {
            write(linear(&mut noise, Shape::new(rows, cols)?, options.format)?.codes())?;
        } else if role.is_norm() {
            let values: Vec<u8> = (0..cols).flat_map(|_| (1.0 + 0.1 * noise.float()).to_le_bytes()).collect();
            write(&values)?;
        } else {
            table(&mut noise, (rows, cols), options.head, &mut write).map_err(|e| e.in_tensor(&name))?;
        }
    }
    let path = writer.finish()?;
    Ok(SynthReport {
        path,
        shape: options.shape.id(),
        format: options.format.id(),
        head: options.head.id(),
        seed: options.seed,
        tensors: roles.len(),
        linear_weights: config.linear_elements(),
        bytes: total,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn plan(role: Role, config: &ModelConfig, options: &SynthOptions) -> Result<TensorPlan> {
    let (rows, cols) = role.shape(config);
    let name = role.gguf_name();
    let (format, ty) = match role {
        role if role.is_linear() => (options.format, crate::convert::ggml_type(options.format)?),
        role if role.is_norm() => (Format::F32, GgmlType::F32),
        _ => (options.head, head::ggml_type(options.head)?),
    };
    let dims = if role.is_norm() { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
    let len = Shape::new(rows, cols).and_then(|shape| format.encoded_len(shape));
    let len = len.map_err(|e| Error::from(e).in_tensor(&name))?.bytes as u64;
    Ok(TensorPlan { name, dims, ty, len })
}

/// A projection that keeps the variance of what goes through it: two thirds of its codes are not zero.
fn linear(noise: &mut Noise, shape: Shape, format: Format) -> Result<tersor_core::Weight> {
    let codes = noise.trits(shape.len());
    let scale = codec::storable_scale(format, (1.5 / shape.cols() as f32).sqrt())?;
    Ok(codec::encode(&Ternary { shape, codes, block: shape.len(), scales: vec![scale] }, format)?)
}

/// Rows that are handed to the writer together.
const BAND: usize = 256;

/// The embedding: values of a bell-like distribution (sums of two uniform ones), row by row.
fn table(
    noise: &mut Noise,
    (rows, cols): (usize, usize),
    format: Format,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (mut values, mut bytes) = (vec![0.0; cols], Vec::new());
    for first in (0..rows).step_by(BAND) {
        bytes.clear();
        for _ in first..rows.min(first + BAND) {
            values.iter_mut().for_each(|v| *v = 0.04 * (noise.float() + noise.float()));
            head::encode_row(format, &values, &mut bytes)?;
        }
        write(&bytes)?;
    }
    Ok(())
}

/// SplitMix64 (Steele et al. 2014).
struct Noise(u64);

impl Noise {
    /// The stream of a tensor: its name is hashed (FNV-1a) onto the seed.
    fn new(seed: u64, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Digits in base three of 32-bit fractions, twelve of each, less one.
    fn trits(&mut self, len: usize) -> Vec<i8> {
        let mut trits = vec![0i8; len];
        for part in trits.chunks_mut(24) {
            let bits = self.next();
            for (part, bits) in part.chunks_mut(12).zip([bits as u32, (bits >> 32) as u32]) {
                let mut fraction = u64::from(bits);
                for t in part {
                    fraction *= 3;
                    *t = (fraction >> 32) as i8 - 1;
                    fraction &= u64::from(u32::MAX);
                }
            }
        }
        trits
    }
}
