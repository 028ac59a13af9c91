//! The machine's limits: how fast memory can be read, how fast int8 products can be summed. Always measured, in the same
//! run and between the samples of what they are compared with; never a constant.

mod device;
mod int8;
mod read;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tersor_core::Executor;

use crate::report::{Limit, LimitKind};
use crate::stats::Summary;

pub use device::DeviceProbe;
pub use int8::Int8Probe;
pub use read::{Pattern, ReadProbe};

/// Gets every thread of a pool out of its sleep, as they are in the middle of a model's pass. Waking a processor of a virtual
/// machine takes as long as a small product; it is no part of one. Gives up after a millisecond: a pool need not have as many
/// processors as threads.
pub fn awake(executor: &dyn Executor) {
    let (threads, start) = (executor.threads(), Instant::now());
    let there = AtomicUsize::new(0);
    executor.run(threads, &|_| {
        there.fetch_add(1, Ordering::Relaxed);
        while there.load(Ordering::Relaxed) < threads && start.elapsed() < Duration::from_millis(1) {
            std::hint::spin_loop();
        }
    });
}

/// Collects samples of several ways to reach a limit, and keeps the best of them.
#[derive(Debug, Default)]
pub struct Collector {
    /// Label and samples, in units a second, of each way at each thread count.
    ways: Vec<(usize, String, Vec<f64>)>,
}

impl Collector {
    /// Notes a sample.
    pub fn push(&mut self, threads: usize, by: &str, rate: f64) {
        match self.ways.iter_mut().find(|(t, b, _)| *t == threads && b == by) {
            Some((.., samples)) => samples.push(rate),
            None => self.ways.push((threads, by.to_owned(), vec![rate])),
        }
    }

    /// The limit for each thread count: the way with the fastest sample, because nothing makes a loop run faster than the
    /// machine allows, and the highest median of any way, which is what medians of cases are held against: a neighbour slows
    /// both alike. More threads are never a lower limit, because a probe could leave them idle.
    pub fn limits(&self, kind: LimitKind, phase: &str, working_set: u64, threads: &[usize]) -> Vec<Limit> {
        threads
            .iter()
            .filter_map(|&count| {
                let fastest = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
                let ways = || self.ways.iter().filter(|(t, ..)| *t <= count);
                let (_, by, samples) = ways().max_by(|a, b| fastest(&a.2).total_cmp(&fastest(&b.2)))?;
                let medians = ways().filter_map(|(.., samples)| Summary::of(samples)).map(|s| s.median);
                Some(Limit {
                    kind,
                    phase: phase.to_owned(),
                    device: "cpu".to_owned(),
                    threads: count,
                    by: by.clone(),
                    working_set,
                    best: fastest(samples),
                    median: medians.fold(0.0, f64::max),
                    samples: samples.clone(),
                })
            })
            .collect()
    }
}

/// The read limit at a working set that is small enough to be read again and again.
pub fn read_limit(executors: &[&dyn Executor], phase: &str, bytes: usize) -> Vec<Limit> {
    let mut probe = ReadProbe::new(bytes);
    let mut collector = Collector::default();
    // The first round warms up; each sample reads at least 2 MB, so that the clock does not show.
    for round in 0..6 {
        for executor in executors {
            for pattern in Pattern::ALL {
                let rate = probe.read_again(*executor, pattern, 2 << 20);
                if round > 0 {
                    collector.push(executor.threads(), pattern.id(), rate);
                }
            }
        }
    }
    let threads: Vec<usize> = executors.iter().map(|e| e.threads()).collect();
    collector.limits(LimitKind::Read, phase, bytes as u64, &threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_with_the_fastest_sample_is_the_limit_and_threads_never_lower_it() {
        let mut c = Collector::default();
        for rate in [10.0, 11.0, 12.0] {
            c.push(1, "a", rate);
        }
        for rate in [1.0, 11.5, 11.6] {
            c.push(1, "b", rate);
        }
        c.push(2, "a", 5.0);
        let limits = c.limits(LimitKind::Read, "x", 64, &[1, 2]);
        assert_eq!(limits.len(), 2);
        assert_eq!(
            (limits[0].by.as_str(), limits[0].median, limits[0].best),
            ("a", 11.5, 12.0),
            "the fastest sample is a's, the highest median b's"
        );
        assert_eq!(limits[1].best, 12.0);
    }

    #[test]
    fn every_thread_of_a_pool_is_called_up_and_one_that_does_not_come_is_not_waited_for() {
        let pool = tersor_registry::Pool::new(2).unwrap();
        let start = Instant::now();
        awake(&pool);
        // Nobody else comes here.
        struct Alone;
        impl Executor for Alone {
            fn threads(&self) -> usize {
                3
            }
            fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
                (0..tasks).for_each(task);
            }
        }
        awake(&Alone);
        assert!(start.elapsed() < Duration::from_millis(500));
    }

    #[test]
    fn a_small_working_set_can_be_read() {
        let limits = read_limit(&[&tersor_core::Inline], "test", 1 << 16);
        assert!(limits[0].best > 1e8 && limits[0].working_set == 1 << 16, "{limits:?}");
    }
}
