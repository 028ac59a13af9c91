//! The measurement itself: candidates in turn, round after round, until the verdict is clear or the time is up.
//!
//! Each round has another order. A sample begins with a call that does not count and goes on with as many as fill it, one
//! call after the other as in a model. Single calls in a fixed order picked a kernel 10 to 80 % too slow in a quarter of the
//! runs: each measured what its neighbour had left behind.

use std::time::{Duration, Instant};

use tersor_core::Executor;

use super::candidate::{Contender, Identity};
use super::key::Key;
use super::record::{Fate, Measured, Record};
use super::stats::{self, FAR_BEHIND, LEAST, Verdict};
use super::subject::Noise;
use super::waits::{RollCall, Waits};

/// Rounds after which a candidate that is far behind is dropped.
const EARLY: usize = 3;
/// Rounds before candidates that still rival each other are judged. With [`LEAST`], a kernel slowed by 10 % won in 2 of 50
/// processes.
const RIVALS: usize = 21;
/// The most rounds, where time has no limit.
const ROUNDS: usize = 400;
/// Seconds of calls that make a sample. One call of a few microseconds would measure the clock, and what its neighbour
/// left behind: threads asleep, another kernel's code.
const BURST: f64 = 60e-6;
/// A round does not count where threads waited for a processor for this part of it. Waking a worker is far less, another
/// process that takes its turn far more.
const CROWDED: f64 = 0.1;
/// Seconds of rounds that do not count, after which there will be no quiet moment.
const PATIENCE: f64 = 5.0;
/// The most calls of a sample.
const CALLS: usize = 64;

/// The time that may be used.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    end: Option<Instant>,
}

impl Clock {
    /// Until then.
    pub fn until(end: Instant) -> Self {
        Clock { end: Some(end) }
    }

    /// As long as it takes.
    pub fn unlimited() -> Self {
        Clock { end: None }
    }

    /// What is left; `None` for no limit.
    pub fn left(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Whether something that takes so long may begin.
    pub(super) fn fits(&self, seconds: f64) -> bool {
        self.left().is_none_or(|left| seconds <= left.as_secs_f64())
    }

    /// Whether nothing is left.
    pub(super) fn is_over(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// The first part of what is left.
    pub(super) fn fraction(&self, part: f64) -> Self {
        Clock { end: self.left().map(|left| Instant::now() + left.mul_f64(part)) }
    }

    /// One of `parts` equal shares of what is left.
    pub fn share(&self, parts: usize) -> Self {
        Clock { end: self.left().map(|left| Instant::now() + left / parts.max(1) as u32) }
    }
}

/// The time that may be used, and the threads that use it.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "an executor has none")]
pub struct Time<'a> {
    /// The time.
    pub clock: Clock,
    /// The threads of the candidates.
    pub executor: &'a dyn Executor,
}

/// Why there is no budget for operands that no cache holds.
pub(super) fn too_dear(count: usize, bytes: u64, clock: Clock) -> String {
    let mib = (count as u64 * bytes) >> 20;
    let left = clock.left().map_or(0, |left| left.as_millis());
    format!("cold operands take {count} copies, {mib} MiB, which the {left} ms left of the budget do not pay for")
}

/// Candidates that can be called, by their places among the contenders.
pub(super) trait Bout {
    /// One call of a candidate, on other data than the last call's.
    fn call(&mut self, place: usize) -> tersor_core::Result<()>;
}

/// What the rounds brought.
pub(super) struct Outcome {
    /// Samples of each contender, in seconds.
    pub(super) times: Vec<Vec<f64>>,
    /// What became of it, where that is not for the verdict to say.
    pub(super) fates: Vec<Option<Fate>>,
    verdict: Verdict,
}

/// Samples `live`, candidates by place with what a call takes. `fates` says who of all contenders is out already.
pub(super) fn run(
    bout: &mut dyn Bout,
    live: Vec<(usize, f64)>,
    fates: Vec<Option<Fate>>,
    Time { clock, executor }: Time<'_>,
) -> Result<Outcome, String> {
    let roll_call = RollCall::new(executor);
    let times = vec![Vec::new(); fates.len()];
    let mut field = Field { live, fates, times, gone: Vec::new(), ends: Vec::new() };
    let (mut verdict, mut noise, mut waits, mut void) = (None, Noise(1), Waits::open(), 0);
    let mut patience = PATIENCE;
    while field.ends.len() < ROUNDS {
        let cost: f64 = field.live.iter().map(|(_, seconds)| seconds * (calls(*seconds) + 1) as f64).sum();
        if !clock.fits(cost) {
            break;
        }
        let begun = Instant::now();
        field.round(bout, &roll_call);
        field.shuffle(&mut noise);
        roll_call.wait();
        let waited = waits.since();
        if waited > CROWDED * begun.elapsed().as_secs_f64() {
            void += field.forget(waited);
            verdict = None;
            patience -= begun.elapsed().as_secs_f64();
            if patience < 0.0 {
                break;
            }
            continue;
        }
        let rounds = field.ends.len();
        if rounds >= EARLY {
            field.drop_far_behind();
        }
        if rounds >= LEAST {
            verdict = stats::judge(&field.may_win());
            if let Some(v) = &verdict {
                // Who is clearly slower costs the others no more time.
                field.leave(|c| v.clearly_slower(c), None);
                if !v.open && (field.live.len() < 2 || rounds >= RIVALS) {
                    break;
                }
            }
        }
    }
    let none = || match void {
        0 => "the budget ended before there were enough samples".to_owned(),
        _ => format!("other processes held the processors in {void} rounds, and too few are left to judge by"),
    };
    Ok(Outcome { verdict: verdict.ok_or_else(none)?, times: field.times, fates: field.fates })
}

/// Candidates and what is known of them so far.
struct Field {
    /// Who is sampled, and what a call of it takes.
    live: Vec<(usize, f64)>,
    fates: Vec<Option<Fate>>,
    times: Vec<Vec<f64>>,
    /// Who left, with what a call of it takes, after how many rounds.
    gone: Vec<(usize, f64, usize)>,
    /// When each round that counts ended.
    ends: Vec<Instant>,
}

impl Field {
    fn round(&mut self, bout: &mut dyn Bout, roll_call: &RollCall<'_>) {
        for (c, estimate) in &mut self.live {
            // As between two ops of a model: a thread that still slept would make what has several look slow.
            roll_call.wait();
            match sample(bout, *c, *estimate) {
                Ok(seconds) => {
                    self.times[*c].push(seconds);
                    *estimate = seconds;
                }
                Err(e) => self.fates[*c] = Some(Fate::Barred { reason: format!("it failed: {e}") }),
            }
        }
        self.live.retain(|(c, _)| self.fates[*c].is_none());
        self.ends.push(Instant::now());
    }

    /// Nobody always runs behind the same neighbour. Turning a list in circles does not do that.
    fn shuffle(&mut self, noise: &mut Noise) {
        for i in (1..self.live.len()).rev() {
            self.live.swap(i, noise.next() as usize % (i + 1));
        }
    }

    /// Ends the part of some candidates.
    fn leave(&mut self, who: impl Fn(usize) -> bool, fate: Option<Fate>) {
        let rounds = self.ends.len();
        let (gone, stay): (Vec<_>, Vec<_>) = self.live.iter().partition(|(c, _)| who(*c));
        self.live = stay;
        for (c, estimate) in gone {
            self.fates[c] = fate.clone();
            self.gone.push((c, estimate, rounds));
        }
    }

    fn drop_far_behind(&mut self) {
        let Some(verdict) = stats::judge(&self.may_win()) else { return };
        let best = self.times[verdict.fastest].clone();
        // The median of three may be one slow moment; all of them above the line are not.
        let behind = |own: &[f64]| own.iter().zip(&best).all(|(own, best)| own / best > FAR_BEHIND);
        let far: Vec<bool> = self.times.iter().map(|own| behind(own)).collect();
        self.leave(|c| far[c], Some(Fate::FarBehind));
    }

    /// Samples of those who may still win; of the others none, in their places.
    fn may_win(&self) -> Vec<Vec<f64>> {
        let barred = |fate: &Option<Fate>| matches!(fate, Some(Fate::Barred { .. }));
        self.times.iter().zip(&self.fates).map(|(t, f)| if barred(f) { Vec::new() } else { t.clone() }).collect()
    }

    /// Threads waited so long until now: the rounds of that time do not count, and who left because of them is back. Returns
    /// the number of rounds.
    fn forget(&mut self, waited: f64) -> usize {
        let (rounds, now) = (self.ends.len(), Instant::now());
        let within = self.ends.iter().rev().take_while(|end| (now - **end).as_secs_f64() < waited).count().max(1);
        let kept = rounds.saturating_sub(within);
        self.ends.truncate(kept);
        self.times.iter_mut().for_each(|times| times.truncate(kept));
        let (back, gone): (Vec<_>, Vec<_>) = self.gone.iter().partition(|(.., after)| *after > kept);
        self.gone = gone;
        for (c, estimate, _) in back {
            self.fates[c] = None;
            self.live.push((c, estimate));
        }
        rounds - kept
    }
}

/// Seconds of a call, over as many as fill a sample where one takes `estimate`.
fn sample(bout: &mut dyn Bout, place: usize, estimate: f64) -> tersor_core::Result<f64> {
    bout.call(place)?;
    let calls = calls(estimate);
    let begun = Instant::now();
    for _ in 0..calls {
        bout.call(place)?;
    }
    Ok(begun.elapsed().as_secs_f64() / calls as f64)
}

fn calls(estimate: f64) -> usize {
    ((BURST / estimate.max(1e-9)) as usize).clamp(1, CALLS)
}

impl Outcome {
    /// As it is kept. `rows` and `cold_bytes` say what was measured.
    pub(super) fn record(
        &self,
        key: Key,
        contenders: &[&Contender],
        rows: usize,
        cold_bytes: u64,
    ) -> Result<Record, String> {
        let Outcome { times, fates, verdict } = self;
        if !verdict.sure {
            let widest = verdict.ratios.iter().flatten().map(|r| r.margin).filter(|m| m.is_finite());
            let widest = widest.fold(0.0, f64::max);
            let margin = format!("{:.0} %", 100.0 * widest);
            return Err(format!("the machine was too noisy: after all samples a margin of {margin} was left"));
        }
        let mut measured = Vec::new();
        let mut winner: Option<Identity> = None;
        for (c, contender) in contenders.iter().enumerate() {
            let Ok(who) = contender.identity(&key.spec()) else { continue };
            let ratio = verdict.ratios[c].filter(|_| !matches!(fates[c], Some(Fate::Barred { .. })));
            let tied = ratio.is_some_and(|r| r.median - r.margin <= 1.0 || r.median <= 1.0 + stats::TIE);
            let fate = match &fates[c] {
                Some(fate) => fate.clone(),
                None if c == verdict.winner => Fate::Won,
                None if tied => Fate::Tied,
                None => Fate::Slower,
            };
            if fate == Fate::Won {
                winner = Some(who.clone());
            }
            measured.push(Measured {
                who,
                median_ns: ratio.and_then(|_| stats::estimate(times[c].iter().copied())).map(|e| e.median * 1e9),
                ratio: ratio.map(|r| r.median),
                margin: ratio.map(|r| r.margin).filter(|m| m.is_finite()),
                samples: times[c].len(),
                fate,
            });
        }
        let winner = winner.ok_or("the winner no longer does this")?;
        tracing::debug!(%key, %winner, samples = times[verdict.winner].len(), "measured");
        Ok(Record { winner, rows, cold_bytes, measured })
    }
}
