//! How long this process's threads wanted to run and could not, because another process or another machine had the processor.
//!
//! A pool that lacks one of its threads for some milliseconds is slower by what that thread does, and a candidate with fewer
//! threads is not: ratios of neighbouring samples do not show that, the system's account of waiting does. Where the system
//! keeps none, nobody is seen to wait.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tersor_core::Executor;

/// The system counts what a hypervisor takes in units of this, so that looking more often tells nothing.
const TICK: Duration = Duration::from_millis(10);

/// The accounts of all threads of this process that exist when it is opened, and that of the hypervisor.
#[derive(Debug)]
pub(super) struct Waits {
    accounts: Vec<File>,
    waited: u64,
    stolen: u64,
    looked: Instant,
}

impl Waits {
    /// Opens the accounts.
    pub(super) fn open() -> Self {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let accounts = tasks.filter_map(|task| File::open(task.path().join("schedstat")).ok()).collect();
        let mut waits = Waits { accounts, waited: 0, stolen: stolen(), looked: Instant::now() };
        waits.waited = waits.total();
        waits
    }

    /// Seconds waited, all threads together, since the last call or since it was opened. A thread that is waiting right now
    /// accounts for that only when it gets to run; the time that a hypervisor gave to others shows after a [`TICK`].
    pub(super) fn since(&mut self) -> f64 {
        let waited = std::mem::replace(&mut self.waited, 0);
        self.waited = self.total();
        let mut since = Duration::from_nanos(self.waited.saturating_sub(waited));
        if self.looked.elapsed() >= TICK {
            let before = std::mem::replace(&mut self.stolen, stolen());
            since += TICK.saturating_mul(u32::try_from(self.stolen.saturating_sub(before)).unwrap_or(u32::MAX));
            self.looked = Instant::now();
        }
        since.as_secs_f64()
    }

    fn total(&self) -> u64 {
        self.accounts.iter().filter_map(waited).sum()
    }
}

/// Ticks that the hypervisor gave to others while this machine wanted to run: the eighth number of the first line.
fn stolen() -> u64 {
    let read = || std::fs::read_to_string("/proc/stat").ok()?.split_whitespace().nth(8)?.parse().ok();
    read().unwrap_or(0)
}

/// Nanoseconds: the second of the numbers, behind the time spent running.
#[cfg(unix)]
fn waited(account: &File) -> Option<u64> {
    let mut text = [0; 96];
    let len = std::os::unix::fs::FileExt::read_at(account, &mut text, 0).ok()?;
    std::str::from_utf8(text.get(..len)?).ok()?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(not(unix))]
fn waited(_: &File) -> Option<u64> {
    None
}

/// Calls the threads of a pool together. A pool does not wait for a thread that is late, and a thread accounts for its
/// waiting only when it runs again: who wants to know whether all were there has to see them.
pub(super) struct RollCall<'a> {
    executor: &'a dyn Executor,
    /// How many there are: at most as many as ever came together, as a pool may split work for more than it has.
    present: usize,
}

impl<'a> RollCall<'a> {
    /// Finds out how many threads there are.
    pub(super) fn new(executor: &'a dyn Executor) -> Self {
        const TRIES: usize = 3;
        let count = executor.threads();
        let mut call = RollCall { executor, present: count };
        let met = (0..TRIES).map(|_| call.meet(Duration::from_millis(1))).max();
        call.present = met.unwrap_or(1);
        call
    }

    /// Waits until all are there, or until they will not come.
    pub(super) fn wait(&self) {
        if self.present > 1 {
            self.meet(Duration::from_millis(20));
        }
    }

    /// How many threads come together within `patience`.
    fn meet(&self, patience: Duration) -> usize {
        let [come, inside, most] = [0, 0, 0].map(AtomicUsize::new);
        self.executor.run(self.present, &|_| {
            let until = Instant::now() + patience;
            come.fetch_add(1, Ordering::AcqRel);
            // A thread whose patience ends takes the next call too: who came is more than who is here.
            most.fetch_max(inside.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
            while come.load(Ordering::Acquire) < self.present && Instant::now() < until {
                std::hint::spin_loop();
            }
            inside.fetch_sub(1, Ordering::AcqRel);
        });
        most.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_roll_call_finds_the_threads_that_a_pool_really_has() {
        let available = tersor_pool::Pool::available();
        assert_eq!(RollCall::new(&tersor_core::Inline).present, 1);
        // No more are started than there are processors.
        let pool = tersor_pool::Pool::new(available + 2).unwrap();
        let call = RollCall::new(&pool);
        assert!(call.present <= available, "{}", call.present);
        call.wait();
    }

    /// More threads than processors, all of them busy: somebody waits.
    #[test]
    #[cfg(target_os = "linux")]
    fn threads_that_crowd_a_processor_are_seen_to_wait() {
        let spin = || {
            let until = Instant::now() + Duration::from_millis(100);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        };
        let crowd = 2 * std::thread::available_parallelism().unwrap().get() + 1;
        let waited = std::thread::scope(|scope| {
            (0..crowd).for_each(|_| drop(scope.spawn(spin)));
            let mut waits = Waits::open();
            std::thread::sleep(Duration::from_millis(80));
            waits.since()
        });
        assert!(waited > 0.02, "{waited} s of some {crowd} threads");
    }
}
