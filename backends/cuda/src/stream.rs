//! The stream: operands to addresses, ops to launches, faults to errors.

use std::sync::Arc;

use tersor_core::{
    Checked, DeviceSlice, Download, Element, Error, HostContext, In, Out, PackedWeight, Ran, RawBuffer, Result, Stream,
};

use crate::ID;
use crate::ahead::Ahead;
use crate::backend::refusal;
use crate::driver::{Address, HostPage};
use crate::faults::Watched;
use crate::memory::{Allocation, Device};
use crate::names::Names;
use crate::pack::Packed;

/// Work of one client, in order.
#[derive(Debug)]
pub(crate) struct CudaStream {
    pub(crate) device: Arc<Device>,
    names: Arc<Names>,
    host: HostContext,
    pub(crate) scratch: Scratch,
    /// The smallest key of a fault so far, all ones if there is none; see `kernels/common.cuh`.
    pub(crate) fault: Allocation,
    /// Its word is not zero once a kernel has written a fault; its slots are those of downloads on their way.
    pub(crate) page: HostPage,
    /// What the ops were since the last report or since a download was begun, by their numbers in keys.
    pub(crate) watched: Vec<Watched>,
    pub(crate) ahead: Ahead,
}

/// Memory that a stream keeps from op to op, so that a decode loop allocates nothing once it has grown.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    slots: [Option<Allocation>; 4],
    /// Keys and counts of `sample`, zero between ops, and the number of rows that there is room for.
    sample: Option<(Allocation, usize)>,
}

impl Scratch {
    /// At least `bytes` of undefined content, the slot's own until it is asked for again.
    pub(crate) fn get(&mut self, device: &Arc<Device>, slot: usize, bytes: usize) -> Result<Address> {
        use tersor_core::DeviceMemory;
        let held = &mut self.slots[slot];
        match held {
            Some(a) if a.bytes() >= bytes => Ok(a.at),
            _ => {
                *held = None;
                Ok(held.insert(device.take(bytes)?).at)
            }
        }
    }

    /// Two zero words for each row.
    pub(crate) fn sample_slots(&mut self, device: &Arc<Device>, rows: usize) -> Result<Address> {
        match &self.sample {
            Some((a, room)) if *room >= rows => Ok(a.at),
            _ => Ok(self.sample.insert((device.take_zeroed(16 * rows)?, rows)).0.at),
        }
    }
}

impl CudaStream {
    pub(crate) fn new(device: Arc<Device>, names: Arc<Names>, host: HostContext) -> Result<Self> {
        let fault = device.take(8)?;
        device.fill(&fault, 0xff)?;
        let page = device.take_page()?;
        let (scratch, ahead) = (Scratch::default(), Ahead::default());
        Ok(CudaStream { device, names, host, scratch, fault, page, watched: Vec::new(), ahead })
    }

    /// Address of an input.
    pub(crate) fn input<T: Element>(&self, what: &'static str, x: In<'_, T>) -> Result<Address> {
        match x {
            In::Device(slice) => self.address::<T>(what, slice),
            In::Host(s) => not_device(what, s.is_empty()),
        }
    }

    /// Address of an output.
    pub(crate) fn output<T: Element>(&self, what: &'static str, y: &Out<'_, T>) -> Result<Address> {
        match y {
            Out::Device(slice) => {
                let (memory, at) = self.locate::<T>(what, *slice)?;
                memory.write_by_op();
                Ok(at)
            }
            Out::Host(s) => not_device(what, s.is_empty()),
        }
    }

    /// Whether a kernel may read an input before the kernel ahead of it is done: where no op has written to its memory.
    pub(crate) fn is_settled<T: Element>(&self, what: &'static str, x: In<'_, T>) -> Result<bool> {
        match x {
            In::Device(slice) => Ok(!self.locate::<T>(what, slice)?.0.is_written_by_ops()),
            In::Host(_) => Ok(true),
        }
    }

    fn address<T: Element>(&self, what: &'static str, slice: DeviceSlice<'_>) -> Result<Address> {
        self.locate::<T>(what, slice).map(|(_, at)| at)
    }

    fn locate<'m, T: Element>(&self, what: &'static str, slice: DeviceSlice<'m>) -> Result<(&'m Allocation, Address)> {
        let memory = slice.memory;
        let foreign = |remedy| Error::Memory { what, found: "another", backend: ID.into(), need: "its own", remedy };
        let Some(a) = memory.as_any().downcast_ref::<Allocation>() else {
            return Err(foreign("allocate operands with the backend that uses them"));
        };
        if !Arc::ptr_eq(&a.device, &self.device) {
            return Err(foreign("the buffer is on another GPU; read it there and write it here"));
        }
        let size = T::DTYPE.size();
        let end = slice.offset.checked_add(slice.len).and_then(|n| n.checked_mul(size));
        if end.is_none_or(|end| end > memory.bytes()) {
            let why = format!("elements from {} on", slice.offset);
            let need = slice.offset.saturating_add(slice.len);
            return Err(Error::Length { what, need, got: memory.bytes() / size, why });
        }
        Ok((a, a.at + (slice.offset * size) as u64))
    }

    /// The data of a packed weight of this GPU.
    pub(crate) fn packed<'w>(&self, w: &'w PackedWeight) -> Result<&'w Packed> {
        let packed: &Packed = w.data(ID)?;
        if Arc::ptr_eq(&packed.data.device, &self.device) {
            return Ok(packed);
        }
        Err(Error::ForeignPack { made_by: format!("{ID} on another GPU"), given_to: ID.into() })
    }
}

/// Nothing is nowhere: an operand that a format does not use may be of any memory.
fn not_device(what: &'static str, empty: bool) -> Result<Address> {
    if empty {
        return Ok(0);
    }
    let remedy = "allocate a buffer and write to it through a stream";
    Err(Error::Memory { what, found: "host", backend: ID.into(), need: "device", remedy })
}

impl Stream for CudaStream {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        if self.host.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let spec = op.spec();
        let kernel = match (refusal(&self.device, &spec), self.names.of(&spec)) {
            (None, Some(kernel)) => kernel,
            (reason, _) => {
                let reason = reason.unwrap_or_else(|| "no such kernel".to_owned());
                return Err(Error::Unsupported { backend: ID.into(), op: spec.to_string(), reason });
            }
        };
        let _span = tracing::trace_span!("op", kernel).entered();
        self.run(op.op(), &spec)?;
        Ok(Ran { kernel })
    }

    fn synchronize(&mut self) -> Result<()> {
        self.device.synchronize()?;
        self.report()
    }

    fn upload(&mut self, src: &[u8], dst: &mut RawBuffer, offset: usize) -> Result<()> {
        let to = self.range(dst, offset, src.len())?;
        self.device.upload(src, to)
    }

    fn download(&mut self, src: &RawBuffer, offset: usize, dst: &mut [u8]) -> Result<()> {
        let from = self.range(src, offset, dst.len())?;
        self.device.download(from, dst)?;
        self.report()
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn begin_download(&mut self, src: &RawBuffer, offset: usize, len: usize) -> Result<Download> {
        let from = self.range(src, offset, len)?;
        if let Some(copy) = self.begin(from, len)? {
            return Ok(copy);
        }
        let mut bytes = vec![0; len];
        self.download(src, offset, &mut bytes)?;
        Ok(Download::done(bytes))
    }

    fn finish_download(&mut self, download: Download, dst: &mut [u8]) -> Result<()> {
        self.collect(download, Some(dst))
    }

    fn discard_download(&mut self, download: Download) -> Result<()> {
        self.collect(download, None)
    }
}

impl CudaStream {
    /// Address of `len` bytes of a buffer from byte `offset` on.
    fn range(&self, buffer: &RawBuffer, offset: usize, len: usize) -> Result<Address> {
        let Some(memory) = buffer.as_device() else { return not_device("buffer", false) };
        self.address::<u8>("buffer", DeviceSlice { memory, offset, len })
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        // A kernel may still write to it; where that cannot be told, it is left alone.
        if self.device.synchronize().is_ok() {
            self.device.give_page(self.page);
        }
        for event in self.ahead.events() {
            self.device.give_event(event);
        }
    }
}
