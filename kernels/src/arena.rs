//! Memory for packed weights: large, zeroed, on huge pages where the system gives them.
//!
//! Streaming weights through 4 KiB pages costs a fifth of the bandwidth: the prefetcher stops at each page's end and each
//! page wants a translation. Weights of a model are packed one after another into chunks of 32 MiB that ask the system for
//! huge pages (2 MiB), so that small ones share a page. A chunk is given back when its last weight is dropped. What no weight
//! has touched is not resident, but for the rest of the last page that one has: so small weights fill the ends of older chunks
//! (in a model of the 2B-4T shape that is a megabyte a chunk).

use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;
use tersor_core::{Error, Result};

/// Bytes of a chunk; larger weights have a chunk of their own.
const CHUNK: usize = 32 << 20;
/// Chunks with less room are full.
const LEAST: usize = 64 << 10;
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
    /// Chunks with room, and how much of each is used. Only regions keep a chunk.
    open: Mutex<Vec<(Weak<Chunk>, usize)>>,
}

/// A mapping whose parts belong to regions.
#[derive(Debug)]
struct Chunk {
    /// Keeps the memory mapped. Regions go through `start` alone.
    _map: MmapMut,
    start: *mut u8,
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
        Ok(Chunk { _map: map, start })
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
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Without those that are full, or whose weights are gone.
        open.retain(|(chunk, used)| CHUNK - used >= LEAST && chunk.strong_count() > 0);
        let after = |offset: usize| (offset + len.next_multiple_of(LINE)).min(CHUNK);
        let fits = open.iter_mut().filter(|(_, used)| len <= CHUNK - *used);
        for (chunk, used) in fits {
            if let Some(chunk) = chunk.upgrade() {
                let offset = std::mem::replace(used, after(*used));
                return Ok(Region { chunk, offset, len });
            }
        }
        let chunk = Arc::new(Chunk::new(CHUNK)?);
        open.push((Arc::downgrade(&chunk), after(0)));
        Ok(Region { chunk, offset: 0, len })
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

    #[test]
    fn small_regions_fill_the_ends_of_older_chunks_and_chunks_without_regions_are_given_back() {
        let arena = Arena::default();
        let region = |len| arena.region(len).expect("memory");
        let chunk = |r: &Region| Arc::as_ptr(&r.chunk);
        let (first, second) = (region(CHUNK - (4 << 20)), region(5 << 20));
        assert_ne!(chunk(&first), chunk(&second));
        let third = region(3 << 20);
        assert_eq!((chunk(&third), third.offset), (chunk(&first), CHUNK - (4 << 20)));
        let fourth = region(2 << 20);
        assert_eq!((chunk(&fourth), fourth.offset), (chunk(&second), 5 << 20));
        let gone = Arc::downgrade(&second.chunk);
        drop((second, fourth));
        assert_eq!(gone.strong_count(), 0);
        assert_eq!((chunk(&region(1)), region(CHUNK - 1).offset), (chunk(&first), 0));
    }
}
