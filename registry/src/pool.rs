//! The one thread pool.

use std::sync::atomic::{AtomicUsize, Ordering};

use tersor_core::Executor;

use crate::{Error, Result};

/// Threads that backends run their tasks on. The thread that asks takes part, so a pool of n starts n - 1.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
    others: Option<rayon::ThreadPool>,
}

impl Pool {
    /// A pool of `threads` threads, at least 1.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = threads.max(1);
        let others = match threads {
            1 => None,
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads - 1)
                    .thread_name(|i| format!("tersor-{}", i + 1))
                    .build()
                    .map_err(|e| Error::Threads { threads, reason: e.to_string() })?,
            ),
        };
        Ok(Pool { threads, others })
    }

    /// One thread for each core that the process may use.
    pub fn available() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get())
    }
}

impl Executor for Pool {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let Some(others) = self.others.as_ref().filter(|_| tasks > 1) else {
            return (0..tasks).for_each(task);
        };
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= tasks {
                    return;
                }
                task(i);
            }
        };
        others.in_place_scope(|scope| {
            (1..self.threads.min(tasks)).for_each(|_| scope.spawn(|_| work()));
            work();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_at_any_thread_count() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 5, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }
}
