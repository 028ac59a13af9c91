//! Data that kernels cannot round: where they report it, and what it means.
//!
//! A kernel that meets such data lowers the stream's fault word to a key: the number of its op, the element, and the kind. So the
//! word has the first failing element of the first failing op when all work is done. Numbers are arguments of kernels, and begin
//! at zero after every report and after every download that was begun: those of a decode step are those of the step before, and
//! what is replayed as a graph stays as it is.

use tersor_core::codec::storable_scale;
use tersor_core::{Error, Format, Result};

use crate::ID;
use crate::driver::{Address, Args};
use crate::stream::CudaStream;

/// The fault word where nothing failed.
pub(crate) const NONE: u64 = u64::MAX;

/// Ops that are told apart between two reports; those beyond share the last number. (Keys have 20 bits for it.)
const MAX_WATCHED: usize = 1 << 19;

/// An op that can fail on its data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched {
    what: &'static str,
    format: Format,
}

/// Where a kernel reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fault {
    word: Address,
    raised: Address,
    number: u64,
}

impl Fault {
    /// The arguments that all ops of a stream have in common.
    pub(crate) fn place(&self) -> Args {
        Args::new().u64(self.word).u64(self.raised)
    }

    /// Whether both report to the same stream.
    pub(crate) fn same_stream(&self, other: &Fault) -> bool {
        self.word == other.word
    }
}

impl Args {
    /// The number alone, where a kernel that reports for several ops has the rest.
    pub(crate) fn fault_number(self, f: Fault) -> Self {
        self.u64(f.number)
    }
    pub(crate) fn fault(self, f: Fault) -> Self {
        self.u64(f.word).u64(f.raised).u64(f.number)
    }
}

impl CudaStream {
    /// Where the next kernels report data that they cannot round.
    pub(crate) fn watch(&mut self, what: &'static str, format: Format) -> Fault {
        if self.watched.len() < MAX_WATCHED {
            self.watched.push(Watched { what, format });
        }
        Fault { word: self.fault.at, raised: self.page.address, number: self.watched.len() as u64 - 1 }
    }

    /// Reports the first fault since the last report, those of downloads that are on their way included. All work is done.
    pub(crate) fn report(&mut self) -> Result<()> {
        let first = if self.page.get() == 0 { None } else { self.first_fault()? };
        // The capacity is kept, as this happens once a token.
        self.watched.clear();
        first.map_or(Ok(()), Err)
    }

    fn first_fault(&mut self) -> Result<Option<Error>> {
        let mut word = [0; 8];
        self.device.download(self.fault.at, &mut word)?;
        let word = u64::from_le_bytes(word);
        if word != NONE {
            self.device.fill(&self.fault, 0xff)?;
        }
        self.page.set(0);
        let earlier = self.ahead.first_fault(self.page);
        Ok(earlier.or_else(|| fault_error(&self.watched, word)))
    }
}

/// What a key says about the ops that were watched; the kinds are those of `kernels/common.cuh`.
pub(crate) fn fault_error(watched: &[Watched], key: u64) -> Option<Error> {
    if key == NONE {
        return None;
    }
    let device = |message| Error::Device { backend: ID.into(), message };
    let Some(Watched { what, format }) = watched.get((key >> 44) as usize).copied() else {
        return Some(device(format!("unknown fault {key:#x}")));
    };
    let (kind, payload) = (key & 7, key >> 3 & ((1 << 41) - 1));
    let index = payload as usize;
    let not_finite = |value| Error::NotFinite { what, index, value };
    Some(match kind {
        0 => not_finite(f32::NAN),
        1 => not_finite(f32::INFINITY),
        2 => not_finite(f32::NEG_INFINITY),
        3 => {
            let scale = f32::from_bits(payload as u32);
            storable_scale(format, scale).err().unwrap_or_else(|| not_finite(scale))
        }
        4 => Error::NotFinite { what: "mean of the absolute weights", index: 0, value: f32::INFINITY },
        _ => device(format!("{what}: entry {index}, in device memory, is out of range; nothing was done for it")),
    })
}
