//! The word that workers watch, and the borrowed job behind it. The only unsafe code of the pool.
#![allow(unsafe_code, reason = "lends a borrowed closure to threads that outlive the borrow")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Set while workers may enter.
const OPEN: u64 = 1 << 32;
/// Workers inside, in the bits below.
const INSIDE: u64 = OPEN - 1;
/// Jobs so far, in the bits above.
const JOB: u64 = OPEN << 1;

type Job<'a> = &'a (dyn Fn() + Sync);

/// Lets workers run a job while it is open, and does not close before they are out.
pub(crate) struct Gate {
    state: AtomicU64,
    /// Written only while the gate is closed and empty; read only by those inside.
    job: UnsafeCell<Option<Job<'static>>>,
}

// SAFETY: `job` is guarded by `state`: it is written while no worker is inside and none can enter (closed and empty), and
// read by workers that entered while it was open, which `open` waits for.
unsafe impl Sync for Gate {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Gate {}

impl Default for Gate {
    fn default() -> Self {
        Gate { state: AtomicU64::new(0), job: UnsafeCell::new(None) }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({:#x})", self.state.load(Ordering::Relaxed))
    }
}

impl Gate {
    /// Opens for `job`, runs `meanwhile` on this thread, closes, and waits for those inside. One caller at a time: the pool
    /// holds its lock. Neither closure may unwind; the pool catches what tasks do.
    pub(crate) fn open(&self, job: Job<'_>, meanwhile: impl FnOnce()) {
        /// Closes even if `meanwhile` unwinds, because the job is borrowed from the caller's stack.
        struct Close<'a>(&'a Gate);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                let mut state = self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
                while state & INSIDE != 0 {
                    std::hint::spin_loop();
                    state = self.0.state.load(Ordering::Acquire);
                }
                // SAFETY: closed and empty: nobody reads.
                unsafe { *self.0.job.get() = None };
            }
        }
        // SAFETY: only the lifetime changes. The job is used by workers between `enter` and `leave` alone, and `Close` does
        // not let this function end while one is inside.
        let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: the gate is closed and empty: the previous `open` waited for that, and there is one caller at a time.
        unsafe { *self.job.get() = Some(job) };
        let closed = self.state.load(Ordering::Relaxed);
        // Sequentially consistent with the sleepers' count: either a worker sees the gate open before it sleeps, or the
        // caller sees the sleeper.
        self.state.store(closed.wrapping_add(JOB) | OPEN, Ordering::SeqCst);
        let close = Close(self);
        meanwhile();
        drop(close);
    }

    /// Whether a job is open that is not `seen`.
    pub(crate) fn is_open(&self, seen: u64) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state & OPEN != 0 && state / JOB != seen
    }

    /// Runs the open job if it is not the one `seen`, which it then is. A worker helps with a job once.
    pub(crate) fn enter(&self, seen: &mut u64) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state & OPEN == 0 || state / JOB == *seen {
            return false;
        }
        if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        *seen = state / JOB;
        // SAFETY: this worker is inside, so the job stays until it has left.
        if let Some(job) = unsafe { *self.job.get() } {
            job();
        }
        self.state.fetch_sub(1, Ordering::Release);
        true
    }
}
