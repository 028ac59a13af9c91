//! Measured selection: between eligibility and static order.

use std::sync::Arc;

use serde::Serialize;
use tersor_core::{Format, Isa, OpSpec, PackTag, Probe, QuantBackend};

use super::candidate::Contender;
use super::key::{Key, WeightClass};
use super::record::Fate;
use super::routed::{ClassPlan, Plans, Routed, Table, slot};
use super::stats::TIE;
use super::subject::Subject;
use super::tuner::{Basis, Effort, Resolved};
use crate::config::TuneMode;
use crate::{Found, Registry, Rejected};

/// What a program is about to do.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// Every operation, each once.
    pub specs: &'a [OpSpec],
    /// Bytes of all weights that lie between two uses of one, where it is known: a model that fits in the cache is measured
    /// in the cache.
    pub weight_bytes: Option<u64>,
}

impl<'a> From<&'a [OpSpec]> for Workload<'a> {
    fn from(specs: &'a [OpSpec]) -> Self {
        Workload { specs, weight_bytes: None }
    }
}

/// The choice for one key, as a [`Decision`](crate::Decision) tells it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Route {
    /// The key's name.
    pub key: String,
    /// Backend and tier that run it.
    pub chosen: String,
    /// The kernel.
    pub kernel: String,
    /// How the choice came about.
    pub basis: Basis,
    /// Who is faster but was not chosen, because the weight is packed once for all numbers of rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<String>,
    /// The others, each with its time or its reason.
    pub rejected: Vec<Rejected>,
}

/// Contenders of a workload and what came of them.
pub(crate) struct Tuned {
    pub(crate) backend: Arc<dyn QuantBackend>,
    pub(crate) routes: Vec<Route>,
}

/// The other numbers of threads that are measured where a pool has so many: half, half of that, and so on.
pub(crate) fn fewer(threads: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(threads / 2), |n| Some(n / 2)).take_while(|n| *n > 0)
}

impl Registry {
    /// Who is measured for these operations where nothing is named: every host backend that does all of them, at each tier
    /// and with fewer threads, in the fixed order.
    pub fn candidates(&self, specs: &[OpSpec]) -> Vec<Contender> {
        let able = |found| Some((found, self.eligible(found, None, specs).ok()?.0));
        let eligible: Vec<_> =
            self.in_order().into_iter().filter_map(able).filter(|(_, b)| b.info().is_host()).collect();
        self.contenders(&eligible, specs)
    }

    /// Every tier of these backends, in the fixed order: that of the backends, and the highest tier of each first. Behind
    /// them the highest tiers again, with half of the threads, a quarter and so on: more can be slower.
    pub(crate) fn contenders(&self, eligible: &[(&Found, Arc<dyn QuantBackend>)], specs: &[OpSpec]) -> Vec<Contender> {
        let mut all = Vec::new();
        for (found, backend) in eligible {
            all.push(Contender::new(backend.clone()));
            let lower = match &found.probe {
                Probe::Usable { devices } if self.host().isa.is_none() => {
                    devices.iter().flat_map(|d| d.isas.iter().rev())
                }
                _ => continue,
            };
            for isa in lower.copied().filter(|isa| Some(*isa) != backend.info().isa) {
                match self.open_tier(found, isa) {
                    Ok(tier) if specs.iter().all(|s| tier.supports(s).is_yes()) => all.push(Contender::new(tier)),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(backend = found.entry.id, %isa, %error, "no contender"),
                }
            }
        }
        let pool = self.host().executor().threads();
        for threads in fewer(pool) {
            for (found, _) in eligible {
                match self.open_part(found, threads) {
                    Ok(part) => all.push(Contender::new(part).with_threads(threads)),
                    Err(error) => tracing::debug!(backend = found.entry.id, threads, %error, "no contender"),
                }
            }
        }
        all
    }

    /// The keys that a workload has, those of `tune.shapes` last.
    pub(crate) fn keys(&self, specs: &[OpSpec]) -> Vec<Key> {
        let threads = self.host().executor().threads();
        let mut formats: Vec<Format> = Vec::new();
        let ternary = |spec: &OpSpec| match spec {
            OpSpec::MatMul { format, .. } if format.is_ternary() => Some(*format),
            _ => None,
        };
        specs.iter().filter_map(ternary).for_each(|f| {
            if !formats.contains(&f) {
                formats.push(f);
            }
        });
        let shapes = &self.config().tune.shapes;
        let extra = formats
            .iter()
            .flat_map(|f| shapes.iter().map(|s| OpSpec::matmul(*f, s.m as usize, s.n as usize, s.k as usize)));
        let mut keys: Vec<Key> = Vec::new();
        for key in specs.iter().copied().chain(extra).filter_map(|spec| Key::of(&spec, threads)) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }

    /// Chooses by measurement among host backends; `None` where there is nothing to choose.
    pub(crate) fn tune(
        &self,
        eligible: &[(&Found, Arc<dyn QuantBackend>)],
        workload: &Workload<'_>,
        effort: Effort,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Option<Tuned> {
        let contenders = self.contenders(eligible, workload.specs);
        let keys = self.keys(workload.specs);
        if contenders.len() < 2 || keys.is_empty() {
            return None;
        }
        let told = |done| progress(done, keys.len());
        let resolved = self.tuner().resolve(&keys, &contenders, workload.weight_bytes, effort, told);
        Some(self.assemble(&resolved, contenders, self.tuner().mode() == TuneMode::OnMiss))
    }

    /// The routes of a backend that has no rivals, for who wants to see them; `None` where there are no products.
    pub(crate) fn alone(
        &self,
        backend: &Arc<dyn QuantBackend>,
        workload: &Workload<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Option<Tuned> {
        let (contenders, keys) = ([Contender::new(backend.clone())], self.keys(workload.specs));
        progress(keys.len(), keys.len());
        let alone = |key| route(&Resolved { key, chosen: 0, basis: Basis::Alone }, 0, &contenders);
        let routes: Vec<Route> = keys.into_iter().map(alone).collect();
        (!routes.is_empty()).then(|| Tuned { backend: backend.clone(), routes })
    }

    fn assemble(&self, resolved: &[Resolved], contenders: Vec<Contender>, on_miss: bool) -> Tuned {
        let mut table = Table::default();
        for class in resolved.iter().filter_map(|r| Some(r.key.product()?.weight)) {
            if !table.classes.iter().any(|p| p.class == class) {
                let of_class = |r: &&Resolved| r.key.product().is_some_and(|p| p.weight == class);
                let of_class: Vec<_> = resolved.iter().filter(of_class).cloned().collect();
                table.classes.extend(plan(class, &of_class, &contenders));
            }
        }
        let others = resolved.iter().filter(|r| r.key.product().is_none() && r.chosen != 0);
        table.tasks = others.map(|r| (r.key.spec(), r.chosen)).collect();
        let runs = |r: &Resolved| match r.key.product() {
            None => r.chosen,
            Some(product) => {
                let plan = table.classes.iter().find(|p| p.class == product.weight);
                plan.and_then(|p| p.members[slot(product.rows.upper(), product.epilogue)]).unwrap_or(0)
            }
        };
        let routes: Vec<Route> = resolved.iter().map(|r| route(r, runs(r), &contenders)).collect();
        let first = resolved.first().map_or(0, runs);
        // Where one wins everything there is nothing to hand out, unless the other ops would lose threads by it.
        let whole = contenders[first].threads.is_none();
        let single = !on_miss && whole && resolved.iter().all(|r| runs(r) == first);
        let alone = contenders[first].backend.clone();
        let routed = if single {
            None
        } else {
            Routed::new(contenders, Plans::new(table), self.tuner().clone(), on_miss, self.host())
        };
        Tuned { backend: routed.map_or(alone, |r| Arc::new(r) as Arc<dyn QuantBackend>), routes }
    }
}

/// Decides which packing a class gets and who runs which number of rows of it.
pub(super) fn plan(class: WeightClass, resolved: &[Resolved], contenders: &[Contender]) -> Option<ClassPlan> {
    let tags = packings(class, contenders);
    let mut groups: Vec<(PackTag, Vec<usize>)> = Vec::new();
    for (c, tag) in tags.into_iter().enumerate().filter_map(|(c, tag)| Some((c, tag?))) {
        match groups.iter_mut().find(|(known, _)| *known == tag) {
            Some((_, group)) => group.push(c),
            None => groups.push((tag, vec![c])),
        }
    }
    // What a group loses against the best choice for each measured key: one times the key's ratio.
    let loss = |group: &[usize]| -> f64 {
        resolved.iter().filter(|r| r.basis.record().is_some()).map(|r| best_of(r, group, contenders).1).sum()
    };
    let least = groups.iter().map(|(_, g)| loss(g)).fold(f64::INFINITY, f64::min);
    let (tag, group) = groups.into_iter().find(|(_, g)| loss(g) <= least * (1.0 + TIE))?;
    let mut plan = ClassPlan::new(class, group[0], tag, group.clone());
    for (r, product) in resolved.iter().filter_map(|r| Some((r, r.key.product()?))) {
        plan.members[slot(product.rows.upper(), product.epilogue)] = Some(best_of(r, &group, contenders).0);
    }
    Some(plan)
}

/// Who of `group` is best for a key, and its time relative to the fastest of all.
fn best_of(r: &Resolved, group: &[usize], contenders: &[Contender]) -> (usize, f64) {
    let first = (group.first().copied().unwrap_or(0), f64::INFINITY);
    let Some(record) = r.basis.record() else { return first };
    if group.contains(&r.chosen) {
        return (r.chosen, 1.0);
    }
    let spec = r.key.spec();
    // Who is as fast as can be told loses nothing, and nobody gains on the winner.
    let ratio = |c: usize| {
        let measured = record.of(&contenders[c].identity(&spec).ok()?)?;
        match measured.fate {
            Fate::Barred { .. } => None,
            Fate::Won | Fate::Tied => Some(1.0),
            Fate::Slower | Fate::FarBehind => measured.ratio.map(|ratio| ratio.max(1.0)),
        }
    };
    group.iter().filter_map(|c| Some((*c, ratio(*c)?))).fold(first, |a, b| if b.1 < a.1 { b } else { a })
}

/// What each contender's packing of the class is called. A few rows tell.
fn packings(class: WeightClass, contenders: &[Contender]) -> Vec<Option<PackTag>> {
    match Subject::new(class, class.n.min(16)) {
        Ok(subject) => contenders.iter().map(|c| Some(c.backend.pack(&subject.weight).ok()?.tag().clone())).collect(),
        Err(_) => vec![None; contenders.len()],
    }
}

fn route(r: &Resolved, runs: usize, contenders: &[Contender]) -> Route {
    let spec = r.key.spec();
    let kernel = |c: usize| contenders[c].identity(&spec).map(|who| who.kernel).unwrap_or_default();
    let record = r.basis.record();
    let told = |c: usize| -> String {
        let who = contenders[c].identity(&spec);
        match (who, record) {
            (Err(reason), _) => reason,
            (Ok(who), Some(record)) => record.of(&who).map_or("not measured".into(), ToString::to_string),
            (Ok(_), None) => format!("{} comes first", contenders[runs].name()),
        }
    };
    let rejected = (0..contenders.len()).filter(|c| *c != runs);
    let rejected = rejected.map(|c| Rejected { id: contenders[c].name(), reason: told(c) }).collect();
    let passed_over = (runs != r.chosen && record.is_some()).then(|| contenders[r.chosen].name());
    Route {
        key: r.key.id(),
        chosen: contenders[runs].name(),
        kernel: kernel(runs),
        basis: r.basis.clone(),
        passed_over,
        rejected,
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.key, self.chosen, self.kernel)?;
        match &self.basis {
            Basis::Measured { record } | Basis::Cached { record } => {
                let when = if matches!(self.basis, Basis::Measured { .. }) { "measured" } else { "measured earlier" };
                match record.measured.iter().find(|m| m.who.name() == self.chosen) {
                    Some(own) => write!(f, ", {when}: {own}")?,
                    None => write!(f, ", {when}")?,
                }
            }
            Basis::Alone => write!(f, ", the only candidate")?,
            Basis::Static { reason } => write!(f, ", by static priority: {reason}")?,
        }
        if let Some(faster) = &self.passed_over {
            write!(f, "; {faster} is faster, but one packing serves all numbers of rows")?;
        }
        self.rejected.iter().try_for_each(|r| write!(f, "\n    not {}: {}", r.id, r.reason))
    }
}

/// What was opened besides the default of each backend, by tier and by number of threads.
pub(crate) type Tiers = dashmap::DashMap<(&'static str, Option<Isa>, Option<usize>), Arc<dyn QuantBackend>>;
