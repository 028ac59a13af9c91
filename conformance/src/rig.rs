//! Where a case runs: operands in the backend's memory, poisoned and guarded outputs, and every op asked about before it is
//! submitted.

use std::collections::BTreeSet;

use bytemuck::Zeroable;
use tersor_core::{Buffer, Checked, Error, In, Op, Out, PackedWeight, QuantBackend, Ran, Stream, Support, Weight};

use crate::compare::{Cell, fail};
use crate::ledger::Ledger;
use crate::rng::Rng;

/// Why a case ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(String),
    NotSupported(String),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Failed(e.to_string())
    }
}

pub(crate) type Verdict = Result<(), Stop>;

/// Elements before and behind every operand. Whole cache lines, so that the operand itself is aligned.
const GUARD: usize = 64;

/// An operand in the backend's memory between two guards. On host backends it is a plain slice of a larger one.
#[derive(Debug)]
pub(crate) struct Operand<T: Cell> {
    buffer: Buffer<T>,
    start: usize,
    len: usize,
}

impl<T: Cell> Operand<T> {
    pub(crate) fn input(&self) -> In<'_, T> {
        self.buffer.input_range(self.start..self.start + self.len)
    }

    pub(crate) fn output(&mut self) -> Out<'_, T> {
        self.buffer.output_range(self.start..self.start + self.len)
    }
}

/// The surroundings of one case.
pub(crate) struct Rig<'b> {
    backend: &'b dyn QuantBackend,
    stream: Box<dyn Stream>,
    ledger: &'b mut Ledger,
    /// Data of this case.
    pub(crate) rng: Rng,
    /// Elements by which operands are off their alignment.
    pub(crate) shift: usize,
    /// Kernels that ran.
    pub(crate) kernels: BTreeSet<&'static str>,
}

impl<'b> Rig<'b> {
    pub(crate) fn new(backend: &'b dyn QuantBackend, ledger: &'b mut Ledger, rng: Rng) -> Result<Self, Stop> {
        let stream = backend.open_stream()?;
        Ok(Rig { backend, stream, ledger, rng, shift: 0, kernels: BTreeSet::new() })
    }

    pub(crate) fn backend(&self) -> &'b dyn QuantBackend {
        self.backend
    }

    pub(crate) fn stream(&mut self) -> &mut dyn Stream {
        &mut *self.stream
    }

    /// An operand that holds `data`; its surroundings are poisoned.
    pub(crate) fn hold<T: Cell>(&mut self, data: &[T]) -> Result<Operand<T>, Stop> {
        let start = GUARD + self.shift;
        let mut image = vec![T::POISON; start + data.len() + GUARD];
        image[start..start + data.len()].copy_from_slice(data);
        let mut buffer = Buffer::alloc(self.backend, image.len())?;
        buffer.write(&mut *self.stream, &image)?;
        Ok(Operand { buffer, start, len: data.len() })
    }

    /// An operand to be written: poisoned, as its surroundings are.
    pub(crate) fn blank<T: Cell>(&mut self, len: usize) -> Result<Operand<T>, Stop> {
        self.hold(&vec![T::POISON; len])
    }

    /// What an operand holds now. Fails if something wrote outside of it.
    pub(crate) fn read<T: Cell>(&mut self, operand: &Operand<T>) -> Result<Vec<T>, Stop> {
        // Zeros are not what the guards should hold, so that a download that does nothing is noticed.
        let mut image: Vec<T> = vec![Zeroable::zeroed(); operand.buffer.len()];
        operand.buffer.read(&mut *self.stream, 0, &mut image)?;
        let end = operand.start + operand.len;
        let touched = |i: &usize| image[*i].bits() != T::POISON.bits();
        if let Some(i) = (0..operand.start).rev().chain(end..image.len()).find(touched) {
            let distance = if i < operand.start {
                format!("{} elements before the start", operand.start - i)
            } else {
                format!("{} elements past the end", i - end + 1)
            };
            return fail(format!("wrote outside the output, {distance}: {:?}", image[i]));
        }
        Ok(image[operand.start..end].to_vec())
    }

    /// Asks whether the op is supported, submits it, and holds the answer against what happened.
    pub(crate) fn enqueue(&mut self, op: Op<'_>) -> Result<Ran, Stop> {
        let checked = op.check()?;
        let spec = checked.spec();
        match self.backend.supports(&spec) {
            Support::No { reason } => {
                let answer = self.stream.submit(checked);
                self.ledger.refused(&spec, &reason, &answer);
                Err(Stop::NotSupported(reason))
            }
            Support::Yes { kernel } => {
                let answer = self.stream.submit(checked);
                self.ledger.accepted(&spec, kernel, &answer);
                let ran = answer?;
                self.kernels.insert(ran.kernel);
                Ok(ran)
            }
        }
    }

    /// [`Rig::enqueue`], then waits.
    pub(crate) fn submit(&mut self, op: Op<'_>) -> Result<Ran, Stop> {
        let ran = self.enqueue(op)?;
        self.stream.synchronize()?;
        Ok(ran)
    }

    /// Submits an op that has to end in an error, at once or on waiting, and returns the error.
    pub(crate) fn refused(&mut self, op: Op<'_>, why: &str) -> Result<Error, Stop> {
        let checked = op.check()?;
        if let Support::No { reason } = self.backend.supports(&checked.spec()) {
            return Err(Stop::NotSupported(reason));
        }
        let error = self.refusal(checked);
        // What a failed stream does next is nobody's promise.
        self.stream = self.backend.open_stream()?;
        error.map_or_else(|| fail(format!("no error, although {why}")), Ok)
    }

    fn refusal(&mut self, op: Checked<'_>) -> Option<Error> {
        match self.stream.submit(op) {
            Err(e) => Some(e),
            Ok(_) => self.stream.synchronize().err(),
        }
    }

    /// Packs a weight, which is dropped afterwards: a packed weight stands alone.
    pub(crate) fn pack(&mut self, weight: Weight) -> Result<PackedWeight, Stop> {
        match self.backend.pack(&weight) {
            Ok(packed) => Ok(packed),
            Err(Error::Unsupported { reason, .. }) => Err(Stop::NotSupported(format!("pack: {reason}"))),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_backend_scalar as _;
    use tersor_core::{HostContext, entries};

    #[test]
    fn a_write_next_to_an_output_is_found_on_either_side() {
        let entry = entries().find(|e| e.id == "scalar").unwrap();
        let backend = (entry.open)(&HostContext::inline()).unwrap();
        let mut ledger = Ledger::default();
        let mut rig = Rig::new(&*backend, &mut ledger, Rng::new(0, "guards")).unwrap();
        rig.shift = 3;
        let len = 5;
        for (at, found) in
            [(0, "67 elements before"), (66, "1 elements before"), (72, "1 elements past"), (135, "64 elements past")]
        {
            let mut operand = rig.blank::<i8>(len).unwrap();
            operand.buffer.as_host_mut().unwrap()[at] = 0;
            let Err(Stop::Failed(message)) = rig.read(&operand) else { panic!("a write at {at} was not found") };
            assert!(message.contains(found), "{at}: {message}");
        }
        let mut operand = rig.blank::<i8>(len).unwrap();
        operand.buffer.as_host_mut().unwrap()[67..72].fill(0);
        assert_eq!(rig.read(&operand).unwrap(), [0; 5]);
    }
}
