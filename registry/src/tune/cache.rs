//! Measurements on disk.
//!
//! One JSON file per machine fingerprint, `tune-v1-<hash>.json`. A writer takes the lock of the directory, reads what is
//! there, puts its changes in and renames a temporary file over it: readers see the old file or the new one, two processes
//! that tune at once lose nothing of each other's, and one that is killed while it writes loses what it wanted to write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::record::Record;

/// The version of the file's structure. It is in the name too, so that versions of Tersor do not overwrite each other's.
pub const SCHEMA: u32 = 1;

/// The read-only place that an administrator can fill.
pub const SYSTEM_DIRECTORY: &str = "/var/cache/tersor";

/// The file's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contents {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The machine.
    pub fingerprint: Fingerprint,
    /// Records by the name of their key.
    pub keys: BTreeMap<String, Record>,
}

impl Contents {
    /// Nothing measured yet.
    pub fn empty(fingerprint: Fingerprint) -> Self {
        Contents { schema: SCHEMA, fingerprint, keys: BTreeMap::new() }
    }

    /// Reads a file; `Ok(None)` where there is none.
    ///
    /// # Errors
    /// What is wrong with it, in words: it cannot be read, or it is of another version or machine.
    pub fn read(path: &Path, fingerprint: &Fingerprint) -> Result<Option<Self>, String> {
        let bytes = match fs::read(path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e.to_string()),
            Ok(bytes) => bytes,
        };
        let read: Contents = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        if read.schema != SCHEMA {
            return Err(format!("its schema is {}, not {SCHEMA}", read.schema));
        }
        if read.fingerprint != *fingerprint {
            let other = &read.fingerprint;
            return Err(format!("it is of another machine: {} on cores {}", other.cpu, other.affinity));
        }
        Ok(Some(read))
    }
}

/// A change of one key: its new record, or `None` to strike it out.
pub type Change = (String, Option<Record>);

/// The cache of this machine in one directory.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
    fingerprint: Fingerprint,
}

impl Cache {
    /// In `directory`, which is made when something is written.
    pub fn new(directory: impl Into<PathBuf>, fingerprint: Fingerprint) -> Self {
        Cache { directory: directory.into(), fingerprint }
    }

    /// The directory that the environment gives for the user: `$XDG_CACHE_HOME/tersor`, else `~/.cache/tersor`.
    pub fn user_directory(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        base.map(|base| base.join("tersor"))
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.directory.join(format!("tune-v{SCHEMA}-{}.json", self.fingerprint.hash()))
    }

    /// What it holds. A file that cannot be used counts as none, with a warning.
    pub fn load(&self) -> BTreeMap<String, Record> {
        match Contents::read(&self.path(), &self.fingerprint) {
            Ok(contents) => contents.map(|c| c.keys).unwrap_or_default(),
            Err(reason) => {
                tracing::warn!(file = %self.path().display(), reason, "the tuning cache is ignored");
                BTreeMap::new()
            }
        }
    }

    /// Puts changes in, whatever other processes do.
    pub fn merge(&self, changes: &[Change]) -> io::Result<()> {
        self.locked(|held| {
            for (key, record) in changes {
                match record {
                    Some(record) => held.insert(key.clone(), record.clone()),
                    None => held.remove(key),
                };
            }
        })
    }

    /// Forgets everything.
    pub fn clear(&self) -> io::Result<()> {
        self.locked(BTreeMap::clear)
    }

    fn locked(&self, change: impl FnOnce(&mut BTreeMap<String, Record>)) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        // Closing the file, by the end of this function or of the process, gives the lock back.
        let lock = File::create(self.directory.join("tune.lock"))?;
        lock.lock()?;
        let path = self.path();
        // What cannot be read is replaced; `load` has warned of it.
        let known = Contents::read(&path, &self.fingerprint).ok().flatten();
        let mut contents = known.unwrap_or_else(|| Contents::empty(self.fingerprint.clone()));
        change(&mut contents.keys);
        // One name for all writers is safe under the lock, and a dead writer's file is the next one's to overwrite.
        let temporary = path.with_extension("json.new");
        let mut file = File::create(&temporary)?;
        serde_json::to_writer_pretty(&mut file, &contents)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tune::candidate::Identity;

    pub(in crate::tune) fn machine(name: &str) -> Fingerprint {
        Fingerprint { cpu: name.into(), isas: vec![], caches: vec![], affinity: "0".into() }
    }

    pub(in crate::tune) fn record(backend: &str) -> Record {
        let winner = Identity {
            backend: backend.into(),
            isa: None,
            threads: None,
            kernel: "gemv".into(),
            revision: 1,
            build: "test".into(),
        };
        Record { winner, rows: 1, cold_bytes: 1, measured: Vec::new() }
    }

    fn change(key: &str, backend: &str) -> Change {
        (key.into(), Some(record(backend)))
    }

    #[test]
    fn what_is_written_is_read_and_merged() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("new"), machine("a"));
        assert!(cache.load().is_empty());
        cache.merge(&[change("one", "x"), change("two", "x")]).unwrap();
        Cache::new(dir.path().join("new"), machine("a")).merge(&[change("two", "y"), ("one".into(), None)]).unwrap();
        let held = cache.load();
        assert_eq!(held.keys().collect::<Vec<_>>(), ["two"]);
        assert_eq!(held["two"].winner.backend, "y");
        cache.clear().unwrap();
        assert!(cache.load().is_empty());
    }

    #[test]
    fn machines_have_files_of_their_own_and_a_foreign_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Cache::new(dir.path(), machine("a")), Cache::new(dir.path(), machine("b")));
        a.merge(&[change("one", "x")]).unwrap();
        assert!(b.load().is_empty());
        fs::copy(a.path(), b.path()).unwrap();
        assert!(b.load().is_empty());
        let reason = Contents::read(&b.path(), &machine("b")).unwrap_err();
        assert!(reason.contains("another machine: a"), "{reason}");
    }

    #[test]
    fn damage_and_other_versions_are_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), machine("a"));
        cache.merge(&[change("one", "x")]).unwrap();
        let whole = fs::read_to_string(cache.path()).unwrap();
        for cut in (0..whole.len() - 2).step_by(7) {
            fs::write(cache.path(), &whole[..cut]).unwrap();
            assert!(cache.load().is_empty(), "cut after {cut} bytes");
        }
        fs::write(cache.path(), whole.replace("\"schema\": 1", "\"schema\": 99")).unwrap();
        assert!(cache.load().is_empty());
        cache.merge(&[change("two", "y")]).unwrap();
        assert_eq!(cache.load().len(), 1);
    }

    #[test]
    fn a_writer_that_died_leaves_the_old_file_and_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), machine("a"));
        cache.merge(&[change("one", "x")]).unwrap();
        fs::write(cache.path().with_extension("json.new"), "{ \"schema\": 1, \"keys\": { \"tw").unwrap();
        assert_eq!(cache.load().len(), 1);
        cache.merge(&[change("two", "y")]).unwrap();
        assert_eq!(cache.load().len(), 2);
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let cache = Cache::new(dir.path(), machine("a"));
                scope.spawn(move || {
                    for i in 0..10 {
                        cache.merge(&[change(&format!("{writer}-{i}"), "x")]).unwrap();
                    }
                });
            }
        });
        assert_eq!(Cache::new(dir.path(), machine("a")).load().len(), 40);
    }

    #[test]
    fn the_users_directory_follows_the_base_directory_rules() {
        let of = |xdg: Option<&str>, home: Option<&str>| {
            Cache::user_directory(|name| if name == "HOME" { home } else { xdg }.map(PathBuf::from))
        };
        assert_eq!(of(Some("/x"), Some("/h")), Some("/x/tersor".into()));
        assert_eq!(of(Some("relative"), Some("/h")), Some("/h/.cache/tersor".into()));
        assert_eq!(of(None, None), None);
    }
}
