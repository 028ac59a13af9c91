//! The host's table: [`HostContext`] for a plugin.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tersor_core::HostContext;
use tersor_core::host::LogLevel;

use crate::raw::*;

/// A context and the table over it. The table points to the context, which is shared so that it stays where it is: moving a
/// box would end the pointers into it.
pub(super) struct HostSide {
    context: Arc<HostContext>,
    table: TersorHost,
}

// SAFETY: the table's pointer is to the context that the struct owns, which is `Send` and `Sync`.
unsafe impl Send for HostSide {}
// SAFETY: as above.
unsafe impl Sync for HostSide {}

impl HostSide {
    pub(super) fn new(context: &HostContext) -> Self {
        let context = Arc::new(context.clone());
        let ctx = Arc::as_ptr(&context).cast_mut().cast();
        HostSide { context, table: table(ctx) }
    }

    /// The table, for as long as this lives where it is.
    pub(super) fn table(&self) -> *const TersorHost {
        &self.table
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.context.is_cancelled()
    }
}

fn table(ctx: *mut c_void) -> TersorHost {
    TersorHost {
        struct_size: size_of::<TersorHost>() as u32,
        abi_minor: TERSOR_ABI_MINOR,
        ctx,
        log: Some(log),
        threads: Some(threads),
        parallel_for: Some(parallel_for),
        is_cancelled: Some(is_cancelled),
        extension: Some(extension),
    }
}

/// The table that the exported symbol gets: no log, the calling thread, for as long as the process lives.
pub(super) fn for_init() -> *const TersorHost {
    static HOST: std::sync::OnceLock<HostSide> = std::sync::OnceLock::new();
    HOST.get_or_init(|| HostSide::new(&HostContext::inline())).table()
}

/// # Safety
/// `ctx` is that of a table that is alive.
unsafe fn context<'a>(ctx: *mut c_void) -> &'a HostContext {
    // SAFETY: the caller's promise; tables are made in `HostSide::new` only.
    unsafe { &*ctx.cast::<HostContext>() }
}

unsafe extern "C" fn log(ctx: *mut c_void, level: u32, text: *const c_char, len: u64) {
    let level = match level {
        TERSOR_LOG_ERROR => LogLevel::Error,
        TERSOR_LOG_WARN => LogLevel::Warn,
        TERSOR_LOG_INFO => LogLevel::Info,
        _ => LogLevel::Debug,
    };
    if text.is_null() || len > isize::MAX as u64 {
        return;
    }
    // SAFETY: the plugin hands over text of this length.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len as usize) };
    // SAFETY: the plugin hands back the context of its table. A log that panics must not unwind into the plugin.
    let _ = catch_unwind(AssertUnwindSafe(|| unsafe { context(ctx) }.log(level, &String::from_utf8_lossy(bytes))));
}

unsafe extern "C" fn threads(ctx: *mut c_void) -> u32 {
    // SAFETY: as in `log`.
    catch_unwind(AssertUnwindSafe(|| unsafe { context(ctx) }.executor().threads() as u32)).unwrap_or(1)
}

/// The plugin's own pointer, for its tasks.
struct Data(*mut c_void);

// SAFETY: the plugin says that its task may be called with it from any thread.
unsafe impl Sync for Data {}

impl Data {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

unsafe extern "C" fn parallel_for(
    ctx: *mut c_void,
    tasks: u64,
    task: Option<unsafe extern "C" fn(*mut c_void, u64)>,
    data: *mut c_void,
) -> i32 {
    let (Some(task), Ok(tasks)) = (task, usize::try_from(tasks)) else { return TERSOR_INVALID };
    let data = Data(data);
    let run = || {
        // SAFETY: as in `log`; the plugin's function gets the plugin's data, and is done when `run` returns.
        unsafe { context(ctx) }.executor().run(tasks, &|i| unsafe { task(data.get(), i as u64) });
    };
    if catch_unwind(AssertUnwindSafe(run)).is_ok() { TERSOR_OK } else { TERSOR_INTERNAL }
}

unsafe extern "C" fn is_cancelled(ctx: *mut c_void) -> u32 {
    // SAFETY: as in `log`.
    u32::from(unsafe { context(ctx) }.is_cancelled())
}

/// This host has no extensions yet.
unsafe extern "C" fn extension(_: *mut c_void, _: *const c_char, _: u64, _: u32) -> *const c_void {
    std::ptr::null()
}
