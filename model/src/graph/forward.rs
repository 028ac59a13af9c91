//! The pass itself: which operation, on which buffers, in which order.

use std::ops::Range;

use tersor_core::{Activations, Buffer, DType, Epilogue, In, Op, Output, PackedWeight, SampleParams};

use crate::config::ModelConfig;
use crate::error::Result;

use super::buffers::{Buffers, Int8Rows, LayerCache};
use super::places::At;
use super::profile::Place;
use super::run::Runner;
use super::weights::{Layer, Weights};

/// Where the ids of a pass are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// In the chunk's buffer, written by the host.
    Chunk,
    /// In the buffer that sampling wrote, from this one on.
    Sampled(usize),
}

/// Whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Rows of the residual stream.
    Stream,
    /// Rows of it that were put aside.
    Ends,
}

/// One pass: what it computes with and where it leaves the results.
pub(crate) struct Pass<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) weights: &'a Weights,
    pub(crate) buffers: &'a mut Buffers,
    pub(crate) run: &'a mut Runner,
}

impl Pass<'_> {
    /// Embeds the ids that stand at `at` and takes them through all blocks.
    pub(crate) fn body(&mut self, ids: Ids, at: At) -> Result<()> {
        let b = &mut *self.buffers;
        self.run.place = Place::Embedding;
        let ids = match ids {
            Ids::Chunk => b.ids.input_range(0..at.rows()),
            Ids::Sampled(from) => b.next.input_range(from..from + at.rows()),
        };
        let y = b.x.output_range(0..at.rows() * self.config.hidden_size);
        self.run.run(Op::GatherRows { table: &self.weights.embedding, ids, y })?;
        (0..self.config.layers).try_for_each(|l| self.block(l, at))
    }

    /// Takes the residual stream, whose rows stand at `at`, through block `l`.
    pub(crate) fn block(&mut self, l: usize, at: At) -> Result<()> {
        self.run.place = Place::Layer(l);
        let layer = &self.weights.layers[l];
        self.attention(l, layer, at)?;
        self.feed_forward(layer, at.rows())
    }

    fn attention(&mut self, l: usize, layer: &Layer, at: At) -> Result<()> {
        let (b, run, c) = (&mut *self.buffers, &mut *self.run, self.config);
        let rows = at.rows();
        let (q_len, width) = (rows * c.heads * c.head_dim, c.kv_heads * c.head_dim);
        norm_quantize(run, c, &b.x, &layer.attn_norm, rows, &mut b.int8)?;
        multiply(run, &layer.q, &b.int8, rows, &mut b.q, Epilogue::Store)?;
        multiply(run, &layer.k, &b.int8, rows, &mut b.k, Epilogue::Store)?;
        multiply(run, &layer.v, &b.int8, rows, &mut b.v, Epilogue::Store)?;
        for (x, len) in [(&mut b.q, q_len), (&mut b.k, rows * width)] {
            run.run(Op::Rope {
                x: x.output_range(0..len),
                head_dim: c.head_dim,
                positions: b.places.positions(at),
                cos: b.cos.input(),
                sin: b.sin.input(),
            })?;
        }
        let LayerCache { k, v } = &mut b.caches[l];
        run.run(Op::KvWrite {
            k: b.k.input_range(0..rows * width),
            v: b.v.input_range(0..rows * width),
            width,
            positions: b.places.rows(at),
            k_cache: k.output(),
            v_cache: v.output(),
        })?;
        run.run(Op::Attention {
            q: b.q.input_range(0..q_len),
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            positions: b.places.rows(at),
            span: b.places.span(at),
            k_cache: k.input(),
            v_cache: v.input(),
            y: b.attended.output_range(0..q_len),
        })?;
        norm_quantize(run, c, &b.attended, &layer.attn_sub_norm, rows, &mut b.int8)?;
        multiply(run, &layer.attn_output, &b.int8, rows, &mut b.x, Epilogue::Add)
    }

    fn feed_forward(&mut self, layer: &Layer, rows: usize) -> Result<()> {
        let (b, run, c) = (&mut *self.buffers, &mut *self.run, self.config);
        norm_quantize(run, c, &b.x, &layer.ffn_norm, rows, &mut b.int8)?;
        multiply(run, &layer.gate, &b.int8, rows, &mut b.gate, Epilogue::Store)?;
        multiply(run, &layer.up, &b.int8, rows, &mut b.up, Epilogue::Store)?;
        let len = rows * c.ffn_size;
        run.run(Op::ReluSquaredMul {
            gate: b.gate.input_range(0..len),
            up: b.up.input_range(0..len),
            y: b.gated.output_range(0..len),
        })?;
        norm_quantize(run, c, &b.gated, &layer.ffn_sub_norm, rows, &mut b.int8)?;
        multiply(run, &layer.down, &b.int8, rows, &mut b.x, Epilogue::Add)
    }

    /// Puts a row of the residual stream aside as the end of the `to`th prompt.
    pub(crate) fn put_aside(&mut self, row: usize, to: usize) -> Result<()> {
        let (b, hidden) = (&mut *self.buffers, self.config.hidden_size);
        self.run.place = Place::Head;
        let x = b.x.input_range(row * hidden..(row + 1) * hidden);
        self.run.run(Op::Copy { x, y: b.ends.output_range(to * hidden..(to + 1) * hidden) })
    }

    /// Logits of the given rows, into the rows of the logits' buffer from `to` on.
    pub(crate) fn logits(&mut self, of: Of, rows: Range<usize>, to: usize) -> Result<()> {
        let (b, run, hidden) = (&mut *self.buffers, &mut *self.run, self.config.hidden_size);
        run.place = Place::Head;
        let from = match of {
            Of::Stream => &b.x,
            Of::Ends => &b.ends,
        };
        let x = from.input_range(rows.start * hidden..rows.end * hidden);
        let (head, vocab) = (self.weights.head(), self.config.vocab_size);
        let logits = to * vocab..(to + rows.len()) * vocab;
        if head.format().activations() == DType::I8 {
            norm_quantize_rows(run, self.config, x, &self.weights.output_norm, &mut b.int8)?;
            let int8 = &b.int8;
            return run.run(Op::MatMul {
                w: head,
                x: Activations::Int8 {
                    q: int8.q.input_range(0..rows.len() * hidden),
                    scales: int8.scales.input_range(0..rows.len()),
                },
                y: Output::F32(b.logits.output_range(logits)),
                epilogue: Epilogue::Store,
            });
        }
        run.run(Op::RmsNorm {
            x,
            w: self.weights.output_norm.input(),
            eps: self.config.rms_eps,
            y: b.normed.output_range(0..rows.len() * hidden),
        })?;
        run.run(Op::MatMul {
            w: head,
            x: Activations::F32(b.normed.input_range(0..rows.len() * hidden)),
            y: Output::F32(b.logits.output_range(logits)),
            epilogue: Epilogue::Store,
        })
    }

    /// Draws a token from each of the given rows of logits, into the same rows of ids. Where it stands in its sequence is what `at` says.
    pub(crate) fn sample(&mut self, params: SampleParams, rows: Range<usize>, at: At) -> Result<()> {
        self.run.place = Place::Head;
        let (b, vocab) = (&mut *self.buffers, self.config.vocab_size);
        self.run.run(Op::Sample {
            logits: b.logits.input_range(rows.start * vocab..rows.end * vocab),
            params,
            steps: b.places.positions(at),
            ids: b.next.output_range(rows),
        })
    }
}

/// Norms the rows of `x` and quantizes them.
fn norm_quantize(
    run: &mut Runner,
    config: &ModelConfig,
    x: &Buffer<f32>,
    w: &Buffer<f32>,
    rows: usize,
    to: &mut Int8Rows,
) -> Result<()> {
    norm_quantize_rows(run, config, x.input_range(0..rows * w.len()), w, to)
}

/// The same for rows that lie anywhere.
fn norm_quantize_rows(
    run: &mut Runner,
    config: &ModelConfig,
    x: In<'_, f32>,
    w: &Buffer<f32>,
    to: &mut Int8Rows,
) -> Result<()> {
    let (len, rows) = (x.len(), x.len() / w.len());
    run.run(Op::RmsNormQuantize {
        x,
        w: w.input(),
        eps: config.rms_eps,
        q: to.q.output_range(0..len),
        scales: to.scales.output_range(0..rows),
    })
}

/// Multiplies int8 rows by a ternary weight.
fn multiply(
    run: &mut Runner,
    w: &PackedWeight,
    x: &Int8Rows,
    rows: usize,
    y: &mut Buffer<f32>,
    epilogue: Epilogue,
) -> Result<()> {
    run.run(Op::MatMul {
        w,
        x: Activations::Int8 { q: x.q.input_range(0..rows * w.shape().cols()), scales: x.scales.input_range(0..rows) },
        y: Output::F32(y.output_range(0..rows * w.shape().rows())),
        epilogue,
    })
}
