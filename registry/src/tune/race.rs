//! Measuring the candidates of one weight class against each other.
//!
//! 1. *Probe.* Each candidate multiplies a few rows and is compared with the oracle. Who fails is barred; who is several
//!    times slower than the best is not brought to the full size, where one call might cost the whole budget.
//! 2. *Cold copies.* One weight would stay in the cache and the arithmetic would look like everything. So there are as many
//!    copies as it takes to exceed the cache (or the model, where that is smaller), and every call takes the next one.
//! 3. *Rounds*, see [`rounds`].

use std::sync::Arc;
use std::time::Instant;

use tersor_core::{PackedWeight, Stream};

use super::candidate::Contender;
use super::key::{Key, Product, WeightClass};
use super::record::{Fate, Record};
use super::rounds::{self, Bout, Clock, Time, too_dear};
use super::subject::{Operands, Subject};

/// Rows of the weight that candidates are probed with.
const PROBE_ROWS: usize = 64;
/// Calls of a candidate in the probe, of which the fastest counts.
const PROBE_CALLS: usize = 3;
/// A candidate this many times slower in the probe is out. Wider than [`stats::FAR_BEHIND`](super::stats::FAR_BEHIND),
/// because the probe is warm: where memory is the limit, such a candidate might still come out equal when cold, but not
/// ahead.
pub(super) const HOPELESS: f64 = 4.0;

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

/// The lanes of a product, by place among the contenders.
struct Lanes<'a, 'l> {
    lanes: &'l mut [Lane<'a>],
    /// Lane of each contender.
    of: Vec<Option<usize>>,
    operands: Operands,
    turn: &'l mut usize,
}

impl Bout for Lanes<'_, '_> {
    fn call(&mut self, place: usize) -> tersor_core::Result<()> {
        let Some(lane) = self.of[place].and_then(|l| self.lanes.get_mut(l)) else { return Ok(()) };
        *self.turn += 1;
        let Lane { stream, copies, .. } = lane;
        self.operands.run(&mut **stream, &copies[*self.turn % copies.len()])
    }
}

/// Measures every key of one weight class. For each key: who won, or why nothing is known.
pub fn class(keys: &[Product], contenders: &[&Contender], cold: Cold, time: Time<'_>) -> Vec<Result<Record, String>> {
    let Some(weight) = keys.first().map(|k| k.weight) else { return Vec::new() };
    let _span = tracing::debug_span!("tune", format = %weight.format, n = weight.n, k = weight.k).entered();
    match Race::prepare(weight, keys, contenders, cold, time.clock) {
        Err(reason) => keys.iter().map(|_| Err(reason.clone())).collect(),
        Ok(mut race) => keys
            .iter()
            .enumerate()
            .map(|(i, key)| race.run(*key, Time { clock: time.clock.share(keys.len() - i), ..time }))
            .collect(),
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
        keys: &[Product],
        contenders: &'a [&'a Contender],
        cold: Cold,
        clock: Clock,
    ) -> Result<Self, String> {
        let failed = |e: tersor_core::Error| format!("nothing to measure with: {e}");
        if weight.scale_block.is_some_and(|b| !weight.k.is_multiple_of(b)) {
            return Err("groups of weights straddle rows".into());
        }
        if clock.is_over() {
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
        let mut each = f64::INFINITY;
        // One try alone may be the one in which another process had the processor.
        for _ in 0..3 {
            let begun = Instant::now();
            let sample = small.copy().map_err(failed)?;
            each = each.min(begun.elapsed().as_secs_f64() * one as f64 / sample.bytes().max(1) as f64);
        }
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

    fn run(&mut self, key: Product, time: Time<'_>) -> Result<Record, String> {
        let clock = time.clock;
        let rows = self.subject.weight.shape().rows();
        let mut operands = Operands::new(key, rows);
        let mut fates: Vec<Option<Fate>> = self.out.clone();
        let mut of = vec![None; self.contenders.len()];
        let mut live = Vec::new();
        for (l, lane) in self.lanes.iter_mut().enumerate() {
            let Some(c) = self.contenders.iter().position(|c| std::ptr::eq(*c, lane.contender)) else { continue };
            // The first call warms up, and is the gate at full size; the next foretells what a sample takes.
            let gate = operands.gate(&mut *lane.stream, &lane.copies[0], &self.subject);
            let begun = Instant::now();
            let next = |()| operands.run(&mut *lane.stream, &lane.copies[0]).map_err(|e| format!("it failed: {e}"));
            match gate.and_then(next) {
                Err(reason) => fates[c] = Some(Fate::Barred { reason }),
                Ok(()) => {
                    of[c] = Some(l);
                    live.push((c, begun.elapsed().as_secs_f64()));
                }
            }
            if clock.is_over() {
                return Err("the budget ended before the first sample".into());
            }
        }
        let mut lanes = Lanes { lanes: &mut self.lanes, of, operands, turn: &mut self.turn };
        let outcome = rounds::run(&mut lanes, live, fates, time)?;
        outcome.record(Key::Product(key), self.contenders, rows, self.cold_bytes)
    }
}

/// Compares each candidate with the oracle on a few rows, and says who is out; `None` where time ran out.
fn probe(
    weight: WeightClass,
    keys: &[Product],
    contenders: &[&Contender],
    clock: Clock,
) -> tersor_core::Result<Option<Vec<Option<Fate>>>> {
    let rows = weight.n.min(PROBE_ROWS);
    let subject = Subject::new(weight, rows)?;
    let mut out: Vec<Option<Fate>> = vec![None; contenders.len()];
    let mut seconds = vec![f64::INFINITY; contenders.len()];
    let mut smallest: Vec<Product> = keys.to_vec();
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
            if clock.is_over() {
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
                seconds[c] = (0..PROBE_CALLS).map(call).fold(f64::INFINITY, f64::min);
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
            each = each.min(begun.elapsed().as_secs_f64());
        }
        lanes.push(Lane { contender, stream, copies: Arc::new(copies) });
    }
    Ok(lanes)
}
