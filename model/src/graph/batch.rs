//! Several sequences on a model, a step of all of them at a time.
//!
//! One pass over a row of each sequence reads the weights once for all. The sequences share a cache, in which each has rows
//! of its own; positions, cache rows and first rows lie in tables in the backend's memory, some steps ahead, so that a step
//! transfers nothing but the ids that were drawn. Tables are written anew when sequences come or go.
//!
//! Every row is computed on its own, so a sequence's tokens are those that it would have alone, bit for bit.

use std::fmt;

use tersor_core::SampleParams;

use crate::error::{Error, Result};

use super::buffers::{Buffers, Room};
use super::forward::{Ids, Of, Pass};
use super::model::Model;
use super::needs::{require, required_batch_ops};
use super::places::{At, Entries};
use super::profile::Profile;
use super::run::Runner;
use super::session::{at_least_one, capacity_of, check_ids};

/// Steps that the tables hold.
const AHEAD: usize = 64;

/// What a batch has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Sequences that it holds at a time.
    pub sequences: usize,
    /// Positions of each; `None`: the model's context length, which is also the most there can be.
    pub capacity: Option<usize>,
    /// Rows of prompts that go through the model together, whichever sequences they belong to.
    pub rows: usize,
    /// Whether to measure each operation.
    pub profile: bool,
}

impl Default for BatchOptions {
    fn default() -> Self {
        BatchOptions { sequences: 8, capacity: None, rows: 128, profile: false }
    }
}

/// A token that was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// The slot of its sequence.
    pub slot: usize,
    /// The token.
    pub id: u32,
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    /// Tokens in the cache.
    position: usize,
    /// Drawn last, not in the cache yet.
    next: u32,
    sampling: SampleParams,
}

/// Sequences that go through a model together; they come with [`Batch::add`] and go with [`Batch::remove`].
///
/// ```
/// use tersor_core::SampleParams;
/// use tersor_model::graph::{Batch, BatchOptions};
/// use tersor_model::{Error, Model};
///
/// /// Four tokens after each prompt.
/// fn continuations(model: &Model, prompts: &[&[u32]]) -> Result<Vec<Vec<u32>>, Error> {
///     let greedy = SampleParams { temperature: 0.0, top_k: None, seed: 0 };
///     let options = BatchOptions { sequences: prompts.len(), ..BatchOptions::default() };
///     let mut batch = Batch::new(model, options)?;
///     let mut texts = vec![Vec::new(); prompts.len()];
///     for first in batch.add(prompts, greedy)? {
///         texts[first.slot].push(first.id);
///     }
///     for _ in 1..4 {
///         for drawn in batch.step()? {
///             texts[drawn.slot].push(drawn.id);
///         }
///     }
///     Ok(texts)
/// }
/// ```
pub struct Batch {
    model: Model,
    options: BatchOptions,
    capacity: usize,
    buffers: Buffers,
    run: Runner,
    slots: Vec<Option<Sequence>>,
    /// The slots of the rows of a step, in order.
    rows: Vec<usize>,
    /// What was drawn last, by row.
    drawn: Vec<Drawn>,
    ids: Vec<u32>,
    entries: Entries,
    /// The step in the tables that comes next, and how many there are; `None` where they have to be written.
    ahead: Option<(usize, usize)>,
}

impl Batch {
    /// Allocates everything that the batch will use, and asks the backend for every operation of its passes.
    ///
    /// # Errors
    /// [`Error::Argument`] for impossible options, [`Error::Backend`] with all operations that the backend lacks,
    /// [`Error::Core`] where memory does not suffice.
    pub fn new(model: &Model, options: BatchOptions) -> Result<Self> {
        let config = model.config();
        let capacity = capacity_of(config, options.capacity)?;
        let sequences = options.sequences;
        at_least_one("sequences", sequences)?;
        at_least_one("rows", options.rows)?;
        if capacity.checked_mul(sequences).is_none_or(|rows| rows > u32::MAX as usize) {
            let need = format!("at most {} of {capacity} positions", u32::MAX as usize / capacity);
            return Err(Error::Argument { what: "sequences", value: sequences.to_string(), need });
        }
        // A step has a row of each sequence, and prompts together are no longer than all positions.
        let rows = options.rows.min(capacity * sequences).max(sequences);
        let backend = &**model.backend();
        for (rows, drawn) in [(1, 1), (sequences, sequences), (rows, sequences)] {
            require(backend, &required_batch_ops(config, |role| model.format_of(role), rows, capacity, drawn)?)?;
        }
        let mut stream = backend.open_stream()?;
        let room = Room { rows, logit_rows: sequences, steps: 1, capacity, sequences: Some((sequences, AHEAD + 1)) };
        let buffers = Buffers::new(backend, &mut *stream, config, room)?;
        let run = Runner::new(stream, options.profile.then(|| Profile::new(config.layers)));
        Ok(Batch {
            model: model.clone(),
            options: BatchOptions { rows, ..options },
            capacity,
            buffers,
            run,
            slots: vec![None; sequences],
            rows: Vec::with_capacity(sequences),
            drawn: Vec::with_capacity(sequences),
            ids: Vec::with_capacity(rows),
            entries: Entries::default(),
            ahead: None,
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Slots, with a sequence or without.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Positions of each sequence.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Slots without a sequence.
    #[must_use]
    pub fn free(&self) -> usize {
        self.slots.iter().filter(|s| s.is_none()).count()
    }

    /// Tokens that the sequence of a slot can still be fed; `None` where there is none.
    #[must_use]
    pub fn room(&self, slot: usize) -> Option<usize> {
        self.slots.get(slot)?.map(|s| self.capacity - s.position)
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

    /// What was measured since the last call; `None` unless [`BatchOptions::profile`] was set.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.run.profile.as_mut().map(|p| std::mem::replace(p, Profile::new(self.model.config().layers)))
    }

    /// Takes the sequence of a slot out. Costs nothing: what it has in the cache is written over before it is read.
    pub fn remove(&mut self, slot: usize) {
        if let Some(sequence) = self.slots.get_mut(slot) {
            *sequence = None;
            self.ahead = None;
        }
    }

    /// Feeds prompts, which get the lowest free slots in order, and draws the first token of each.
    ///
    /// # Errors
    /// [`Error::Argument`] for more prompts than slots are free, [`Error::ContextFull`] for a prompt that is longer than the
    /// capacity, both before anything is computed; errors of the backend, logits that are NaN among them, after which none of
    /// the prompts is in the batch.
    pub fn add(&mut self, prompts: &[&[u32]], sampling: SampleParams) -> Result<&[Drawn]> {
        self.drawn.clear();
        for prompt in prompts {
            check_ids(self.model.config(), prompt)?;
            if prompt.len() > self.capacity {
                let (wanted, limit) = (prompt.len(), String::new());
                return Err(Error::ContextFull { capacity: self.capacity, used: 0, wanted, limit });
            }
        }
        let free: Vec<usize> = (0..self.slots.len()).filter(|s| self.slots[*s].is_none()).take(prompts.len()).collect();
        if free.len() < prompts.len() {
            let need = format!("at most the {} slots that are free", free.len());
            return Err(Error::Argument { what: "prompts", value: prompts.len().to_string(), need });
        }
        if prompts.is_empty() {
            return Ok(&self.drawn);
        }
        let tokens = prompts.iter().map(|p| p.len()).sum::<usize>();
        let _span = tracing::debug_span!("prefill", prompts = prompts.len(), tokens).entered();
        self.ahead = None;
        self.feed(prompts, &free)?;
        let count = prompts.len();
        self.entries.clear();
        self.entries.positions.extend(prompts.iter().map(|p| p.len() as u32));
        self.buffers.places.write(&mut *self.run.stream, &self.entries)?;
        self.pass().logits(Of::Ends, 0..count, 0)?;
        self.pass().sample(sampling, 0..count, At::Table { from: 0, rows: count })?;
        self.ids.resize(count, 0);
        self.buffers.next.read(&mut *self.run.stream, 0, &mut self.ids)?;
        for ((&slot, prompt), &id) in free.iter().zip(prompts).zip(&self.ids) {
            self.slots[slot] = Some(Sequence { position: prompt.len(), next: id, sampling });
            self.drawn.push(Drawn { slot, id });
        }
        Ok(&self.drawn)
    }

    /// Takes the tokens of all prompts through the model, and puts aside what comes of the last of each.
    fn feed(&mut self, prompts: &[&[u32]], slots: &[usize]) -> Result<()> {
        let tokens = prompts.iter().enumerate().flat_map(|(p, ids)| (0..ids.len()).map(move |at| (p, at)));
        let tokens: Vec<(usize, usize)> = tokens.collect();
        for chunk in tokens.chunks(self.options.rows) {
            self.ids.clear();
            self.entries.clear();
            for &(p, at) in chunk {
                let first = slots[p] * self.capacity;
                self.ids.push(prompts[p][at]);
                self.entries.positions.push(at as u32);
                self.entries.places.push((first + at) as u32);
                self.entries.first.push(first as u32);
            }
            self.buffers.ids.write(&mut *self.run.stream, &self.ids)?;
            self.buffers.places.write(&mut *self.run.stream, &self.entries)?;
            self.pass().body(Ids::Chunk, At::Table { from: 0, rows: chunk.len() })?;
            for (row, &(p, at)) in chunk.iter().enumerate() {
                if at + 1 == prompts[p].len() {
                    self.pass().put_aside(row, p)?;
                }
            }
        }
        Ok(())
    }

    /// Feeds the token of each sequence that was drawn last, and draws the next of each. In the order of slots.
    ///
    /// # Errors
    /// [`Error::Order`] where there is no sequence, [`Error::ContextFull`] where one is full (remove it), both before
    /// anything is computed; errors of the backend, after which all sequences are as they were.
    pub fn step(&mut self) -> Result<&[Drawn]> {
        self.drawn.clear();
        let (step, rows) = match self.ahead {
            Some((step, steps)) if step < steps => (step, self.rows.len()),
            _ => (0, self.look_ahead()?),
        };
        let _span = tracing::trace_span!("decode", sequences = rows).entered();
        // Whatever fails below, the tables are written again.
        let steps = self.ahead.take().map_or(0, |(_, steps)| steps);
        self.pass().body(Ids::Sampled(0), At::Table { from: step * rows, rows })?;
        self.pass().logits(Of::Stream, 0..rows, 0)?;
        // Rows that are drawn in the same way are drawn together.
        let mut from = 0;
        while from < rows {
            let params = self.sampling(from);
            let to = (from..rows).find(|row| self.sampling(*row) != params).unwrap_or(rows);
            let at = At::Table { from: (step + 1) * rows + from, rows: to - from };
            if let Some(params) = params {
                self.pass().sample(params, from..to, at)?;
            }
            from = to;
        }
        self.ids.resize(rows, 0);
        self.buffers.next.read(&mut *self.run.stream, 0, &mut self.ids)?;
        for (&slot, &id) in self.rows.iter().zip(&self.ids) {
            if let Some(sequence) = &mut self.slots[slot] {
                sequence.position += 1;
                sequence.next = id;
            }
            self.drawn.push(Drawn { slot, id });
        }
        self.ahead = Some((step + 1, steps));
        Ok(&self.drawn)
    }

    fn sampling(&self, row: usize) -> Option<SampleParams> {
        self.slots[self.rows[row]].map(|s| s.sampling)
    }

    /// Writes the tables for the next steps, until a sequence is full, and the ids that the first of them feeds. Returns the
    /// rows of a step.
    fn look_ahead(&mut self) -> Result<usize> {
        let active = || self.slots.iter().enumerate().filter_map(|(slot, s)| s.map(|s| (slot, s)));
        let Some((_, fullest)) = active().max_by_key(|(_, s)| s.position) else {
            return Err(Error::Order { call: "step", need: "a sequence: add one" });
        };
        let steps = AHEAD.min(self.capacity - fullest.position);
        if steps == 0 {
            let (used, limit) = (fullest.position, String::new());
            return Err(Error::ContextFull { capacity: self.capacity, used, wanted: 1, limit });
        }
        self.rows.clear();
        self.rows.extend(active().map(|(slot, _)| slot));
        self.ids.clear();
        self.ids.extend(active().map(|(_, s)| s.next));
        self.entries.clear();
        // The last entries are the positions of what the last step draws.
        for step in 0..=steps {
            for (slot, s) in active() {
                self.entries.positions.push((s.position + step) as u32);
                self.entries.places.push((slot * self.capacity + s.position + step) as u32);
            }
        }
        self.entries.first.extend(active().map(|(slot, _)| (slot * self.capacity) as u32));
        let stream = &mut *self.run.stream;
        self.buffers.places.write(stream, &self.entries)?;
        self.buffers.next.write(stream, &self.ids)?;
        self.ahead = Some((0, steps));
        Ok(self.rows.len())
    }

    fn pass(&mut self) -> Pass<'_> {
        Pass {
            config: self.model.config(),
            weights: self.model.weights(),
            buffers: &mut self.buffers,
            run: &mut self.run,
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("backend", &self.model.backend().info().id)
            .field("options", &self.options)
            .field("capacity", &self.capacity)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}
