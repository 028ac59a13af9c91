//! Why a plugin is not loaded.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// How far a plugin got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Stage {
    /// Looking for manifests.
    Search,
    /// Reading the manifest.
    Manifest,
    /// Is there a library for this platform?
    Platform,
    /// Does the ABI fit?
    Abi,
    /// Has this machine the instruction sets it needs?
    Isa,
    /// Is it on the list of plugins that may be loaded?
    Allow,
    /// Who can write to it?
    Permissions,
    /// Is it the file that the manifest describes?
    Hash,
    /// Did it fail before?
    Quarantine,
    /// The probe in a process of its own.
    Probe,
    /// Opening the library.
    Open,
    /// Reading its tables.
    Tables,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::Search => "search",
            Stage::Manifest => "manifest",
            Stage::Platform => "platform",
            Stage::Abi => "ABI",
            Stage::Isa => "instruction sets",
            Stage::Allow => "allow list",
            Stage::Permissions => "permissions",
            Stage::Hash => "hash",
            Stage::Quarantine => "quarantine",
            Stage::Probe => "probe",
            Stage::Open => "open",
            Stage::Tables => "tables",
        })
    }
}

/// A plugin that was found and is not loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("plugin {}: {stage}: {reason}", manifest.display())]
pub struct PluginError {
    /// Its manifest, or the place that was searched.
    pub manifest: PathBuf,
    /// Where it failed.
    pub stage: Stage,
    /// Why, and what would be right.
    pub reason: String,
}
