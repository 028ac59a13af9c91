//! Exhaustive search: every candidate on every product, in turn, for as long as it takes. It shares nothing with the tuner
//! but the list of candidates.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tersor::core::{Activations, Bytes, DType, In, Op, OpSpec, Out, Output, PackedWeight, Shape, Stream, Weight};
use tersor::registry::tune::fingerprint::{inner_cache, last_level_cache};
use tersor::registry::tune::{Contender, Key};
use tersor_bench::material::{Material, Rng, activations, int8_activations};

use crate::Outcome;
use crate::child::Decided;
use crate::work::{self, Work};

/// Calls of one candidate in a row: the first ones do not count.
const SETTLE: usize = 4;
const CALLS: usize = 16;
/// Rounds, and the time after which no further one starts.
const ROUNDS: usize = 400;
const LEAST: usize = 25;
const ENOUGH: Duration = Duration::from_secs(4);

/// Times of all candidates for one product.
struct Product {
    /// How many of the model's matrices it stands for.
    matrices: usize,
    /// Median time by candidate, in seconds.
    times: BTreeMap<String, f64>,
}

/// What exhaustive search found, by key.
pub(crate) struct Truth {
    products: BTreeMap<String, Product>,
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
        let mut products: BTreeMap<String, Product> = BTreeMap::new();
        for spec in &work.specs {
            let (Some(key), OpSpec::MatMul { format, n, k, .. }) = (Key::of(spec, threads), *spec) else { continue };
            if products.contains_key(&key.id()) {
                continue;
            }
            let shape = Shape::new(n, k)?;
            let weight = if format.is_ternary() {
                material.weight(shape, format)?
            } else {
                let role = tersor::model::Role::all(work.model.config())
                    .find(|r| !r.is_norm() && !r.is_linear() && r.shape(work.model.config()) == (n, k));
                work.model.dense(role.ok_or("a dense product is of the embedding or the head")?)?.weight()?
            };
            let times = times(&key, &weight, &contenders, bytes)?;
            let matrices = work.matrices(n, k, format.is_ternary());
            products.insert(key.id(), Product { matrices, times });
        }
        Ok(Truth { products })
    }

    pub(crate) fn print(&self) {
        for (key, product) in &self.products {
            let mut all: Vec<_> = product.times.iter().collect();
            all.sort_by(|a, b| a.1.total_cmp(b.1));
            let list: Vec<_> = all.iter().take(4).map(|(name, t)| format!("{name} {:.1} us", *t * 1e6)).collect();
            println!("       {key}: {}", list.join(", "));
        }
    }

    /// How much longer the model's products take with these choices than with the best for each.
    pub(crate) fn regret(&self, routes: &[Decided]) -> f64 {
        let (mut took, mut best) = (0.0, 0.0);
        for route in routes {
            let Some(product) = self.products.get(&route.key) else { continue };
            // Prefill is a fraction of the work for each token; it counts by the token like decoding.
            let rows = if route.key.contains(" m1 ") { 1.0 } else { 128.0 };
            let weight = product.matrices as f64 / rows;
            let least = product.times.values().copied().fold(f64::INFINITY, f64::min);
            took += weight * product.times.get(&route.chosen).copied().unwrap_or(f64::INFINITY);
            best += weight * least;
        }
        took / best - 1.0
    }

    /// How far two candidates are apart on a product.
    pub(crate) fn apart(&self, key: &str, a: &str, b: &str) -> f64 {
        let time = |name: &str| self.products.get(key).and_then(|p| p.times.get(name)).copied().unwrap_or(f64::NAN);
        let (a, b) = (time(a), time(b));
        a.max(b) / a.min(b) - 1.0
    }
}

struct Lane {
    name: String,
    copies: Vec<PackedWeight>,
    stream: Box<dyn Stream>,
    samples: Vec<f64>,
}

/// Median times of all candidates that do this product.
fn times(key: &Key, weight: &Weight, contenders: &[Contender], bytes: usize) -> Outcome<BTreeMap<String, f64>> {
    let (m, n, k) = (key.rows.upper(), key.weight.n, key.weight.k);
    let mut lanes: Vec<Lane> = Vec::new();
    for contender in contenders.iter().filter(|c| c.identity(&key.spec()).is_ok()) {
        let copy = |_| -> Outcome<PackedWeight> {
            let codes = Bytes::copy_from_slice(weight.codes());
            let own = Weight::new(weight.format(), weight.shape(), codes, weight.scales())?;
            Ok(contender.backend.pack(&own)?)
        };
        let first = copy(0)?;
        let shared = lanes.iter().find(|l| l.copies[0].tag() == first.tag()).map(|l| l.copies.clone());
        let count = bytes.div_ceil(first.bytes()).max(2);
        let copies = match shared {
            Some(copies) => copies,
            None => (0..count).map(copy).collect::<Outcome<_>>()?,
        };
        let stream = contender.backend.open_stream()?;
        lanes.push(Lane { name: contender.name(), copies, stream, samples: Vec::new() });
    }
    let (q, scales) = int8_activations(m, k);
    let floats = activations(m, k);
    let mut y = vec![0.0f32; m * n];
    let (begun, mut turn) = (Instant::now(), 0);
    for round in 0..ROUNDS {
        if round >= LEAST && begun.elapsed() > ENOUGH {
            break;
        }
        // Each in a run of its own, as a model goes from product to product; the first calls find what another left behind.
        for i in order(lanes.len(), round) {
            let lane = &mut lanes[i];
            let mut begun = Instant::now();
            for call in 0..SETTLE + CALLS {
                if call == SETTLE {
                    begun = Instant::now();
                }
                let w = &lane.copies[turn % lane.copies.len()];
                turn += 1;
                let x = match key.activations {
                    DType::I8 => Activations::Int8 { q: In::Host(&q), scales: In::Host(&scales) },
                    _ => Activations::F32(In::Host(&floats)),
                };
                let op = Op::MatMul { w, x, y: Output::F32(Out::Host(&mut y)), epilogue: key.epilogue }.check()?;
                lane.stream.submit(op)?;
                lane.stream.synchronize()?;
            }
            lane.samples.push(begun.elapsed().as_secs_f64() / CALLS as f64);
        }
    }
    Ok(lanes.into_iter().map(|mut lane| (lane.name, median(&mut lane.samples))).collect())
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
