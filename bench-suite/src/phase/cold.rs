//! Keeping weights out of the caches, and measuring what memory can give at the same time.

use tersor_core::Executor;

use crate::limits::{Collector, Int8Probe, Pattern, ReadProbe};
use crate::machine::Machine;
use crate::report::{Limit, LimitKind};

/// Memory that is read between rounds: more than the last-level cache holds, so that no weight of the round before is still
/// there. Its reading is timed: that is the bandwidth which the products of the phase are held against.
pub(crate) struct Cold {
    probe: ReadProbe,
    int8: Int8Probe,
    round: usize,
}

/// What is read at least, in bytes, even where the cache is smaller or unknown.
const AT_LEAST: u64 = 64 << 20;

/// Time on the arithmetic loops, each round, for each loop and thread count.
const INT8_SECONDS: f64 = 0.002;

impl Cold {
    /// Bytes for this machine: one and a half last-level caches, but no more than a quarter of the available memory and
    /// 1 GiB. Second: what a reader has to know where that is not enough.
    pub(crate) fn size(machine: &Machine) -> (u64, Option<String>) {
        let most = (machine.memory_available / 4).min(1 << 30);
        let Some(cache) = machine.last_level_cache() else {
            let note = "the size of the last-level cache is not known here; weights may be warmer than is said";
            return ((256 << 20).min(most), Some(note.to_owned()));
        };
        let wanted = (cache.bytes + cache.bytes / 2).max(AT_LEAST);
        let note = (wanted > most).then(|| {
            format!(
                "the last-level cache is said to have {} MB; {} MB rotate through it, the most that memory allows: \
                 weights may be warm",
                cache.bytes >> 20,
                most >> 20
            )
        });
        (wanted.min(most), note)
    }

    /// Bytes that have to be read so that memory itself is measured and no cache, for cases of a working set that is larger than the
    /// last-level cache: four of these, for reading 64 MB again and again finds a part of them in a cache of 32 (a limit of 60 GB/s and
    /// more where memory gave 45). `None` where the cache holds the working set, or is unknown: such cases are held against reading
    /// as much as they do.
    pub(crate) fn beyond(machine: &Machine, working_set: usize) -> Option<u64> {
        let cache = machine.last_level_cache()?.bytes;
        let most = (machine.memory_available / 4).min(1 << 30);
        (working_set as u64 > cache).then(|| (4 * cache).max(working_set as u64).min(most))
    }

    pub(crate) fn new(bytes: u64) -> Self {
        Cold { probe: ReadProbe::new(bytes as usize), int8: Int8Probe::new(), round: 0 }
    }

    /// Bytes that are read in a round.
    pub(crate) fn bytes(&self) -> u64 {
        self.probe.bytes() as u64
    }

    /// Reads all of it once, in parts: each part with another pattern and thread count, another one each round.
    pub(crate) fn sweep(&mut self, executors: &[&dyn Executor], into: &mut Collector) {
        let ways = executors.len() * Pattern::ALL.len();
        for i in 0..ways {
            let way = (i + self.round) % ways;
            let (executor, pattern) = (executors[way % executors.len()], Pattern::ALL[way / executors.len()]);
            let rate = self.probe.read_part(executor, pattern, i, ways);
            into.push(executor.threads(), pattern.id(), rate);
        }
        self.round += 1;
    }

    /// A sample of the arithmetic limit.
    pub(crate) fn arithmetic(&self, executors: &[&dyn Executor], into: &mut Collector) {
        for executor in executors {
            for (name, rate) in self.int8.rates(*executor, INT8_SECONDS) {
                into.push(executor.threads(), name, rate);
            }
        }
    }

    /// The limits of a phase from what its rounds collected.
    pub(crate) fn limits(&self, phase: &str, read: &Collector, int8: &Collector, threads: &[usize]) -> Vec<Limit> {
        let mut limits = read.limits(LimitKind::Read, phase, self.bytes(), threads);
        limits.extend(int8.limits(LimitKind::Int8, phase, 0, threads));
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cache;

    fn machine(cache: Option<u64>, available: u64) -> Machine {
        let caches = cache.map(|bytes| Cache { level: 3, kind: "Unified".into(), bytes, shared_by: "0-1".into() });
        Machine { caches: caches.into_iter().collect(), memory_available: available, ..Machine::detect() }
    }

    #[test]
    fn more_than_the_cache_is_read_unless_memory_forbids_it_and_then_it_says_so() {
        assert_eq!(Cold::size(&machine(Some(32 << 20), 16 << 30)), (64 << 20, None));
        assert_eq!(Cold::size(&machine(Some(260 << 20), 16 << 30)), (390 << 20, None));
        let (bytes, note) = Cold::size(&machine(Some(260 << 20), 1 << 30));
        assert_eq!(bytes, 256 << 20);
        assert!(note.unwrap().contains("260 MB"));
        assert!(Cold::size(&machine(None, 16 << 30)).1.is_some());
    }

    #[test]
    fn what_is_larger_than_the_cache_is_held_against_memory() {
        let beyond = |working_set, available| Cold::beyond(&machine(Some(32 << 20), available), working_set);
        assert_eq!(beyond(32 << 20, 16 << 30), None);
        assert_eq!(beyond((32 << 20) + 1, 16 << 30), Some(128 << 20));
        assert_eq!(beyond(256 << 20, 16 << 30), Some(256 << 20));
        assert_eq!(beyond(64 << 20, 256 << 20), Some(64 << 20), "no more than memory allows");
        assert_eq!(Cold::beyond(&machine(None, 16 << 30), 64 << 20), None);
    }

    #[test]
    fn a_sweep_tries_every_pattern() {
        let (mut cold, mut read, mut int8) = (Cold::new(1 << 20), Collector::default(), Collector::default());
        cold.sweep(&[&tersor_core::Inline], &mut read);
        cold.arithmetic(&[&tersor_core::Inline], &mut int8);
        let limits = cold.limits("test", &read, &int8, &[1]);
        assert!(limits.iter().any(|l| l.kind == LimitKind::Read && l.best > 0.0));
    }
}
