//! Read-only memory maps as [`Bytes`]: the one module of this crate that contains `unsafe`.
//!
//! Model files are opened by mapping, not by reading: a tensor's bytes are then a slice of the page cache, shared between
//! processes and never copied. Every slice handed out keeps the whole map alive.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{Error, Result};

/// The maps that are alive, so that a slice can be told from other memory.
static MAPS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

/// What the [`Bytes`] of a map keep alive.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Takes the pages of `bytes` out of this process' resident memory, if they are of a map: they were copied, and will not be
/// read again soon. Reading them, or what else lies in their first and last page, is still right, and reads the file again.
pub(crate) fn release(bytes: &[u8]) {
    let maps: Vec<Arc<Mmap>> = {
        let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|map| map.strong_count() > 0);
        maps.iter().filter_map(Weak::upgrade).collect()
    };
    let range = bytes.as_ptr_range();
    for map in maps.iter().filter(|map| map.as_ptr_range().start <= range.start && range.end <= map.as_ptr_range().end)
    {
        release_in(map, range.start.addr() - map.as_ptr().addr(), bytes.len());
    }
}

#[cfg(unix)]
fn release_in(map: &Mmap, offset: usize, len: usize) {
    /// A multiple of every page size in use.
    const PAGE: usize = 64 << 10;
    let (start, end) = (offset / PAGE * PAGE, (offset + len).next_multiple_of(PAGE).min(map.len()));
    // SAFETY: the map is of a file, read-only and shared: pages that are given up come back from the file with the same
    // bytes. The range lies within the map.
    let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    if let Err(e) = advised {
        // They cost memory then, nothing else.
        tracing::debug!("pages that were packed stay resident: {e}");
    }
}

#[cfg(not(unix))]
fn release_in(_: &Mmap, _: usize, _: usize) {}

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
    let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?);
    MAPS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&map));
    Ok(Bytes::from_owner(Owner(map)))
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
    fn released_pages_are_not_resident_and_read_the_same() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let data: Vec<u8> = (0..8u32 << 20).map(|i| (i % 251) as u8).collect();
        std::io::Write::write_all(&mut file, &data).unwrap();
        let bytes = map_file(file.path()).unwrap();
        assert_eq!(bytes, data);
        release(&bytes[1000..]);
        release(&data);
        #[cfg(target_os = "linux")]
        assert_eq!(resident(bytes.as_ptr().addr()), 0, "kB of the map resident after its release");
        assert_eq!(bytes, data);
        #[cfg(target_os = "linux")]
        assert!(resident(bytes.as_ptr().addr()) >= 8 << 10, "the measure sees pages that were read");
    }

    /// A map too small for a huge page, which would be given up whole.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_first_and_the_last_page_are_released_too() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let data = vec![7u8; 3 * (64 << 10)];
        std::io::Write::write_all(&mut file, &data).unwrap();
        let bytes = map_file(file.path()).unwrap();
        assert_eq!(bytes, data);
        release(&bytes[70_000..80_000]);
        assert_eq!(resident(bytes.as_ptr().addr()), 128, "kB beside the 64 that were released");
        release(&bytes[150_000..]);
        assert_eq!(resident(bytes.as_ptr().addr()), 64);
        assert_eq!(bytes, data);
    }

    /// Resident kB of the map that starts at `address`.
    #[cfg(target_os = "linux")]
    fn resident(address: usize) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let of_map = maps.split_once(&format!("{address:x}-")).unwrap().1;
        let line = of_map.lines().find(|l| l.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
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
