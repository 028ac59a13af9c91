//! The pool that device memory comes from.
//!
//! Memory is taken from the driver in size classes and kept when it is given back. All kernels of a backend go through one
//! CUDA stream, so memory can be taken again at once: what still uses it runs before what will. Large uploads run beside that
//! stream (`staging`), so a piece that is given back gets an event, for which an upload into it waits.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tersor_core::{DeviceMemory, Error, HostContext, Result};

use crate::ID;
use crate::batch::{Batch, Launch, Publication, Span};
use crate::driver::{Address, Args, Driver, Event, Grid, Kernel, Lane};
use crate::names::Limits;
use crate::queue::Queue;
use crate::staging::{Before, LARGE, Staging};

/// What went over the bus and into device memory since the backend was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Copies from host to device.
    pub uploads: u64,
    /// Their bytes.
    pub uploaded: u64,
    /// Copies from device to host.
    pub downloads: u64,
    /// Their bytes.
    pub downloaded: u64,
    /// Kernel launches.
    pub launches: u64,
    /// Allocations that the driver made; constant in steady state.
    pub driver_allocations: u64,
    /// Bytes handed out now.
    pub in_use: u64,
    /// The most bytes ever handed out at once.
    pub high_water: u64,
    /// Bytes taken from the driver: in use, or kept for the next who asks.
    pub held: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Crossings {
    pub(crate) uploads: AtomicU64,
    pub(crate) uploaded: AtomicU64,
    pub(crate) downloads: AtomicU64,
    pub(crate) downloaded: AtomicU64,
    pub(crate) launches: AtomicU64,
}

#[derive(Debug, Default)]
struct Shelves {
    /// Free memory by class.
    free: BTreeMap<usize, Vec<Free>>,
    in_use: usize,
    high_water: usize,
    held: usize,
    driver_allocations: u64,
}

/// Memory that was given back.
#[derive(Debug)]
struct Free {
    at: Address,
    /// Comes after its last use; `None` where none could be had.
    last: Option<Event>,
}

/// A GPU with its pool. Everything that lives on it keeps it alive.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) driver: Driver,
    pub(crate) host: HostContext,
    pub(crate) crossings: Crossings,
    /// Which kernels were ever launched, by their numbers.
    launched: Vec<AtomicBool>,
    pub(crate) staging: Staging,
    shelves: Mutex<Shelves>,
    queue: Mutex<Queue>,
    /// Locked only while the queue is.
    batch: Mutex<Batch>,
    failed: Mutex<Option<Error>>,
}

/// The size that is really taken for `bytes`: an eighth of a power of two more at most.
pub(crate) fn class(bytes: usize) -> usize {
    let bytes = bytes.max(512);
    let step = (bytes.checked_next_power_of_two().unwrap_or(1 << (usize::BITS - 1)) / 16).max(512);
    bytes.checked_next_multiple_of(step).unwrap_or(bytes)
}

impl Device {
    pub(crate) fn new(driver: Driver, host: HostContext) -> Self {
        Device {
            driver,
            host,
            crossings: Crossings::default(),
            launched: Kernel::ALL.iter().map(|_| AtomicBool::new(false)).collect(),
            staging: Staging::default(),
            shelves: Mutex::default(),
            queue: Mutex::default(),
            batch: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// What the choice of kernels depends on.
    pub(crate) fn limits(&self) -> Limits {
        Limits { exact: self.host.reproducible, shared: self.driver.dynamic_shared() as usize }
    }

    /// Memory of undefined content.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Allocation> {
        let (a, before) = self.take_for_copy(bytes)?;
        if let Before::Event(event) = before {
            self.give_event(event);
        }
        Ok(a)
    }

    /// The same, and what a copy that does not go through the main stream has to wait for.
    fn take_for_copy(self: &Arc<Self>, bytes: usize) -> Result<(Allocation, Before)> {
        let class = class(bytes);
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, before) = match shelves.free.get_mut(&class).and_then(Vec::pop) {
            Some(Free { at, last }) => (at, last.map_or(Before::Everything, Before::Event)),
            None => {
                let at = match self.driver.alloc(class)? {
                    Some(at) => at,
                    None => {
                        self.trim(&mut shelves)?;
                        self.driver.alloc(class)?.ok_or_else(|| self.out_of_memory(bytes))?
                    }
                };
                shelves.held += class;
                shelves.driver_allocations += 1;
                (at, Before::Nothing)
            }
        };
        shelves.in_use += class;
        shelves.high_water = shelves.high_water.max(shelves.in_use);
        drop(shelves);
        Ok((Allocation { device: self.clone(), at, bytes, class, written: AtomicBool::new(false) }, before))
    }

    /// Zeroed memory.
    pub(crate) fn take_zeroed(self: &Arc<Self>, bytes: usize) -> Result<Allocation> {
        let a = self.take(bytes)?;
        self.fill(&a, 0)?;
        Ok(a)
    }

    /// Memory that holds `data`.
    pub(crate) fn take_with(self: &Arc<Self>, data: &[u8]) -> Result<Allocation> {
        let (a, before) = self.take_for_copy(data.len())?;
        self.upload_after(data, a.at, before)?;
        Ok(a)
    }

    /// Copies to a range that the caller has checked, after everything before it.
    pub(crate) fn upload(&self, data: &[u8], to: Address) -> Result<()> {
        self.upload_after(data, to, Before::Everything)
    }

    fn upload_after(&self, data: &[u8], to: Address, before: Before) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.crossings.uploads.fetch_add(1, Ordering::Relaxed);
        self.crossings.uploaded.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.flush()?;
        if data.len() >= LARGE {
            // SAFETY: callers pass ranges of allocations.
            return unsafe { self.upload_large(data, to, before) };
        }
        // The main stream comes after everything anyway.
        if let Before::Event(event) = before {
            self.give_event(event);
        }
        // SAFETY: as above.
        unsafe { self.driver.upload(data, to) }
    }

    /// Copies from a range that the caller has checked, and waits.
    pub(crate) fn download(&self, from: Address, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return self.synchronize();
        }
        self.flush()?;
        self.no_failure()?;
        self.crossings.downloads.fetch_add(1, Ordering::Relaxed);
        self.crossings.downloaded.fetch_add(out.len() as u64, Ordering::Relaxed);
        if out.len() >= LARGE {
            // SAFETY: callers pass ranges of allocations.
            return unsafe { self.download_large(from, out) };
        }
        // SAFETY: as above.
        unsafe { self.driver.download(from, out) }
    }

    /// Launches a kernel, after everything before it.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    pub(crate) unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: Args) -> Result<()> {
        let mut queue = self.queue();
        self.drain(&mut queue)?;
        // SAFETY: by contract.
        unsafe { self.push(kernel, grid, args) }
    }

    /// Launches a kernel before what the queue holds, and counts it. The queue is locked.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    pub(crate) unsafe fn push(&self, kernel: Kernel, grid: Grid, args: Args) -> Result<()> {
        self.crossings.launches.fetch_add(1, Ordering::Relaxed);
        self.launched[kernel as usize].store(true, Ordering::Relaxed);
        // SAFETY: by contract. What uses the memory otherwise, or gives it back, flushes first.
        unsafe { self.batch().push(&self.driver, Launch { kernel, grid, args }) }
    }

    /// Copies to host memory, after everything before it, sends off all that is held, and lets the event stand for it. The host
    /// does not wait.
    ///
    /// # Safety
    /// As for [`Driver::launch`], of the kernel in `publish.cu`.
    pub(crate) unsafe fn publish(&self, what: &Publication, event: &Event) -> Result<()> {
        let mut queue = self.queue();
        self.drain(&mut queue)?;
        let done = self.batch().publish_with_last(what);
        if !done {
            let (kernel, grid, args) = what.alone();
            // SAFETY: by contract.
            unsafe { self.push(kernel, grid, args) }?;
        }
        self.batch().send_on(&self.driver)?;
        self.driver.mark(event, Lane::Main)?;
        self.crossings.downloads.fetch_add(1, Ordering::Relaxed);
        self.crossings.downloaded.fetch_add(what.bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Says that the GPU has nothing left to do for a client.
    pub(crate) fn waits(&self) {
        self.batch().waits();
    }

    /// The kernels of the loaded images, and whether each was ever launched.
    pub(crate) fn kernels(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let loaded = Kernel::ALL.iter().zip(&self.launched).filter(|((kernel, _), _)| self.driver.has(*kernel));
        loaded.map(|((_, name), launched)| (*name, launched.load(Ordering::Relaxed)))
    }

    /// Launches what the queue holds.
    pub(crate) fn drained(&self) -> Result<()> {
        let mut queue = self.queue();
        self.drain(&mut queue)
    }

    /// See [`Batch::wrote_newest`], [`Batch::wrote_only`], [`Batch::is_newest`] and [`Batch::bring_nearer`].
    pub(crate) fn wrote_newest(&self, at: [Address; 3], touched: [Span; 12]) {
        self.batch().wrote_newest(at, touched);
    }
    pub(crate) fn wrote_only(&self, spans: [Span; 3]) {
        self.batch().wrote_only(spans);
    }
    /// See [`Batch::join`].
    ///
    /// # Safety
    /// As for that.
    pub(crate) unsafe fn join(&self, grid: Grid, more: Args, given: &[(usize, Args)], y: Span) -> bool {
        // SAFETY: by contract.
        let joined = unsafe { self.batch().join(grid, more, given, y) };
        if joined {
            self.launched[Kernel::NormQkvAttention as usize].store(true, Ordering::Relaxed);
        }
        joined
    }
    pub(crate) fn is_newest(&self, at: [Address; 3]) -> bool {
        self.batch().is_newest(at)
    }
    pub(crate) fn bring_nearer(&self, places: [Address; 2], bytes: u64) {
        self.batch().bring_nearer(places, bytes);
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn batch(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether recurring sequences of launches become graphs.
    pub(crate) fn set_graphs(&self, on: bool) {
        self.batch().graphs = on;
    }

    /// Sends everything that is held to the GPU.
    pub(crate) fn flush(&self) -> Result<()> {
        let mut queue = self.queue();
        let drained = self.drain(&mut queue);
        self.batch().flush(&self.driver).and(drained)
    }

    /// Waits for all work.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.flush()?;
        self.driver.synchronize()?;
        self.no_failure()
    }

    /// Reports a launch that failed where nobody could be told.
    pub(crate) fn no_failure(&self) -> Result<()> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    /// Fills memory, after everything before it.
    pub(crate) fn fill(&self, a: &Allocation, byte: u8) -> Result<()> {
        self.flush()?;
        // SAFETY: the allocation is that long, and given back only in stream order.
        unsafe { self.driver.fill(a.at, byte, a.class) }
    }

    /// Copies inside the device's memory, after everything before it.
    ///
    /// # Safety
    /// As for [`Driver::copy`].
    pub(crate) unsafe fn copy(&self, src: Address, dst: Address, bytes: usize) -> Result<()> {
        self.flush()?;
        // SAFETY: by contract.
        unsafe { self.driver.copy(src, dst, bytes) }
    }

    fn out_of_memory(&self, need: usize) -> Error {
        let available = self.driver.memory().map_or(0, |(free, _)| free);
        Error::OutOfMemory { backend: ID.into(), need, available, budget: "memory of the GPU" }
    }

    /// Gives kept memory back to the driver.
    fn trim(&self, shelves: &mut Shelves) -> Result<()> {
        self.synchronize()?;
        for (class, pieces) in std::mem::take(&mut shelves.free) {
            for Free { at, last } in pieces {
                if let Some(event) = last {
                    self.give_event(event);
                }
                // SAFETY: it came from `alloc`, nobody holds it, and no work is left that could use it.
                unsafe { self.driver.free(at) }?;
                shelves.held -= class;
            }
        }
        Ok(())
    }

    pub(crate) fn counters(&self) -> Counters {
        let shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Counters {
            uploads: get(&self.crossings.uploads),
            uploaded: get(&self.crossings.uploaded),
            downloads: get(&self.crossings.downloads),
            downloaded: get(&self.crossings.downloaded),
            launches: get(&self.crossings.launches),
            driver_allocations: shelves.driver_allocations,
            in_use: shelves.in_use as u64,
            high_water: shelves.high_water as u64,
            held: shelves.held as u64,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let shelves = std::mem::take(self.shelves.get_mut().unwrap_or_else(PoisonError::into_inner));
        let done = self.driver.synchronize();
        self.batch.get_mut().unwrap_or_else(PoisonError::into_inner).clear(&self.driver);
        if done.is_err() {
            // The context is lost, and its memory with it.
            return;
        }
        for Free { at, last } in shelves.free.into_values().flatten() {
            if let Some(event) = last {
                self.driver.destroy_event(event);
            }
            // SAFETY: as in `trim`. A failure leaves nothing to be done.
            let _ = unsafe { self.driver.free(at) };
        }
        self.clear_staging();
    }
}

/// A piece of device memory.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) device: Arc<Device>,
    pub(crate) at: Address,
    bytes: usize,
    class: usize,
    /// Whether an op ever wrote to it. What only uploads wrote is there before any kernel begins, even one that begins before
    /// the kernel ahead of it is done.
    written: AtomicBool,
}

impl Allocation {
    pub(crate) fn write_by_op(&self) {
        self.written.store(true, Ordering::Relaxed);
    }
    pub(crate) fn is_written_by_ops(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // What is held may be about this memory. Nobody can be told here; who waits next is.
        if let Err(e) = self.device.flush() {
            self.device.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
        let last = self.device.take_event().ok().and_then(|event| match self.device.driver.mark(&event, Lane::Main) {
            Ok(()) => Some(event),
            Err(_) => {
                self.device.give_event(event);
                None
            }
        });
        let mut shelves = self.device.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        shelves.in_use -= self.class;
        shelves.free.entry(self.class).or_default().push(Free { at: self.at, last });
    }
}

impl DeviceMemory for Allocation {
    fn backend(&self) -> &str {
        ID
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn classes_waste_an_eighth_at_most() {
        for bytes in [0, 1, 511, 512, 513, 4097, 1 << 20, (1 << 20) + 1, 123_456_789, 656_670_720] {
            let c = class(bytes);
            assert!(c >= bytes && c <= bytes + (bytes / 8).max(512), "{bytes}: {c}");
            assert_eq!(class(c), c);
        }
        assert_eq!(class(usize::MAX), usize::MAX);
    }
}
