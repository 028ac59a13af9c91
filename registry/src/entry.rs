//! Where a backend comes from: linked into the program, or brought by a plugin.

use std::sync::Arc;

use tersor_abi::host::PluginBackend;
use tersor_core::{BackendEntry, Error, HostContext, Probe, QuantBackend, Result, intern};

use crate::plugins::{Loaded, Manifest, PluginError, Plugins};

/// Who brings a backend.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Origin {
    /// It is linked into the program.
    Linked(&'static BackendEntry),
    /// A plugin brought it.
    Plugin {
        /// Its table.
        backend: &'static PluginBackend,
        /// The plugin.
        plugin: &'static Loaded,
    },
    /// A plugin would bring it, and is not loaded.
    Refused(&'static PluginError),
}

/// A backend, wherever it comes from. Plugins are never unloaded, so this is as static as what is linked.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Unique id.
    pub id: &'static str,
    /// Version; a plugin's has the first digits of its hash behind a `+`, so that measurements of other bytes are not its own.
    pub version: &'static str,
    /// Raised whenever a kernel changes.
    pub kernel_revision: u32,
    /// Rank where nothing has been measured.
    pub priority: i32,
    /// Where it comes from.
    pub origin: Origin,
}

impl From<&'static BackendEntry> for Entry {
    fn from(entry: &'static BackendEntry) -> Self {
        let BackendEntry { id, version, kernel_revision, priority, .. } = *entry;
        Entry { id, version, kernel_revision, priority, origin: Origin::Linked(entry) }
    }
}

impl Entry {
    /// Whether it can be used here.
    pub fn probe(&self) -> Probe {
        match self.origin {
            Origin::Linked(entry) => (entry.probe)(),
            Origin::Plugin { backend, .. } => backend.probe(),
            Origin::Refused(e) => Probe::Unusable { reason: e.to_string() },
        }
    }

    /// Makes it ready to work.
    pub fn open(&self, host: &HostContext) -> Result<Arc<dyn QuantBackend>> {
        match self.origin {
            Origin::Linked(entry) => (entry.open)(host),
            Origin::Plugin { backend, .. } => backend.open(host),
            Origin::Refused(e) => Err(Error::Unusable { backend: self.id.into(), reason: e.to_string() }),
        }
    }

    /// The backends of plugins, loaded and refused. One whose id is taken is not among them: it becomes a refusal.
    pub(crate) fn of_plugins(plugins: &mut Plugins, linked: &[&'static str]) -> Vec<Entry> {
        let (mut entries, mut taken): (Vec<Entry>, Vec<&str>) = (Vec::new(), linked.to_vec());
        for loaded in std::mem::take(&mut plugins.loaded) {
            if let Some(twice) = loaded.backends.iter().find(|b| taken.contains(&b.id)) {
                let reason = format!("there is a backend {:?} already; ids must be unique", twice.id);
                let stage = crate::plugins::Stage::Tables;
                plugins.refused.push(PluginError { manifest: loaded.manifest, stage, reason });
                continue;
            }
            let plugin: &'static Loaded = Box::leak(Box::new(loaded.clone()));
            for backend in &plugin.backends {
                let PluginBackend { id, kernel_revision, priority, .. } = *backend;
                taken.push(id);
                let version = intern(format!("{}+{}", backend.version, &plugin.sha256[..12]));
                let origin = Origin::Plugin { backend, plugin };
                entries.push(Entry { id, version, kernel_revision, priority, origin });
            }
            plugins.loaded.push(loaded);
        }
        for refused in &plugins.refused {
            let Ok(manifest) = Manifest::read(&refused.manifest) else { continue };
            for id in manifest.provides.backends.iter().map(intern) {
                if !taken.contains(&id) {
                    taken.push(id);
                    let origin = Origin::Refused(Box::leak(Box::new(refused.clone())));
                    let version = intern(&manifest.plugin.version);
                    entries.push(Entry { id, version, kernel_revision: 0, priority: i32::MIN, origin });
                }
            }
        }
        entries
    }
}
