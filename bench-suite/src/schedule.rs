//! Runs cases in turn, within a time budget.
//!
//! Candidates are interleaved: one sample of each, then the next round. A machine that slows down for a second slows all of
//! them. The first rounds warm up and tell what a sample costs; a case that has had its share of the time waits until the
//! others have had theirs. What the budget cuts is told, never left out in silence.

use std::time::{Duration, Instant};

use crate::machine::cpu_time;

/// One timed stretch of work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Wall time of one unit of the case's work.
    pub seconds: f64,
    /// Wall time of the whole stretch.
    pub wall: f64,
    /// Processor time of it, all threads; `None` where the system does not tell.
    pub cpu: Option<f64>,
}

impl Sample {
    /// Times `work`, which does the case's work `times` times.
    pub fn time<E>(times: usize, work: impl FnOnce() -> Result<(), E>) -> Result<Self, E> {
        let cpu = cpu_time();
        let start = Instant::now();
        work()?;
        let wall = start.elapsed().as_secs_f64();
        let cpu = cpu_time().zip(cpu).map(|(after, before)| after.saturating_sub(before).as_secs_f64());
        // Tenths of a nanosecond: more digits would be noise, and make reports long.
        let seconds = (wall / times.max(1) as f64 * 1e10).round() / 1e10;
        Ok(Sample { seconds, wall, cpu })
    }
}

/// Something to measure.
pub trait Case {
    /// Candidates of the same group cost about the same: the first one's cost decides whether the others fit the budget.
    fn group(&self) -> usize;

    /// Prepares, runs, times and checks once. The error says what went wrong; the case is not run again.
    fn sample(&mut self) -> Result<Sample, String>;
}

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Samples thrown away.
    pub warmup: usize,
    /// Samples wanted.
    pub samples: usize,
    /// Time for all cases together.
    pub budget: Duration,
}

/// What came of a case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Seconds of each sample.
    pub samples: Vec<f64>,
    /// Wall time of all samples.
    pub wall: f64,
    /// Processor time of all samples.
    pub cpu: Option<f64>,
    /// Why there are no samples.
    pub failed: Option<String>,
    /// The one sample is that of the warm-up: time did not suffice for more.
    pub cold: bool,
}

impl Outcome {
    /// Processor time over wall time and threads; `None` for short samples too. Linux adds up the time of threads that run on
    /// other processors at its own ticks, 1 to 10 ms apart: of a sample of 100 us, it knows one thread's part, or that of
    /// the sample before.
    pub fn utilisation(&self, threads: usize) -> Option<f64> {
        let long_enough = self.wall / self.samples.len().max(1) as f64 >= 0.02;
        long_enough.then_some(self.cpu? / self.wall / threads.max(1) as f64)
    }
}

/// Samples that a case gets before its share of the budget counts.
const AT_LEAST: usize = 3;

#[derive(Default)]
struct State {
    outcome: Outcome,
    runs: usize,
    spent: f64,
    /// The last sample of the warm-up.
    warm: Option<Sample>,
}

impl State {
    fn count(&mut self, sample: Sample) {
        let o = &mut self.outcome;
        o.samples.push(sample.seconds);
        o.wall += sample.wall;
        o.cpu = match (o.cpu, sample.cpu) {
            (None, cpu) if o.samples.len() == 1 => cpu,
            (Some(sum), Some(cpu)) => Some(sum + cpu),
            _ => None,
        };
    }

    /// Better one sample that says what it is than none.
    fn finish(mut self) -> Outcome {
        if let Some(sample) = self.warm.filter(|_| self.outcome.samples.is_empty() && self.outcome.failed.is_none()) {
            self.count(sample);
            self.outcome.cold = true;
        }
        self.outcome
    }
}

/// Runs the cases, in their order, round after round. `between` runs before each round; its time counts.
pub fn round_robin<C: Case>(
    cases: &mut [C],
    plan: Plan,
    mut between: impl FnMut(),
    mut progress: impl FnMut(usize),
) -> Vec<Outcome> {
    let start = Instant::now();
    let budget = plan.budget.as_secs_f64();
    let share = budget / cases.len().max(1) as f64;
    let mut group_cost: Vec<Option<f64>> = vec![None; cases.iter().map(|c| c.group() + 1).max().unwrap_or(0)];
    let mut states: Vec<State> = cases.iter().map(|_| State { ..Default::default() }).collect();
    let warmup = plan.warmup;
    for round in 0..warmup + plan.samples {
        if states.iter().all(|s| s.outcome.failed.is_some()) || (round > 0 && start.elapsed().as_secs_f64() > budget) {
            break;
        }
        between();
        let mut ran = false;
        for (i, (case, state)) in cases.iter_mut().zip(&mut states).enumerate() {
            let elapsed = start.elapsed().as_secs_f64();
            let cost = if state.runs > 0 { state.spent / state.runs as f64 } else { 0.0 };
            let enough = state.outcome.samples.len() >= AT_LEAST && state.spent + cost > share;
            if state.outcome.failed.is_some() || enough || (state.runs > 0 && elapsed + cost > budget) {
                continue;
            }
            if state.runs == 0 {
                let expected = group_cost[case.group()].unwrap_or(0.0);
                // Warm-up and the least number of samples should not take more than a few shares.
                if elapsed > budget || expected * (warmup + 1) as f64 > 4.0 * share {
                    let cost =
                        if expected > 0.0 { format!("; one sample would take {expected:.2} s") } else { String::new() };
                    state.outcome.failed = Some(format!("cut by the time budget{cost}"));
                    progress(i);
                    continue;
                }
            }
            let before = Instant::now();
            let sampled = case.sample();
            let took = before.elapsed().as_secs_f64();
            state.runs += 1;
            state.spent += took;
            ran = true;
            if state.runs == 1 {
                group_cost[case.group()].get_or_insert(took);
                progress(i);
            }
            match sampled {
                Err(problem) => state.outcome = Outcome { failed: Some(problem), ..Outcome::default() },
                Ok(sample) if state.runs > warmup => state.count(sample),
                Ok(sample) => state.warm = Some(sample),
            }
        }
        if !ran {
            break;
        }
    }
    states.into_iter().map(State::finish).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sleeper {
        group: usize,
        cost: Duration,
        fail: Option<&'static str>,
        runs: usize,
    }

    impl Sleeper {
        fn new(group: usize, ms: u64) -> Self {
            Sleeper { group, cost: Duration::from_millis(ms), fail: None, runs: 0 }
        }
    }

    impl Case for Sleeper {
        fn group(&self) -> usize {
            self.group
        }
        fn sample(&mut self) -> Result<Sample, String> {
            self.runs += 1;
            if let Some(problem) = self.fail {
                return Err(problem.to_owned());
            }
            Sample::time(1, || {
                std::thread::sleep(self.cost);
                Ok(())
            })
        }
    }

    fn plan(ms: u64) -> Plan {
        Plan { warmup: 1, samples: 5, budget: Duration::from_millis(ms) }
    }

    #[test]
    fn with_time_enough_every_case_gets_its_samples_and_warm_up_is_thrown_away() {
        let mut cases = [Sleeper::new(0, 1), Sleeper::new(1, 1)];
        let mut rounds = 0;
        let out = round_robin(&mut cases, plan(5000), || rounds += 1, |_| {});
        assert_eq!(out.iter().map(|o| o.samples.len()).collect::<Vec<_>>(), [5, 5]);
        assert_eq!((cases[0].runs, rounds), (6, 6));
    }

    #[test]
    fn the_others_of_a_group_that_is_too_slow_are_cut_and_say_so() {
        let mut cases = [Sleeper::new(0, 120), Sleeper::new(1, 1), Sleeper::new(0, 120), Sleeper::new(1, 1)];
        let out = round_robin(&mut cases, plan(150), || {}, |_| {});
        assert_eq!(out[0].samples.len(), 1, "the first of a group is measured: {out:?}");
        assert!(out[0].cold && !out[1].cold, "and says that it did not warm up: {out:?}");
        assert!(out[2].failed.as_ref().unwrap().contains("one sample would take"), "{out:?}");
        assert_eq!(cases[2].runs, 0);
        assert!(!out[1].samples.is_empty(), "{out:?}");
    }

    #[test]
    fn a_case_that_fails_is_told_once_and_has_no_samples() {
        let mut cases = [Sleeper::new(0, 1), Sleeper::new(1, 1)];
        cases[0].fail = Some("wrong result");
        let out = round_robin(&mut cases, plan(5000), || {}, |_| {});
        assert_eq!((out[0].failed.as_deref(), cases[0].runs), (Some("wrong result"), 1));
        assert_eq!(out[1].samples.len(), 5);
    }

    #[test]
    fn utilisation_needs_a_clock() {
        let o = Outcome { samples: vec![1.0], wall: 1.0, cpu: Some(1.5), ..Outcome::default() };
        assert_eq!(o.utilisation(2), Some(0.75));
        assert_eq!(Outcome { cpu: None, ..o.clone() }.utilisation(2), None);
        assert_eq!(
            Outcome { samples: vec![1e-3], wall: 1e-3, ..o }.utilisation(2),
            None,
            "shorter than the system's ticks"
        );
    }
}
