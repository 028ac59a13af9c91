//! The pool that device memory comes from.
//!
//! Memory is taken from the driver in size classes and kept when it is given back. All work of a backend goes through one
//! CUDA stream, so memory can be taken again at once: what still uses it runs before what will.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tersor_core::{DeviceMemory, Error, Result};

use crate::ID;
use crate::driver::{Address, Args, Driver, Grid, Kernel};

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
    free: BTreeMap<usize, Vec<Address>>,
    in_use: usize,
    high_water: usize,
    held: usize,
    driver_allocations: u64,
}

/// A GPU with its pool. Everything that lives on it keeps it alive.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) driver: Driver,
    pub(crate) crossings: Crossings,
    shelves: Mutex<Shelves>,
}

/// The size that is really taken for `bytes`: an eighth of a power of two more at most.
fn class(bytes: usize) -> usize {
    let bytes = bytes.max(512);
    let step = (bytes.next_power_of_two() / 16).max(512);
    bytes.checked_next_multiple_of(step).unwrap_or(bytes)
}

impl Device {
    pub(crate) fn new(driver: Driver) -> Self {
        Device { driver, crossings: Crossings::default(), shelves: Mutex::default() }
    }

    /// Memory of undefined content.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Allocation> {
        let class = class(bytes);
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match shelves.free.get_mut(&class).and_then(Vec::pop) {
            Some(at) => at,
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
                at
            }
        };
        shelves.in_use += class;
        shelves.high_water = shelves.high_water.max(shelves.in_use);
        drop(shelves);
        Ok(Allocation { device: self.clone(), at, bytes, class })
    }

    /// Zeroed memory.
    pub(crate) fn take_zeroed(self: &Arc<Self>, bytes: usize) -> Result<Allocation> {
        let a = self.take(bytes)?;
        // SAFETY: the allocation is at least that long, and given back only in stream order.
        unsafe { self.driver.fill(a.at, 0, bytes.max(1)) }?;
        Ok(a)
    }

    /// Memory that holds `data`.
    pub(crate) fn take_with(self: &Arc<Self>, data: &[u8]) -> Result<Allocation> {
        let a = self.take(data.len())?;
        self.upload(data, a.at)?;
        Ok(a)
    }

    /// Copies to a range that the caller has checked.
    pub(crate) fn upload(&self, data: &[u8], to: Address) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.crossings.uploads.fetch_add(1, Ordering::Relaxed);
        self.crossings.uploaded.fetch_add(data.len() as u64, Ordering::Relaxed);
        // SAFETY: callers pass ranges of allocations.
        unsafe { self.driver.upload(data, to) }
    }

    /// Copies from a range that the caller has checked, and waits.
    pub(crate) fn download(&self, from: Address, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return self.driver.synchronize();
        }
        self.crossings.downloads.fetch_add(1, Ordering::Relaxed);
        self.crossings.downloaded.fetch_add(out.len() as u64, Ordering::Relaxed);
        // SAFETY: callers pass ranges of allocations.
        unsafe { self.driver.download(from, out) }
    }

    /// Launches a kernel, in stream order, and counts it.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    pub(crate) unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: Args) -> Result<()> {
        self.crossings.launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: by contract.
        unsafe { self.driver.launch(kernel, grid, args) }
    }

    fn out_of_memory(&self, need: usize) -> Error {
        let available = self.driver.memory().map_or(0, |(free, _)| free);
        Error::OutOfMemory { backend: ID.into(), need, available, budget: "memory of the GPU" }
    }

    /// Gives kept memory back to the driver.
    fn trim(&self, shelves: &mut Shelves) -> Result<()> {
        self.driver.synchronize()?;
        for (class, addresses) in std::mem::take(&mut shelves.free) {
            for at in addresses {
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
        if self.driver.synchronize().is_err() {
            // The context is lost, and its memory with it.
            return;
        }
        for at in shelves.free.into_values().flatten() {
            // SAFETY: as in `trim`. A failure leaves nothing to be done.
            let _ = unsafe { self.driver.free(at) };
        }
    }
}

/// A piece of device memory.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) device: Arc<Device>,
    pub(crate) at: Address,
    bytes: usize,
    class: usize,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut shelves = self.device.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        shelves.in_use -= self.class;
        shelves.free.entry(self.class).or_default().push(self.at);
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
