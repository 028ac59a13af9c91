//! Read-only memory maps as [`Bytes`]: the one module of this crate that contains `unsafe`.
//!
//! Model files are opened by mapping, not by reading: a tensor's bytes are then a slice of the page cache, shared between
//! processes and never copied. Every slice handed out keeps the whole map alive.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use bytes::Bytes;

use crate::error::{Error, Result};

/// Maps the regular file at `path` for reading.
///
/// The file must not be truncated while the map lives: the operating system answers a read of a vanished page with a signal.
/// That is the usual contract of mapped model files, and why Tersor's own writers replace files by renaming, never in place.
///
/// # Errors
/// [`Error::Io`] when the file cannot be opened or mapped; [`Error::NotAFile`] for directories, pipes and devices.
pub fn map_file(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let meta = file.metadata().map_err(|e| Error::io("inspect", path, e))?;
    if !meta.is_file() {
        return Err(Error::NotAFile { path: path.to_path_buf() });
    }
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only and private to this process' address space; `Mmap` keeps it valid until the last `Bytes`
    // clone is dropped. Bytes of a shared file may change under us if another process writes to it: everything read through
    // the map is checked as untrusted input, so changed bytes can give wrong numbers but no undefined reads of ours (all
    // values are plain integers and floats). Truncation by others ends the process with SIGBUS, as documented above.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_outlives_the_file_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"hello world").unwrap();
        let slice = map_file(&path).unwrap().slice(6..);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&slice[..], b"world");
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(map_file(file.path()).unwrap().is_empty());
    }

    #[test]
    fn a_directory_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(map_file(dir.path()), Err(Error::NotAFile { .. })));
    }
}
