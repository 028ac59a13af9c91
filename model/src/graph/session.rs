//! One sequence on a model.

use std::collections::VecDeque;
use std::fmt;

use tersor_core::SampleParams;

use crate::config::ModelConfig;
use crate::error::{Error, Result};

use super::buffers::{Buffers, Room};
use super::forward::{Ids, Of, Pass};
use super::model::Model;
use super::needs::{require, required_ops};
use super::places::At;
use super::profile::Profile;
use super::run::Runner;
use super::steps::{Before, Begun, ROWS, STEPS};

/// What a session has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Positions of the key/value cache; `None`: the model's context length, which is also the most there can be.
    pub capacity: Option<usize>,
    /// Rows of a prompt that go through the model together. More rows read the weights less often and take more memory.
    pub batch: usize,
    /// Rows whose logits are computed together, where logits of more than the last are wanted.
    pub logit_rows: usize,
    /// Whether to measure each operation.
    pub profile: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        // 128 rows amortise the decoding of the weights; beyond that the working set leaves the second-level cache.
        SessionOptions { capacity: None, batch: 128, logit_rows: 1, profile: false }
    }
}

/// A sequence: its key/value cache, the buffers of the pass, and the stream that the work goes through.
///
/// ```
/// use tersor_core::SampleParams;
/// use tersor_model::{Error, Model, Session, SessionOptions};
///
/// fn continuation(model: &Model, prompt: &[u32]) -> Result<Vec<u32>, Error> {
///     let greedy = SampleParams { temperature: 0.0, top_k: None, seed: 0 };
///     let mut session = Session::new(model, SessionOptions::default())?;
///     session.prefill(prompt)?;
///     let mut ids = vec![session.sample(greedy)?];
///     while session.room() > 0 {
///         ids.push(session.step(greedy)?); // feeds the token that was sampled last
///     }
///     Ok(ids)
/// }
/// ```
pub struct Session {
    model: Model,
    options: SessionOptions,
    capacity: usize,
    pub(super) buffers: Buffers,
    pub(super) run: Runner,
    /// Tokens in the cache.
    pub(super) position: usize,
    /// What the row of logits and the sampled id belong to.
    pub(super) state: State,
    /// The row of the logits' buffer, and the id, that are the last token's.
    pub(super) row: usize,
    /// Steps whose tokens have not been asked for, the oldest first.
    pub(super) begun: VecDeque<Begun>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// There are no logits of the last token.
    Empty,
    /// The row of logits is the last token's.
    Logits,
    /// A token was drawn from them.
    Sampled,
}

impl Session {
    /// Allocates everything that the session will use, and asks the backend for every operation of the pass.
    ///
    /// # Errors
    /// [`Error::Argument`] for impossible options, [`Error::Backend`] with all operations that the backend lacks,
    /// [`Error::Core`] where memory does not suffice.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self> {
        let config = model.config();
        let capacity = capacity_of(config, options.capacity)?;
        at_least_one("batch", options.batch)?;
        at_least_one("logit_rows", options.logit_rows)?;
        let batch = options.batch.min(capacity);
        let logit_rows = options.logit_rows.min(batch);
        let options = SessionOptions { batch, logit_rows, ..options };
        let backend = &**model.backend();
        for rows in [1, batch] {
            require(backend, &required_ops(config, |role| model.format_of(role), rows, capacity)?)?;
        }
        let mut stream = backend.open_stream()?;
        let room = Room { rows: batch, logit_rows, steps: ROWS, capacity, sequences: None };
        let buffers = Buffers::new(backend, &mut *stream, config, room)?;
        let run = Runner::new(stream, options.profile.then(|| Profile::new(config.layers)));
        let begun = VecDeque::with_capacity(STEPS);
        let (model, state) = (model.clone(), State::Empty);
        Ok(Session { model, options, capacity, buffers, run, position: 0, state, row: 0, begun })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens in the cache, those of steps that were begun included.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens that still fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity - self.position
    }

    /// Bytes of cache and activations.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffers.bytes()
    }

    /// Kernels that ran so far, in the order of their first use.
    #[must_use]
    pub fn kernels(&self) -> &[&'static str] {
        self.run.kernels()
    }

    /// What was measured since the last call; `None` unless [`SessionOptions::profile`] was set.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.run.profile.as_mut().map(|p| std::mem::replace(p, Profile::new(self.model.config().layers)))
    }

    /// Forgets all tokens, and steps that were begun. Costs nothing: positions are written before they are read.
    pub fn reset(&mut self) {
        self.begun.clear();
        self.restore(Before { position: 0, state: State::Empty, row: 0 });
    }

    /// Appends tokens. Afterwards the logits of the last one can be sampled or read.
    ///
    /// # Errors
    /// [`Error::ContextFull`] before anything is computed; errors of the backend, after which the session holds the
    /// tokens that went through before.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        let _span = tracing::debug_span!("prefill", tokens = ids.len()).entered();
        self.admit("prefill", ids)?;
        for chunk in ids.chunks(self.options.batch) {
            self.chunk(chunk)?;
        }
        let last = (ids.len() - 1) % self.options.batch;
        self.pass().logits(Of::Stream, last..last + 1, 0)?;
        self.state = State::Logits;
        self.run.stream.synchronize()?;
        Ok(())
    }

    /// Appends tokens and hands out the logits of each: `each(position, logits)`, in order.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_logits(&mut self, ids: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        let _span = tracing::debug_span!("prefill", tokens = ids.len(), logits = true).entered();
        self.admit("prefill_logits", ids)?;
        let vocab = self.model.config().vocab_size;
        let mut host = vec![0.0; self.options.logit_rows * vocab];
        for chunk in ids.chunks(self.options.batch) {
            let first = self.position;
            self.chunk(chunk)?;
            for start in (0..chunk.len()).step_by(self.options.logit_rows) {
                let rows = start..chunk.len().min(start + self.options.logit_rows);
                self.pass().logits(Of::Stream, rows.clone(), 0)?;
                let host = &mut host[..rows.len() * vocab];
                self.buffers.logits.read(&mut *self.run.stream, 0, host)?;
                rows.zip(host.chunks_exact(vocab)).for_each(|(row, logits)| each(first + row, logits));
            }
        }
        // Sampling reads the first row; where the last token's logits are in another, compute them there.
        let last = (ids.len() - 1) % self.options.batch;
        if !last.is_multiple_of(self.options.logit_rows) {
            self.pass().logits(Of::Stream, last..last + 1, 0)?;
        }
        self.state = State::Logits;
        Ok(())
    }

    /// Draws a token from the logits of the last one. It is not in the cache yet: [`Session::step`] feeds it.
    ///
    /// # Errors
    /// [`Error::Order`] where nothing was fed; errors of the backend, logits that are NaN among them.
    pub fn sample(&mut self, params: SampleParams) -> Result<u32> {
        self.all_finished("sample")?;
        if self.state == State::Empty {
            return Err(Error::Order { call: "sample", need: "logits: feed tokens with prefill or step" });
        }
        let (row, at) = (self.row, At::Run { first: self.position, rows: 1 });
        self.pass().sample(params, row..row + 1, at)?;
        let mut id = [0];
        self.buffers.next.read(&mut *self.run.stream, row, &mut id)?;
        self.state = State::Sampled;
        Ok(id[0])
    }

    /// The logits of the last token.
    ///
    /// # Errors
    /// [`Error::Order`] where nothing was fed; errors of the backend.
    pub fn logits(&mut self) -> Result<Vec<f32>> {
        self.all_finished("logits")?;
        if self.state == State::Empty {
            return Err(Error::Order { call: "logits", need: "a token: feed some with prefill or step" });
        }
        let mut host = vec![0.0; self.model.config().vocab_size];
        self.buffers.logits.read(&mut *self.run.stream, self.row * host.len(), &mut host)?;
        Ok(host)
    }

    /// Takes rows of a residual stream, at the positions 0, 1, .., through one block, and returns what leaves it. For
    /// comparing blocks with references; the session is reset.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer that is not there or rows of the wrong length, [`Error::ContextFull`] for more rows
    /// than [`SessionOptions::batch`].
    pub fn forward_from_hidden(&mut self, layer: usize, hidden: &[f32]) -> Result<Vec<f32>> {
        let config = self.model.config();
        let (layers, width) = (config.layers, config.hidden_size);
        if layer >= layers {
            let need = format!("below the {layers} layers of the model");
            return Err(Error::Argument { what: "layer", value: layer.to_string(), need });
        }
        let rows = hidden.len() / width;
        if rows == 0 || rows * width != hidden.len() {
            let need = format!("one or more rows of {width}");
            return Err(Error::Argument { what: "length of hidden", value: hidden.len().to_string(), need });
        }
        if rows > self.options.batch {
            return Err(self.full(rows, self.options.batch));
        }
        self.reset();
        self.buffers.x.write(&mut *self.run.stream, hidden)?;
        self.pass().block(layer, At::Run { first: 0, rows })?;
        let mut out = vec![0.0; hidden.len()];
        self.buffers.x.read(&mut *self.run.stream, 0, &mut out)?;
        Ok(out)
    }

    /// One chunk through all blocks.
    fn chunk(&mut self, ids: &[u32]) -> Result<()> {
        (self.state, self.row) = (State::Empty, 0);
        self.buffers.ids.write(&mut *self.run.stream, ids)?;
        let at = At::Run { first: self.position, rows: ids.len() };
        self.pass().body(Ids::Chunk, at)?;
        self.position += ids.len();
        Ok(())
    }

    pub(super) fn pass(&mut self) -> Pass<'_> {
        Pass {
            config: self.model.config(),
            weights: self.model.weights(),
            buffers: &mut self.buffers,
            run: &mut self.run,
        }
    }

    /// Ids are checked here, because an id in device memory cannot be checked when the lookup is submitted.
    fn admit(&self, call: &'static str, ids: &[u32]) -> Result<()> {
        self.all_finished(call)?;
        check_ids(self.model.config(), ids)?;
        self.room_for(ids.len())
    }

    pub(super) fn room_for(&self, tokens: usize) -> Result<()> {
        if tokens <= self.room() { Ok(()) } else { Err(self.full(tokens, self.capacity)) }
    }

    fn full(&self, wanted: usize, capacity: usize) -> Error {
        let most = self.model.config().context_length;
        let limit = if self.capacity == most { format!(" (the model's own limit is {most})") } else { String::new() };
        Error::ContextFull { capacity, used: self.position, wanted, limit }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("backend", &self.model.backend().info().id)
            .field("options", &self.options)
            .field("capacity", &self.capacity)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Positions that a sequence has: as many as were asked for, or all that the model was trained for.
pub(super) fn capacity_of(config: &ModelConfig, wanted: Option<usize>) -> Result<usize> {
    let capacity = wanted.unwrap_or(config.context_length);
    at_least_one("capacity", capacity)?;
    if capacity <= config.context_length {
        return Ok(capacity);
    }
    let need = format!("at most the {} positions that the model was trained for", config.context_length);
    Err(Error::Argument { what: "capacity", value: capacity.to_string(), need })
}

/// Tokens of the vocabulary, and at least one.
pub(super) fn check_ids(config: &ModelConfig, ids: &[u32]) -> Result<()> {
    at_least_one("number of tokens", ids.len())?;
    let limit = config.vocab_size;
    match ids.iter().enumerate().find(|(_, id)| **id as usize >= limit) {
        None => Ok(()),
        Some((at, &id)) => {
            Err(tersor_core::Error::OutOfRange { what: "token ids", at, value: id as usize, limit }.into())
        }
    }
}

pub(super) fn at_least_one(what: &'static str, value: usize) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::Argument { what, value: "0".to_owned(), need: "at least 1".to_owned() }) }
}
