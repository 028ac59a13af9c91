//! The memory of a session, allocated once.

use tersor_core::reference::math::rope_tables;
use tersor_core::{Buffer, Element, QuantBackend, Stream};

use crate::config::ModelConfig;
use crate::error::Result;

/// Keys and values of one layer: f32, position after position.
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
    /// The id sampled last.
    pub(crate) next: Buffer<u32>,
    /// 0, 1, 2, .. capacity: the positions of any run of tokens are a range of it.
    pub(crate) count: Buffer<u32>,
    pub(crate) cos: Buffer<f32>,
    pub(crate) sin: Buffer<f32>,
    /// The residual stream.
    pub(crate) x: Buffer<f32>,
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

/// Counts what it allocates.
struct Allocator<'a> {
    backend: &'a dyn QuantBackend,
    bytes: usize,
}

impl Allocator<'_> {
    fn get<T: Element>(&mut self, rows: usize, cols: usize) -> Result<Buffer<T>> {
        // A product that overflows cannot be allocated either; the backend says so.
        let buffer = Buffer::alloc(self.backend, rows.saturating_mul(cols))?;
        self.bytes += buffer.len() * T::DTYPE.size();
        Ok(buffer)
    }
}

impl Buffers {
    /// Memory for `batch` rows at a time, of which `logit_rows` may have logits, and `capacity` positions.
    pub(crate) fn new(
        backend: &dyn QuantBackend,
        stream: &mut dyn Stream,
        config: &ModelConfig,
        (batch, logit_rows, capacity): (usize, usize, usize),
    ) -> Result<Self> {
        let mut a = Allocator { backend, bytes: 0 };
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let caches = (0..config.layers)
            .map(|_| Ok(LayerCache { k: a.get(capacity, kv_width)?, v: a.get(capacity, kv_width)? }))
            .collect::<Result<_>>()?;
        let mut count = a.get(capacity + 1, 1)?;
        count.write(stream, &(0..=capacity as u32).collect::<Vec<_>>())?;
        let (cos_table, sin_table) = rope_tables(config.rope_theta, config.head_dim, capacity);
        let (mut cos, mut sin) = (a.get(1, cos_table.len())?, a.get(1, sin_table.len())?);
        cos.write(stream, &cos_table)?;
        sin.write(stream, &sin_table)?;
        let mut buffers = Buffers {
            caches,
            ids: a.get(batch, 1)?,
            next: a.get(1, 1)?,
            count,
            cos,
            sin,
            x: a.get(batch, hidden)?,
            int8: Int8Rows { q: a.get(batch, hidden.max(ffn).max(q_width))?, scales: a.get(batch, 1)? },
            q: a.get(batch, q_width)?,
            k: a.get(batch, kv_width)?,
            v: a.get(batch, kv_width)?,
            attended: a.get(batch, q_width)?,
            gate: a.get(batch, ffn)?,
            up: a.get(batch, ffn)?,
            gated: a.get(batch, ffn)?,
            normed: a.get(logit_rows, hidden)?,
            logits: a.get(logit_rows, config.vocab_size)?,
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
