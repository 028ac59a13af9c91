//! Backends from shared libraries: found by their manifests, vetted before any of their code runs, probed in a process of
//! their own, and only then loaded. The author's side is told in `docs/plugins.md`.
//!
//! A plugin is native code with the rights of this process. Nothing here is a sandbox.
//!
//! What is checked, in this order: the manifest parses; it is on the allow list; it has a library for this platform; its ABI fits; the machine has
//! the instruction sets it names; nobody else can write to it; the bytes have the hash that the manifest states; the file is not quarantined; it has
//! passed its probe, or passes it now. The first check that fails names its [`Stage`] in a [`PluginError`], which [`Registry::plugins`] lists:
//! a plugin that was found never vanishes silently.
//!
//! [`Registry::plugins`]: crate::Registry::plugins

mod error;
mod known;
mod loader;
mod manifest;
mod probe;
mod search;
mod state;
mod trust;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tersor_abi::host::{Plugin, PluginBackend};
use tersor_abi::raw::{TERSOR_ABI_MAJOR, TERSOR_ABI_MINOR};
use tersor_core::Isa;

pub use error::{PluginError, Stage};
pub use manifest::{About, MANIFEST_VERSION, Manifest, platform};
pub use probe::Answer;
pub use search::{Place, SYSTEM, manifests, places};
pub use state::{Record, State, Verdict};

use crate::config::{AllowedPlugin, Config};
use probe::Ended;

/// How long a probe may take: a second is plenty for what it computes, and a loaded machine may need many.
pub const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// A plugin that may be opened: all checks short of running its code.
#[derive(Debug)]
pub struct Vetted {
    /// Its manifest.
    pub manifest: Manifest,
    /// Where that is.
    pub file: PathBuf,
    /// The library, open and hashed.
    pub library: trust::Opened,
}

/// A plugin that is loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Who made it.
    pub about: About,
    /// Its manifest.
    pub manifest: PathBuf,
    /// Its library.
    pub library: PathBuf,
    /// SHA-256 of the library.
    pub sha256: String,
    /// Minor version of the ABI that it was built with.
    pub abi_minor: u32,
    /// Its backends.
    pub backends: Vec<PluginBackend>,
}

/// What came of all plugins that were found.
#[derive(Debug, Clone, Default)]
pub struct Plugins {
    /// Those that are loaded.
    pub loaded: Vec<Loaded>,
    /// Those that are not, and why.
    pub refused: Vec<PluginError>,
}

/// Loads plugins by a policy.
#[derive(Debug)]
pub struct Loader {
    /// Plugins that may be loaded; empty: all.
    pub allow: Vec<AllowedPlugin>,
    /// The program that probes; without one, a plugin that was not probed before is refused.
    pub helper: Option<PathBuf>,
    /// How long a probe may take.
    pub limit: Duration,
    /// What is remembered.
    pub state: State,
}

impl Loader {
    /// The policy of a configuration, with the user's memory of earlier probes.
    pub fn new(config: &Config) -> Self {
        Loader {
            allow: config.plugins.allow.clone(),
            helper: config.plugins.probe_helper.clone(),
            limit: PROBE_LIMIT,
            state: State::load(State::user_file()),
        }
    }

    /// Everything that is checked without running code of the plugin, but for what is remembered of it.
    pub fn vet(&self, file: &Path) -> Result<Vetted, PluginError> {
        let fail = |stage, reason: String| PluginError { manifest: file.to_owned(), stage, reason };
        let manifest = Manifest::read(file)?;
        let name = &manifest.plugin.name;
        let allowed: Vec<_> = self.allow.iter().filter(|a| a.name == *name).collect();
        if !self.allow.is_empty() && allowed.is_empty() {
            return Err(fail(Stage::Allow, format!("plugins.allow does not name {name:?}")));
        }
        let (path, hash) = manifest.library(file)?;
        let abi = manifest.abi;
        if abi.major != TERSOR_ABI_MAJOR || abi.min_minor > TERSOR_ABI_MINOR {
            let (major, minor) = (abi.major, abi.min_minor);
            let ours = format!("this program has {TERSOR_ABI_MAJOR}.{TERSOR_ABI_MINOR}");
            return Err(fail(Stage::Abi, format!("it needs version {major}.{minor} or later of that major; {ours}")));
        }
        for id in &manifest.provides.requires_isa {
            let isa: Isa = id.parse().map_err(|e: tersor_core::Error| fail(Stage::Manifest, e.to_string()))?;
            if has_isa(isa) == Some(false) {
                return Err(fail(Stage::Isa, format!("it needs {isa}, which this machine lacks")));
            }
        }
        let library = trust::open(file, &path)?;
        if library.sha256 != hash {
            let (path, found) = (library.path.display(), &library.sha256);
            return Err(fail(Stage::Hash, format!("{path} has SHA-256 {found}, and the manifest says {hash}")));
        }
        if !allowed.is_empty() && !allowed.iter().any(|a| a.sha256.as_ref().is_none_or(|h| *h == hash)) {
            return Err(fail(Stage::Allow, format!("plugins.allow names {name:?} with another hash than {hash}")));
        }
        Ok(Vetted { manifest, file: file.to_owned(), library })
    }

    /// Vets a plugin, probes it where that was not done before, and loads it.
    pub fn load(&mut self, file: &Path) -> Result<Loaded, PluginError> {
        let vetted = self.vet(file)?;
        self.probe(&vetted)?;
        let plugin = vetted.open()?;
        Ok(Loaded {
            about: vetted.manifest.plugin,
            manifest: vetted.file,
            library: vetted.library.path,
            sha256: vetted.library.sha256,
            abi_minor: plugin.abi_minor,
            backends: plugin.backends,
        })
    }

    fn probe(&mut self, vetted: &Vetted) -> Result<(), PluginError> {
        let fail = |stage, reason: String| PluginError { manifest: vetted.file.clone(), stage, reason };
        match self.state.verdict(&vetted.library) {
            Some(Verdict::Passed) => return Ok(()),
            Some(Verdict::Quarantined { reason }) => return Err(fail(Stage::Quarantine, reason.clone())),
            None => {}
        }
        let Some(helper) = &self.helper else {
            let why = "it was not probed yet, and plugins.probe_helper names no program that could";
            return Err(fail(Stage::Probe, why.into()));
        };
        let reason = match probe::in_child(helper, &vetted.file, self.limit) {
            Ended::Answered(Answer::Passed { unusable }) => {
                // A backend that could not be tried has not passed: next time it may be usable.
                if unusable.is_empty() {
                    self.state.remember(Record::of(&vetted.library, Verdict::Passed));
                }
                return Ok(());
            }
            Ended::Answered(Answer::Refused { reason }) | Ended::NotStarted(reason) => {
                return Err(fail(Stage::Probe, reason));
            }
            Ended::Answered(Answer::Wrong { reason }) => format!("a wrong answer in its probe: {reason}"),
            Ended::Died(reason) => format!("in its probe {reason}"),
        };
        tracing::warn!(plugin = %vetted.file.display(), "quarantined: {reason}");
        self.state.remember(Record::of(&vetted.library, Verdict::Quarantined { reason: reason.clone() }));
        Err(fail(Stage::Quarantine, reason))
    }
}

impl Vetted {
    /// Runs the plugin's code: loads the library and reads its tables.
    pub fn open(&self) -> Result<Plugin, PluginError> {
        let plugin = loader::load(&self.file, &self.library)?;
        let mut ids: Vec<_> = plugin.backends.iter().map(|b| b.id).collect();
        let mut promised: Vec<_> = self.manifest.provides.backends.iter().map(String::as_str).collect();
        ids.sort_unstable();
        promised.sort_unstable();
        if ids != promised {
            let reason = format!("it brings the backends {ids:?}, and its manifest says {promised:?}");
            return Err(PluginError { manifest: self.file.clone(), stage: Stage::Tables, reason });
        }
        Ok(plugin)
    }

    /// What a probe's child does with it.
    pub fn answer(&self) -> Answer {
        probe::answer(self)
    }
}

impl Plugins {
    /// Loads what the configuration finds; nothing where plugins are off.
    pub fn discover(config: &Config) -> Self {
        let mut plugins = Plugins::default();
        if !config.plugins.enabled {
            return plugins;
        }
        let (files, errors) = manifests(&places(config, |name| std::env::var_os(name)));
        plugins.refused = errors;
        let mut loader = Loader::new(config);
        for file in files {
            let loaded = loader.load(&file).and_then(|new| {
                match plugins.loaded.iter().find(|l| l.about.name == new.about.name) {
                    None => Ok(new),
                    Some(first) => {
                        let reason = format!("{} has the same name and comes first", first.manifest.display());
                        Err(PluginError { manifest: file.clone(), stage: Stage::Search, reason })
                    }
                }
            });
            match loaded {
                Ok(loaded) => plugins.loaded.push(loaded),
                Err(e) => {
                    tracing::warn!("{e}");
                    plugins.refused.push(e);
                }
            }
        }
        plugins
    }
}

/// Whether this machine has a tier; `None` where that cannot be asked without it.
fn has_isa(isa: Isa) -> Option<bool> {
    #[cfg(target_arch = "x86_64")]
    return match isa {
        Isa::Avx2 => Some(is_x86_feature_detected!("avx2")),
        Isa::AvxVnni => Some(is_x86_feature_detected!("avxvnni")),
        Isa::Avx512 => Some(is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl")),
        Isa::Avx512Vnni => Some(is_x86_feature_detected!("avx512vnni")),
        Isa::Avx512Vbmi => Some(is_x86_feature_detected!("avx512vbmi")),
        Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => Some(false),
        _ => None,
    };
    #[cfg(target_arch = "aarch64")]
    return match isa {
        Isa::Neon => Some(true),
        Isa::NeonDotprod => Some(std::arch::is_aarch64_feature_detected!("dotprod")),
        Isa::NeonI8mm => Some(std::arch::is_aarch64_feature_detected!("i8mm")),
        _ => Some(false),
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return None;
}
