//! An executor that is meant to be found out by: many threads, tasks in an unusual order.

use std::sync::atomic::{AtomicUsize, Ordering};

use tersor_core::Executor;

/// Runs tasks on scoped threads, the last task first. A backend whose result depends on the order of its tasks, or on how
/// many threads there are, gives another result here than on one thread.
#[derive(Debug, Clone, Copy)]
pub struct Threads(usize);

impl Threads {
    /// An executor of `threads` threads; 0 counts as 1.
    pub fn new(threads: usize) -> Self {
        Threads(threads.max(1))
    }
}

impl Executor for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let taken = AtomicUsize::new(0);
        let work = || {
            loop {
                let i = taken.fetch_add(1, Ordering::Relaxed);
                if i >= tasks {
                    return;
                }
                task(tasks - 1 - i);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.0.min(tasks) {
                scope.spawn(work);
            }
            work();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for (threads, tasks) in [(1, 5), (3, 2), (3, 100), (4, 0)] {
            let ran = Mutex::new(Vec::new());
            Threads::new(threads).run(tasks, &|i| ran.lock().unwrap().push(i));
            let mut ran = ran.into_inner().unwrap();
            ran.sort_unstable();
            assert_eq!(ran, (0..tasks).collect::<Vec<_>>());
        }
    }
}
