//! A step of a session, and its halves: a device can begin the next step before the token that this one drew is known.
//!
//! The token that a step feeds is in the backend's memory, where the step before it left it, so the host need not have seen it.
//! What a step leaves, its logits and its token, goes to the next of three rows. So a step that turns out to be too many is
//! taken back by going back to the row before; all else that it wrote is written over before it is read.

use tersor_core::{Buffer, Download, SampleParams};

use crate::error::{Error, Result};

use super::forward::{Ids, Of};
use super::places::At;
use super::session::{Session, State};

/// Steps that can be begun before the first of them is finished.
pub(super) const STEPS: usize = 2;
/// Rows of logits: theirs, and those of the token that they began with.
pub(super) const ROWS: usize = STEPS + 1;

/// A step that was begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: Download,
    pub(super) before: Before,
}

/// What a step changes about a session, but for what is written over before it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    pub(super) position: usize,
    pub(super) state: State,
    pub(super) row: usize,
}

impl Session {
    /// Whether the backend gains by [`Session::begin_step`] before the step ahead is finished. Not where operations are
    /// measured, one by one.
    #[must_use]
    pub fn runs_ahead(&self) -> bool {
        self.run.stream.runs_ahead() && self.run.profile.is_none()
    }

    /// Steps that were begun and not finished.
    #[must_use]
    pub fn steps_begun(&self) -> usize {
        self.begun.len()
    }

    /// Feeds the token that was sampled last, and draws the next one.
    ///
    /// # Errors
    /// [`Error::ContextFull`] where the cache is full; [`Error::Order`] where no token was sampled; errors of the
    /// backend.
    pub fn step(&mut self, params: SampleParams) -> Result<u32> {
        self.all_finished("step")?;
        // Nobody can take it back, so it may write over the logits that it began with.
        self.begin("step", params, self.row)?;
        self.finish_step()
    }

    /// Begins a step: feeds the token that was sampled last, and draws the next one, which [`Session::finish_step`] returns.
    /// Where [`Session::runs_ahead`], a device works on this step while the token of the one before is looked at: two steps
    /// can be begun.
    ///
    /// ```
    /// use tersor_core::SampleParams;
    /// use tersor_model::{Error, Session};
    ///
    /// /// Tokens up to the first that is `last`, which is left to be fed.
    /// fn until(session: &mut Session, last: u32, params: SampleParams) -> Result<Vec<u32>, Error> {
    ///     let mut ids = vec![session.sample(params)?];
    ///     session.begin_step(params)?;
    ///     while !ids.ends_with(&[last]) {
    ///         session.begin_step(params)?; // with the token of the step before, which is not known here yet
    ///         ids.push(session.finish_step()?);
    ///     }
    ///     session.take_back()?; // one step too many
    ///     Ok(ids)
    /// }
    /// ```
    ///
    /// # Errors
    /// As for [`Session::step`]; [`Error::Order`] where two steps are begun. What was begun before stays as it was.
    pub fn begin_step(&mut self, params: SampleParams) -> Result<()> {
        if self.begun.len() == STEPS {
            return Err(Error::Order { call: "begin_step", need: "the steps that were begun to be finished" });
        }
        self.begin("begin_step", params, (self.row + 1) % ROWS)
    }

    /// The token of the step that was begun first.
    ///
    /// # Errors
    /// [`Error::Order`] where no step was begun; errors of the backend, logits that are NaN among them, after which the
    /// logits of that step can be read, and a step that was begun after it is taken back.
    pub fn finish_step(&mut self) -> Result<u32> {
        let Some(step) = self.begun.pop_front() else {
            return Err(Error::Order { call: "finish_step", need: "a step: call begin_step first" });
        };
        let mut id = [0];
        match Buffer::finish_read(&mut *self.run.stream, step.id, &mut id) {
            Ok(()) => Ok(id[0]),
            Err(e) => {
                // They were fed what is no token. The first error is the one that is told.
                while !self.begun.is_empty() {
                    let _ = self.take_back();
                }
                self.state = State::Logits;
                Err(e.into())
            }
        }
    }

    /// Takes back the step that was begun last: everything is as before it, and what went wrong in it is forgotten.
    ///
    /// # Errors
    /// [`Error::Order`] where no step was begun; errors of the backend that have nothing to do with the step.
    pub fn take_back(&mut self) -> Result<()> {
        let Some(step) = self.begun.pop_back() else {
            return Err(Error::Order { call: "take_back", need: "a step: call begin_step first" });
        };
        self.restore(step.before);
        self.run.stream.discard_download(step.id)?;
        Ok(())
    }

    /// Begins a step that leaves its logits in the row `to`.
    fn begin(&mut self, call: &'static str, params: SampleParams, to: usize) -> Result<()> {
        let _span = tracing::trace_span!("decode", position = self.position).entered();
        if self.state != State::Sampled {
            return Err(Error::Order { call, need: "a sampled token: call sample first" });
        }
        self.room_for(1)?;
        let before = Before { position: self.position, state: self.state, row: self.row };
        match self.submit_step(params, to) {
            Ok(id) => {
                self.begun.push_back(Begun { id, before });
                Ok(())
            }
            Err(e) => {
                if to != before.row {
                    self.restore(before);
                }
                Err(e)
            }
        }
    }

    fn submit_step(&mut self, params: SampleParams, to: usize) -> Result<Download> {
        let from = self.row;
        let at = At::Run { first: self.position, rows: 1 };
        self.pass().body(Ids::Sampled(from), at)?;
        self.position += 1;
        self.state = State::Empty;
        self.pass().logits(Of::Stream, 0..1, to)?;
        (self.row, self.state) = (to, State::Logits);
        let at = At::Run { first: self.position, rows: 1 };
        self.pass().sample(params, to..to + 1, at)?;
        let id = self.buffers.next.begin_read(&mut *self.run.stream, to, 1)?;
        self.state = State::Sampled;
        Ok(id)
    }

    pub(super) fn restore(&mut self, before: Before) {
        let Before { position, state, row } = before;
        (self.position, self.state, self.row) = (position, state, row);
    }

    pub(super) fn all_finished(&self, call: &'static str) -> Result<()> {
        if self.begun.is_empty() {
            return Ok(());
        }
        Err(Error::Order { call, need: "the steps that were begun to be finished or taken back" })
    }
}
