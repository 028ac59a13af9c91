//! The stream of a session, and what is known of the work that went through it.

use std::time::Instant;

use tersor_core::{Op, Stream};

use crate::error::Result;

use super::profile::{Place, Profile};

/// Submits operations, notes which kernels ran, and measures when asked.
pub(crate) struct Runner {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) place: Place,
    pub(crate) profile: Option<Profile>,
    /// Names of kernels in the order of their first use. A pass has about twenty.
    kernels: Vec<&'static str>,
}

impl Runner {
    pub(crate) fn new(stream: Box<dyn Stream>, profile: Option<Profile>) -> Self {
        Runner { stream, place: Place::Embedding, profile, kernels: Vec::with_capacity(64) }
    }

    /// Checks and submits one operation.
    pub(crate) fn run(&mut self, op: Op<'_>) -> Result<()> {
        let op = op.check()?;
        let ran = match &mut self.profile {
            None => self.stream.submit(op)?,
            Some(profile) => {
                let (kind, start) = (op.spec().kind(), Instant::now());
                let ran = self.stream.submit(op)?;
                self.stream.synchronize()?;
                profile.record(self.place, kind, start.elapsed());
                ran
            }
        };
        // Names are interned, so a pointer tells them apart; a backend that does not intern costs a second comparison
        // below, once per kernel.
        if !self.kernels.iter().any(|k| std::ptr::eq(*k, ran.kernel)) && !self.kernels.contains(&ran.kernel) {
            self.kernels.push(ran.kernel);
        }
        Ok(())
    }

    /// The kernels that ran so far.
    pub(crate) fn kernels(&self) -> &[&'static str] {
        &self.kernels
    }
}
