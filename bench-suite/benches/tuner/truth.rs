//! Exhaustive search: every candidate on every op that is tuned, in turn, for as long as it takes. It shares nothing with the
//! tuner but the list of candidates.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tersor::core::{OpSpec, Shape};
use tersor::registry::tune::fingerprint::{inner_cache, last_level_cache};
use tersor::registry::tune::{Contender, Key};
use tersor_bench::material::{Material, Rng};

use crate::Outcome;
use crate::child::Decided;
use crate::operands::{self, Call};
use crate::work::{self, Work};

/// Calls of one candidate in a row: the first ones do not count.
const SETTLE: usize = 4;
const CALLS: usize = 16;
/// Rounds, and the time after which no further one starts.
const ROUNDS: usize = 400;
const LEAST: usize = 25;
const ENOUGH: Duration = Duration::from_secs(3);

/// Times of all candidates for one op.
struct Timed {
    /// How often a token passes through it.
    uses: f64,
    /// Median time by candidate, in seconds.
    times: BTreeMap<String, f64>,
}

/// What exhaustive search found, by key.
pub(crate) struct Truth {
    ops: BTreeMap<String, Timed>,
}

impl Truth {
    pub(crate) fn measure() -> Outcome<Self> {
        let work = Work::of_the_embedded_model()?;
        let cache = tempfile::tempdir()?;
        let registry = work::registry(cache.path())?;
        let material = Material::of(&work.model)?;
        let contenders = registry.candidates(&work.specs);
        let threads = registry.host().executor().threads();
        // The model fits in the last level of a cache or it does not; in a core's own it never does.
        let bytes = match (last_level_cache(), inner_cache()) {
            (Some(last), Some(own)) if work.bytes <= last => work.bytes.min(2 * threads as u64 * own),
            (Some(last), _) => work.bytes.min(last + last / 4),
            (None, _) => work.bytes,
        } as usize;
        let mut ops: BTreeMap<String, Timed> = BTreeMap::new();
        for spec in &work.specs {
            let Some(key) = Key::of(spec, threads) else { continue };
            if ops.contains_key(&key.id()) {
                continue;
            }
            let calls = match *spec {
                OpSpec::MatMul { format, n, k, .. } => {
                    let weight = if format.is_ternary() {
                        material.weight(Shape::new(n, k)?, format)?
                    } else {
                        let role = tersor::model::Role::all(work.model.config())
                            .find(|r| !r.is_norm() && !r.is_linear() && r.shape(work.model.config()) == (n, k));
                        work.model.dense(role.ok_or("a dense product is of the embedding or the head")?)?.weight()?
                    };
                    operands::products(spec, &weight, &contenders, bytes)?
                }
                _ => operands::others(spec, &contenders, bytes)?,
            };
            ops.insert(key.id(), Timed { uses: work.uses(spec), times: times(calls, &contenders)? });
        }
        Ok(Truth { ops })
    }

    pub(crate) fn print(&self) {
        for (key, op) in &self.ops {
            let mut all: Vec<_> = op.times.iter().collect();
            all.sort_by(|a, b| a.1.total_cmp(b.1));
            let list: Vec<_> = all.iter().take(4).map(|(name, t)| format!("{name} {:.1} us", *t * 1e6)).collect();
            println!("       {key}: {}", list.join(", "));
        }
    }

    /// How much longer a token's way through the model takes with these choices than with the best for each op.
    pub(crate) fn regret(&self, routes: &[Decided]) -> f64 {
        let (mut took, mut best) = (0.0, 0.0);
        for route in routes {
            let Some(op) = self.ops.get(&route.key) else { continue };
            let least = op.times.values().copied().fold(f64::INFINITY, f64::min);
            took += op.uses * op.times.get(&route.chosen).copied().unwrap_or(f64::INFINITY);
            best += op.uses * least;
        }
        took / best - 1.0
    }

    /// How far two candidates are apart on an op.
    pub(crate) fn apart(&self, key: &str, a: &str, b: &str) -> Outcome<f64> {
        let time = |name: &str| self.ops.get(key).and_then(|op| op.times.get(name)).copied();
        let (a, b) = time(a).zip(time(b)).ok_or_else(|| format!("{key}: no search knows {a} and {b}"))?;
        Ok(a.max(b) / a.min(b) - 1.0)
    }
}

/// Median times of all candidates that do an op.
fn times(calls: Vec<Call>, contenders: &[Contender]) -> Outcome<BTreeMap<String, f64>> {
    let mut lanes: Vec<(Call, Vec<f64>)> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let (start, mut turn) = (Instant::now(), 0);
    for round in 0..ROUNDS {
        if round >= LEAST && start.elapsed() > ENOUGH {
            break;
        }
        // Each in a run of its own, as a model goes from op to op; the first calls find what another left behind.
        for i in order(lanes.len(), round) {
            let Some((call, samples)) = lanes.get_mut(i) else { continue };
            let mut begun = Instant::now();
            for n in 0..SETTLE + CALLS {
                if n == SETTLE {
                    begun = Instant::now();
                }
                turn += 1;
                call(turn)?;
            }
            samples.push(begun.elapsed().as_secs_f64() / CALLS as f64);
        }
    }
    Ok(contenders.iter().zip(lanes).map(|(c, (_, mut samples))| (c.name(), median(&mut samples))).collect())
}

/// The lanes in an order that has nothing to do with that of another round.
fn order(lanes: usize, round: usize) -> Vec<usize> {
    let mut random = Rng::new(round as u64 + 1);
    let mut keyed: Vec<(u64, usize)> = (0..lanes).map(|i| (random.bits(), i)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, i)| i).collect()
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::INFINITY)
}
