//! The one thread pool of a host: persistent workers that spin briefly between jobs, then park.
//!
//! A decode step is a few hundred jobs of tens of microseconds each. Handing a job to sleeping threads costs as much as the
//! job, and allocating for it costs a lock; so the workers (threads of a `rayon` pool, which names and owns them) wait in a
//! loop of their own: they watch one atomic word for [`SPIN`], and only then sleep. A job is a borrowed closure and a
//! counter: nothing is allocated, and the thread that brings it works too. A worker that is still asleep when the tasks are
//! done is not waited for.
//!
//! Jobs do not nest: a task that runs another job on the same pool, or a second thread that comes while one is running,
//! runs its tasks itself. That is never a deadlock and never a surprise thread.
#![deny(unsafe_code)]

mod gate;
mod part;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use tersor_core::Executor;

use gate::Gate;
pub use part::Part;

/// How long a worker watches for the next job before it sleeps: longer than the serial parts of a decode step.
pub const SPIN: Duration = Duration::from_micros(100);

/// A pool could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Threads could not be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// A thread cannot be bound to a processor.
    #[error("cannot bind a thread to processor {processor}: this process may use {usable:?}")]
    Processor {
        /// Its number.
        processor: usize,
        /// The numbers of those that can be had.
        usable: Vec<usize>,
    },
}

/// Threads that run the tasks of jobs. The thread that brings a job takes part, so a pool of n starts n - 1.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
    shared: Arc<Shared>,
    /// Held for the length of a job.
    busy: Mutex<()>,
    // Dropped last: its threads return from `work` once `stop` is set.
    workers: Option<rayon::ThreadPool>,
}

#[derive(Debug, Default)]
struct Shared {
    gate: Gate,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// What the first task to panic said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads, at least 1 and at most as many as the process may use processors: threads that spin for a
    /// processor that another holds would only be in the way (2B-4T decode on two processors: 66 tokens/s with two threads, 28
    /// with eight), and pieces for threads that are not there would only be more of them.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(threads: usize) -> Result<Self, Error> {
        Self::bound(threads, &[])
    }

    /// The same with threads bound to `processors` in turn, the calling thread, which is the first of them, included. None
    /// are bound if the list is empty.
    ///
    /// # Errors
    /// If the system gives no more threads, or one of the processors is not this process's to use.
    pub fn bound(threads: usize, processors: &[usize]) -> Result<Self, Error> {
        let ids = &Processors::of_process().ids;
        let bind = |thread: usize| {
            let Some(&processor) = processors.get(thread % processors.len().max(1)) else { return Ok(()) };
            let id = ids.iter().find(|id| id.id == processor);
            if id.is_some_and(|id| core_affinity::set_for_current(*id)) {
                return Ok(());
            }
            Err(Error::Processor { processor, usable: ids.iter().map(|id| id.id).collect() })
        };
        let distinct: std::collections::BTreeSet<_> = processors.iter().collect();
        let most = if processors.is_empty() { Self::available() } else { distinct.len() };
        let threads = threads.clamp(1, most.max(1));
        let shared = Arc::new(Shared::default());
        let workers = match threads {
            1 => None,
            _ => {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads - 1)
                    .thread_name(|i| format!("tersor-{}", i + 1))
                    .build()
                    .map_err(|e| Error::Threads { threads, reason: e.to_string() })?;
                if processors.is_empty() {
                    pool.broadcast(|_| Processors::of_process().free_this_thread());
                } else {
                    pool.broadcast(|worker| bind(worker.index() + 1)).into_iter().collect::<Result<Vec<_>, _>>()?;
                }
                let shared = shared.clone();
                pool.spawn_broadcast(move |_| shared.work());
                Some(pool)
            }
        };
        // Last, so that a pool that could not be made leaves the caller where it was.
        bind(0)?;
        Ok(Pool { threads, shared, busy: Mutex::new(()), workers })
    }

    /// One thread for each core that the process may use.
    #[must_use]
    pub fn available() -> usize {
        Processors::of_process().count
    }
}

/// What the process may use. The system answers for the calling thread, and a pool may have bound that one: asked once, before.
struct Processors {
    ids: Vec<CoreId>,
    count: usize,
}

impl Processors {
    fn of_process() -> &'static Self {
        static FOUND: OnceLock<Processors> = OnceLock::new();
        FOUND.get_or_init(|| Processors {
            ids: core_affinity::get_core_ids().unwrap_or_default(),
            count: std::thread::available_parallelism().map_or(1, |n| n.get()),
        })
    }

    /// Undoes a binding that this thread inherited from the one that started it, which another pool may have bound.
    #[cfg(target_os = "linux")]
    fn free_this_thread(&self) {
        let mut all = rustix::thread::CpuSet::new();
        for id in self.ids.iter().filter(|id| id.id < rustix::thread::CpuSet::MAX_CPU) {
            all.set(id.id);
        }
        // Where the system refuses, the thread works on where its parent was bound to.
        let _ = rustix::thread::sched_setaffinity(None, &all);
    }

    /// Elsewhere threads inherit no binding, or there is none.
    #[cfg(not(target_os = "linux"))]
    fn free_this_thread(&self) {}
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_all();
    }
}

impl Executor for Pool {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let guard = if self.workers.is_some() && tasks > 1 { self.busy.try_lock().ok() } else { None };
        let Some(_guard) = guard else {
            return (0..tasks).for_each(task);
        };
        let next = AtomicUsize::new(0);
        let job = || {
            let mine = catch_unwind(AssertUnwindSafe(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= tasks {
                        return;
                    }
                    task(i);
                }
            }));
            if let Err(message) = mine {
                // The others stop at their next task; the first message goes on to the caller.
                next.store(tasks, Ordering::Relaxed);
                lock(&self.shared.panic).get_or_insert(message);
            }
        };
        self.shared.gate.open(&job, || {
            if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
                self.shared.wake_all();
            }
            job();
        });
        if let Some(message) = lock(&self.shared.panic).take() {
            resume_unwind(message);
        }
    }
}

impl Shared {
    fn wake_all(&self) {
        // The lock orders this after a sleeper's last look at the gate.
        drop(lock(&self.sleep));
        self.wake.notify_all();
    }

    /// A worker's life.
    fn work(&self) {
        // Jobs count from 1, so that a worker that starts late helps with the first.
        let mut seen = 0;
        let mut since = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            // Between two looks lies one pause (60 cycles on a Zen 5); 64 of them would be 1.5 us, as long as a small job takes.
            // Reading the clock costs more than a look at the gate.
            let entered = (0..64).any(|_| {
                std::hint::spin_loop();
                self.gate.enter(&mut seen)
            });
            if entered {
                since = Instant::now();
                continue;
            }
            if since.elapsed() < SPIN {
                continue;
            }
            let asleep = lock(&self.sleep);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            if !self.gate.is_open(seen) && !self.stop.load(Ordering::SeqCst) {
                drop(self.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner));
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_at_any_thread_count() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2000 {
                let tasks = [0, 1, 2, 5, 100][round % 5];
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn threads_are_bound_to_processors_or_the_wrong_number_is_named() {
        let ids: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|id| id.id).collect();
        let e = Pool::bound(2, &[ids[0], 9999]).unwrap_err().to_string();
        assert!(e.contains("9999") && e.contains(&format!("{ids:?}")), "{e}");
        let available = Pool::available();
        // In a thread of its own, for the caller is bound as well.
        std::thread::spawn(move || {
            let last = *ids.last().unwrap();
            let pool = Pool::bound(3, &[last]).unwrap();
            pool.run(3, &|_| {
                let here: Vec<usize> = core_affinity::get_core_ids().unwrap().iter().map(|id| id.id).collect();
                assert_eq!(here, [last]);
            });
            // A bound caller can still make a pool on other processors, and the process has not become smaller.
            drop(Pool::bound(2, &ids).unwrap());
            assert_eq!(Pool::available(), available);
        })
        .join()
        .unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_pool_without_processors_is_free_of_the_binding_of_whoever_makes_it() {
        let ids: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|id| id.id).collect();
        if Pool::available() < 2 {
            eprintln!("skipped: this process may use one processor, so that no worker is started");
            return;
        }
        // In a thread of its own, for it stays bound.
        std::thread::spawn(move || {
            let _bound = Pool::bound(1, &[ids[0]]).unwrap();
            let free = Pool::new(2).unwrap();
            let caller = std::thread::current().id();
            let seen = Mutex::new(Vec::new());
            let deadline = Instant::now() + Duration::from_secs(10);
            while lock(&seen).is_empty() && Instant::now() < deadline {
                free.run(2, &|_| {
                    std::thread::sleep(Duration::from_millis(5));
                    if std::thread::current().id() != caller {
                        let here = core_affinity::get_core_ids().unwrap_or_default();
                        lock(&seen).push(here.iter().map(|id| id.id).collect::<Vec<_>>());
                    }
                });
            }
            let seen = seen.into_inner().unwrap();
            assert!(!seen.is_empty() && seen.iter().all(|s| *s == ids), "workers may use {seen:?} of {ids:?}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn workers_wake_from_sleep() {
        if Pool::available() < 2 {
            eprintln!("skipped: this process may use one processor, so that no worker is started");
            return;
        }
        let pool = Pool::new(3).unwrap();
        for pause in [0, 1, 3] {
            std::thread::sleep(SPIN * pause);
            let busy = AtomicUsize::new(0);
            let peak = AtomicUsize::new(0);
            pool.run(3, &|_| {
                peak.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(30));
                busy.fetch_sub(1, Ordering::SeqCst);
            });
            assert!(peak.load(Ordering::SeqCst) > 1, "nobody else took a task that slept 30 ms");
        }
    }

    #[test]
    fn jobs_within_jobs_and_from_many_threads_finish() {
        let pool = Pool::new(4).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50 {
                        pool.run(8, &|i| {
                            pool.run(3, &|j| {
                                sum.fetch_add(i * j, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 50 * 28 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            pool.run(20, &|i| assert!(i != 7, "task seven"));
        }));
        let message = panicked.unwrap_err();
        assert!(message.downcast_ref::<&str>().is_some_and(|m| *m == "task seven"));
        let ran = AtomicUsize::new(0);
        pool.run(20, &|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 20);
    }

    #[test]
    fn dropping_a_pool_ends_its_threads() {
        let weak = {
            let pool = Pool::new(3).unwrap();
            pool.run(3, &|_| {});
            Arc::downgrade(&pool.shared)
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while weak.strong_count() > 0 {
            assert!(Instant::now() < deadline, "workers still hold the pool");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
