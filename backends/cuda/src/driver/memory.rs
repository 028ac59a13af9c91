//! Memory of the device and page-locked memory of the host, copies, and the order between streams.

use cudarc::driver::sys::{self, CUresult};
use tersor_core::Result;

use super::{Address, Driver, check};

/// The streams of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Kernels, and copies of few bytes.
    Main,
    /// Large copies from the host.
    Up,
    /// Large copies to the host.
    Down,
}

/// A point in the order of a stream.
#[derive(Debug)]
pub(crate) struct Event(sys::CUevent);

// SAFETY: the handle is the driver's, which may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

/// Bytes of a page of host memory that kernels can write, and what it is divided into: a word, in a cache line of its own, and
/// slots of a key and bytes.
const PAGE: usize = 4096;
const LINE: usize = 64;
const KEY: usize = 8;
const SLOT: usize = 960;
/// Slots of a page.
pub(crate) const SLOTS: usize = 4;
/// Bytes of a slot beside its key.
pub(crate) const ROOM: usize = SLOT - KEY;
const _: () = assert!(LINE + SLOTS * SLOT <= PAGE);

/// A page of host memory that kernels can write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostPage {
    at: *mut u8,
    /// Where kernels see it, and its word.
    pub(crate) address: Address,
}

// SAFETY: it is memory like any other; reads and writes below are volatile, because kernels write it too.
unsafe impl Send for HostPage {}

impl HostPage {
    /// The word.
    pub(crate) fn get(&self) -> u32 {
        // SAFETY: the memory is ours until it is freed, and aligned to a page.
        unsafe { self.at.cast::<u32>().read_volatile() }
    }
    pub(crate) fn set(&self, value: u32) {
        // SAFETY: as above.
        unsafe { self.at.cast::<u32>().write_volatile(value) }
    }

    /// Byte of a slot; there are so many.
    fn slot(slot: usize) -> usize {
        LINE + slot % SLOTS * SLOT
    }

    /// Where kernels see the key of a slot, and its bytes.
    pub(crate) fn addresses(&self, slot: usize) -> (Address, Address) {
        let key = self.address + Self::slot(slot) as u64;
        (key, key + KEY as u64)
    }

    /// The key of a slot.
    pub(crate) fn key(&self, slot: usize) -> u64 {
        // SAFETY: the slot lies in the page, and begins at a multiple of 64 bytes.
        unsafe { self.at.add(Self::slot(slot)).cast::<u64>().read_volatile() }
    }
    pub(crate) fn set_key(&self, slot: usize, key: u64) {
        // SAFETY: as above.
        unsafe { self.at.add(Self::slot(slot)).cast::<u64>().write_volatile(key) }
    }

    /// Bytes of a slot, no more than it has.
    pub(crate) fn read(&self, slot: usize, out: &mut [u8]) {
        let from = Self::slot(slot) + KEY;
        for (i, byte) in out.iter_mut().take(ROOM).enumerate() {
            // SAFETY: the byte lies in the slot, which lies in the page.
            *byte = unsafe { self.at.add(from + i).read_volatile() };
        }
    }
}

impl Driver {
    /// Device memory; `None` where there is not enough.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Option<Address>> {
        self.bind()?;
        let mut at = 0;
        // SAFETY: `at` outlives the call.
        match unsafe { sys::cuMemAlloc_v2(&mut at, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            code => check("cuMemAlloc", code).map(|()| Some(at)),
        }
    }

    /// Gives memory back to the driver, after all work.
    ///
    /// # Safety
    /// `at` came from [`Driver::alloc`] and is used no more.
    pub(crate) unsafe fn free(&self, at: Address) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuMemFree", unsafe { sys::cuMemFree_v2(at) })
    }

    /// Bytes free and in all.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both outlive the call.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// Fills memory, in stream order.
    ///
    /// # Safety
    /// The range is inside an allocation that lives until the work is done.
    pub(crate) unsafe fn fill(&self, at: Address, byte: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, byte, bytes, self.stream) })
    }

    /// Copies from the host, in the order of the main stream; `src` may change as soon as this returns. For few bytes: the
    /// driver copies them, twice.
    ///
    /// # Safety
    /// The range at `dst` is inside an allocation that lives until the work is done, and `src` is pageable memory.
    pub(crate) unsafe fn upload(&self, src: &[u8], dst: Address) -> Result<()> {
        self.bind()?;
        // SAFETY: the range at `dst` is valid by contract. A copy from pageable memory returns when the source was read.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(dst, src.as_ptr().cast(), src.len(), self.stream)
        })
    }

    /// Copies to the host, after all work of the main stream, and waits. For few bytes, likewise.
    ///
    /// # Safety
    /// The range at `src` is inside an allocation.
    pub(crate) unsafe fn download(&self, src: Address, dst: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: `src` is valid by contract; `dst` is exclusive and outlives the wait below.
        let copied = check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src, dst.len(), self.stream)
        });
        // Also after a failure: nothing may write to `dst` once this returns.
        self.synchronize().and(copied)
    }

    /// Copies inside the device's memory, in stream order.
    ///
    /// # Safety
    /// Both ranges are inside allocations that live until the work is done, and do not overlap.
    pub(crate) unsafe fn copy(&self, src: Address, dst: Address, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(dst, src, bytes, self.stream) })
    }

    /// Starts a copy from page-locked memory, in the order of the stream.
    ///
    /// # Safety
    /// `src` is `len` bytes of page-locked memory that nobody writes, and the range at `dst` inside an allocation that lives,
    /// until the work is done.
    pub(crate) unsafe fn send(&self, lane: Lane, src: *const u8, dst: Address, len: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(dst, src.cast(), len, self.of(lane)) })
    }

    /// Starts a copy to page-locked memory, in the order of the stream.
    ///
    /// # Safety
    /// As for [`Driver::send`], the other way round: nobody uses `dst` until the work is done.
    pub(crate) unsafe fn receive(&self, lane: Lane, src: Address, dst: *mut u8, len: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(dst.cast(), src, len, self.of(lane)) })
    }

    /// An event that has not been marked.
    pub(crate) fn event(&self) -> Result<Event> {
        self.bind()?;
        let mut event = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: `event` outlives the call.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Event(event))
    }

    /// Lets the event stand for everything that the stream has been given so far.
    pub(crate) fn mark(&self, event: &Event, lane: Lane) -> Result<()> {
        self.bind()?;
        // SAFETY: both are ours.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.0, self.of(lane)) })
    }

    /// Makes what the stream is given from now on wait for what the event stands for.
    pub(crate) fn wait(&self, lane: Lane, event: &Event) -> Result<()> {
        self.bind()?;
        // SAFETY: both are ours. An event that was never marked is one that has happened.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.of(lane), event.0, 0) })
    }

    /// Waits for what the event stands for.
    pub(crate) fn wait_here(&self, event: &Event) -> Result<()> {
        self.bind()?;
        // SAFETY: the event is ours.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(event.0) })
    }

    /// Gives an event back. The driver keeps what still waits for it.
    pub(crate) fn destroy_event(&self, event: Event) {
        if self.bind().is_ok() {
            // SAFETY: the event is ours and used no more. A failure leaves nothing to be done.
            let _ = unsafe { sys::cuEventDestroy_v2(event.0) };
        }
    }

    /// Page-locked host memory; `None` where there is not enough.
    pub(crate) fn host_memory(&self, bytes: usize) -> Result<Option<*mut u8>> {
        self.bind()?;
        let mut at = std::ptr::null_mut();
        // SAFETY: `at` outlives the call. Flag 1 makes the memory page-locked for every context.
        match unsafe { sys::cuMemHostAlloc(&mut at, bytes, 1) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            code => check("cuMemHostAlloc", code).map(|()| Some(at.cast())),
        }
    }

    /// Gives page-locked memory back.
    ///
    /// # Safety
    /// It came from [`Driver::host_memory`], and no copy uses it any more.
    pub(crate) unsafe fn free_host_memory(&self, at: *mut u8) {
        // After a device error this fails, and there is nobody to tell.
        if self.bind().is_ok() {
            // SAFETY: by contract.
            let _ = unsafe { sys::cuMemFreeHost(at.cast()) };
        }
    }

    /// Whether the device can read this host memory by itself.
    pub(crate) fn is_page_locked(&self, at: *const u8) -> Result<bool> {
        self.bind()?;
        let mut kind = 0u32;
        let mut attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        let mut value: *mut std::ffi::c_void = (&raw mut kind).cast();
        // SAFETY: the attribute is 32 bits; the address may be any: what the driver has never heard of has no kind.
        let code = unsafe { sys::cuPointerGetAttributes(1, &mut attribute, &mut value, at as u64) };
        check("cuPointerGetAttributes", code)?;
        Ok(kind == sys::CUmemorytype::CU_MEMORYTYPE_HOST as u32)
    }

    fn of(&self, lane: Lane) -> sys::CUstream {
        match lane {
            Lane::Main => self.stream,
            Lane::Up => self.up,
            Lane::Down => self.down,
        }
    }

    /// See [`HostPage`]. Its word is zero, the rest is undefined.
    pub(crate) fn host_page(&self) -> Result<HostPage> {
        self.bind()?;
        let mut at = std::ptr::null_mut();
        // SAFETY: `at` outlives the call. Flag 2 maps the memory for the device.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut at, PAGE, 2) })?;
        let mut address = 0;
        // SAFETY: `at` was just allocated, mapped.
        let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, at, 0) };
        let page = HostPage { at: at.cast(), address };
        if let Err(e) = check("cuMemHostGetDevicePointer", mapped) {
            self.free_host_page(&page);
            return Err(e);
        }
        page.set(0);
        Ok(page)
    }

    /// Gives a page back. All work is done.
    pub(crate) fn free_host_page(&self, page: &HostPage) {
        if self.bind().is_ok() {
            // SAFETY: it came from `host_page` of this driver and no work is left that could use it. A failure to free leaves
            // nothing to be done.
            let _ = unsafe { sys::cuMemFreeHost(page.at.cast()) };
        }
    }
}
