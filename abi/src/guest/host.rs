//! The host's table as an [`Executor`] and a log.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use tersor_core::Executor;
use tersor_core::host::LogLevel;

use super::{Refusal, forget};
use crate::raw::*;

/// A copy of the host's table. Its context lives until `close` returns, and nothing of an instance outlives that.
pub(super) struct Host(TersorHost);

// SAFETY: the ABI lets every function of the host's table be called from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// # Safety
    /// `table` is null or points to a host table of the size that it states.
    pub(super) unsafe fn new(table: *const TersorHost) -> Result<Self, Refusal> {
        let mismatch = |what: &str| Refusal::Status(TERSOR_ABI_MISMATCH, what.to_owned());
        if table.is_null() {
            return Err(mismatch("the host's table is null"));
        }
        // SAFETY: not null; every table begins with its size.
        let size = unsafe { (*table).struct_size };
        if size < <TersorHost as Prefixed>::V1 {
            return Err(mismatch("the host's table is shorter than that of version 1.0"));
        }
        // SAFETY: it is as long as we know it: version 1.0 has no later fields.
        Ok(Host(unsafe { *table }))
    }

    pub(super) fn is_cancelled(&self) -> bool {
        // SAFETY: the host's function with the host's context.
        self.0.is_cancelled.is_some_and(|asked| unsafe { asked(self.0.ctx) } != 0)
    }

    pub(super) fn log(&self, level: LogLevel, message: &str) {
        let level = match level {
            LogLevel::Error => TERSOR_LOG_ERROR,
            LogLevel::Warn => TERSOR_LOG_WARN,
            LogLevel::Info => TERSOR_LOG_INFO,
            LogLevel::Debug => TERSOR_LOG_DEBUG,
        };
        if let Some(log) = self.0.log {
            // SAFETY: the host's function with the host's context; the text is alive for the call.
            unsafe { log(self.0.ctx, level, message.as_ptr().cast(), message.len() as u64) };
        }
    }
}

/// What tasks share: the closure, and the first panic of one.
struct Tasks<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

unsafe extern "C" fn run_task(data: *mut c_void, index: u64) {
    // SAFETY: `data` is the `Tasks` that `run` handed over and keeps alive until all tasks are done.
    let tasks = unsafe { &*data.cast::<Tasks<'_>>() };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (tasks.task)(index as usize))) {
        let mut first = tasks.panic.lock().unwrap_or_else(PoisonError::into_inner);
        match &*first {
            None => *first = Some(payload),
            Some(_) => forget(payload),
        }
    }
}

impl Executor for Host {
    fn threads(&self) -> usize {
        // SAFETY: the host's function with the host's context.
        self.0.threads.map_or(1, |threads| unsafe { threads(self.0.ctx) } as usize).max(1)
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let Some(parallel_for) = self.0.parallel_for else { return (0..tasks).for_each(task) };
        let shared = Tasks { task, panic: Mutex::new(None) };
        let data = std::ptr::from_ref(&shared).cast_mut().cast();
        // SAFETY: the host's function with the host's context; `shared` lives until it returns, which is when all tasks
        // are done, and may be used by many threads: it is `Sync` but for its raw form.
        let status = unsafe { parallel_for(self.0.ctx, tasks as u64, Some(run_task), data) };
        if let Some(payload) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            // Caught again at the boundary, where the instance is poisoned.
            resume_unwind(payload);
        }
        if status != TERSOR_OK {
            // `run` has no error, and results would be missing.
            resume_unwind(Box::new(format!("the host's parallel_for failed with status {status}")));
        }
    }
}
