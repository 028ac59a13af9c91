//! A model on a backend.

use std::sync::Arc;

use tersor_core::{Format, QuantBackend};

use crate::config::{Activation, ModelConfig};
use crate::error::{Error, Result};
use crate::names::Role;

use super::weights::{Loader, TensorSource, Weights};

/// How far [`Model::load`] has come, told after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress {
    /// The tensor just loaded.
    pub role: Role,
    /// Tensors loaded so far.
    pub done: usize,
    /// Tensors of the model.
    pub total: usize,
    /// Bytes that they occupy in the backend's memory so far.
    pub bytes: usize,
}

/// A checked configuration and weights that one backend packed. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Model {
    shared: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    backend: Arc<dyn QuantBackend>,
    config: ModelConfig,
    weights: Weights,
    bytes: usize,
}

impl Model {
    /// Reads every tensor from `source`, checks it against the configuration, and has `backend` pack it.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration that is impossible or not this graph's, [`Error::Tensor`] for a tensor of the
    /// wrong shape or kind, [`Error::Backend`] where the backend does not do a tensor's product, [`Error::InTensor`] where it
    /// cannot pack it.
    pub fn load(
        backend: Arc<dyn QuantBackend>,
        source: &dyn TensorSource,
        mut progress: impl FnMut(LoadProgress),
    ) -> Result<Self> {
        let config = source.config().clone();
        let _span = tracing::debug_span!("load", model = config.name, backend = %backend.info().id).entered();
        config.validate()?;
        if config.activation != Activation::SquaredRelu {
            return Err(Error::Config {
                key: "activation".to_owned(),
                value: config.activation.hf_name().to_owned(),
                problem: "this graph computes relu2, the squared ReLU of BitNet b1.58 2B-4T".to_owned(),
            });
        }
        let mut stream = backend.open_stream()?;
        let mut seen =
            LoadProgress { role: Role::TokenEmbedding, done: 0, total: Role::all(&config).count(), bytes: 0 };
        let mut loaded = |role, bytes| {
            seen = LoadProgress { role, done: seen.done + 1, total: seen.total, bytes: seen.bytes + bytes };
            progress(seen);
        };
        let weights = Loader { backend: &*backend, stream: &mut *stream, source, loaded: &mut loaded }.weights()?;
        stream.synchronize()?;
        tracing::debug!(bytes = seen.bytes, "loaded");
        Ok(Model { shared: Arc::new(Loaded { backend, config, weights, bytes: seen.bytes }) })
    }

    /// The backend that holds the weights.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn QuantBackend> {
        &self.shared.backend
    }

    /// The hyper-parameters.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    /// Bytes of all weights as packed, borrowed ones included.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.shared.bytes
    }

    /// Bytes of packed weights that one token reads: everything but the embedding's rows that it does not look up.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        let untied = if self.weights().head.is_some() { self.weights().embedding.bytes() } else { 0 };
        self.shared.bytes - untied
    }

    /// Format of a matrix, and weights of a row that share a scale.
    pub(crate) fn format_of(&self, role: Role) -> (Format, Option<usize>) {
        let found = self.weights().matrices().find(|(r, _)| *r == role).map(|(_, w)| w);
        let packed = found.unwrap_or(&self.weights().embedding);
        (packed.format(), packed.scale_block())
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.shared.weights
    }
}
