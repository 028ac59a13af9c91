//! What is remembered of plugins: which files passed their probe, which are quarantined and why.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::trust::Opened;

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Every backend ran the known answers.
    Passed,
    /// It crashed, hung or computed something wrong.
    Quarantined {
        /// What happened.
        reason: String,
    },
}

/// What is known of one file. A file that differs in any of these is another file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Path of the library.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds of its last change.
    pub modified: u128,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Version of the host that probed it.
    pub host: String,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Record {
    /// A record of this file.
    pub fn of(library: &Opened, verdict: Verdict) -> Self {
        let (path, sha256) = (library.path.clone(), library.sha256.clone());
        let host = env!("CARGO_PKG_VERSION").to_owned();
        Record { path, size: library.size, modified: library.modified, sha256, host, verdict }
    }

    fn is_of(&self, library: &Opened) -> bool {
        *self == Record::of(library, self.verdict.clone())
    }
}

/// The file of records.
#[derive(Debug, Clone)]
pub struct State {
    file: Option<PathBuf>,
    /// Everything that is known.
    pub records: Vec<Record>,
}

impl State {
    /// The user's file: `$XDG_STATE_HOME/tersor/plugins.json`, else `~/.local/state/tersor/plugins.json`.
    pub fn user_file() -> Option<PathBuf> {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state"));
        Some(state.or_else(home)?.join("tersor/plugins.json"))
    }

    /// Reads the file; one that is absent or damaged is empty, which costs probes and trusts nothing.
    pub fn load(file: Option<PathBuf>) -> Self {
        let text = file.as_deref().and_then(|file| std::fs::read_to_string(file).ok());
        let records = text.and_then(|text| match serde_json::from_str(&text) {
            Ok(records) => Some(records),
            Err(e) => {
                tracing::warn!("what is remembered of plugins is damaged and starts anew: {e}");
                None
            }
        });
        State { file, records: records.unwrap_or_default() }
    }

    /// What is known of a library.
    pub fn verdict(&self, library: &Opened) -> Option<&Verdict> {
        self.records.iter().find(|r| r.is_of(library)).map(|r| &r.verdict)
    }

    /// Remembers a verdict, for ever where there is a file. One that cannot be written is worth a warning, not a failure.
    pub fn remember(&mut self, record: Record) {
        self.records.retain(|r| r.path != record.path);
        self.records.push(record);
        self.save();
    }

    /// Forgets the verdicts on this library; says whether there were any.
    pub fn forget(&mut self, library: &Path) -> bool {
        let before = self.records.len();
        self.records.retain(|r| r.path != library);
        self.save();
        self.records.len() < before
    }

    fn save(&self) {
        let Some(file) = &self.file else { return };
        if let Err(e) = write(file, &self.records) {
            tracing::warn!("what was learnt of plugins is not kept: {}: {e}", file.display());
        }
    }
}

/// Whole or not at all.
fn write(file: &Path, records: &[Record]) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer_pretty(&mut new, records)?;
    new.write_all(b"\n")?;
    new.persist(file).map_err(|e| e.error)?;
    Ok(())
}
