//! The machine's limits: how fast memory can be read, how fast int8 products can be summed. Always measured, in the same
//! run and between the samples of what they are compared with; never a constant.

mod int8;
mod read;

use tersor_core::Executor;

use crate::report::{Limit, LimitKind};
use crate::stats::Summary;

pub use int8::Int8Probe;
pub use read::{Pattern, ReadProbe};

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

    /// The limit for each thread count: the way with the fastest sample. Nothing makes a loop run faster than the machine
    /// allows, while a neighbour can slow any number of samples. More threads are never a lower limit, because a probe could
    /// leave them idle.
    pub fn limits(&self, kind: LimitKind, phase: &str, working_set: u64, threads: &[usize]) -> Vec<Limit> {
        threads
            .iter()
            .filter_map(|&count| {
                let fastest = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
                let ways = self.ways.iter().filter(|(t, ..)| *t <= count);
                let (_, by, samples) = ways.max_by(|a, b| fastest(&a.2).total_cmp(&fastest(&b.2)))?;
                let summary = Summary::of(samples)?;
                Some(Limit {
                    kind,
                    phase: phase.to_owned(),
                    threads: count,
                    by: by.clone(),
                    working_set,
                    best: fastest(samples),
                    median: summary.median,
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
        for rate in [1.0, 2.0, 11.5] {
            c.push(1, "b", rate);
        }
        c.push(2, "a", 5.0);
        let limits = c.limits(LimitKind::Read, "x", 64, &[1, 2]);
        assert_eq!(limits.len(), 2);
        assert_eq!((limits[0].by.as_str(), limits[0].median, limits[0].best), ("a", 11.0, 12.0));
        assert_eq!(limits[1].best, 12.0);
    }

    #[test]
    fn a_small_working_set_can_be_read() {
        let limits = read_limit(&[&tersor_core::Inline], "test", 1 << 16);
        assert!(limits[0].best > 1e8 && limits[0].working_set == 1 << 16, "{limits:?}");
    }
}
