//! The memory of a session, allocated once.

use tersor_core::reference::math::rope_tables;
use tersor_core::{Buffer, Element, QuantBackend, Stream};

use crate::config::ModelConfig;
use crate::error::Result;

use super::places::Places;

/// Keys and values of one layer: f32, position after position, sequence after sequence.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) k: Buffer<f32>,
    pub(crate) v: Buffer<f32>,
}

/// Rows of int8 activations with their scales.
#[derive(Debug)]
pub(crate) struct Int8Rows {
    pub(crate) q: Buffer<i8>,
    pub(crate) scales: Buffer<f32>,
}

/// What a pass reads and writes besides weights. Each is as long as its widest use needs.
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) caches: Vec<LayerCache>,
    /// Ids of the rows of a chunk.
    pub(crate) ids: Buffer<u32>,
    /// The ids sampled last, one for each sequence; of one sequence alone, those of its last steps.
    pub(crate) next: Buffer<u32>,
    pub(crate) places: Places,
    pub(crate) cos: Buffer<f32>,
    pub(crate) sin: Buffer<f32>,
    /// The residual stream.
    pub(crate) x: Buffer<f32>,
    /// Rows of it that were put aside until their logits are wanted, one for each sequence; none where there is one sequence.
    pub(crate) ends: Buffer<f32>,
    pub(crate) int8: Int8Rows,
    pub(crate) q: Buffer<f32>,
    pub(crate) k: Buffer<f32>,
    pub(crate) v: Buffer<f32>,
    pub(crate) attended: Buffer<f32>,
    pub(crate) gate: Buffer<f32>,
    pub(crate) up: Buffer<f32>,
    pub(crate) gated: Buffer<f32>,
    /// The residual stream after the final norm, for the rows whose logits are wanted.
    pub(crate) normed: Buffer<f32>,
    pub(crate) logits: Buffer<f32>,
    bytes: usize,
}

/// What there is to be room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Rows that go through the model together.
    pub(crate) rows: usize,
    /// Rows whose logits are computed together.
    pub(crate) logit_rows: usize,
    /// Rows of logits and ids that the steps of a sequence go round in.
    pub(crate) steps: usize,
    /// Positions of a sequence.
    pub(crate) capacity: usize,
    /// Several sequences, and passes that are written into the tables at once; `None`: one sequence without tables.
    pub(crate) sequences: Option<(usize, usize)>,
}

/// Counts what it allocates.
pub(crate) struct Allocator<'a> {
    backend: &'a dyn QuantBackend,
    bytes: usize,
}

impl Allocator<'_> {
    pub(crate) fn get<T: Element>(&mut self, rows: usize, cols: usize) -> Result<Buffer<T>> {
        // A product that overflows cannot be allocated either; the backend says so.
        let buffer = Buffer::alloc(self.backend, rows.saturating_mul(cols))?;
        self.bytes += buffer.len() * T::DTYPE.size();
        Ok(buffer)
    }
}

impl Buffers {
    /// Memory for so much.
    pub(crate) fn new(
        backend: &dyn QuantBackend,
        stream: &mut dyn Stream,
        config: &ModelConfig,
        room: Room,
    ) -> Result<Self> {
        let mut a = Allocator { backend, bytes: 0 };
        let Room { rows: batch, logit_rows, steps, capacity, sequences } = room;
        let (slots, passes) = sequences.unwrap_or((1, 0));
        let cached = capacity.saturating_mul(slots);
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let caches = (0..config.layers)
            .map(|_| Ok(LayerCache { k: a.get(cached, kv_width)?, v: a.get(cached, kv_width)? }))
            .collect::<Result<_>>()?;
        let tables = sequences.map(|_| (batch.max(slots.saturating_mul(passes)), batch.max(slots)));
        let places = Places::new(&mut a, stream, capacity, tables)?;
        let (cos_table, sin_table) = rope_tables(config.rope_theta, config.head_dim, capacity);
        let (mut cos, mut sin) = (a.get(1, cos_table.len())?, a.get(1, sin_table.len())?);
        cos.write(stream, &cos_table)?;
        sin.write(stream, &sin_table)?;
        let mut buffers = Buffers {
            caches,
            ids: a.get(batch, 1)?,
            next: a.get(slots.max(steps), 1)?,
            places,
            cos,
            sin,
            x: a.get(batch, hidden)?,
            ends: a.get(if sequences.is_some() { slots } else { 0 }, hidden)?,
            int8: Int8Rows { q: a.get(batch, hidden.max(ffn).max(q_width))?, scales: a.get(batch, 1)? },
            q: a.get(batch, q_width)?,
            k: a.get(batch, kv_width)?,
            v: a.get(batch, kv_width)?,
            attended: a.get(batch, q_width)?,
            gate: a.get(batch, ffn)?,
            up: a.get(batch, ffn)?,
            gated: a.get(batch, ffn)?,
            normed: a.get(logit_rows, hidden)?,
            logits: a.get(logit_rows.max(steps), config.vocab_size)?,
            bytes: 0,
        };
        buffers.bytes = a.bytes;
        Ok(buffers)
    }

    /// Bytes of all of it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
