//! Measuring the candidates of an op that is no product: gate first, then rounds.

use std::time::Instant;

use tersor_core::Stream;

use super::candidate::Contender;
use super::jobs::{self, Job, Prepared};
use super::key::{Key, Task};
use super::race::{Cold, HOPELESS};
use super::record::{Fate, Record};
use super::rounds::{self, Bout, Time};

/// Measures one task. Who won, or why nothing is known.
pub fn task(task: Task, contenders: &[&Contender], cold: Cold, time: Time<'_>) -> Result<Record, String> {
    let _span = tracing::debug_span!("tune", %task).entered();
    let clock = time.clock;
    if clock.is_over() {
        return Err("the budget is spent".into());
    }
    let Prepared { mut job, rows, cold_bytes } = jobs::prepare(&task.spec, cold, clock)?;
    let mut fates: Vec<Option<Fate>> = vec![None; contenders.len()];
    let mut streams: Vec<Option<Box<dyn Stream>>> = contenders.iter().map(|_| None).collect();
    let mut live: Vec<(usize, f64)> = Vec::new();
    for (c, contender) in contenders.iter().enumerate() {
        match gate(contender, &mut *job) {
            Err(reason) => fates[c] = Some(Fate::Barred { reason }),
            Ok((stream, seconds)) => {
                streams[c] = Some(stream);
                live.push((c, seconds));
            }
        }
        if clock.is_over() {
            return Err("the budget ended before the first sample".into());
        }
    }
    let best = live.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
    live.retain(|(c, seconds)| {
        let hopeless = *seconds > HOPELESS * best;
        if hopeless {
            fates[*c] = Some(Fate::FarBehind);
        }
        !hopeless
    });
    if live.is_empty() {
        return Err("no candidate passed the gate".into());
    }
    let outcome = rounds::run(&mut Running { job, streams, turn: 0 }, live, fates, time)?;
    outcome.record(Key::Task(task), contenders, rows, cold_bytes)
}

/// So many seconds are no matter of threads that were asleep.
const LONG: f64 = 1e-3;

/// The first call, compared with the oracle, and the time of a call: the fastest of two, where the first may have found the
/// threads asleep.
fn gate(contender: &Contender, job: &mut dyn Job) -> Result<(Box<dyn Stream>, f64), String> {
    let failed = |e: tersor_core::Error| format!("it failed: {e}");
    let mut stream = contender.backend.open_stream().map_err(failed)?;
    job.spoil();
    job.run(&mut *stream, 0).map_err(failed)?;
    job.check()?;
    let mut least = f64::INFINITY;
    for turn in 1..=2 {
        let begun = Instant::now();
        job.run(&mut *stream, turn).map_err(failed)?;
        least = least.min(begun.elapsed().as_secs_f64());
        if least > LONG {
            break;
        }
    }
    Ok((stream, least))
}

struct Running {
    job: Box<dyn Job>,
    streams: Vec<Option<Box<dyn Stream>>>,
    turn: usize,
}

impl Bout for Running {
    fn call(&mut self, place: usize) -> tersor_core::Result<()> {
        self.turn += 1;
        match &mut self.streams[place] {
            Some(stream) => self.job.run(&mut **stream, self.turn),
            None => Ok(()),
        }
    }
}
