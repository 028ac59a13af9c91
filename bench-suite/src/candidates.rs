//! Who is measured: every usable backend, at each ISA tier of its devices, with one thread and with all.

use std::sync::Arc;

use tersor_core::{DeviceKind, Executor, HostContext, Isa, Probe, QuantBackend};
use tersor_registry::config::{Config, Device};
use tersor_registry::{Pool, Registry};

use crate::error::{Error, Result};
use crate::limits;
use crate::report::{BackendSeen, Figure, Measure};
use crate::schedule::Sample;

/// An open backend.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The backend.
    pub backend: Arc<dyn QuantBackend>,
    /// The tier that it was opened for; `None` for portable code and GPUs.
    pub isa: Option<Isa>,
    /// Its threads.
    pub threads: usize,
    /// Who does its work.
    pub(crate) pool: Arc<Pool>,
    /// Which backend and tier this is, whatever the threads: packed weights are shared within.
    pub tier: usize,
}

impl Candidate {
    /// The backend's id.
    pub fn id(&self) -> &str {
        &self.backend.info().id
    }

    /// Whether its memory is not the host's.
    pub fn is_device(&self) -> bool {
        !self.backend.info().is_host()
    }

    /// Backend and tier.
    pub fn name(&self) -> String {
        match self.isa {
            Some(isa) => format!("{}.{isa}", self.id()),
            None => self.id().to_owned(),
        }
    }

    /// Times `work`, which does the case's work `times` times, with all threads awake.
    pub(crate) fn time<E>(
        &self,
        times: usize,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Sample, E> {
        limits::awake(&*self.pool);
        Sample::time(times, work)
    }

    /// A figure of this candidate, nothing measured yet.
    pub fn figure(&self, measure: Measure, format: &str, shape: String) -> Figure {
        Figure {
            measure,
            format: format.to_owned(),
            backend: self.id().to_owned(),
            isa: self.isa.map_or_else(String::new, |i| i.id().to_owned()),
            device: if self.is_device() { "gpu" } else { "cpu" }.to_owned(),
            shape,
            threads: self.threads,
            kernels: Vec::new(),
            work: Default::default(),
            working_set: 0,
            samples: Vec::new(),
            time: None,
            floor: None,
            utilisation: None,
            checked: None,
            absent: None,
            sequences: None,
        }
    }
}

/// The candidates, the pools that they run on, and what was seen on the way.
#[derive(Debug)]
pub struct Candidates {
    /// Best backend first, its highest tier first, one thread first.
    pub all: Vec<Candidate>,
    /// Every backend of the program.
    pub seen: Vec<BackendSeen>,
    /// One pool for each thread count.
    pub pools: Vec<Arc<Pool>>,
}

impl Candidates {
    /// Opens what the configuration lets through: `select.backend`, `select.device`, `select.deny`, `select.isa`,
    /// `threads.count` and `threads.affinity`.
    ///
    /// # Errors
    /// [`Error::NoBackend`] with every reason, where nothing can be opened.
    pub fn open(registry: &Registry) -> Result<Self> {
        let config = registry.config();
        let processors: Vec<usize> = config.threads.affinity.iter().map(|&cpu| cpu.into()).collect();
        let pools = thread_counts(config)
            .into_iter()
            .map(|n| Ok(Arc::new(Pool::bound(n, &processors).map_err(tersor_registry::Error::from)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut found = Candidates { all: Vec::new(), seen: Vec::new(), pools };
        for backend in registry.found() {
            let entry = backend.entry;
            let mut seen = BackendSeen {
                id: entry.id.to_owned(),
                version: entry.version.to_owned(),
                kernel_revision: entry.kernel_revision,
                unusable: None,
                devices: Vec::new(),
                isas: Vec::new(),
            };
            let gpu = matches!(&backend.probe, Probe::Usable { devices } if devices.iter().any(|d| d.kind == DeviceKind::Gpu));
            let verdict = match (&backend.probe, refused(config, entry.id, gpu)) {
                (Probe::Unusable { reason }, _) => Err(reason.clone()),
                (_, Some(reason)) => Err(reason),
                (Probe::Usable { devices }, None) => {
                    seen.devices = devices.iter().map(|d| d.name.clone()).collect();
                    let tiers: Vec<Isa> = devices.iter().flat_map(|d| d.isas.iter().copied()).collect();
                    found.open_tiers(entry, &tiers, gpu, registry, &mut seen)
                }
            };
            seen.unusable = verdict.err();
            found.seen.push(seen);
        }
        if found.all.is_empty() {
            let reason = |s: BackendSeen| format!("{}: {}", s.id, s.unusable.unwrap_or_default());
            return Err(Error::NoBackend { reasons: found.seen.into_iter().map(reason).collect() });
        }
        Ok(found)
    }

    fn open_tiers(
        &mut self,
        entry: tersor_registry::Entry,
        tiers: &[Isa],
        gpu: bool,
        registry: &Registry,
        seen: &mut BackendSeen,
    ) -> Result<(), String> {
        let wanted = registry.config().select.isa.map(|isa| isa.as_str());
        let mut tiers: Vec<Option<Isa>> =
            if tiers.is_empty() { vec![None] } else { tiers.iter().rev().map(|isa| Some(*isa)).collect() };
        tiers.dedup();
        if let Some(wanted) = wanted {
            tiers.retain(|isa| isa.is_some_and(|isa| isa.id() == wanted));
        }
        let most = self.threads().last().copied().unwrap_or(1);
        let mut problem = wanted.map(|isa| format!("it has no tier {isa}, which select.isa asks for"));
        for isa in tiers {
            let tier = self.all.last().map_or(0, |c| c.tier + 1);
            for pool in &self.pools {
                // A GPU does not care for the host's threads: it is opened once, with all of them.
                if gpu && pool.threads() != most {
                    continue;
                }
                let host = registry.host();
                let host = HostContext::new(pool.clone())
                    .with_isa(isa)
                    .with_device(host.device)
                    .with_reproducible(host.reproducible)
                    .with_memory(host.memory().clone());
                match entry.open(&host) {
                    Ok(backend) => {
                        self.all.push(Candidate { backend, isa, threads: pool.threads(), pool: pool.clone(), tier })
                    }
                    Err(e) => problem = Some(e.to_string()),
                }
            }
            if self.all.last().is_some_and(|c| c.tier == tier) {
                seen.isas.extend(isa.map(|i| i.id().to_owned()));
                problem = None;
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// The pools as executors, one thread first.
    pub fn executors(&self) -> Vec<&dyn Executor> {
        self.pools.iter().map(|p| &**p as &dyn Executor).collect()
    }

    /// The thread counts.
    pub fn threads(&self) -> Vec<usize> {
        self.pools.iter().map(|p| p.threads()).collect()
    }

    /// Number of tiers of all backends.
    pub fn tiers(&self) -> usize {
        self.all.last().map_or(0, |c| c.tier + 1)
    }
}

/// One thread, and all of them.
fn thread_counts(config: &Config) -> Vec<usize> {
    let all = config.threads.count.map_or_else(Pool::available, |n| n.get().into());
    if all > 1 { vec![1, all] } else { vec![1] }
}

/// Why the configuration keeps a backend out.
fn refused(config: &Config, id: &str, gpu: bool) -> Option<String> {
    let select = &config.select;
    let wrong = match select.device {
        Device::Auto | Device::CudaOrCpu => false,
        Device::Cpu => gpu,
        Device::Cuda { .. } => id != "cuda",
    };
    if wrong {
        return Some("not a device of the kind that select.device asks for".to_owned());
    }
    let other = select.backend.as_ref().filter(|b| b.as_str() != id);
    if let Some(other) = other {
        return Some(format!("{} is asked for by name", other.as_str()));
    }
    select.deny.iter().any(|d| d.as_str() == id).then(|| "denied by select.deny".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor::registry::config::Config;

    fn open(toml: &str) -> Result<Candidates> {
        Candidates::open(&Registry::build(Config::from_toml_str(toml).unwrap()).unwrap())
    }

    #[test]
    fn every_usable_backend_is_opened_for_each_tier_and_thread_count() {
        let c = open("threads.count = 2").unwrap();
        assert_eq!(c.threads(), [1, 2]);
        let scalar: Vec<_> = c.all.iter().filter(|c| c.id() == "scalar").map(|c| c.threads).collect();
        assert_eq!(scalar, [1, 2]);
        for seen in &c.seen {
            let opened = c.all.iter().any(|c| c.id() == seen.id);
            assert_eq!(opened, seen.unusable.is_none(), "{seen:?}");
        }
    }

    #[test]
    fn a_backend_asked_for_by_name_is_alone() {
        let c = open("threads.count = 1\nselect.backend = \"scalar\"").unwrap();
        assert_eq!((c.all.len(), c.threads(), c.tiers()), (1, vec![1], 1));
        assert!(c.seen.iter().any(|s| s.unusable.as_deref() == Some("scalar is asked for by name")));
    }

    #[test]
    fn a_kind_of_device_asked_for_is_alone() {
        let c = open("threads.count = 1\nselect.device = \"cpu\"").unwrap();
        assert!(c.all.iter().all(|c| !c.is_device()));
        // Where there is a GPU, it is measured; where there is none, that is an error and no other backend steps in.
        match open("threads.count = 1\nselect.device = \"cuda\"") {
            Ok(c) => assert!(c.all.iter().all(|c| c.id() == "cuda")),
            Err(e) => assert!(e.to_string().contains("scalar: not a device of the kind"), "{e}"),
        }
    }

    #[test]
    fn nothing_to_measure_is_an_error_with_reasons() {
        let e = open("select.backend = \"scalar\"\nselect.isa = \"neon\"").unwrap_err().to_string();
        assert!(e.contains("scalar: it has no tier neon"), "{e}");
    }
}
