//! The work that is tuned for: the products of the embedded model, for one token and for 128 together.

use std::path::Path;

use tersor::Registry;
use tersor::core::{Format, OpSpec, QuantBackend, Shape};
use tersor::model::graph::required_ops;
use tersor::model::{ModelFile, Role, embedded};
use tersor::registry::config::Config;

use crate::Outcome;

/// Rows of a prompt that go through the model together.
const BATCH: usize = 128;

/// The model and what it asks for.
pub(crate) struct Work {
    pub(crate) model: ModelFile,
    pub(crate) specs: Vec<OpSpec>,
    /// Bytes of all its matrices.
    pub(crate) bytes: u64,
}

impl Work {
    pub(crate) fn of_the_embedded_model() -> Outcome<Self> {
        let model = embedded::fable_26m()?;
        let config = model.config();
        let (mut bytes, mut formats) = (0, Vec::new());
        for role in Role::all(config).filter(|r| !r.is_norm()) {
            let (rows, cols) = role.shape(config);
            let format = if role.is_linear() { Format::I2S } else { model.dense(role)?.weight()?.format() };
            bytes += format.encoded_len(Shape::new(rows, cols)?)?.bytes as u64;
            formats.push((role, format));
        }
        let format_of = |role| (formats.iter().find(|(r, _)| *r == role).map_or(Format::F32, |(_, f)| *f), None);
        let mut specs = Vec::new();
        for rows in [1, BATCH] {
            specs.extend(required_ops(config, format_of, rows, config.context_length)?);
        }
        Ok(Work { model, specs, bytes })
    }

    /// How often a token passes through an op: that of a whole prompt counts for each of its tokens as its part.
    pub(crate) fn uses(&self, spec: &OpSpec) -> f64 {
        let config = self.model.config();
        let matrices = |n: usize, k: usize, ternary: bool| {
            Role::all(config).filter(|r| !r.is_norm() && r.is_linear() == ternary && r.shape(config) == (n, k)).count()
        };
        let (count, rows) = match *spec {
            OpSpec::MatMul { format, m, n, k, .. } => (matrices(n, k, format.is_ternary()), m),
            OpSpec::RmsNormQuantize { rows, cols } => {
                let attention = config.heads * config.head_dim;
                let norms = [config.hidden_size, attention, config.hidden_size, config.ffn_size];
                (config.layers * norms.iter().filter(|n| **n == cols).count(), rows)
            }
            OpSpec::Attention { rows, .. } => (config.layers, rows),
            _ => (0, 1),
        };
        count as f64 / rows as f64
    }
}

/// A registry that keeps measurements in `cache`, otherwise with the defaults.
pub(crate) fn registry(cache: &Path) -> Outcome<Registry> {
    registry_with(cache, "")
}

/// The same with more lines of configuration.
pub(crate) fn registry_with(cache: &Path, lines: &str) -> Outcome<Registry> {
    let text = format!("tune.mode = \"cached\"\ntune.cache = '{}'\n{lines}", cache.display());
    Ok(Registry::build(Config::from_toml_str(&text)?)?)
}

/// The fastest backend by static priority.
pub(crate) fn first(registry: &Registry, specs: &[OpSpec]) -> Outcome<std::sync::Arc<dyn QuantBackend>> {
    let all = registry.candidates(specs);
    Ok(all.first().ok_or("no backend does the model's products")?.backend.clone())
}
