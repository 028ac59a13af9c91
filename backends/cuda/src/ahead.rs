//! Downloads that are begun now and collected later, so that the GPU has its next work before the host knows what the last gave.
//!
//! One small kernel at the end of a step copies a few bytes to a slot in host memory, takes the fault word with them and leaves
//! it as it was before the first fault; where the step ends by drawing the one id that is wanted, the kernel that draws does all
//! this. So each download knows the first fault of the ops before it and after the one before it, in the order of the stream,
//! and an op that fails in one step is never taken for one of the next, which runs already.
//!
//! A kernel and not copies, because it is a part of the step's graph: two copies and a fill would each wait for the kernel before
//! and keep the next step waiting.

use std::collections::VecDeque;
use std::sync::Arc;

use tersor_core::{Download, Error, Result};

use crate::batch::Publication;
use crate::driver::{Address, Event, HostPage, ROOM, SLOTS};
use crate::faults::{NONE, Watched, fault_error};
use crate::stream::CudaStream;

/// What the caller holds of a download.
#[derive(Debug)]
struct Mark;

/// A download on its way.
#[derive(Debug)]
struct Ticket {
    mark: Arc<Mark>,
    slot: usize,
    bytes: usize,
    /// Stands for the copy.
    done: Event,
    /// What the ops were since the download before.
    watched: Vec<Watched>,
}

/// Downloads on their way, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    tickets: VecDeque<Ticket>,
    /// The first fault of a download that nobody collects.
    lost: Option<Error>,
    /// Memory for what is watched.
    spare: Vec<Vec<Watched>>,
}

impl Ahead {
    /// The first fault of all of them, once. They are done.
    pub(crate) fn first_fault(&mut self, page: HostPage) -> Option<Error> {
        let mut first = self.lost.take();
        for Ticket { slot, watched, .. } in &self.tickets {
            first = first.or_else(|| fault_error(watched, page.key(*slot)));
            page.set_key(*slot, NONE);
        }
        first
    }

    /// Nobody collects them any more.
    pub(crate) fn events(&mut self) -> impl Iterator<Item = Event> {
        self.tickets.drain(..).map(|ticket| ticket.done)
    }

    fn free_slot(&self) -> Option<usize> {
        (0..SLOTS).find(|slot| self.tickets.iter().all(|ticket| ticket.slot != *slot))
    }
}

impl CudaStream {
    /// Begins a download of a range that the caller has checked. `None` where it has to be done at once: because it is long,
    /// or many are on their way.
    pub(crate) fn begin(&mut self, from: Address, bytes: usize) -> Result<Option<Download>> {
        if bytes > ROOM {
            return Ok(None);
        }
        if self.ahead.free_slot().is_none() {
            self.settle_dropped(SLOTS)?;
        }
        let Some(slot) = self.ahead.free_slot() else { return Ok(None) };
        let (key, to) = self.page.addresses(slot);
        let what = Publication { from, bytes, to, key, fault_word: self.fault.at };
        let done = self.device.take_event()?;
        // SAFETY: the range was checked, the slot has room, is nobody else's, and is read when the event has happened.
        if let Err(e) = unsafe { self.device.publish(&what, &done) } {
            self.device.give_event(done);
            return Err(e);
        }
        let watched = std::mem::replace(&mut self.watched, self.ahead.spare.pop().unwrap_or_default());
        let mark = Arc::new(Mark);
        self.ahead.tickets.push_back(Ticket { mark: mark.clone(), slot, bytes, done, watched });
        Ok(Some(Download::on_its_way(mark)))
    }

    /// Waits for a download, and for nothing after it. Without `dst` nobody wants it, nor what failed before it.
    pub(crate) fn collect(&mut self, download: Download, dst: Option<&mut [u8]>) -> Result<()> {
        let mark = match (download.into_bytes(), dst.as_ref()) {
            (Err(ticket), _) => ticket.downcast::<Mark>().map_err(|_| Download::foreign())?,
            (Ok(bytes), Some(dst)) if bytes.len() != dst.len() => {
                return Err(Download::wrong_length(bytes.len(), dst.len()));
            }
            (Ok(bytes), _) => {
                dst.into_iter().for_each(|dst| dst.copy_from_slice(&bytes));
                return Ok(());
            }
        };
        let place = |ahead: &Ahead| {
            let at = ahead.tickets.iter().position(|t| Arc::ptr_eq(&t.mark, &mark));
            at.and_then(|at| Some((at, ahead.tickets.get(at)?.bytes))).ok_or_else(Download::foreign)
        };
        let (at, bytes) = place(&self.ahead)?;
        if let Some(dst) = dst.as_ref().filter(|dst| dst.len() != bytes) {
            return Err(Download::wrong_length(bytes, dst.len()));
        }
        // Those before it are done when it is.
        self.settle_dropped(at)?;
        let (at, _) = place(&self.ahead)?;
        let wanted = dst.is_some();
        let fault = self.settle(at, dst)?;
        self.device.no_failure()?;
        if !wanted {
            return Ok(());
        }
        match self.ahead.lost.take() {
            None => fault.map_or(Ok(()), Err),
            Some(earlier) => {
                self.ahead.lost = fault;
                Err(earlier)
            }
        }
    }

    /// Keeps what failed before those of the first `count` downloads that were dropped; the next report tells it.
    fn settle_dropped(&mut self, count: usize) -> Result<()> {
        for at in (0..count.min(self.ahead.tickets.len())).rev() {
            if self.ahead.tickets.get(at).is_some_and(|t| Arc::strong_count(&t.mark) == 1) {
                let fault = self.settle(at, None)?;
                // From the last to the first: an earlier one counts.
                self.ahead.lost = fault.or(self.ahead.lost.take());
            }
        }
        Ok(())
    }

    /// Waits for a download and frees its slot. What failed before it.
    fn settle(&mut self, at: usize, dst: Option<&mut [u8]>) -> Result<Option<Error>> {
        let Some(ticket) = self.ahead.tickets.get(at) else { return Ok(None) };
        self.device.driver.wait_here(&ticket.done)?;
        let fault = fault_error(&ticket.watched, self.page.key(ticket.slot));
        if let Some(dst) = dst {
            self.page.read(ticket.slot, dst);
        }
        if let Some(Ticket { done, mut watched, .. }) = self.ahead.tickets.remove(at) {
            self.device.give_event(done);
            watched.clear();
            self.ahead.spare.push(watched);
        }
        if self.ahead.tickets.is_empty() {
            self.device.waits();
        }
        Ok(fault)
    }
}
