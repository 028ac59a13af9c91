//! The weights of a model, packed by the backend that will use them.

use tersor_core::{Buffer, OpSpec, PackedWeight, QuantBackend, Shape, Stream, Support, Weight};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::names::{LayerPart, Role};

use super::needs::product;

/// Where the tensors of a model come from: a file, memory, or another source that this one transforms.
pub trait TensorSource {
    /// The model's hyper-parameters.
    fn config(&self) -> &ModelConfig;

    /// A matrix: a projection in a ternary format, the embedding or the head in a dense one. Where a projection has to be
    /// quantized first, `backend` does it.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] where there is none, [`Error::Tensor`] where it cannot serve.
    fn matrix(&self, role: Role, backend: &dyn QuantBackend) -> Result<Weight>;

    /// The weights of a norm.
    ///
    /// # Errors
    /// As for [`TensorSource::matrix`].
    fn norm(&self, role: Role) -> Result<Vec<f32>>;
}

/// One transformer block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Buffer<f32>,
    pub(crate) q: PackedWeight,
    pub(crate) k: PackedWeight,
    pub(crate) v: PackedWeight,
    pub(crate) attn_sub_norm: Buffer<f32>,
    pub(crate) attn_output: PackedWeight,
    pub(crate) ffn_norm: Buffer<f32>,
    pub(crate) gate: PackedWeight,
    pub(crate) up: PackedWeight,
    pub(crate) ffn_sub_norm: Buffer<f32>,
    pub(crate) down: PackedWeight,
}

/// All weights. The head is absent where the embedding serves as it.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: PackedWeight,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Buffer<f32>,
    pub(crate) head: Option<PackedWeight>,
}

impl Weights {
    /// The head: its own, or the embedding.
    pub(crate) fn head(&self) -> &PackedWeight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Every packed matrix once, with its role.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = (Role, &PackedWeight)> {
        let layers = self.layers.iter().enumerate().flat_map(|(l, w)| {
            use LayerPart as P;
            [
                (P::AttnQ, &w.q),
                (P::AttnK, &w.k),
                (P::AttnV, &w.v),
                (P::AttnOutput, &w.attn_output),
                (P::FfnGate, &w.gate),
                (P::FfnUp, &w.up),
                (P::FfnDown, &w.down),
            ]
            .map(move |(part, w)| (Role::Layer(l, part), w))
        });
        let head = self.head.iter().map(|w| (Role::Output, w));
        std::iter::once((Role::TokenEmbedding, &self.embedding)).chain(layers).chain(head)
    }
}

/// Takes tensors from a source one by one, checks them, and hands them to the backend.
pub(crate) struct Loader<'a> {
    pub(crate) backend: &'a dyn QuantBackend,
    pub(crate) stream: &'a mut dyn Stream,
    pub(crate) source: &'a dyn TensorSource,
    /// Called after each tensor with its role and the bytes it now occupies.
    pub(crate) loaded: &'a mut dyn FnMut(Role, usize),
}

impl Loader<'_> {
    pub(crate) fn weights(&mut self) -> Result<Weights> {
        let config = self.source.config();
        let embedding = self.matrix(Role::TokenEmbedding)?;
        let layers = (0..config.layers).map(|l| self.layer(l)).collect::<Result<_>>()?;
        let output_norm = self.norm(Role::OutputNorm)?;
        let head = if config.tied_head { None } else { Some(self.matrix(Role::Output)?) };
        Ok(Weights { embedding, layers, output_norm, head })
    }

    fn layer(&mut self, l: usize) -> Result<Layer> {
        use LayerPart as P;
        let role = |part| Role::Layer(l, part);
        Ok(Layer {
            attn_norm: self.norm(role(P::AttnNorm))?,
            q: self.matrix(role(P::AttnQ))?,
            k: self.matrix(role(P::AttnK))?,
            v: self.matrix(role(P::AttnV))?,
            attn_sub_norm: self.norm(role(P::AttnSubNorm))?,
            attn_output: self.matrix(role(P::AttnOutput))?,
            ffn_norm: self.norm(role(P::FfnNorm))?,
            gate: self.matrix(role(P::FfnGate))?,
            up: self.matrix(role(P::FfnUp))?,
            ffn_sub_norm: self.norm(role(P::FfnSubNorm))?,
            down: self.matrix(role(P::FfnDown))?,
        })
    }

    /// Packs a matrix. Its canonical bytes are dropped on return, unless the packing borrowed them.
    fn matrix(&mut self, role: Role) -> Result<PackedWeight> {
        let weight = self.source.matrix(role, self.backend)?;
        let _span = tracing::debug_span!("pack", tensor = %role, format = %weight.format()).entered();
        check_matrix(role, &weight, self.source.config())?;
        self.require(role, &weight)?;
        let packed = self.backend.pack(&weight).map_err(|e| Error::from(e).in_tensor(&role.to_string()))?;
        tracing::trace!(packing = packed.tag().packing, bytes = packed.bytes(), borrowed = packed.borrowed());
        if !packed.borrowed() {
            crate::mmap::release(weight.codes());
        }
        (self.loaded)(role, packed.bytes());
        Ok(packed)
    }

    /// Asks the backend before it packs: a model that cannot run should not first be loaded.
    fn require(&self, role: Role, weight: &Weight) -> Result<()> {
        let scale_block = if weight.uniform_scale().is_some() { None } else { weight.format().scale_block() };
        let gather = OpSpec::GatherRows { format: weight.format(), rows: 1, cols: weight.shape().cols() };
        let tied = self.source.config().tied_head;
        let multiply = product(role, weight.format(), scale_block, weight.shape(), 1);
        let specs = [
            (role == Role::TokenEmbedding).then_some(gather),
            (role != Role::TokenEmbedding || tied).then_some(multiply),
        ];
        for spec in specs.into_iter().flatten() {
            if let Support::No { reason } = self.backend.supports(&spec) {
                let missing = format!("tensor {role}: {spec}: {reason}");
                return Err(Error::Backend { backend: self.backend.info().id.to_string(), missing });
            }
        }
        Ok(())
    }

    fn norm(&mut self, role: Role) -> Result<Buffer<f32>> {
        let values = self.source.norm(role)?;
        let (_, need) = role.shape(self.source.config());
        if values.len() != need {
            return Err(Error::tensor(
                role.to_string(),
                format!("has {} elements; the configuration calls for {need}", values.len()),
            ));
        }
        if let Some((at, v)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Err(Error::tensor(role.to_string(), format!("element {at} is {v}; norm weights must be finite")));
        }
        let mut buffer = Buffer::alloc(self.backend, need)?;
        buffer.write(self.stream, &values)?;
        (self.loaded)(role, 4 * need);
        Ok(buffer)
    }
}

/// A tensor must have the shape that its role has in this model, and a format that suits its use.
fn check_matrix(role: Role, weight: &Weight, config: &ModelConfig) -> Result<()> {
    let (rows, cols) = role.shape(config);
    let need = Shape::new(rows, cols)?;
    if weight.shape() != need {
        return Err(Error::tensor(
            role.to_string(),
            format!("has shape {}; the configuration calls for {need}", weight.shape()),
        ));
    }
    let problem = match (role.is_linear(), weight.format().is_ternary()) {
        (true, false) => "is a linear layer and must be ternary here: quantize the model first",
        (false, true) => {
            "must be f32, f16, bf16, q8_0 or q6_k: embedding and head are not ternary in this architecture"
        }
        _ => return Ok(()),
    };
    Err(Error::tensor(role.to_string(), format!("has format {}: it {problem}", weight.format())))
}
