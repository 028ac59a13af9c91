//! The host's side: a plugin's tables as backends.
//!
//! [`Plugin::connect`] reads the tables that the exported symbol hands out, and refuses what does not fit; a
//! [`PluginBackend`] then probes and opens like a [`tersor_core::BackendEntry`].
#![allow(unsafe_code, reason = "this module is the boundary")]

pub mod abuse;
mod backend;
mod context;
mod error;
mod operands;
mod spec;
mod status;
mod stream;

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;

use tersor_core::{DeviceInfo, DeviceKind, HostContext, Probe, QuantBackend, Result, intern};

use crate::codes::isas_of;
use crate::raw::*;
pub use error::LoadError;
use status::Report;

/// Most backends that a plugin may bring.
const MAX_BACKENDS: u64 = 64;
/// Longest id, version or kernel name, in bytes.
const MAX_TEXT: u64 = 256;

/// A plugin whose tables were read and fit.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Minor version of the ABI that it was built with.
    pub abi_minor: u32,
    /// Its backends.
    pub backends: Vec<PluginBackend>,
}

/// A backend of a plugin.
#[derive(Debug, Clone, Copy)]
pub struct PluginBackend {
    /// Unique id.
    pub id: &'static str,
    /// Version of the backend.
    pub version: &'static str,
    /// Raised whenever a kernel changes.
    pub kernel_revision: u32,
    /// Rank where nothing has been measured.
    pub priority: i32,
    /// The plugin's own table, for calls that hand it back.
    own: *const TersorBackend,
    table: Table,
}

// SAFETY: tables are constants of a library that is never unloaded, and their functions may be called from any thread.
unsafe impl Send for PluginBackend {}
// SAFETY: as above.
unsafe impl Sync for PluginBackend {}

/// The functions of a backend, all there.
#[derive(Debug, Clone, Copy)]
struct Table(TersorBackend);

/// Calls a function of a table. All are there: `PluginBackend::read` refuses a table with a null one.
macro_rules! call {
    ($table:expr, $function:ident, $($arg:expr),* $(,)?) => {
        match $table.0.$function {
            Some(function) => function($($arg),*),
            None => $crate::host::Absent::absent(),
        }
    };
}
use call;

/// What a function that is not there answers.
trait Absent {
    fn absent() -> Self;
}
impl Absent for () {
    fn absent() {}
}
impl Absent for i32 {
    fn absent() -> i32 {
        TERSOR_ABI_MISMATCH
    }
}
/// Flags: nothing can be said, so what is lent is kept.
impl Absent for u32 {
    fn absent() -> u32 {
        TERSOR_KEEPS_CODES
    }
}

impl Plugin {
    /// Asks the exported symbol for the plugin's tables and reads them.
    ///
    /// # Safety
    /// `symbol` is the `tersor_plugin_v1` of a library that is never unloaded and that keeps the contract of
    /// `docs/plugin-abi.md`.
    pub unsafe fn connect(symbol: TersorPluginV1) -> Result<Self, LoadError> {
        let mut table = std::ptr::null();
        // SAFETY: the host's table is static, and `table` may be written.
        let status = unsafe { symbol(context::for_init(), &mut table) };
        if status != TERSOR_OK {
            return Err(LoadError::Refused { status, name: status::name(status) });
        }
        // SAFETY: the plugin says that the pointer is null or a table of its own.
        let plugin: TersorPlugin = unsafe { read("TersorPlugin", table)? };
        if plugin.backend_count == 0 || plugin.backend_count > MAX_BACKENDS || plugin.backends.is_null() {
            return Err(LoadError::Backends { count: plugin.backend_count, most: MAX_BACKENDS });
        }
        // SAFETY: the plugin says that there are so many pointers; null ones are refused below.
        let tables = unsafe { std::slice::from_raw_parts(plugin.backends, plugin.backend_count as usize) };
        Ok(Plugin {
            name: own_text("the plugin's name", plugin.name)?,
            version: own_text("the plugin's version", plugin.version)?,
            abi_minor: plugin.abi_minor,
            backends: tables.iter().map(|table| PluginBackend::read(*table)).collect::<Result<_, _>>()?,
        })
    }
}

impl PluginBackend {
    fn read(own: *const TersorBackend) -> Result<Self, LoadError> {
        // SAFETY: a constant of the plugin, by its own word.
        let table: TersorBackend = unsafe { read("TersorBackend", own)? };
        let id = own_text("a backend's id", table.id)?;
        let lower = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_' || c == b'.';
        if !id.bytes().all(lower) || !id.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(LoadError::Id { id });
        }
        let functions = [
            ("probe", table.probe.is_some()),
            ("device", table.device.is_some()),
            ("open", table.open.is_some()),
            ("close", table.close.is_some()),
            ("info", table.info.is_some()),
            ("supports", table.supports.is_some()),
            ("packed_size", table.packed_size.is_some()),
            ("pack", table.pack.is_some()),
            ("free_pack", table.free_pack.is_some()),
            ("open_stream", table.open_stream.is_some()),
            ("close_stream", table.close_stream.is_some()),
            ("submit", table.submit.is_some()),
            ("synchronize", table.synchronize.is_some()),
        ];
        if let Some((function, _)) = functions.iter().find(|(_, there)| !there) {
            return Err(LoadError::NullFunction { backend: id, function });
        }
        Ok(PluginBackend {
            id,
            version: own_text("a backend's version", table.version)?,
            kernel_revision: table.kernel_revision,
            priority: table.priority,
            own,
            table: Table(table),
        })
    }

    /// Whether it can be used here, and on which devices.
    pub fn probe(&self) -> Probe {
        let mut report = Report::new();
        let mut out = TersorProbe { struct_size: size_of::<TersorProbe>() as u32, devices: 0 };
        // SAFETY: the plugin's function with its own table, and memory of ours.
        let status = unsafe { call!(self.table, probe, self.own, &mut out, report.as_mut()) };
        let devices = report.check(status, self.id, "probe").and_then(|()| {
            (0..out.devices.min(MAX_BACKENDS as u32)).map(|index| self.device(index)).collect::<Result<Vec<_>>>()
        });
        match devices {
            Ok(devices) if devices.is_empty() => Probe::Unusable { reason: "its probe found no device".into() },
            Ok(devices) => Probe::Usable { devices },
            Err(tersor_core::Error::Unusable { reason, .. }) => Probe::Unusable { reason },
            Err(e) => Probe::Unusable { reason: e.to_string() },
        }
    }

    fn device(&self, index: u32) -> Result<DeviceInfo> {
        let (mut report, mut name) = (Report::new(), [0u8; MAX_TEXT as usize]);
        let text = TersorText { data: name.as_mut_ptr().cast::<c_char>(), capacity: MAX_TEXT, len: 0 };
        let struct_size = size_of::<TersorDevice>() as u32;
        let mut out = TersorDevice { struct_size, kind: 0, isas: 0, memory: 0, name: text };
        // SAFETY: as in `probe`.
        let status = unsafe { call!(self.table, device, self.own, index, &mut out, report.as_mut()) };
        report.check(status, self.id, "device")?;
        let kind = match out.kind {
            TERSOR_CPU => DeviceKind::Cpu,
            TERSOR_GPU => DeviceKind::Gpu,
            other => return Err(status::broken(self.id, format!("device {index} is of the unknown kind {other}"))),
        };
        let len = out.name.len.min(MAX_TEXT) as usize;
        let name = String::from_utf8_lossy(&name[..len]).into_owned();
        let memory = if out.memory == 0 { None } else { Some(out.memory) };
        Ok(DeviceInfo { index: index as usize, kind, name, isas: isas_of(out.isas), memory })
    }

    /// Makes it ready to work.
    pub fn open(&self, host: &HostContext) -> Result<Arc<dyn QuantBackend>> {
        Ok(Arc::new(backend::Foreign::open(self, host)?))
    }
}

/// Reads a table by the size that it states: what it lacks is zero, what we do not know is left out.
///
/// # Safety
/// `table` is null or points to as many bytes as its first field says, and `T` is a `repr(C)` struct of integers, pointers
/// and optional functions, for which zero is a value.
unsafe fn read<T: Prefixed>(what: &'static str, table: *const T) -> Result<T, LoadError> {
    if table.is_null() || !table.is_aligned() {
        return Err(LoadError::Null { what });
    }
    // SAFETY: the caller's promise: the first field is the size.
    let size = unsafe { *table.cast::<u32>() };
    if size < T::V1 {
        return Err(LoadError::Short { what, size, need: T::V1 });
    }
    let mut copy = MaybeUninit::<T>::zeroed();
    let bytes = (size as usize).min(size_of::<T>());
    // SAFETY: both are at least `bytes` long.
    unsafe { std::ptr::copy_nonoverlapping(table.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), bytes) };
    // SAFETY: zero is a value of `T`, and so is what the plugin wrote.
    Ok(unsafe { copy.assume_init() })
}

/// Text of the plugin, copied.
fn own_text(what: &'static str, text: TersorStr) -> Result<&'static str, LoadError> {
    if text.data.is_null() || text.len == 0 || text.len > MAX_TEXT {
        return Err(LoadError::Text { what, len: text.len, most: MAX_TEXT });
    }
    // SAFETY: the plugin says that there are so many bytes.
    let bytes = unsafe { std::slice::from_raw_parts(text.data.cast::<u8>(), text.len as usize) };
    std::str::from_utf8(bytes).map(intern).map_err(|_| LoadError::Text { what, len: text.len, most: MAX_TEXT })
}
