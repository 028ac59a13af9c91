//! The tables of host and plugin.

use std::ffi::{c_char, c_void};

use super::{TersorError, TersorSpec, TersorStr, TersorText, TersorWeight};

/// What the host offers. `ctx` is handed back to each function.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorHost {
    /// Size of this struct.
    pub struct_size: u32,
    /// Minor version of the ABI that the host was built with.
    pub abi_minor: u32,
    /// The host's own.
    pub ctx: *mut c_void,
    /// Hands a message of `len` bytes to the host.
    pub log: Option<unsafe extern "C" fn(ctx: *mut c_void, level: u32, text: *const c_char, len: u64)>,
    /// How many tasks can run at the same moment.
    pub threads: Option<unsafe extern "C" fn(ctx: *mut c_void) -> u32>,
    /// Calls `task(data, i)` once for each `i` below `tasks`, from any thread, and returns when all are done.
    pub parallel_for: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            tasks: u64,
            task: Option<unsafe extern "C" fn(data: *mut c_void, index: u64)>,
            data: *mut c_void,
        ) -> i32,
    >,
    /// Not 0 when the host wants the work to stop.
    pub is_cancelled: Option<unsafe extern "C" fn(ctx: *mut c_void) -> u32>,
    /// A table of an extension, of at least this version; null where the host has none.
    pub extension: Option<
        unsafe extern "C" fn(ctx: *mut c_void, name: *const c_char, len: u64, min_version: u32) -> *const c_void,
    >,
}

/// The plugin: a constant of the library.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorPlugin {
    /// Size of this struct.
    pub struct_size: u32,
    /// Minor version of the ABI that the plugin was built with.
    pub abi_minor: u32,
    /// Its name, as in the manifest.
    pub name: TersorStr,
    /// Its version, as in the manifest.
    pub version: TersorStr,
    /// Its backends.
    pub backends: *const *const TersorBackend,
    /// How many.
    pub backend_count: u64,
}

/// Answer of `probe`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorProbe {
    /// Size of this struct.
    pub struct_size: u32,
    /// Number of devices, at least 1.
    pub devices: u32,
}

/// One processor.
#[repr(C)]
#[derive(Debug)]
pub struct TersorDevice {
    /// Size of this struct.
    pub struct_size: u32,
    /// `TERSOR_CPU`, or `TERSOR_GPU`.
    pub kind: u32,
    /// ISA tiers usable here: tier t is bit t.
    pub isas: u64,
    /// Bytes of memory of its own; 0 where it shares the host's.
    pub memory: u64,
    /// The maker's name for it.
    pub name: TersorText,
}

/// How to open.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorOptions {
    /// Size of this struct.
    pub struct_size: u32,
    /// ISA tier to use, or 0 for the best.
    pub isa: u32,
}

/// What an instance is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorInfo {
    /// Size of this struct.
    pub struct_size: u32,
    /// Number of its device.
    pub device: u32,
    /// ISA tier of its kernels, or 0.
    pub isa: u32,
    /// Zero.
    pub reserved: u32,
}

/// Which kernel would run, or ran.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorRan {
    /// Size of this struct.
    pub struct_size: u32,
    /// `TERSOR_KEEPS_CODES`, or 0.
    pub flags: u32,
    /// The kernel's name: static text.
    pub kernel: TersorStr,
}

/// What `pack` made.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorPack {
    /// Size of this struct.
    pub struct_size: u32,
    /// `TERSOR_KEEPS_CODES`, or 0.
    pub flags: u32,
    /// The pack; freed with `free_pack`.
    pub handle: *mut c_void,
    /// Bytes it occupies, those of the weight that it uses in place included.
    pub bytes: u64,
    /// The plugin's name for the layout: static text.
    pub packing: TersorStr,
}

/// A backend: a constant of the library. All functions are mandatory in version 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TersorBackend {
    /// Size of this struct.
    pub struct_size: u32,
    /// Raised whenever a kernel changes, so that old measurements are not believed.
    pub kernel_revision: u32,
    /// The plugin's own.
    pub data: *const c_void,
    /// Unique id: lower case, digits and hyphens.
    pub id: TersorStr,
    /// Version of the backend.
    pub version: TersorStr,
    /// Rank where nothing has been measured: the highest usable one wins.
    pub priority: i32,
    /// Zero.
    pub reserved: u32,
    /// Whether it can be used on this machine.
    pub probe: Option<
        unsafe extern "C" fn(backend: *const TersorBackend, out: *mut TersorProbe, err: *mut TersorError) -> i32,
    >,
    /// Describes a device.
    pub device: Option<
        unsafe extern "C" fn(
            backend: *const TersorBackend,
            index: u32,
            out: *mut TersorDevice,
            err: *mut TersorError,
        ) -> i32,
    >,
    /// Makes an instance. `host` and its context live until `close` returns.
    pub open: Option<
        unsafe extern "C" fn(
            backend: *const TersorBackend,
            host: *const TersorHost,
            options: *const TersorOptions,
            out: *mut *mut c_void,
            err: *mut TersorError,
        ) -> i32,
    >,
    /// Frees an instance.
    pub close: Option<unsafe extern "C" fn(instance: *mut c_void)>,
    /// What the instance is.
    pub info: Option<unsafe extern "C" fn(instance: *mut c_void, out: *mut TersorInfo, err: *mut TersorError) -> i32>,
    /// Whether `submit` would run such an op.
    pub supports: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            spec: *const TersorSpec,
            out: *mut TersorRan,
            err: *mut TersorError,
        ) -> i32,
    >,
    /// Bytes that a pack would occupy, at most.
    pub packed_size: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            format: u32,
            rows: u64,
            cols: u64,
            out: *mut u64,
            err: *mut TersorError,
        ) -> i32,
    >,
    /// Brings a weight into the plugin's layout.
    pub pack: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            weight: *const TersorWeight,
            out: *mut TersorPack,
            err: *mut TersorError,
        ) -> i32,
    >,
    /// Frees a pack. Returns flags: `TERSOR_KEEPS_CODES` if the weight's codes are used all the same, or 0.
    pub free_pack: Option<unsafe extern "C" fn(instance: *mut c_void, pack: *mut c_void) -> u32>,
    /// Opens an ordered queue of work.
    pub open_stream:
        Option<unsafe extern "C" fn(instance: *mut c_void, out: *mut *mut c_void, err: *mut TersorError) -> i32>,
    /// Closes it.
    pub close_stream: Option<unsafe extern "C" fn(stream: *mut c_void)>,
    /// Runs an op. `args` points to the struct of the op.
    pub submit: Option<
        unsafe extern "C" fn(
            stream: *mut c_void,
            op: u32,
            args: *const c_void,
            out: *mut TersorRan,
            err: *mut TersorError,
        ) -> i32,
    >,
    /// Waits for submitted work.
    pub synchronize: Option<unsafe extern "C" fn(stream: *mut c_void, err: *mut TersorError) -> i32>,
}

/// Type of the exported symbol, `tersor_plugin_v1`.
pub type TersorPluginV1 = unsafe extern "C" fn(host: *const TersorHost, out: *mut *const TersorPlugin) -> i32;
