//! Large copies between host and device, which keep the link busy and run beside the kernels.
//!
//! Copies from and to page-locked memory ([`alloc_pinned`](tersor_core::QuantBackend::alloc_pinned)) are one call. Everything
//! else goes in parts through a ring of page-locked slots: while the device moves one, the threads of the host fill or empty
//! another. Slots are made when they are first needed, count in the host's pool (`memory.pool`), and are kept.
//!
//! Order: copies to the device have a stream of their own, so have copies to the host. An upload through slots returns when
//! the main stream has been told to wait for it, one from page-locked memory when it is done; a download returns when it is
//! done. So for everything that the main stream is given later, a copy is over, and the order of the main stream is still the
//! order of all uses of a piece of memory. What a copy itself must not overtake is said by [`Before`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tersor_core::{Error, Executor, PinnedMemory, Reserved, Result};

use crate::ID;
use crate::driver::{Address, Event, HostPage, Lane};
use crate::memory::{Device, class};

/// Copies of at least this many bytes go this way. Smaller ones are over before a slot would be filled.
pub(crate) const LARGE: usize = 256 << 10;
/// Slots of a ring, and bytes of each: large enough that waking the threads of the host does not show.
const SLOTS: usize = 3;
const SLOT: usize = 16 << 20;
/// Where the pool has too little for that, slots are halved, down to this.
const LEAST: usize = 64 << 10;
/// Bytes for which another thread is worth waking.
const SHARE: usize = 256 << 10;

/// What must be done before a copy to the device may write.
#[derive(Debug)]
pub(crate) enum Before {
    /// The memory was never used.
    Nothing,
    /// What used the memory before it was given back.
    Event(Event),
    /// Everything that the main stream has been given.
    Everything,
}

/// Page-locked memory.
#[derive(Debug)]
struct Pages {
    at: *mut u8,
    len: usize,
    _budget: Reserved,
}

// SAFETY: it is memory like any other; who reads and writes it is settled by those who hold it.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

/// A part of a copy: page-locked memory, and the last copy that used it.
#[derive(Debug)]
struct Slot {
    pages: Pages,
    used: Event,
}

#[derive(Debug)]
struct Ring {
    slots: Vec<Slot>,
    size: usize,
}

/// What copies need, made on demand and kept.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    up: Mutex<Option<Ring>>,
    down: Mutex<Option<Ring>>,
    events: Mutex<Vec<Event>>,
    pages: Mutex<Vec<HostPage>>,
    /// Page-locked memory that was given back.
    kept: Mutex<Vec<Pages>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// An event of no meaning yet.
    pub(crate) fn take_event(&self) -> Result<Event> {
        let kept = lock(&self.staging.events).pop();
        kept.map_or_else(|| self.driver.event(), Ok)
    }

    /// Keeps an event for the next who needs one. What waits for it goes on waiting for what it stood for.
    pub(crate) fn give_event(&self, event: Event) {
        lock(&self.staging.events).push(event);
    }

    /// A page for kernels to write, its word zero.
    pub(crate) fn take_page(&self) -> Result<HostPage> {
        let kept = lock(&self.staging.pages).pop();
        kept.map_or_else(|| self.driver.host_page(), Ok)
    }

    /// Keeps a page. No work is left that could write it.
    pub(crate) fn give_page(&self, page: HostPage) {
        page.set(0);
        lock(&self.staging.pages).push(page);
    }

    /// Copies to the device; `data` may change as soon as this returns.
    ///
    /// # Safety
    /// The range at `to` is inside an allocation that lives until the work is done.
    pub(crate) unsafe fn upload_large(&self, data: &[u8], to: Address, before: Before) -> Result<()> {
        let driver = &self.driver;
        // One at a time: two that share the link are both late, and the kernels of both.
        let mut ring = lock(&self.staging.up);
        match before {
            Before::Nothing => {}
            Before::Event(event) => {
                let waits = driver.wait(Lane::Up, &event);
                self.give_event(event);
                waits?;
            }
            Before::Everything => self.order(Lane::Main, Lane::Up)?,
        }
        // Kernels that read weights early must not be early for these.
        driver.fence();
        if self.is_page_locked(data)? {
            // SAFETY: by contract; the source is borrowed until the wait in `finish`.
            let sent = unsafe { driver.send(Lane::Up, data.as_ptr(), to, data.len()) };
            return self.finish(Lane::Up, sent);
        }
        let ring = self.ring(&mut ring)?;
        // SAFETY: by contract.
        let sent = unsafe { ring.send(self, data, to) };
        // Also after a failure: what was sent is still on its way.
        let joined = self.order(Lane::Up, Lane::Main);
        sent.and(joined)
    }

    /// Copies to the host, after everything that the main stream has been given, and waits.
    ///
    /// # Safety
    /// The range at `from` is inside an allocation.
    pub(crate) unsafe fn download_large(&self, from: Address, out: &mut [u8]) -> Result<()> {
        let mut ring = lock(&self.staging.down);
        self.order(Lane::Main, Lane::Down)?;
        if self.is_page_locked(out)? {
            // SAFETY: by contract; the target is exclusive until the wait in `finish`.
            let sent = unsafe { self.driver.receive(Lane::Down, from, out.as_mut_ptr(), out.len()) };
            return self.finish(Lane::Down, sent);
        }
        let ring = self.ring(&mut ring)?;
        // SAFETY: by contract.
        unsafe { ring.receive(self, from, out) }
    }

    /// Makes what `second` is given from now on wait for what `first` was given so far.
    fn order(&self, first: Lane, second: Lane) -> Result<()> {
        let event = self.take_event()?;
        let ordered = self.driver.mark(&event, first).and_then(|()| self.driver.wait(second, &event));
        self.give_event(event);
        ordered
    }

    /// Waits for the copies of a stream, also where the last one could not be started: nothing may use the caller's memory
    /// after this.
    fn finish(&self, lane: Lane, started: Result<()>) -> Result<()> {
        let event = self.take_event()?;
        let done = self.driver.mark(&event, lane).and_then(|()| self.driver.wait_here(&event));
        self.give_event(event);
        started.and(done)
    }

    fn is_page_locked(&self, data: &[u8]) -> Result<bool> {
        let Some(last) = data.last() else { return Ok(false) };
        Ok(self.driver.is_page_locked(data.as_ptr())? && self.driver.is_page_locked(last)?)
    }

    fn ring<'r>(&self, ring: &'r mut Option<Ring>) -> Result<&'r mut Ring> {
        match ring {
            Some(ring) => Ok(ring),
            none => {
                let mut size = SLOT;
                loop {
                    match self.new_ring(size) {
                        Err(Error::OutOfMemory { .. }) if size > LEAST => size /= 2,
                        made => return Ok(none.insert(made?)),
                    }
                }
            }
        }
    }

    fn new_ring(&self, size: usize) -> Result<Ring> {
        let mut ring = Ring { slots: Vec::with_capacity(SLOTS), size };
        for _ in 0..SLOTS {
            let slot = self.pages(size).and_then(|pages| match self.driver.event() {
                Ok(used) => Ok(Slot { pages, used }),
                Err(e) => {
                    self.free(pages);
                    Err(e)
                }
            });
            match slot {
                Ok(slot) => ring.slots.push(slot),
                Err(e) => {
                    self.free_ring(ring);
                    return Err(e);
                }
            }
        }
        Ok(ring)
    }

    /// Page-locked memory of undefined content, within the budget of the host's pool.
    fn pages(&self, bytes: usize) -> Result<Pages> {
        let memory = self.host.memory();
        let budget = memory.reserve(ID, bytes).or_else(|_| {
            lock(&self.staging.kept).drain(..).for_each(|pages| self.free(pages));
            memory.reserve(ID, bytes)
        })?;
        match self.driver.host_memory(bytes)? {
            Some(at) => Ok(Pages { at, len: bytes, _budget: budget }),
            None => {
                let budget = "page-locked memory of the system";
                Err(Error::OutOfMemory { backend: ID.into(), need: bytes, available: 0, budget })
            }
        }
    }

    fn free(&self, pages: Pages) {
        // SAFETY: it came from the driver, and whoever held it waited for the copies.
        unsafe { self.driver.free_host_memory(pages.at) };
    }

    fn free_ring(&self, ring: Ring) {
        for slot in ring.slots {
            self.driver.destroy_event(slot.used);
            self.free(slot.pages);
        }
    }

    /// Gives everything back to the driver. No work is left.
    pub(crate) fn clear_staging(&mut self) {
        let staging = std::mem::take(&mut self.staging);
        let inner = |ring: Mutex<Option<Ring>>| ring.into_inner().unwrap_or_else(PoisonError::into_inner);
        [staging.up, staging.down].into_iter().filter_map(inner).for_each(|ring| self.free_ring(ring));
        lock(&staging.events).drain(..).for_each(|event| self.driver.destroy_event(event));
        lock(&staging.pages).drain(..).for_each(|page| self.driver.free_host_page(&page));
        lock(&staging.kept).drain(..).for_each(|pages| self.free(pages));
    }

    /// Zeroed page-locked memory for the caller.
    pub(crate) fn take_pinned(self: &Arc<Self>, bytes: usize) -> Result<Pinned> {
        let size = class(bytes);
        let mut kept = lock(&self.staging.kept);
        let reused = kept.iter().position(|pages| pages.len == size).map(|i| kept.swap_remove(i));
        drop(kept);
        let pages = reused.map_or_else(|| self.pages(size), Ok)?;
        // SAFETY: the memory is that long, and nobody else's.
        unsafe { pages.at.write_bytes(0, bytes) };
        Ok(Pinned { device: self.clone(), pages: Some(pages), bytes })
    }
}

impl Ring {
    /// # Safety
    /// As for [`Device::upload_large`].
    unsafe fn send(&self, device: &Device, data: &[u8], to: Address) -> Result<()> {
        for (i, part) in data.chunks(self.size).enumerate() {
            let slot = &self.slots[i % SLOTS];
            device.driver.wait_here(&slot.used)?;
            // SAFETY: the slot is as long as a part at least, and its last copy is done.
            unsafe { copy(device.host.executor(), part.as_ptr(), slot.pages.at, part.len()) };
            // SAFETY: by contract; the slot is written again only after the wait above.
            unsafe { device.driver.send(Lane::Up, slot.pages.at, to + (i * self.size) as u64, part.len()) }?;
            device.driver.mark(&slot.used, Lane::Up)?;
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Device::download_large`].
    unsafe fn receive(&self, device: &Device, from: Address, out: &mut [u8]) -> Result<()> {
        let mut arriving: std::collections::VecDeque<(&Slot, &mut [u8])> = std::collections::VecDeque::new();
        let take_over = |(slot, part): (&Slot, &mut [u8])| {
            device.driver.wait_here(&slot.used)?;
            // SAFETY: the slot holds as much, and its copy is done.
            unsafe { copy(device.host.executor(), slot.pages.at, part.as_mut_ptr(), part.len()) };
            Ok(())
        };
        for (i, part) in out.chunks_mut(self.size).enumerate() {
            if arriving.len() == SLOTS
                && let Some(first) = arriving.pop_front()
            {
                take_over(first)?;
            }
            let slot = &self.slots[i % SLOTS];
            // SAFETY: by contract; what the slot held was taken over.
            unsafe { device.driver.receive(Lane::Down, from + (i * self.size) as u64, slot.pages.at, part.len()) }?;
            device.driver.mark(&slot.used, Lane::Down)?;
            arriving.push_back((slot, part));
        }
        arriving.into_iter().try_for_each(take_over)
    }
}

/// Copies with as many threads as are worth it.
///
/// # Safety
/// `len` bytes can be read at `from` and written at `to`, and nobody else does meanwhile.
unsafe fn copy(executor: &dyn Executor, from: *const u8, to: *mut u8, len: usize) {
    struct Both(*const u8, *mut u8);
    // SAFETY: each task has bytes of its own.
    unsafe impl Sync for Both {}
    let both = Both(from, to);
    let tasks = executor.threads().min(len / SHARE).max(1);
    let each = len.div_ceil(tasks);
    let task = |i: usize| {
        let both = &both;
        let start = (i * each).min(len);
        // SAFETY: by contract; the parts of the tasks do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(both.0.add(start), both.1.add(start), each.min(len - start)) };
    };
    if tasks == 1 { task(0) } else { executor.run(tasks, &task) }
}

/// Page-locked memory of a caller.
#[derive(Debug)]
pub(crate) struct Pinned {
    device: Arc<Device>,
    pages: Option<Pages>,
    bytes: usize,
}

impl PinnedMemory for Pinned {
    fn bytes(&self) -> &[u8] {
        match &self.pages {
            // SAFETY: the memory is that long, and borrowed like `self`; copies of the device wait before they return.
            Some(pages) => unsafe { std::slice::from_raw_parts(pages.at, self.bytes) },
            None => &[],
        }
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        match &self.pages {
            // SAFETY: as above, exclusively.
            Some(pages) => unsafe { std::slice::from_raw_parts_mut(pages.at, self.bytes) },
            None => &mut [],
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        lock(&self.device.staging.kept).extend(self.pages.take());
    }
}
