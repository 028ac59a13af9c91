//! A part of a pool: fewer threads than it has, for work that more threads make slower.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tersor_core::Executor;

/// Runs jobs on at most so many threads of another executor. No thread is started; those left out go on spinning or
/// sleeping.
#[derive(Clone)]
pub struct Part {
    whole: Arc<dyn Executor>,
    threads: usize,
}

impl Part {
    /// `threads` of the threads of `whole`: at least one, at most all.
    pub fn new(whole: Arc<dyn Executor>, threads: usize) -> Self {
        let threads = threads.clamp(1, whole.threads().max(1));
        Part { whole, threads }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({} of {})", self.threads, self.whole.threads())
    }
}

impl Executor for Part {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.threads == 1 || tasks < 2 {
            return (0..tasks).for_each(task);
        }
        // As many runners as threads, which share the tasks: the whole executor never has more to do at once.
        let next = AtomicUsize::new(0);
        self.whole.run(self.threads.min(tasks), &|_| {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= tasks {
                    return;
                }
                task(i);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four threads, whatever processors there are.
    struct Four;

    impl Executor for Four {
        fn threads(&self) -> usize {
            4
        }
        fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            let next = AtomicUsize::new(0);
            let work = || {
                let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < tasks);
                std::iter::from_fn(take).for_each(task);
            };
            std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
        }
    }

    #[test]
    fn every_task_runs_once_and_never_more_at_a_time_than_asked_for() {
        let pool: Arc<dyn Executor> = Arc::new(Four);
        for threads in [1, 2, 3] {
            let part = Part::new(pool.clone(), threads);
            let (ran, busy, peak) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
            part.run(40, &|_| {
                peak.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_micros(200));
                busy.fetch_sub(1, Ordering::SeqCst);
                ran.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!((part.threads(), ran.into_inner()), (threads, 40));
            assert!(peak.into_inner() <= threads);
        }
        assert_eq!(Part::new(pool.clone(), 0).threads(), 1);
        assert_eq!(Part::new(pool, 99).threads(), 4);
    }
}
