//! Measuring the candidates of one weight class against each other.
//!
//! 1. *Probe.* Each candidate multiplies a few rows and is compared with the oracle. Who fails is barred; who is several
//!    times slower than the best is not brought to the full size, where one call might cost the whole budget.
//! 2. *Cold copies.* One weight would stay in the cache and the arithmetic would look like everything. So there are as many
//!    copies as it takes to exceed the cache (or the model, where that is smaller), and every call takes the next one.
//! 3. *Rounds.* The candidates run in turn, each round in another order, until the verdict is clear or the time is up. Each
//!    begins with a call that does not count and goes on with as many as fill a sample, one call after the other as in a
//!    model. Single calls in a fixed order picked a kernel 10 to 80 % too slow in a quarter of the runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tersor_core::{PackedWeight, Stream};

use super::candidate::{Contender, Identity};
use super::key::{Key, WeightClass};
use super::record::{Fate, Measured, Record};
use super::stats::{self, FAR_BEHIND, LEAST};
use super::subject::{Noise, Operands, Subject};

/// Rows of the weight that candidates are probed with.
const PROBE_ROWS: usize = 64;
/// A candidate this many times slower in the probe is out. Wider than [`FAR_BEHIND`], because the probe is warm: where
/// memory is the limit, such a candidate might still come out equal when cold, but not ahead.
const HOPELESS: f64 = 4.0;
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

    fn fits(&self, seconds: f64) -> bool {
        self.left().is_none_or(|left| seconds <= left.as_secs_f64())
    }

    /// One of `parts` equal shares of what is left.
    pub fn share(&self, parts: usize) -> Self {
        Clock { end: self.left().map(|left| Instant::now() + left / parts.max(1) as u32) }
    }
}

/// Bytes that the samples of a product have to rotate through.
#[derive(Debug, Clone, Copy)]
pub struct Cold {
    /// The number.
    pub bytes: u64,
}

/// A candidate at work.
struct Lane<'a> {
    contender: &'a Contender,
    stream: Box<dyn Stream>,
    copies: Arc<Vec<PackedWeight>>,
}

impl Lane<'_> {
    /// Seconds of a call, over as many as fill a sample where one takes `estimate`.
    fn sample(&mut self, operands: &mut Operands, turn: &mut usize, estimate: f64) -> tersor_core::Result<f64> {
        let Lane { stream, copies, .. } = self;
        let mut call = || {
            *turn += 1;
            operands.run(&mut **stream, &copies[*turn % copies.len()])
        };
        call()?;
        let calls = calls(estimate);
        let begun = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        Ok(begun.elapsed().as_secs_f64() / calls as f64)
    }
}

fn calls(estimate: f64) -> usize {
    ((BURST / estimate.max(1e-9)) as usize).clamp(1, CALLS)
}

/// Measures every key of one weight class. For each key: who won, or why nothing is known.
pub fn class(keys: &[Key], contenders: &[&Contender], cold: Cold, clock: Clock) -> Vec<Result<Record, String>> {
    let Some(weight) = keys.first().map(|k| k.weight) else { return Vec::new() };
    let _span = tracing::debug_span!("tune", format = %weight.format, n = weight.n, k = weight.k).entered();
    match Race::prepare(weight, keys, contenders, cold, clock) {
        Err(reason) => keys.iter().map(|_| Err(reason.clone())).collect(),
        Ok(mut race) => keys.iter().enumerate().map(|(i, key)| race.run(*key, clock.share(keys.len() - i))).collect(),
    }
}

struct Race<'a> {
    subject: Subject,
    contenders: &'a [&'a Contender],
    lanes: Vec<Lane<'a>>,
    /// Who does not take part and why, by place in `contenders`.
    out: Vec<Option<Fate>>,
    /// Bytes of one candidate's copies.
    cold_bytes: u64,
    turn: usize,
}

impl<'a> Race<'a> {
    fn prepare(
        weight: WeightClass,
        keys: &[Key],
        contenders: &'a [&'a Contender],
        cold: Cold,
        clock: Clock,
    ) -> Result<Self, String> {
        let failed = |e: tersor_core::Error| format!("nothing to measure with: {e}");
        if weight.scale_block.is_some_and(|b| !weight.k.is_multiple_of(b)) {
            return Err("groups of weights straddle rows".into());
        }
        if clock.left().is_some_and(|left| left.is_zero()) {
            return Err("the budget is spent".into());
        }
        let out = probe(weight, keys, contenders, clock).map_err(failed)?;
        let Some(out) = out else { return Err("the budget ended while candidates were checked".into()) };
        let first = contenders.iter().zip(&out).find(|(_, out)| out.is_none()).map(|(c, _)| *c);
        let Some(first) = first else { return Err("no candidate passed the gate".into()) };
        let row_bytes = |rows: usize| {
            let shape = tersor_core::Shape::new(rows, weight.k)?;
            first.backend.packed_size(weight.format, shape)
        };
        // A matrix that exceeds the cache by itself is measured on its first rows.
        let one = row_bytes(weight.n).map_err(failed)? as u64;
        let rows = if one > cold.bytes { (weight.n as u64 * cold.bytes / one).max(1) as usize } else { weight.n };
        let one = row_bytes(rows).map_err(failed)? as u64;
        let count = (cold.bytes.div_ceil(one.max(1)) as usize).max(2);
        // What copying the few rows of the probe takes foretells what all copies take.
        let small = Subject::new(weight, weight.n.min(PROBE_ROWS)).map_err(failed)?;
        let begun = Instant::now();
        let sample = small.copy().map_err(failed)?;
        let each = begun.elapsed().as_secs_f64() * one as f64 / sample.bytes().max(1) as f64;
        if !clock.fits(each * count as f64) {
            return Err(too_dear(count, one, clock));
        }
        let begun = Instant::now();
        let subject = Subject::new(weight, rows).map_err(failed)?;
        let made = begun.elapsed().as_secs_f64();
        let lanes = lanes(&subject, contenders, &out, (count, one, made), clock)?;
        let cold_bytes = lanes.first().map_or(0, |l| l.copies.iter().map(|c| c.bytes() as u64).sum());
        Ok(Race { subject, contenders, lanes, out, cold_bytes, turn: 0 })
    }

    fn run(&mut self, key: Key, clock: Clock) -> Result<Record, String> {
        let mut operands = Operands::new(key, self.subject.weight.shape().rows());
        let mut fates: Vec<Option<Fate>> = self.out.clone();
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); self.contenders.len()];
        let place = |lane: &Lane<'_>, all: &[&Contender]| all.iter().position(|c| std::ptr::eq(*c, lane.contender));
        let mut live = Vec::new();
        for (l, lane) in self.lanes.iter_mut().enumerate() {
            let Some(c) = place(lane, self.contenders) else { continue };
            // The first call warms up, and is the gate at full size; the next foretells what a sample takes.
            let gate = operands.gate(&mut *lane.stream, &lane.copies[0], &self.subject);
            let begun = Instant::now();
            let next = |()| operands.run(&mut *lane.stream, &lane.copies[0]).map_err(|e| format!("it failed: {e}"));
            match gate.and_then(next) {
                Err(reason) => fates[c] = Some(Fate::Barred { reason }),
                Ok(()) => live.push((l, c, begun.elapsed().as_secs_f64())),
            }
            if !clock.fits(0.0) {
                return Err("the budget ended before the first sample".into());
            }
        }
        let mut verdict = None;
        let mut noise = Noise(1);
        for round in 0..ROUNDS {
            let cost: f64 = live.iter().map(|(_, _, seconds)| seconds * (calls(*seconds) + 1) as f64).sum();
            if !clock.fits(cost) {
                break;
            }
            for (l, c, estimate) in &mut live {
                match self.lanes[*l].sample(&mut operands, &mut self.turn, *estimate) {
                    Ok(seconds) => {
                        times[*c].push(seconds);
                        *estimate = seconds;
                    }
                    Err(e) => fates[*c] = Some(Fate::Barred { reason: format!("it failed: {e}") }),
                }
            }
            live.retain(|(_, c, _)| fates[*c].is_none());
            // Nobody always runs behind the same neighbour. Turning a list in circles does not do that.
            for i in (1..live.len()).rev() {
                live.swap(i, noise.next() as usize % (i + 1));
            }
            if round + 1 >= EARLY {
                drop_far_behind(&mut live, &times, &mut fates);
            }
            if round + 1 >= LEAST {
                verdict = stats::judge(&only_live(&times, &fates));
                if let Some(v) = &verdict {
                    // Who is clearly slower costs the others no more time.
                    live.retain(|(_, c, _)| !v.clearly_slower(*c));
                    if !v.open && (live.len() < 2 || round + 1 >= RIVALS) {
                        break;
                    }
                }
            }
        }
        let Some(verdict) = verdict else { return Err("the budget ended before there were enough samples".into()) };
        self.record(key, &verdict, &times, &fates)
    }

    fn record(
        &self,
        key: Key,
        verdict: &stats::Verdict,
        times: &[Vec<f64>],
        fates: &[Option<Fate>],
    ) -> Result<Record, String> {
        if !verdict.sure {
            let widest = verdict.ratios.iter().flatten().map(|r| r.margin).filter(|m| m.is_finite());
            let widest = widest.fold(0.0, f64::max);
            let margin = format!("{:.0} %", 100.0 * widest);
            return Err(format!("the machine was too noisy: after all samples a margin of {margin} was left"));
        }
        let mut measured = Vec::new();
        let mut winner: Option<Identity> = None;
        for (c, contender) in self.contenders.iter().enumerate() {
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
        let rows = self.subject.weight.shape().rows();
        tracing::debug!(%key, %winner, samples = times[verdict.winner].len(), "measured");
        Ok(Record { winner, rows, cold_bytes: self.cold_bytes, measured })
    }
}

/// Samples of those who may still win; of the others none, in their places.
fn only_live(times: &[Vec<f64>], fates: &[Option<Fate>]) -> Vec<Vec<f64>> {
    let barred = |fate: &Option<Fate>| matches!(fate, Some(Fate::Barred { .. }));
    times.iter().zip(fates).map(|(t, fate)| if barred(fate) { Vec::new() } else { t.clone() }).collect()
}

fn drop_far_behind(live: &mut Vec<(usize, usize, f64)>, times: &[Vec<f64>], fates: &mut [Option<Fate>]) {
    let Some(verdict) = stats::judge(&only_live(times, fates)) else { return };
    live.retain(|(_, c, _)| {
        // The median of three may be one slow moment; all of them above the line are not.
        let behind = times[*c].iter().zip(&times[verdict.fastest]).all(|(own, best)| own / best > FAR_BEHIND);
        if behind {
            fates[*c] = Some(Fate::FarBehind);
        }
        !behind
    });
}

fn too_dear(count: usize, bytes: u64, clock: Clock) -> String {
    let mib = (count as u64 * bytes) >> 20;
    let left = clock.left().map_or(0, |left| left.as_millis());
    format!("cold weights take {count} copies, {mib} MiB, which the {left} ms left of the budget do not pay for")
}

/// Compares each candidate with the oracle on a few rows, and says who is out; `None` where time ran out.
fn probe(
    weight: WeightClass,
    keys: &[Key],
    contenders: &[&Contender],
    clock: Clock,
) -> tersor_core::Result<Option<Vec<Option<Fate>>>> {
    let rows = weight.n.min(PROBE_ROWS);
    let subject = Subject::new(weight, rows)?;
    let mut out: Vec<Option<Fate>> = vec![None; contenders.len()];
    let mut seconds = vec![f64::INFINITY; contenders.len()];
    let mut smallest: Vec<Key> = keys.to_vec();
    smallest.sort_by_key(|k| k.rows);
    for (c, contender) in contenders.iter().enumerate() {
        let barred = |reason: String| Some(Fate::Barred { reason });
        let opened = contender.backend.pack(&subject.weight).and_then(|w| Ok((w, contender.backend.open_stream()?)));
        let (packed, mut stream) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                out[c] = barred(format!("it failed: {e}"));
                continue;
            }
        };
        for (i, key) in smallest.iter().enumerate() {
            if clock.left().is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let mut operands = Operands::new(*key, rows);
            if let Err(reason) = operands.gate(&mut *stream, &packed, &subject) {
                out[c] = barred(reason);
                break;
            }
            if i == 0 {
                let call = |_| {
                    let begun = Instant::now();
                    let ran = operands.run(&mut *stream, &packed);
                    if ran.is_ok() { begun.elapsed().as_secs_f64() } else { f64::INFINITY }
                };
                seconds[c] = (0..EARLY).map(call).fold(f64::INFINITY, f64::min);
            }
        }
    }
    let fit = |c: &usize| out[*c].is_none();
    let best = (0..contenders.len()).filter(fit).map(|c| seconds[c]).fold(f64::INFINITY, f64::min);
    for c in 0..contenders.len() {
        if out[c].is_none() && seconds[c] > HOPELESS * best {
            out[c] = Some(Fate::FarBehind);
        }
    }
    Ok(Some(out))
}

/// Packs the copies. Candidates that make the same packing share them, and those that use a weight's own bytes share these.
fn lanes<'a>(
    subject: &Subject,
    contenders: &'a [&'a Contender],
    out: &[Option<Fate>],
    (count, bytes, made): (usize, u64, f64),
    clock: Clock,
) -> Result<Vec<Lane<'a>>, String> {
    let failed = |e: tersor_core::Error| format!("a copy could not be packed: {e}");
    let mut canonical = vec![subject.weight.clone()];
    let mut lanes: Vec<Lane<'a>> = Vec::new();
    for contender in contenders.iter().zip(out).filter(|(_, out)| out.is_none()).map(|(c, _)| *c) {
        let begun = Instant::now();
        let first = contender.backend.pack(&canonical[0]).map_err(failed)?;
        let stream = contender.backend.open_stream().map_err(failed)?;
        let same = lanes.iter().find(|l| l.copies.first().is_some_and(|w| w.tag() == first.tag()));
        if let Some(same) = same {
            let copies = same.copies.clone();
            lanes.push(Lane { contender, stream, copies });
            continue;
        }
        let mut each = begun.elapsed().as_secs_f64();
        if first.borrowed() {
            each = each.max(made);
        }
        let mut copies = vec![first];
        while copies.len() < count {
            if !clock.fits(each * (count - copies.len()) as f64) {
                return Err(too_dear(count, bytes, clock));
            }
            let begun = Instant::now();
            let next = copies.len();
            if copies[0].borrowed() && canonical.len() <= next {
                canonical.push(subject.copy().map_err(failed)?);
            }
            let source = if copies[0].borrowed() { &canonical[next] } else { &canonical[0] };
            copies.push(contender.backend.pack(source).map_err(failed)?);
            each = begun.elapsed().as_secs_f64();
        }
        lanes.push(Lane { contender, stream, copies: Arc::new(copies) });
    }
    Ok(lanes)
}
