//! Files that appear complete or not at all.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Big enough that a tensor of zeros is not written four kilobytes at a time, small enough to be nothing.
const BUFFER: usize = 1 << 20;

/// A temporary file beside its destination, renamed when complete.
///
/// The temporary lives in the destination's directory because a rename is atomic only within a file system. Dropping it
/// uncommitted removes it.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    out: BufWriter<NamedTempFile>,
    destination: PathBuf,
    directory: PathBuf,
}

impl AtomicFile {
    /// Opens a temporary for a file that will appear at `destination`.
    pub(crate) fn create(destination: &Path) -> Result<Self> {
        let directory = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        if destination.file_name().is_none() || destination.is_dir() {
            return Err(Error::io(
                "create",
                destination,
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path names a directory, not a file"),
            ));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tersor-").suffix(".partial");
        // tempfile's default is 0600; a model is an ordinary file, so the process' umask decides.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file =
            builder.tempfile_in(&directory).map_err(|e| Error::io("create a temporary file in", &directory, e))?;
        Ok(Self { out: BufWriter::with_capacity(BUFFER, file), destination: destination.to_path_buf(), directory })
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io("write", &self.destination, e))
    }

    /// Flushes to the disk, renames, and makes the rename durable.
    pub(crate) fn commit(self) -> Result<PathBuf> {
        let Self { out, destination, directory } = self;
        let fail = |e| Error::io("write", &destination, e);
        let file = out.into_inner().map_err(|e| fail(e.into_error()))?;
        file.as_file().sync_all().map_err(fail)?;
        file.persist(&destination).map_err(|e| Error::io("rename the finished file to", &destination, e.error))?;
        sync_directory(&directory)?;
        Ok(destination)
    }
}

/// A rename lives in the directory: without this, a crash may forget it.
#[cfg(unix)]
fn sync_directory(directory: &Path) -> Result<()> {
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync the directory", directory, e))
}

/// Elsewhere directories cannot be opened as files; the system's own journal has to do.
#[cfg(not(unix))]
fn sync_directory(_directory: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_visible_before_commit_and_nothing_left_after_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn commit_replaces_an_older_file_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, b"a much longer older file").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent").join("model.gguf");
        let error = AtomicFile::create(&path).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }
}
