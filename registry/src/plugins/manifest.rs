//! The manifest: who made a plugin, what it brings, where its library is and which bytes that has.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{PluginError, Stage};

/// The version of the manifest that is read.
pub const MANIFEST_VERSION: u32 = 1;

/// A manifest that parses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the manifest itself.
    pub manifest_version: u32,
    /// Who made it.
    pub plugin: About,
    /// What of the ABI it needs.
    pub abi: Abi,
    /// What it brings.
    pub provides: Provides,
    /// The library for each platform, such as `linux-x86_64`.
    pub library: BTreeMap<String, Library>,
}

/// Section `plugin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Its name, which `plugins.allow` knows it by.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Who publishes it.
    #[serde(default)]
    pub publisher: String,
    /// Under which license.
    #[serde(default)]
    pub license: String,
    /// Where it is from.
    #[serde(default)]
    pub url: String,
}

/// Section `abi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abi {
    /// Major version, part of the symbol's name.
    pub major: u32,
    /// The least minor version of the host.
    #[serde(default)]
    pub min_minor: u32,
}

/// Section `provides`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provides {
    /// Ids of its backends; the loaded library has to bring exactly these.
    pub backends: Vec<String>,
    /// Formats, for people who choose among plugins.
    #[serde(default)]
    pub formats: Vec<String>,
    /// ISA tiers without which there is no point in loading it.
    #[serde(default)]
    pub requires_isa: Vec<String>,
}

/// A library for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Library {
    /// Relative to the manifest, without `..`; or absolute.
    pub path: PathBuf,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
}

/// This platform's name in manifests.
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

impl Manifest {
    /// Reads a manifest and checks what can be checked without the library.
    pub fn read(file: &Path) -> Result<Self, PluginError> {
        let fail = |reason: String| PluginError { manifest: file.to_owned(), stage: Stage::Manifest, reason };
        let text = std::fs::read_to_string(file).map_err(|e| fail(format!("it cannot be read: {e}")))?;
        let manifest: Manifest = toml::from_str(&text).map_err(|e| fail(e.to_string().trim_end().to_owned()))?;
        if manifest.manifest_version != MANIFEST_VERSION {
            let version = manifest.manifest_version;
            return Err(fail(format!("manifest_version is {version}; this program reads {MANIFEST_VERSION}")));
        }
        if !crate::config::is_plugin_name(&manifest.plugin.name) {
            return Err(fail(format!("plugin.name {:?} is no name such as \"acme-amx\"", manifest.plugin.name)));
        }
        if manifest.provides.backends.is_empty() {
            return Err(fail("provides.backends is empty".into()));
        }
        Ok(manifest)
    }

    /// The library for this platform: its path and its hash in lower case.
    pub(super) fn library(&self, file: &Path) -> Result<(PathBuf, String), PluginError> {
        let fail = |stage, reason: String| PluginError { manifest: file.to_owned(), stage, reason };
        let platform = platform();
        let Some(library) = self.library.get(&platform) else {
            let there = self.library.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(fail(Stage::Platform, format!("it has no library for {platform}, only for: {there}")));
        };
        if library.path.components().any(|c| c == Component::ParentDir) {
            return Err(fail(Stage::Manifest, format!("library path {} has a \"..\"", library.path.display())));
        }
        if library.sha256.len() != 64 || !library.sha256.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(fail(Stage::Manifest, format!("{:?} is no SHA-256 in hexadecimal", library.sha256)));
        }
        let directory = file.parent().unwrap_or(Path::new("/"));
        Ok((directory.join(&library.path), library.sha256.to_ascii_lowercase()))
    }
}
