//! Discovery and selection.

use std::sync::Arc;

use dashmap::DashMap;
use tersor_core::host::LogLevel;
use tersor_core::{DeviceKind, HostContext, HostMemory, Isa, OpSpec, Probe, QuantBackend, Support, entries};

use crate::config::{Config, Device};
use crate::decision::{Choice, Decision, Reason, Rejected};
use crate::entry::{Entry, Origin};
use crate::plugins::Plugins;
use crate::tune::select::{Tiers, Tuned};
use crate::tune::{Effort, Fingerprint, Route, Tuner, Workload};
use crate::{Error, Pool, Result};

/// A backend of this program, linked or brought by a plugin, and what its probe said.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its entry.
    pub entry: Entry,
    /// Usable, or the reason why not.
    pub probe: Probe,
}

impl Found {
    fn is_gpu(&self) -> bool {
        matches!(&self.probe, Probe::Usable { devices } if devices.iter().any(|d| d.kind == DeviceKind::Gpu))
    }
}

/// The backends of this program on this machine.
#[derive(Debug)]
pub struct Registry {
    config: Config,
    found: Vec<Found>,
    plugins: Plugins,
    host: HostContext,
    open: DashMap<&'static str, Arc<dyn QuantBackend>>,
    tiers: Tiers,
    tuner: Arc<Tuner>,
}

/// A candidate that can do what is asked: its backend, open, and the kernels that would run.
type Eligible<'a> = (&'a Found, Arc<dyn QuantBackend>, Vec<&'static str>);

impl Registry {
    /// Probes every backend, those of plugins included where they are enabled, and starts the pool.
    pub fn build(config: Config) -> Result<Self> {
        let _span = tracing::info_span!("probe").entered();
        let linked: Vec<Entry> = entries().map(Entry::from).collect();
        if linked.is_empty() {
            return Err(Error::Empty);
        }
        let mut plugins = Plugins::discover(&config);
        let ids: Vec<_> = linked.iter().map(|entry| entry.id).collect();
        let brought = Entry::of_plugins(&mut plugins, &ids);
        let mut found: Vec<Found> =
            linked.into_iter().chain(brought).map(|entry| Found { entry, probe: entry.probe() }).collect();
        found.sort_by(|a, b| b.entry.priority.cmp(&a.entry.priority).then(a.entry.id.cmp(b.entry.id)));
        for (i, f) in found.iter().enumerate() {
            if found[..i].iter().any(|earlier| earlier.entry.id == f.entry.id) {
                return Err(Error::Duplicate { id: f.entry.id });
            }
            tracing::debug!(backend = f.entry.id, probe = ?f.probe, "probed");
        }
        let threads = config.threads.count.map_or_else(Pool::available, |n| n.get().into());
        let processors: Vec<usize> = config.threads.affinity.iter().map(|&cpu| cpu.into()).collect();
        if threads > Pool::available() {
            let processors = Pool::available();
            tracing::warn!(
                "{threads} threads were asked for, and this process may use {processors} processors: work is split for {threads}, and {processors} threads share it"
            );
        }
        let isa = config.select.isa.as_ref().map(|isa| isa.as_str().parse::<Isa>()).transpose()?;
        let budget = config.memory.pool.map(|size| usize::try_from(size.bytes()).unwrap_or(usize::MAX));
        let device = match config.select.device {
            Device::Cuda { index } => index.map(|index| index as usize),
            _ => None,
        };
        let host = HostContext::new(Arc::new(Pool::bound(threads, &processors)?))
            .with_isa(isa)
            .with_device(device)
            .with_reproducible(config.run.reproducible)
            .with_zero_copy(config.memory.zero_copy)
            .with_memory(Arc::new(HostMemory::new(budget)))
            .with_log(|level, message| match level {
                LogLevel::Error => tracing::error!("{message}"),
                LogLevel::Warn => tracing::warn!("{message}"),
                LogLevel::Info => tracing::info!("{message}"),
                LogLevel::Debug => tracing::debug!("{message}"),
            });
        // What measurements depend on is the machine, whatever plugins say about it.
        let own: Vec<Found> = found.iter().filter(|f| matches!(f.entry.origin, Origin::Linked(_))).cloned().collect();
        let tuner = Tuner::new(&config.tune, Fingerprint::of(&own)).with_host(host.clone());
        let tuner = Arc::new(tuner);
        let registry = Registry { config, found, plugins, host, open: DashMap::new(), tiers: Tiers::new(), tuner };
        for (key, ids) in
            [("select.order", &registry.config.select.order), ("select.deny", &registry.config.select.deny)]
        {
            for id in ids {
                registry.entry(id.as_str(), || registry.asked_by(key))?;
            }
        }
        Ok(registry)
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every backend, highest static priority first.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// What came of the plugins that the configuration finds.
    pub fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    /// What opened backends get from their host; through it, work can be cancelled.
    pub fn host(&self) -> &HostContext {
        &self.host
    }

    /// What measures kernels and remembers the winners.
    pub fn tuner(&self) -> &Arc<Tuner> {
        &self.tuner
    }

    /// Opens a backend at one of its lower tiers.
    pub(crate) fn open_tier(&self, found: &Found, isa: Isa) -> Result<Arc<dyn QuantBackend>> {
        self.open_as((found.entry.id, Some(isa), None), found, &self.host.clone().with_isa(Some(isa)))
    }

    /// Opens a backend with fewer threads than the pool has.
    pub(crate) fn open_part(&self, found: &Found, threads: usize) -> Result<Arc<dyn QuantBackend>> {
        let part = tersor_pool::Part::new(self.host.shared_executor(), threads);
        let host = self.host.clone().with_executor(Arc::new(part));
        self.open_as((found.entry.id, self.host.isa, Some(threads)), found, &host)
    }

    fn open_as(
        &self,
        key: (&'static str, Option<Isa>, Option<usize>),
        found: &Found,
        host: &HostContext,
    ) -> Result<Arc<dyn QuantBackend>> {
        if let Some(open) = self.tiers.get(&key) {
            return Ok(open.clone());
        }
        let backend = found.entry.open(host)?;
        Ok(self.tiers.entry(key).or_insert(backend).clone())
    }

    /// Opens a backend by id, or returns it if it is open already.
    pub fn open(&self, id: &str) -> Result<Arc<dyn QuantBackend>> {
        let found = self.entry(id, || "the caller".into())?;
        self.open_found(found)
    }

    fn entry(&self, id: &str, asked_by: impl FnOnce() -> String) -> Result<&Found> {
        self.found.iter().find(|f| f.entry.id == id).ok_or_else(|| Error::UnknownBackend {
            given: id.into(),
            asked_by: asked_by(),
            known: self.found.iter().map(|f| f.entry.id).collect::<Vec<_>>().join(", "),
        })
    }

    fn open_found(&self, found: &Found) -> Result<Arc<dyn QuantBackend>> {
        if let Some(open) = self.open.get(found.entry.id) {
            return Ok(open.clone());
        }
        if let Probe::Unusable { reason } = &found.probe {
            let (backend, reason) = (found.entry.id.into(), reason.clone());
            return Err(tersor_core::Error::Unusable { backend, reason }.into());
        }
        let _span = tracing::info_span!("open", backend = found.entry.id).entered();
        let backend = found.entry.open(&self.host)?;
        Ok(self.open.entry(found.entry.id).or_insert(backend).clone())
    }

    fn asked_by(&self, key: &str) -> String {
        self.config.origin(key).map_or_else(|| key.to_owned(), |origin| format!("{key} ({origin})"))
    }

    /// The key that forces a backend for these ops, if there is one, and the backend.
    fn named(&self, specs: &[OpSpec]) -> Option<(String, &str)> {
        if let Some(id) = &self.config.select.backend {
            return Some(("select.backend".into(), id.as_str()));
        }
        specs.iter().find_map(|spec| match spec {
            OpSpec::MatMul { format, .. } | OpSpec::Quantize { format, .. } | OpSpec::Dequantize { format, .. } => {
                let id = self.config.select.formats.get(format.id())?;
                Some((format!("select.formats.{format}"), id.as_str()))
            }
            _ => None,
        })
    }

    /// Chooses a backend that does all of `specs`.
    pub fn select(&self, specs: &[OpSpec]) -> Result<Choice> {
        self.select_for(&specs.into())
    }

    /// Chooses a backend for everything that a program is about to do. With `tune.mode` other than "off", products go to
    /// those that were measured fastest, and what is missing may be measured now.
    pub fn select_for(&self, workload: &Workload<'_>) -> Result<Choice> {
        self.choose(workload, Effort::of(self.tuner.mode()), &mut |_, _| ())
    }

    /// The same whatever `tune.mode` says: what is known counts, and the rest is measured as `effort` says. `progress` is
    /// told how many products are done, and of how many.
    pub fn measure(
        &self,
        workload: &Workload<'_>,
        effort: Effort,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Choice> {
        self.choose(workload, Some(effort), progress)
    }

    fn choose(
        &self,
        workload: &Workload<'_>,
        effort: Option<Effort>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Choice> {
        let specs = workload.specs;
        let what = describe(specs);
        let _span = tracing::info_span!("select", %what).entered();
        let named = self.named(specs);
        if let Some((key, id)) = &named {
            self.entry(id, || self.asked_by(key))?;
        }
        let mut rejected = Vec::new();
        let mut eligible: Vec<Eligible<'_>> = Vec::new();
        for found in self.in_order() {
            let verdict = match eligible.first() {
                Some((first, ..)) if effort.is_none() || !self.may_rival(first, found) => {
                    Err(format!("{} comes first", first.entry.id))
                }
                _ => self.eligible(found, named.as_ref().map(|(_, id)| *id), specs),
            };
            match verdict {
                Ok((backend, kernels)) => eligible.push((found, backend, kernels)),
                Err(reason) => rejected.push(Rejected { id: found.entry.id.into(), reason }),
            }
        }
        let open: Vec<_> = eligible.iter().map(|(found, backend, _)| (*found, backend.clone())).collect();
        let tuned = match (open.first(), effort) {
            (Some((_, first)), Some(effort)) if first.info().is_host() => self.tune(&open, workload, effort, progress),
            // There is nobody to measure a device against; who asks for it is told so, product by product.
            (Some((_, first)), Some(Effort::Unlimited | Effort::Again)) => self.alone(first, workload, progress),
            _ => None,
        };
        if eligible.is_empty() {
            return Err(Error::NoCandidate { what, rejected });
        }
        let (found, backend, kernels) = eligible.remove(0);
        let because = self.reason(found, named, &rejected);
        let others = eligible.iter().map(|(f, ..)| f.entry.id);
        let choice = match tuned {
            None => {
                let reason = format!("{} comes first", found.entry.id);
                rejected.extend(others.map(|id| Rejected { id: id.into(), reason: reason.clone() }));
                let chosen = found.entry.id.into();
                let decision = Decision { what, chosen, because, kernels, rejected, routes: Vec::new() };
                Choice { backend, decision }
            }
            Some(Tuned { backend: best, routes }) => {
                let kernels = kernels_of(&*best, specs);
                let chosen = best.info().id.to_string();
                let others = std::iter::once(found.entry.id).chain(others).filter(|id| *id != chosen);
                rejected.extend(others.map(|id| Rejected { id: id.into(), reason: told_by(&routes, id) }));
                let measured = routes.iter().filter(|r| r.basis.record().is_some()).count();
                // Who asked for the backend, or what it fell back from, is the stronger reason; the routes have the times.
                let because = match because {
                    Reason::Priority { .. } if measured > 0 => Reason::Measured { measured, of: routes.len() },
                    other => other,
                };
                Choice { backend: best, decision: Decision { what, chosen, because, kernels, rejected, routes } }
            }
        };
        tracing::info!(chosen = choice.decision.chosen, because = %choice.decision.because, "selected");
        Ok(choice)
    }

    /// Whether `other` is measured against the backend that static order puts first. A place in `select.order` is the
    /// user's word and is not measured; neither are devices of another kind, whose memory is another.
    fn may_rival(&self, first: &Found, other: &Found) -> bool {
        self.place(first).is_none() && !first.is_gpu() && !other.is_gpu()
    }

    /// All candidates, best first, before it is known what they can do.
    pub(crate) fn in_order(&self) -> Vec<&Found> {
        let place = |f: &Found| self.place(f).unwrap_or(usize::MAX);
        let cuda_or_cpu = matches!(self.config.select.device, Device::CudaOrCpu);
        let mut found: Vec<_> = self.found.iter().collect();
        // Stable: what compares equal stays in order of static priority.
        found.sort_by_key(|f| (cuda_or_cpu && !f.is_gpu(), place(f)));
        found
    }

    fn place(&self, found: &Found) -> Option<usize> {
        self.config.select.order.iter().position(|id| id.as_str() == found.entry.id)
    }

    fn reason(&self, found: &Found, named: Option<(String, &str)>, rejected: &[Rejected]) -> Reason {
        if let Some((key, _)) = named {
            return Reason::Named { by: self.asked_by(&key) };
        }
        if matches!(self.config.select.device, Device::CudaOrCpu) && !found.is_gpu() {
            let cuda = rejected.iter().find(|r| r.id == "cuda");
            let reason = cuda.map_or("no GPU backend is in this program".into(), |r| r.reason.clone());
            return Reason::Fallback { reason };
        }
        match self.place(found) {
            Some(place) => Reason::Order { place: place + 1 },
            None => Reason::Priority { priority: found.entry.priority },
        }
    }

    /// The opened backend and its kernels, or why it cannot be chosen.
    pub(crate) fn eligible(
        &self,
        found: &Found,
        named: Option<&str>,
        specs: &[OpSpec],
    ) -> Result<(Arc<dyn QuantBackend>, Vec<&'static str>), String> {
        let select = &self.config.select;
        let id = found.entry.id;
        if let Some(named) = named.filter(|n| *n != id) {
            return Err(format!("{named} is asked for by name"));
        }
        if select.deny.iter().any(|d| d.as_str() == id) {
            return Err(format!("denied by {}", self.asked_by("select.deny")));
        }
        if let Probe::Unusable { reason } = &found.probe {
            return Err(reason.clone());
        }
        let wrong_device = match select.device {
            Device::Auto | Device::CudaOrCpu => false,
            Device::Cpu => found.is_gpu(),
            Device::Cuda { .. } => id != "cuda",
        };
        if wrong_device {
            return Err(format!("not a device of the kind that {} asks for", self.asked_by("select.device")));
        }
        let backend = self.open_found(found).map_err(|e| e.to_string())?;
        let mut kernels = Vec::new();
        for spec in specs {
            match backend.supports(spec) {
                Support::Yes { kernel } if kernels.contains(&kernel) => {}
                Support::Yes { kernel } => kernels.push(kernel),
                Support::No { reason } => return Err(format!("does not do {spec}: {reason}")),
            }
        }
        Ok((backend, kernels))
    }
}

/// The kernels that run `specs`, each once.
fn kernels_of(backend: &dyn QuantBackend, specs: &[OpSpec]) -> Vec<&'static str> {
    let mut kernels = Vec::new();
    for spec in specs {
        match backend.supports(spec) {
            Support::Yes { kernel } if !kernels.contains(&kernel) => kernels.push(kernel),
            _ => {}
        }
    }
    kernels
}

/// Why a backend that can do everything was not chosen for everything.
fn told_by(routes: &[Route], id: &str) -> String {
    let is = |name: &str| name.split(['/', '@']).next() == Some(id);
    let won = routes.iter().filter(|r| is(&r.chosen)).count();
    match won {
        0 => "slower, or not measured, in each product; see the routes".into(),
        _ => format!("chosen for {won} of {} products; see the routes", routes.len()),
    }
}

fn describe(specs: &[OpSpec]) -> String {
    match specs {
        [] => "anything".into(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_backend_cpu_avx2 as _;
    use tersor_backend_scalar as _;
    use tersor_core::Format;

    fn registry(toml: &str) -> Result<Registry> {
        let mut config = Config::from_toml_str(toml)?;
        config.tune.mode = crate::config::TuneMode::Off;
        Registry::build(config)
    }

    fn gemv() -> [OpSpec; 1] {
        [OpSpec::matmul(Format::I2S, 1, 256, 256)]
    }

    #[test]
    fn the_config_knows_the_names_of_core() {
        let isas: Vec<_> = Isa::ALL.into_iter().map(Isa::id).collect();
        assert_eq!(isas, crate::config::ISA_IDS);
        let config = Config::from_toml_str("").unwrap();
        for format in Format::TERNARY.into_iter().chain(Format::GROUPED) {
            let key = format!("select.formats.{format}");
            assert!(config.get(&key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_backend_asked_for_by_name_is_chosen_and_says_who_asked() {
        let choice = registry("[select]\nbackend = \"scalar\"").unwrap().select(&gemv()).unwrap();
        assert_eq!(choice.decision.chosen, "scalar");
        let said = choice.decision.to_string();
        assert!(said.contains("named by select.backend (<text>:2:"), "{said}");
        assert!(said.contains("not cpu-avx2: scalar is asked for by name"), "{said}");
        assert_eq!(choice.decision.kernels, ["gemv.i2_s-i8.scalar.1x1"]);
    }

    #[test]
    fn order_beats_priority_and_denied_ones_are_listed() {
        let choice = registry("[select]\norder = [\"scalar\"]").unwrap().select(&gemv()).unwrap();
        assert_eq!(choice.decision.because, Reason::Order { place: 1 });
        let e =
            registry("[select]\ndeny = [\"scalar\", \"cpu-avx2\"]").unwrap().select(&gemv()).unwrap_err().to_string();
        assert!(e.contains("scalar: denied by select.deny (<text>:2:"), "{e}");
    }

    #[test]
    fn a_format_can_have_a_backend_of_its_own() {
        let registry = registry("[select.formats]\ntl1 = \"scalar\"").unwrap();
        let tl1 = registry.select(&[OpSpec::matmul(Format::TL1, 1, 256, 256)]).unwrap();
        assert_eq!(tl1.decision.chosen, "scalar");
    }

    #[test]
    fn cuda_by_name_never_falls_back_but_cuda_or_cpu_says_that_it_did() {
        let e = registry("[select]\ndevice = \"cuda\"").unwrap().select(&gemv()).unwrap_err().to_string();
        assert!(e.contains("no backend for matmul i2_s") && e.contains("scalar: not a device of the kind"), "{e}");
        let choice = registry("[select]\ndevice = \"cuda-or-cpu\"").unwrap().select(&gemv()).unwrap();
        assert!(matches!(choice.decision.because, Reason::Fallback { .. }), "{}", choice.decision);
    }

    #[test]
    fn names_that_nothing_provides_are_errors_with_their_place() {
        for toml in
            ["[select]\nbackend = \"acme\"", "[select]\norder = [\"acme\"]", "[select.formats]\ni2_s = \"acme\""]
        {
            let e = registry(toml).and_then(|r| r.select(&gemv())).unwrap_err().to_string();
            assert!(e.contains("<text>:2:") && e.contains("\"acme\"") && e.contains("scalar"), "{e}");
        }
    }

    #[test]
    fn an_isa_that_a_backend_lacks_rejects_it() {
        let e = registry("[select]\nisa = \"neon\"\nbackend = \"scalar\"").unwrap().select(&gemv()).unwrap_err();
        assert!(e.to_string().contains("it has no neon kernels"), "{e}");
    }

    #[test]
    fn what_no_backend_does_is_an_error_that_lists_why() {
        let spec = OpSpec::GatherRows { format: Format::I2S, rows: 1, cols: 128 };
        let e = registry("").unwrap().select(&[spec]).unwrap_err().to_string();
        assert!(e.contains("scalar: does not do"), "{e}");
    }
}
