//! How fast int8 products can be summed: the register-only loops of `tersor-kernels`, on all threads at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tersor_core::Executor;
use tersor_kernels::ceiling::{Ceiling, ceilings};

/// Steps of a loop between looks at the clock: some 10 us.
const STEPS: u64 = 4096;

/// The loops that this CPU can run.
#[derive(Debug)]
pub struct Int8Probe {
    loops: Vec<Ceiling>,
}

impl Default for Int8Probe {
    fn default() -> Self {
        Self::new()
    }
}

impl Int8Probe {
    /// Finds them. There may be none, on an architecture for which none is written: then this limit is absent.
    pub fn new() -> Self {
        Int8Probe { loops: ceilings() }
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.loops.iter().map(|c| c.name)
    }

    /// Runs each for `seconds` on every thread; multiply-accumulates a second of each.
    pub fn rates(&self, executor: &dyn Executor, seconds: f64) -> Vec<(&'static str, f64)> {
        self.loops.iter().map(|c| (c.name, rate(c, executor, seconds))).collect()
    }
}

fn rate(ceiling: &Ceiling, executor: &dyn Executor, seconds: f64) -> f64 {
    let done = AtomicU64::new(0);
    let start = Instant::now();
    executor.run(executor.threads(), &|task| {
        let mut macs = 0;
        while start.elapsed().as_secs_f64() < seconds {
            macs += (ceiling.run)(STEPS, task as i8 + 3);
        }
        done.fetch_add(macs, Ordering::Relaxed);
    });
    (done.into_inner() as f64 / start.elapsed().as_secs_f64()).round()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_has_a_rate() {
        let probe = Int8Probe::new();
        let rates = probe.rates(&tersor_core::Inline, 0.002);
        assert_eq!(rates.len(), probe.names().count());
        assert!(rates.iter().all(|(_, r)| *r > 1e8), "{rates:?}");
    }
}
