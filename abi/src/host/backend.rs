//! An instance of a plugin's backend as [`QuantBackend`].

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tersor_core::{
    BackendInfo, Bytes, DeviceKind, Error, Format, HostContext, Isa, OpSpec, PackTag, PackedWeight, QuantBackend,
    RawBuffer, Result, Shape, Stream, Support, Weight, intern,
};

use super::context::HostSide;
use super::status::{Report, broken};
use super::stream::ForeignStream;
use super::{PluginBackend, Table, call, operands, own_text, spec};
use crate::codes::Code;
use crate::raw::*;

/// What `open` made, closed when the last stream and pack are gone.
pub(super) struct Opened {
    pub(super) table: Table,
    pub(super) instance: *mut c_void,
    pub(super) id: &'static str,
    /// The plugin keeps a pointer to its table, so it is in no box that moves.
    pub(super) host: Arc<HostSide>,
    place: Place,
}

/// Numbers the instances of a backend that are alive. A pack belongs to its instance, so that instances must be told apart by
/// the names of their packings; numbers are used again, so that there are few names.
struct Place {
    id: &'static str,
    number: usize,
}

static TAKEN: Mutex<Vec<(&str, usize)>> = Mutex::new(Vec::new());

impl Place {
    fn take(id: &'static str) -> Self {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (1..).find(|n| !taken.contains(&(id, *n))).unwrap_or(usize::MAX);
        taken.push((id, number));
        Place { id, number }
    }

    fn packing(&self, name: &'static str) -> &'static str {
        if self.number == 1 { name } else { intern(format!("{name}#{}", self.number)) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).retain(|taken| *taken != (self.id, self.number));
    }
}

// SAFETY: the ABI lets an instance be used from any thread at any time.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: made by `open`, and nothing uses it any more; the host's table goes after it.
        unsafe { call!(self.table, close, self.instance) }
    }
}

/// A backend of a plugin.
pub(super) struct Foreign {
    opened: Arc<Opened>,
    info: BackendInfo,
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Foreign").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Foreign {
    pub(super) fn open(backend: &PluginBackend, context: &HostContext) -> Result<Self> {
        let (mut report, host) = (Report::new(), Arc::new(HostSide::new(context)));
        let isa = match context.isa {
            None => 0,
            Some(isa) => isa.number().ok_or_else(|| broken(backend.id, format!("this ABI has no number for {isa}")))?,
        };
        let options = TersorOptions { struct_size: size_of::<TersorOptions>() as u32, isa };
        let mut instance = std::ptr::null_mut();
        // SAFETY: the plugin's function with its own table and structs of ours; the host's table lives in `opened`.
        let status =
            unsafe { call!(backend.table, open, backend.own, host.table(), &options, &mut instance, report.as_mut()) };
        report.check(status, backend.id, "open")?;
        if instance.is_null() {
            return Err(broken(backend.id, "open made no instance".into()));
        }
        let opened =
            Arc::new(Opened { table: backend.table, instance, id: backend.id, host, place: Place::take(backend.id) });
        let struct_size = size_of::<TersorInfo>() as u32;
        let mut out = TersorInfo { struct_size, device: 0, isa: 0, reserved: 0 };
        // SAFETY: an instance of this table and structs of ours.
        let status = unsafe { call!(backend.table, info, instance, &mut out, report.as_mut()) };
        report.check(status, backend.id, "info")?;
        let device = backend.device(out.device)?;
        if device.kind != DeviceKind::Cpu {
            let reason = "its operands would be memory of a device, which version 1.0 of the plugin ABI does not know";
            return Err(Error::Unusable { backend: backend.id.into(), reason: reason.into() });
        }
        let got = Isa::named(out.isa);
        if let Some(asked) = context.isa.filter(|asked| got != Some(*asked)) {
            let got = got.map_or("none", Isa::id);
            return Err(broken(backend.id, format!("asked for ISA tier {asked}, it opened {got}")));
        }
        let (id, version) = (backend.id.into(), backend.version.into());
        let info = BackendInfo { id, version, kernel_revision: backend.kernel_revision, device, isa: got };
        Ok(Foreign { opened, info })
    }
}

/// A pack of the plugin, and the codes that it uses in place.
pub(super) struct ForeignPack {
    opened: Arc<Opened>,
    handle: *mut c_void,
    codes: Option<Bytes>,
}

// SAFETY: packs are read-only handles, which the ABI lets be used from any thread.
unsafe impl Send for ForeignPack {}
// SAFETY: as above.
unsafe impl Sync for ForeignPack {}

impl ForeignPack {
    /// The handle, for the instance that made it.
    pub(super) fn handle(packed: &PackedWeight, opened: &Arc<Opened>) -> Result<*const c_void> {
        let pack = packed.data::<ForeignPack>(opened.id)?;
        if Arc::ptr_eq(&pack.opened, opened) {
            return Ok(pack.handle);
        }
        let made_by = format!("another instance of {}", opened.id);
        Err(Error::ForeignPack { made_by, given_to: opened.id.into() })
    }
}

impl Drop for ForeignPack {
    fn drop(&mut self) {
        // SAFETY: made by `pack` of this instance, and used no more.
        let flags: u32 = unsafe { call!(self.opened.table, free_pack, self.opened.instance, self.handle) };
        if flags & TERSOR_KEEPS_CODES != 0 {
            std::mem::forget(self.codes.take());
        }
    }
}

impl QuantBackend for Foreign {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, question: &OpSpec) -> Support {
        let mut report = Report::new();
        let mut out = ran();
        let question = spec::spec(question);
        let opened = &self.opened;
        // SAFETY: an instance of this table and structs of ours.
        let status = unsafe { call!(opened.table, supports, opened.instance, &question, &mut out, report.as_mut()) };
        match report.check(status, opened.id, "supports") {
            Ok(()) => match own_text("a kernel's name", out.kernel) {
                Ok(kernel) => Support::Yes { kernel },
                Err(e) => Support::no(format!("the plugin breaks the ABI: {e}")),
            },
            Err(Error::Unsupported { reason, .. }) => Support::No { reason },
            Err(e) => Support::no(e.to_string()),
        }
    }

    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        let (mut report, mut bytes) = (Report::new(), 0u64);
        let (opened, number) = (&self.opened, format.number().unwrap_or(0));
        let (rows, cols) = (shape.rows() as u64, shape.cols() as u64);
        // SAFETY: an instance of this table and memory of ours.
        let status = unsafe {
            call!(opened.table, packed_size, opened.instance, number, rows, cols, &mut bytes, report.as_mut())
        };
        report.check(status, opened.id, "packed_size")?;
        usize::try_from(bytes).map_err(|_| broken(opened.id, format!("a pack of {bytes} bytes")))
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let (mut report, opened) = (Report::new(), &self.opened);
        let mut w = operands::weight(weight);
        w.scale_block = match weight.uniform_scale() {
            Some(_) => 0,
            None => weight.format().scale_block().unwrap_or(0) as u64,
        };
        let packing = TersorStr { data: std::ptr::null(), len: 0 };
        let struct_size = size_of::<TersorPack>() as u32;
        let mut out = TersorPack { struct_size, flags: 0, handle: std::ptr::null_mut(), bytes: 0, packing };
        let codes = weight.shared_codes();
        // SAFETY: an instance of this table, structs of ours, and a weight that lives for the call.
        let status = unsafe { call!(opened.table, pack, opened.instance, &w, &mut out, report.as_mut()) };
        let keeps = out.flags & TERSOR_KEEPS_CODES != 0;
        if let Err(e) = report.check(status, opened.id, &format!("pack {} {}", weight.format(), weight.shape())) {
            if keeps {
                // Somebody over there uses them still.
                std::mem::forget(codes);
            }
            return Err(e);
        }
        if out.handle.is_null() {
            return Err(broken(opened.id, "pack made nothing".into()));
        }
        let pack = ForeignPack { opened: opened.clone(), handle: out.handle, codes: keeps.then_some(codes) };
        let packing = own_text("a packing's name", out.packing).map_err(|e| broken(opened.id, e.to_string()))?;
        let bytes =
            usize::try_from(out.bytes).map_err(|_| broken(opened.id, format!("a pack of {} bytes", out.bytes)))?;
        let tag = PackTag { backend: opened.id.into(), packing: opened.place.packing(packing) };
        Ok(PackedWeight::new(tag, weight, bytes, keeps, Arc::new(pack)))
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        Ok(RawBuffer::host(bytes))
    }

    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(ForeignStream::open(&self.opened)?))
    }
}

pub(super) fn ran() -> TersorRan {
    let kernel = TersorStr { data: std::ptr::null(), len: 0 };
    TersorRan { struct_size: size_of::<TersorRan>() as u32, flags: 0, kernel }
}
