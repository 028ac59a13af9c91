//! The functions of a [`TersorBackend`] table.
//!
//! All are called by the host as the ABI says: handles are ours and alive, pointers are valid for the call.

use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

use tersor_core::host::LogLevel;
use tersor_core::{BackendEntry, DeviceInfo, DeviceKind, HostContext, Isa, Probe, Support};

use super::host::Host;
use super::operands::{format, kept, read, shape, weight};
use super::{Instance, OpenStream, Pack, Refusal, guarded, handle, invalid, spec, submit as op, text, write_text};
use crate::codes::{Code, mask_of};
use crate::raw::*;

/// # Safety
/// `backend` is a table of ours.
unsafe fn entry<'a>(backend: *const TersorBackend) -> &'a BackendEntry {
    // SAFETY: our tables carry their entry, which is static.
    unsafe { &*(*backend).data.cast::<BackendEntry>() }
}

/// # Safety
/// `instance` is a handle that `open` returned and `close` has not got yet.
unsafe fn opened<'a>(instance: *mut c_void) -> &'a Arc<Instance> {
    // SAFETY: the caller's promise.
    unsafe { &*instance.cast::<Arc<Instance>>() }
}

/// # Safety
/// `out` is null, or may be written up to the size that it states.
unsafe fn out<'a, T: Prefixed>(out: *mut T) -> Result<&'a mut T, Refusal> {
    // SAFETY: the caller's promise.
    unsafe { read(out.cast_const())? };
    // SAFETY: not null, aligned, long enough, and the caller's to be written.
    Ok(unsafe { &mut *out })
}

fn devices(entry: &BackendEntry) -> Result<Vec<DeviceInfo>, Refusal> {
    match (entry.probe)() {
        Probe::Usable { devices } => Ok(devices),
        Probe::Unusable { reason } => Err(Refusal::Status(TERSOR_UNUSABLE, reason)),
    }
}

pub(super) unsafe extern "C" fn probe(b: *const TersorBackend, to: *mut TersorProbe, err: *mut TersorError) -> i32 {
    // SAFETY: see the module's text.
    unsafe {
        guarded(None, err, || {
            out(to)?.devices = devices(entry(b))?.len() as u32;
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn device(
    b: *const TersorBackend,
    index: u32,
    to: *mut TersorDevice,
    err: *mut TersorError,
) -> i32 {
    // SAFETY: see the module's text.
    unsafe {
        guarded(None, err, || {
            let (to, devices) = (out(to)?, devices(entry(b))?);
            let device = devices.get(index as usize).ok_or_else(|| invalid(format!("there is no device {index}")))?;
            to.kind = match device.kind {
                DeviceKind::Cpu => TERSOR_CPU,
                DeviceKind::Gpu => TERSOR_GPU,
                _ => 0,
            };
            to.isas = mask_of(&device.isas);
            to.memory = device.memory.unwrap_or(0);
            write_text(&mut to.name, &device.name);
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn open(
    b: *const TersorBackend,
    host: *const TersorHost,
    options: *const TersorOptions,
    to: *mut *mut c_void,
    err: *mut TersorError,
) -> i32 {
    // SAFETY: see the module's text.
    unsafe {
        guarded(None, err, || {
            let (host, options) = (Arc::new(Host::new(host)?), read(options)?);
            let unknown = || Refusal::Status(TERSOR_UNUSABLE, format!("no ISA tier has the number {}", options.isa));
            let isa = if options.isa == 0 { None } else { Some(Isa::named(options.isa).ok_or_else(unknown)?) };
            let log = host.clone();
            let context = HostContext::new(host.clone())
                .with_isa(isa)
                .with_log(move |level: LogLevel, message: &str| log.log(level, message));
            let backend = (entry(b).open)(&context)?;
            *to = handle(Arc::new(Instance { backend, context, host, poisoned: OnceLock::new() }));
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn close(instance: *mut c_void) {
    // SAFETY: see the module's text; the host uses the handle no more. A panic of a drop ends here.
    unsafe { guarded(None, std::ptr::null_mut(), || drop_box::<Arc<Instance>>(instance)) };
}

/// # Safety
/// `handle` is a box of `T` that nobody uses any more, or null.
unsafe fn drop_box<T>(handle: *mut c_void) -> Result<(), Refusal> {
    if !handle.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(handle.cast::<T>()) });
    }
    Ok(())
}

pub(super) unsafe extern "C" fn info(instance: *mut c_void, to: *mut TersorInfo, err: *mut TersorError) -> i32 {
    // SAFETY: see the module's text.
    unsafe {
        let instance = opened(instance);
        guarded(Some(instance), err, || {
            let (to, info) = (out(to)?, instance.backend.info());
            to.device = info.device.index as u32;
            to.isa = info.isa.and_then(Isa::number).unwrap_or(0);
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn supports(
    instance: *mut c_void,
    question: *const TersorSpec,
    to: *mut TersorRan,
    err: *mut TersorError,
) -> i32 {
    // SAFETY: see the module's text.
    unsafe {
        let instance = opened(instance);
        guarded(Some(instance), err, || match instance.backend.supports(&spec::spec(read(question)?)?) {
            Support::Yes { kernel } => {
                out(to)?.kernel = text(kernel);
                Ok(())
            }
            Support::No { reason } => Err(Refusal::Status(TERSOR_UNSUPPORTED, reason)),
        })
    }
}

pub(super) unsafe extern "C" fn packed_size(
    instance: *mut c_void,
    number: u32,
    rows: u64,
    cols: u64,
    to: *mut u64,
    err: *mut TersorError,
) -> i32 {
    // SAFETY: see the module's text.
    unsafe {
        let instance = opened(instance);
        guarded(Some(instance), err, || {
            *to = instance.backend.packed_size(format(number)?, shape(rows, cols)?)? as u64;
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn pack(
    instance: *mut c_void,
    w: *const TersorWeight,
    to: *mut TersorPack,
    err: *mut TersorError,
) -> i32 {
    // SAFETY: see the module's text. The host keeps the codes where the flag says so.
    unsafe {
        let instance = opened(instance);
        guarded(Some(instance), err, || {
            let (to, (w, witness)) = (out(to)?, weight(w)?);
            // Taken back below; what holds the codes when a panic passes by is not known.
            to.flags = TERSOR_KEEPS_CODES;
            let packed = instance.backend.pack(&w);
            drop(w);
            to.flags = if kept(&witness) { TERSOR_KEEPS_CODES } else { 0 };
            let packed = packed?;
            to.bytes = packed.bytes() as u64;
            to.packing = text(packed.tag().packing);
            to.handle = handle(Pack { packed, witness });
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn free_pack(_: *mut c_void, pack: *mut c_void) -> u32 {
    let mut flags = TERSOR_KEEPS_CODES;
    // SAFETY: see the module's text. A poisoned instance's packs are freed like any other.
    unsafe {
        guarded(None, std::ptr::null_mut(), || {
            let Pack { packed, witness } = *Box::from_raw(pack.cast::<Pack>());
            drop(packed);
            flags = if kept(&witness) { TERSOR_KEEPS_CODES } else { 0 };
            Ok(())
        })
    };
    flags
}

pub(super) unsafe extern "C" fn open_stream(instance: *mut c_void, to: *mut *mut c_void, err: *mut TersorError) -> i32 {
    // SAFETY: see the module's text.
    unsafe {
        let instance = opened(instance);
        guarded(Some(instance), err, || {
            let stream = instance.backend.open_stream()?;
            *to = handle(OpenStream { instance: instance.clone(), stream });
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn close_stream(stream: *mut c_void) {
    // SAFETY: see the module's text.
    unsafe { guarded(None, std::ptr::null_mut(), || drop_box::<OpenStream>(stream)) };
}

pub(super) unsafe extern "C" fn submit(
    stream: *mut c_void,
    number: u32,
    args: *const c_void,
    to: *mut TersorRan,
    err: *mut TersorError,
) -> i32 {
    // SAFETY: see the module's text. A stream is used by one thread at a time.
    unsafe {
        let OpenStream { instance, stream } = &mut *stream.cast::<OpenStream>();
        guarded(Some(instance), err, || {
            instance.hear_cancellation();
            let to = out(to)?;
            let ran = op::submit(&mut **stream, number, args, &mut to.flags)?;
            to.kernel = text(ran.kernel);
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn synchronize(stream: *mut c_void, err: *mut TersorError) -> i32 {
    // SAFETY: see the module's text.
    unsafe {
        let OpenStream { instance, stream } = &mut *stream.cast::<OpenStream>();
        guarded(Some(instance), err, || Ok(stream.synchronize()?))
    }
}
