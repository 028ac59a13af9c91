//! From keys to winners: what is known, what is measured now, what stays on static priority.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use serde::Serialize;
use tersor_core::{HostContext, OpSpec};

use super::cache::{Cache, Change, SYSTEM_DIRECTORY};
use super::candidate::Contender;
use super::fingerprint::{Fingerprint, inner_cache, last_level_cache};
use super::key::{Key, Product};
use super::race::{self, Cold};
use super::record::{Fate, Record};
use super::rounds::{Clock, Time};
use super::task;
use crate::config::{Tune, TuneMode};

/// Cold weights exceed the last-level cache by this: its replacement keeps a part of what just does not fit.
const EXCEED: f64 = 1.25;

/// Part of the time that products may take where other ops are to be measured too.
const PRODUCTS: f64 = 0.8;

/// Measures kernels, remembers the winners, in this process and on disk.
#[derive(Debug)]
pub struct Tuner {
    mode: TuneMode,
    budget: Duration,
    /// Microseconds of the budget that are spent.
    spent: AtomicU64,
    table: DashMap<String, Arc<Record>>,
    fingerprint: Fingerprint,
    /// Of the candidates.
    host: HostContext,
    cache: Option<Cache>,
    seed: Option<Cache>,
    /// Whether the disk was read.
    loaded: Once,
    /// Keys that were measured by this process.
    fresh: DashMap<String, ()>,
}

/// How the choice for a key came about.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Basis {
    /// Measured just now.
    Measured {
        /// The outcome.
        record: Arc<Record>,
    },
    /// Measured earlier.
    Cached {
        /// The outcome.
        record: Arc<Record>,
    },
    /// There is one candidate.
    Alone,
    /// Not measured: static priority.
    Static {
        /// Why not.
        reason: String,
    },
}

impl Basis {
    /// The measurement, where there is one.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Basis::Measured { record } | Basis::Cached { record } => Some(record),
            Basis::Alone | Basis::Static { .. } => None,
        }
    }
}

/// The choice for one key.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The key.
    pub key: Key,
    /// Place of the chosen one among the contenders.
    pub chosen: usize,
    /// How it came about.
    pub basis: Basis,
}

/// How far to go for one call of [`Tuner::resolve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Take what is known.
    Known,
    /// Measure what is missing, within the budget of the process.
    Missing,
    /// Measure what is missing, however long it takes.
    Unlimited,
    /// Measure everything again, however long it takes.
    Again,
}

impl Effort {
    /// What a mode asks for when a backend is selected; `None` for "off".
    pub fn of(mode: TuneMode) -> Option<Self> {
        match mode {
            TuneMode::Off => None,
            TuneMode::Cached => Some(Effort::Missing),
            TuneMode::OnMiss => Some(Effort::Known),
            TuneMode::Full => Some(Effort::Again),
        }
    }
}

impl Tuner {
    /// A tuner of this configuration for this machine, with what the disk remembers.
    pub fn new(config: &Tune, fingerprint: Fingerprint) -> Self {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let directory = config.cache.clone().or_else(|| Cache::user_directory(variable));
        if directory.is_none() && config.mode != TuneMode::Off {
            tracing::warn!("neither tune.cache nor HOME says where measurements are kept: they end with this process");
        }
        Self::with_directories(config, fingerprint, directory.as_deref(), Some(Path::new(SYSTEM_DIRECTORY)))
    }

    /// The same with the directories given: one to read and write, one that only seeds.
    pub fn with_directories(
        config: &Tune,
        fingerprint: Fingerprint,
        directory: Option<&Path>,
        seed: Option<&Path>,
    ) -> Self {
        let cache = directory.map(|d| Cache::new(d, fingerprint.clone()));
        Tuner {
            mode: config.mode,
            budget: Duration::from_millis(config.budget_ms),
            spent: AtomicU64::new(0),
            table: DashMap::new(),
            seed: seed.map(|d| Cache::new(d, fingerprint.clone())),
            fingerprint,
            host: HostContext::inline(),
            cache,
            loaded: Once::new(),
            fresh: DashMap::new(),
        }
    }

    /// The same for candidates with the threads of this host. Where these are not known, a thread that another process kept
    /// from running may be seen too late.
    pub fn with_host(mut self, host: HostContext) -> Self {
        self.host = host;
        self
    }

    /// Reads the disk, once, when something is first asked: a program that tunes nothing does not pay for it.
    fn load(&self) {
        self.loaded.call_once(|| {
            // The user's own measurements come later and win.
            for source in [&self.seed, &self.cache].into_iter().flatten() {
                for (key, record) in source.load() {
                    self.table.insert(key, Arc::new(record));
                }
            }
        });
    }

    /// The mode of the configuration.
    pub fn mode(&self) -> TuneMode {
        self.mode
    }

    /// The machine.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The cache on disk, where there is one.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// Time of the budget that was spent.
    pub fn spent(&self) -> Duration {
        Duration::from_micros(self.spent.load(Ordering::Relaxed))
    }

    /// What is known of a key.
    pub fn known(&self, key: &Key) -> Option<Arc<Record>> {
        self.load();
        self.table.get(&key.id()).map(|record| record.clone())
    }

    /// Everything that is known, by the names of the keys.
    pub fn all_known(&self) -> BTreeMap<String, Record> {
        self.load();
        self.table.iter().map(|entry| (entry.key().clone(), Record::clone(entry.value()))).collect()
    }

    /// Forgets everything, on disk too.
    pub fn clear(&self) -> std::io::Result<()> {
        self.loaded.call_once(|| ());
        self.table.clear();
        self.cache.as_ref().map_or(Ok(()), Cache::clear)
    }

    /// Adds records from elsewhere, such as an exported file.
    pub fn import(&self, records: impl IntoIterator<Item = (String, Record)>) -> std::io::Result<()> {
        let changes: Vec<Change> = records.into_iter().map(|(key, record)| (key, Some(record))).collect();
        self.remember(&changes)
    }

    /// Strikes out a winner that failed: the key counts as not measured, here and on disk.
    pub fn strike(&self, key: &Key, who: &str, reason: &str) {
        tracing::warn!(%key, who, reason, "a winner failed and is struck out");
        if let Err(error) = self.remember(&[(key.id(), None)]) {
            tracing::warn!(%error, "the tuning cache could not be written");
        }
    }

    fn remember(&self, changes: &[Change]) -> std::io::Result<()> {
        self.load();
        for (key, record) in changes {
            match record {
                Some(record) => self.table.insert(key.clone(), Arc::new(record.clone())),
                None => self.table.remove(key).map(|(_, record)| record),
            };
        }
        match &self.cache {
            Some(cache) if !changes.is_empty() => cache.merge(changes),
            _ => Ok(()),
        }
    }

    /// Chooses for each key among `contenders`, which stand in the fixed order: the first is the static choice. `weights`
    /// is the number of bytes of all weights that the program goes through between two uses of one, where it is known.
    /// `progress` is told how many keys are done.
    pub fn resolve(
        &self,
        keys: &[Key],
        contenders: &[Contender],
        weights: Option<u64>,
        effort: Effort,
        mut progress: impl FnMut(usize),
    ) -> Vec<Resolved> {
        let mut resolved: Vec<Option<Resolved>> = vec![None; keys.len()];
        let mut missing: Vec<usize> = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            let answer = match contenders {
                [_] => Some((0, Basis::Alone)),
                _ if effort == Effort::Again && !self.fresh.contains_key(&key.id()) => None,
                _ => self.look_up(key, contenders),
            };
            match answer {
                Some((chosen, basis)) => resolved[i] = Some(Resolved { key: *key, chosen, basis }),
                None => missing.push(i),
            }
        }
        progress(resolved.iter().flatten().count());
        let mut changes = Vec::new();
        let clock = self.clock(effort);
        let begun = Instant::now();
        for (places, clock) in groups(keys, missing, clock) {
            let part: Vec<Key> = places.iter().map(|i| keys[*i]).collect();
            let outcomes = self.measure(&part, contenders, weights, clock(), effort);
            for (i, outcome) in places.into_iter().zip(outcomes) {
                resolved[i] = Some(accept(keys[i], contenders, outcome, &mut changes));
            }
            progress(resolved.iter().flatten().count());
        }
        if effort == Effort::Missing {
            self.spent.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        for (key, _) in &changes {
            self.fresh.insert(key.clone(), ());
        }
        if let Err(error) = self.remember(&changes) {
            tracing::warn!(%error, "measurements could not be kept on disk");
        }
        resolved.into_iter().flatten().collect()
    }

    /// The remembered winner, if it is still what it was and nobody is new.
    fn look_up(&self, key: &Key, contenders: &[Contender]) -> Option<(usize, Basis)> {
        let record = self.known(key)?;
        let who: Vec<_> = contenders.iter().map(|c| c.identity(&key.spec()).ok()).collect();
        if who.iter().flatten().any(|who| record.of(who).is_none()) {
            return None;
        }
        let chosen = who.iter().position(|who| who.as_ref() == Some(&record.winner));
        // The winner is not among the candidates of this call (denied, say): the next best that is measured.
        let next = || {
            let time = |c: usize| who[c].as_ref().and_then(|who| record.of(who)).filter(|m| may_run(&m.fate))?.ratio;
            (0..who.len()).filter_map(|c| Some((c, time(c)?))).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(c, _)| c)
        };
        Some((chosen.or_else(next)?, Basis::Cached { record }))
    }

    /// Measures the keys of a group: products of one weight class, or another op alone.
    fn measure(
        &self,
        keys: &[Key],
        contenders: &[Contender],
        weights: Option<u64>,
        clock: Clock,
        effort: Effort,
    ) -> Vec<Result<Record, String>> {
        let all_fail = |reason: String| keys.iter().map(|_| Err(reason.clone())).collect();
        if effort == Effort::Known {
            return all_fail("it was not measured yet".to_owned());
        }
        let Some(first) = keys.first() else { return Vec::new() };
        let cold = match first.spec() {
            // What is quantized, and what comes of dequantization, is many times the size of packed weights.
            OpSpec::Quantize { .. } | OpSpec::Dequantize { .. } => self.cold(None, first.threads()),
            // Each layer has keys and values of its own: what the other layers bring leaves none in a core's own caches.
            OpSpec::Attention { .. } => self.cold(Some(0), first.threads()),
            _ => self.cold(weights, first.threads()),
        };
        match cold {
            Err(reason) => all_fail(reason),
            Ok(cold) => self.race(keys, contenders, cold, clock, effort),
        }
    }

    /// Measures as little as is needed: where a leader is known and still what it was, only it and who is new.
    fn race(
        &self,
        keys: &[Key],
        contenders: &[Contender],
        cold: Cold,
        clock: Clock,
        effort: Effort,
    ) -> Vec<Result<Record, String>> {
        let time = Time { clock, executor: self.host.executor() };
        let run = |some: &[&Contender]| -> Vec<Result<Record, String>> {
            if let [Key::Task(task)] = keys {
                return vec![task::task(*task, some, cold, time)];
            }
            let products: Vec<Product> = keys.iter().filter_map(Key::product).copied().collect();
            race::class(&products, some, cold, time)
        };
        let all: Vec<&Contender> = contenders.iter().collect();
        let [key] = keys else { return run(&all) };
        let old = self.known(key).filter(|_| effort != Effort::Again);
        let Some(old) = old else { return run(&all) };
        let identity = |c: &Contender| c.identity(&key.spec()).ok();
        let leads = |c: &&Contender| identity(c).is_some_and(|who| who == old.winner);
        if !contenders.iter().any(|c| leads(&c)) {
            return run(&all);
        }
        let new = |c: &&Contender| identity(c).is_some_and(|who| old.of(&who).is_none());
        let some: Vec<&Contender> = contenders.iter().filter(|c| leads(c) || new(c)).collect();
        let still = |m: &&super::record::Measured| contenders.iter().any(|c| identity(c).as_ref() == Some(&m.who));
        let keep = |mut fresh: Record| {
            let known: Vec<_> = fresh.measured.iter().map(|m| m.who.clone()).collect();
            fresh.measured.extend(old.measured.iter().filter(still).filter(|m| !known.contains(&m.who)).cloned());
            fresh
        };
        run(&some).into_iter().map(|outcome| outcome.map(keep)).collect()
    }

    fn clock(&self, effort: Effort) -> Clock {
        match effort {
            Effort::Unlimited | Effort::Again => Clock::unlimited(),
            Effort::Known | Effort::Missing => Clock::until(Instant::now() + self.budget.saturating_sub(self.spent())),
        }
    }

    /// Bytes that a measurement has to rotate through: more than the cache. All weights of a program may fit in the last
    /// level, and then are there; what must not happen is that one weight stays in the caches of the `threads` cores.
    fn cold(&self, weights: Option<u64>, threads: usize) -> Result<Cold, String> {
        let beyond = |bytes: u64| (bytes as f64 * EXCEED) as u64;
        match (last_level_cache(), weights) {
            (Some(cache), Some(weights)) if weights <= cache => {
                let inner = inner_cache().map(|own| beyond(own.saturating_mul(threads as u64)));
                Ok(Cold { bytes: inner.unwrap_or(weights).min(weights) })
            }
            (Some(cache), Some(weights)) => Ok(Cold { bytes: beyond(cache).min(weights) }),
            (Some(cache), None) => Ok(Cold { bytes: beyond(cache) }),
            (None, Some(bytes)) => Ok(Cold { bytes }),
            (None, None) => Err("the size of the cache is unknown here, so that no weight is surely cold".into()),
        }
    }
}

/// What is missing, in the order in which it is measured, each group with its share of the time: products of one weight
/// class together, and all of them before any other op, so that these get what products leave.
fn groups(
    keys: &[Key],
    mut missing: Vec<usize>,
    clock: Clock,
) -> impl Iterator<Item = (Vec<usize>, impl Fn() -> Clock)> {
    // Classes stay in the order asked for; few rows come first within each.
    missing.sort_by_key(|i| keys[*i].turn());
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for i in missing {
        let class = |j: usize| keys[j].product().map(|p| p.weight);
        match groups.iter_mut().find(|g| class(i).is_some() && class(g[0]) == class(i)) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    let products = groups.iter().filter(|g| keys[g[0]].product().is_some()).count();
    let all = groups.len();
    let first = if products < all { clock.fraction(PRODUCTS) } else { clock };
    groups.into_iter().enumerate().map(move |(done, group)| {
        let (clock, rest) = if done < products { (first, products - done) } else { (clock, all - done) };
        (group, move || clock.share(rest))
    })
}

fn may_run(fate: &Fate) -> bool {
    !matches!(fate, Fate::Barred { .. })
}

/// Turns an outcome into a choice, and into a change of what is remembered.
fn accept(key: Key, contenders: &[Contender], outcome: Result<Record, String>, changes: &mut Vec<Change>) -> Resolved {
    let place =
        |record: &Record| contenders.iter().position(|c| c.identity(&key.spec()).is_ok_and(|who| who == record.winner));
    match outcome {
        Err(reason) => Resolved { key, chosen: 0, basis: Basis::Static { reason } },
        Ok(record) => match place(&record) {
            None => Resolved { key, chosen: 0, basis: Basis::Static { reason: "the winner is gone".into() } },
            Some(chosen) => {
                changes.push((key.id(), Some(record.clone())));
                Resolved { key, chosen, basis: Basis::Measured { record: Arc::new(record) } }
            }
        },
    }
}
