//! Who could have written the library, and is it the one that the manifest describes?

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{PluginError, Stage};

/// A library that is open, with the hash of the very file that is open.
#[derive(Debug)]
pub struct Opened {
    /// Its path.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in lower case.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds of its last change.
    pub modified: u128,
    pub(super) file: File,
}

/// Opens the library and checks who may write to it and to the directories above it. Hashes what is open.
pub(super) fn open(manifest: &Path, library: &Path) -> Result<Opened, PluginError> {
    let fail = |stage, reason| PluginError { manifest: manifest.to_owned(), stage, reason };
    let path = library
        .canonicalize()
        .map_err(|e| fail(Stage::Permissions, format!("{} cannot be opened: {e}", library.display())))?;
    for file in [manifest, &path] {
        only_ours(file).map_err(|reason| fail(Stage::Permissions, reason))?;
    }
    let read = |e: std::io::Error| fail(Stage::Hash, format!("{} cannot be read: {e}", path.display()));
    let mut file = File::open(&path).map_err(read)?;
    let meta = file.metadata().map_err(read)?;
    if !meta.is_file() {
        return Err(fail(Stage::Permissions, format!("{} is no plain file", path.display())));
    }
    let sha256 = hash(&mut file).map_err(read)?;
    let since = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(Opened { path, sha256, size: meta.len(), modified: since.map_or(0, |t| t.as_nanos()), file })
}

fn hash(file: &mut File) -> std::io::Result<String> {
    let (mut hasher, mut chunk) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => hasher.update(&chunk[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The file and every directory above it belong to us or to root and are writable by nobody else. In a directory with the
/// sticky bit (`/tmp`), others can add files but not replace ours.
#[cfg(unix)]
fn only_ours(file: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;

    let us = rustix::process::geteuid().as_raw();
    for path in file.ancestors() {
        let meta = std::fs::metadata(path).map_err(|e| format!("{} cannot be looked at: {e}", path.display()))?;
        let (owner, mode) = (meta.uid(), meta.mode());
        if owner != us && owner != 0 {
            return Err(format!("{} belongs to user {owner}, neither to us ({us}) nor to root", path.display()));
        }
        if mode & 0o022 != 0 && !sticky(&meta) {
            let mode = mode & 0o7777;
            return Err(format!("{} is writable by others (mode {mode:o}); chmod go-w would be right", path.display()));
        }
    }
    Ok(())
}

#[cfg(unix)]
fn sticky(meta: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    meta.is_dir() && meta.mode() & 0o1000 != 0
}

/// What could be checked on other systems is not written: refused, rather than trusted.
#[cfg(not(unix))]
fn only_ours(file: &Path) -> Result<(), String> {
    Err(format!("{}: who may write to it cannot be checked on this system", file.display()))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_and_directories_that_others_may_write_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, manifest) = (dir.path().join("sub"), dir.path().join("m.toml"));
        std::fs::create_dir(&sub).unwrap();
        let library = sub.join("lib.so");
        std::fs::write(&library, "abc").unwrap();
        std::fs::write(&manifest, "").unwrap();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        for path in [&library, &manifest] {
            mode(path, 0o644);
        }
        mode(&sub, 0o755);
        let opened = open(&manifest, &library).unwrap();
        assert_eq!(opened.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(opened.size, 3);
        for (path, bad, good) in [(&library, 0o666, 0o644), (&library, 0o664, 0o644), (&sub, 0o777, 0o755)] {
            mode(path, bad);
            let e = open(&manifest, &library).unwrap_err();
            assert_eq!(e.stage, Stage::Permissions);
            assert!(e.reason.contains("writable by others"), "{e}");
            mode(path, good);
        }
        assert_eq!(open(&manifest, &sub).unwrap_err().stage, Stage::Permissions);
        assert_eq!(open(&manifest, &sub.join("none")).unwrap_err().stage, Stage::Permissions);
    }
}
