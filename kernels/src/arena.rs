//! Memory for packed weights: large, zeroed, on huge pages where the system gives them.
//!
//! Streaming weights through 4 KiB pages costs a fifth of the bandwidth: the prefetcher stops at each page's end and each
//! page wants a translation. Weights of a model are packed one after another into chunks of 32 MiB that ask the system for
//! huge pages (2 MiB), so that small ones share a page. A chunk is given back when its last weight is dropped; the unused
//! end of a chunk is never touched, and so never resident.

use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;
use tersor_core::{Error, Result};

/// Bytes of a chunk; larger weights have a chunk of their own.
const CHUNK: usize = 32 << 20;
/// What chunks start at, so that their first page is a huge one.
const PAGE: usize = 2 << 20;
/// What regions start at.
const LINE: usize = 64;

/// `len` zeros in `memory` that begin at a cache line: vectors that straddle two are loaded at half the rate.
pub(crate) fn aligned<T: Copy + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    let most = LINE / size_of::<T>();
    memory.clear();
    memory.resize(len + most, T::default());
    let skip = memory.as_ptr().align_offset(LINE).min(most);
    &mut memory[skip..][..len]
}

/// Hands out regions.
#[derive(Debug, Default)]
pub struct Arena {
    current: Mutex<Option<(Arc<Chunk>, usize)>>,
}

/// A mapping whose parts belong to regions.
#[derive(Debug)]
struct Chunk {
    /// Keeps the memory mapped. Regions go through `start` alone.
    _map: MmapMut,
    start: *mut u8,
    len: usize,
}

// SAFETY: a chunk is memory without identity of its own; regions, which are disjoint, are the only access to it.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new(len: usize) -> Result<Self> {
        let mut map = MmapMut::map_anon(len + PAGE).map_err(|e| {
            tracing::debug!("no memory for packed weights: {e}");
            Error::OutOfMemory { backend: "host".into(), need: len, available: 0, budget: "the system" }
        })?;
        // Advice that the system does not take costs speed, not correctness.
        #[cfg(target_os = "linux")]
        if let Err(e) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!("no huge pages for packed weights: {e}");
        }
        let skip = map.as_ptr().align_offset(PAGE).min(PAGE);
        let start = map[skip..].as_mut_ptr();
        Ok(Chunk { _map: map, start, len })
    }
}

/// Memory of one weight: zeroed, aligned to 64 bytes.
#[derive(Debug)]
pub struct Region {
    chunk: Arc<Chunk>,
    offset: usize,
    len: usize,
}

impl Arena {
    /// A region of `len` bytes.
    pub fn region(&self, len: usize) -> Result<Region> {
        if len >= CHUNK {
            return Ok(Region { chunk: Arc::new(Chunk::new(len)?), offset: 0, len });
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, offset) = match current.take() {
            Some((chunk, used)) if len <= chunk.len - used => (chunk, used),
            _ => (Arc::new(Chunk::new(CHUNK)?), 0),
        };
        *current = Some((chunk.clone(), (offset + len.next_multiple_of(LINE)).min(chunk.len)));
        Ok(Region { chunk, offset, len })
    }
}

impl Region {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the region lies within its chunk, which lives as long, and no other region overlaps it.
        unsafe { std::slice::from_raw_parts(self.chunk.start.add(self.offset), self.len) }
    }

    /// The bytes for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this region is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.add(self.offset), self.len) }
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeroed_aligned_and_disjoint() {
        let arena = Arena::default();
        let mut regions: Vec<_> = [1, 63, 64, 65, 4096, 0, CHUNK - 1, CHUNK, 7]
            .into_iter()
            .map(|len| arena.region(len).expect("memory"))
            .collect();
        for (i, r) in regions.iter_mut().enumerate() {
            assert!(r.bytes().iter().all(|&b| b == 0), "region {i}");
            assert_eq!(r.bytes().as_ptr().align_offset(LINE), 0, "region {i}");
            r.bytes_mut().fill(i as u8 + 1);
        }
        for (i, r) in regions.iter().enumerate() {
            assert!(r.bytes().iter().all(|&b| b == i as u8 + 1), "region {i}");
        }
    }
}
