//! The plugin's side: any [`BackendEntry`] as C tables. Used through [`crate::export_backend!`].
//!
//! Every function that the host calls runs inside `guarded`, so that no panic leaves it.
#![allow(unsafe_code, reason = "this module is the boundary")]

mod calls;
mod host;
mod operands;
mod spec;
mod submit;

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use tersor_core::{BackendEntry, Error, HostContext, PackedWeight, QuantBackend, Stream};

use crate::raw::*;

/// Turns backends into a plugin: each argument is a `'static` reference to a [`tersor_core::BackendEntry`]. For a crate of
/// type `cdylib`.
///
/// ```ignore
/// static ENTRY: BackendEntry = BackendEntry { id: "acme-npu", /* … */ };
/// tersor_abi::export_backend!(&ENTRY);
/// ```
///
/// A panic in the backend becomes an error of the call and poisons that instance; this needs `panic = "unwind"`, the default.
#[macro_export]
macro_rules! export_backend {
    ($($entry:expr),+ $(,)?) => {
        /// The plugin's one symbol; see Tersor's `docs/plugin-abi.md`.
        #[allow(unsafe_code, reason = "the symbol's name is the contract")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn tersor_plugin_v1(
            host: *const $crate::raw::TersorHost,
            out: *mut *const $crate::raw::TersorPlugin,
        ) -> i32 {
            static EXPORT: $crate::guest::Export = $crate::guest::Export::new();
            let about = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
            // SAFETY: the caller's promise is the one that `init` asks for.
            unsafe { EXPORT.init(about, || vec![$($entry),+], host, out) }
        }
    };
}

/// The tables of a plugin, made on first use.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Export(OnceLock<Tables>);

#[derive(Debug)]
struct Tables {
    plugin: TersorPlugin,
}

// SAFETY: tables are constant once made, and what they point to is leaked.
unsafe impl Send for Tables {}
// SAFETY: as above.
unsafe impl Sync for Tables {}

impl Export {
    #[doc(hidden)]
    pub const fn new() -> Self {
        Export(OnceLock::new())
    }

    /// The exported symbol.
    ///
    /// # Safety
    /// `host` is null or points to a host table; `out` is null or may be written.
    #[doc(hidden)]
    pub unsafe fn init(
        &'static self,
        about: (&'static str, &'static str),
        entries: impl FnOnce() -> Vec<&'static BackendEntry>,
        host: *const TersorHost,
        out: *mut *const TersorPlugin,
    ) -> i32 {
        if host.is_null() || out.is_null() {
            return TERSOR_ABI_MISMATCH;
        }
        let tables = catch_unwind(AssertUnwindSafe(|| self.0.get_or_init(|| tables(about, entries()))));
        match tables {
            Ok(tables) => {
                // SAFETY: not null, and the caller says that it may be written.
                unsafe { *out = &tables.plugin };
                TERSOR_OK
            }
            Err(payload) => {
                forget(payload);
                TERSOR_PANIC
            }
        }
    }
}

fn tables(about: (&'static str, &'static str), entries: Vec<&'static BackendEntry>) -> Tables {
    let leak = |entry| -> *const TersorBackend { Box::leak(Box::new(backend(entry))) };
    // Leaked, not kept in a box: moving a box ends the pointers that were made from it.
    let list: &'static [_] = Box::leak(entries.into_iter().map(leak).collect());
    let plugin = TersorPlugin {
        struct_size: size_of::<TersorPlugin>() as u32,
        abi_minor: TERSOR_ABI_MINOR,
        name: text(about.0),
        version: text(about.1),
        backends: list.as_ptr(),
        backend_count: list.len() as u64,
    };
    Tables { plugin }
}

fn backend(entry: &'static BackendEntry) -> TersorBackend {
    TersorBackend {
        struct_size: size_of::<TersorBackend>() as u32,
        kernel_revision: entry.kernel_revision,
        data: std::ptr::from_ref(entry).cast(),
        id: text(entry.id),
        version: text(entry.version),
        priority: entry.priority,
        reserved: 0,
        probe: Some(calls::probe),
        device: Some(calls::device),
        open: Some(calls::open),
        close: Some(calls::close),
        info: Some(calls::info),
        supports: Some(calls::supports),
        packed_size: Some(calls::packed_size),
        pack: Some(calls::pack),
        free_pack: Some(calls::free_pack),
        open_stream: Some(calls::open_stream),
        close_stream: Some(calls::close_stream),
        submit: Some(calls::submit),
        synchronize: Some(calls::synchronize),
    }
}

/// Static text.
pub(crate) fn text(s: &'static str) -> TersorStr {
    TersorStr { data: s.as_ptr().cast(), len: s.len() as u64 }
}

/// What `open` made.
struct Instance {
    backend: Arc<dyn QuantBackend>,
    context: HostContext,
    host: Arc<host::Host>,
    /// The message of the first panic; set once. Asked before every call, so it is not behind a lock.
    poisoned: OnceLock<String>,
}

impl Instance {
    /// Brings the host's wish to stop into the context that the backend asks.
    fn hear_cancellation(&self) {
        if self.host.is_cancelled() { self.context.cancel() } else { self.context.resume() }
    }
}

/// What `open_stream` made.
struct OpenStream {
    instance: Arc<Instance>,
    stream: Box<dyn Stream>,
}

/// What `pack` made.
struct Pack {
    packed: PackedWeight,
    witness: Arc<()>,
}

/// Why a call ends with a status other than `TERSOR_OK`.
enum Refusal {
    Core(Error),
    Status(i32, String),
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        Refusal::Core(e)
    }
}

fn invalid(what: impl Into<String>) -> Refusal {
    Refusal::Status(TERSOR_INVALID, what.into())
}

/// Runs a call. A panic poisons `instance`, and a poisoned instance runs nothing.
///
/// # Safety
/// `err` is null or points to an error that may be written, as the ABI describes it.
unsafe fn guarded(
    instance: Option<&Instance>,
    err: *mut TersorError,
    call: impl FnOnce() -> Result<(), Refusal>,
) -> i32 {
    let refusal = match instance.and_then(|instance| instance.poisoned.get()) {
        Some(message) => Refusal::Status(TERSOR_POISONED, format!("an earlier call panicked: {message}")),
        None => match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(())) => return TERSOR_OK,
            Ok(Err(refusal)) => refusal,
            Err(payload) => {
                let message = panic_message(&*payload);
                forget(payload);
                if let Some(instance) = instance {
                    // Of two panics at once, one is told.
                    let _ = instance.poisoned.set(message.clone());
                }
                Refusal::Status(TERSOR_PANIC, message)
            }
        },
    };
    // SAFETY: the caller's promise.
    unsafe { tell(&refusal, err) }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic with no message").to_owned()
}

/// A payload's own drop may panic, with nobody left to catch it.
fn forget(payload: Box<dyn std::any::Any + Send>) {
    std::mem::forget(payload);
}

/// Writes the error and returns its status.
///
/// # Safety
/// As [`guarded`].
unsafe fn tell(refusal: &Refusal, err: *mut TersorError) -> i32 {
    let (status, index, value, message) = match refusal {
        Refusal::Status(status, message) => (*status, 0, 0.0, message.clone()),
        Refusal::Core(e) => match e {
            Error::NotFinite { what, index, value } => (TERSOR_NOT_FINITE, *index as u64, *value, (*what).to_owned()),
            Error::Scale { scale, reason, .. } => (TERSOR_SCALE, 0, *scale, (*reason).to_owned()),
            Error::Unsupported { reason, .. } => (TERSOR_UNSUPPORTED, 0, 0.0, reason.clone()),
            Error::Unusable { reason, .. } => (TERSOR_UNUSABLE, 0, 0.0, reason.clone()),
            Error::Device { message, .. } => (TERSOR_DEVICE, 0, 0.0, message.clone()),
            Error::OutOfMemory { .. } => (TERSOR_OUT_OF_MEMORY, 0, 0.0, e.to_string()),
            Error::Cancelled => (TERSOR_CANCELLED, 0, 0.0, e.to_string()),
            _ => (TERSOR_INVALID, 0, 0.0, e.to_string()),
        },
    };
    // SAFETY: the caller says that a pointer that is not null may be written, up to its size.
    if let Some(err) = unsafe { err.as_mut() }
        && err.struct_size >= <TersorError as Prefixed>::V1
    {
        err.index = index;
        err.value = value;
        // SAFETY: the buffer is the caller's, of the capacity that it states.
        unsafe { write_text(&mut err.message, &message) };
    }
    status
}

/// Writes as much of `message` as fits, cut between characters.
///
/// # Safety
/// `out.data` may be written for `out.capacity` bytes, or is null.
pub(crate) unsafe fn write_text(out: &mut TersorText, message: &str) {
    out.len = message.len() as u64;
    if out.data.is_null() {
        return;
    }
    let fits = message.floor_char_boundary(usize::try_from(out.capacity).unwrap_or(usize::MAX));
    // SAFETY: `fits` is at most the capacity, and the buffers are distinct: one is the caller's, one is ours.
    unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), out.data.cast(), fits) };
}

/// A handle of ours as the host gets it.
fn handle<T>(value: T) -> *mut c_void {
    Box::into_raw(Box::new(value)).cast()
}
