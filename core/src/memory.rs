//! The pool that host buffers come from: reused, counted, and kept within a budget.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::{Line, RawBuffer};
use crate::{Error, Result};

/// Hands out host memory and takes it back for the next one who asks for as much. Sizes come in classes, four to a power of
/// two, so that at most a fifth of an allocation is unused.
#[derive(Debug, Default)]
pub struct HostMemory {
    budget: Option<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What was given back, by class.
    free: BTreeMap<usize, Vec<Vec<Line>>>,
    usage: MemoryUsage,
}

/// Bytes of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// In buffers that are alive.
    pub in_use: usize,
    /// Given back, and kept for reuse.
    pub kept: usize,
    /// The most that `in_use` and `kept` were together.
    pub high_water: usize,
}

/// Lines of the class that holds `bytes`.
fn class(bytes: usize) -> usize {
    let lines = bytes.div_ceil(size_of::<Line>());
    let step = (lines.next_power_of_two() / 8).max(1);
    lines.next_multiple_of(step)
}

impl HostMemory {
    /// A pool of at most `budget` bytes; `None`: as many as the system gives.
    pub fn new(budget: Option<usize>) -> Self {
        HostMemory { budget, state: Mutex::default() }
    }

    /// Zeroed memory, aligned to 64 bytes, that comes back to this pool when it is dropped.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the budget, after everything that is only kept has been freed, or the system does not
    /// have that many bytes. `backend` is who asks.
    pub fn alloc(self: &Arc<Self>, backend: &str, bytes: usize) -> Result<RawBuffer> {
        let lines = class(bytes);
        let size = lines * size_of::<Line>();
        let mut state = self.lock();
        let reused = state.free.get_mut(&lines).and_then(Vec::pop);
        if reused.is_some() {
            state.usage.kept -= size;
        }
        state.take(self.budget.filter(|_| reused.is_none()), backend, size)?;
        drop(state);
        let mut memory = reused.unwrap_or_default();
        memory.clear();
        if memory.try_reserve_exact(lines).is_err() {
            self.lock().usage.in_use -= size;
            let budget = "the system";
            return Err(Error::OutOfMemory { backend: backend.into(), need: size, available: 0, budget });
        }
        memory.resize(lines, Line::ZERO);
        Ok(RawBuffer::pooled(memory, bytes, self.clone()))
    }

    /// Counts `bytes` that a backend gets elsewhere, page-locked memory for instance, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the budget does not have them, after everything that is only kept has been freed.
    pub fn reserve(self: &Arc<Self>, backend: &str, bytes: usize) -> Result<Reserved> {
        self.lock().take(self.budget, backend, bytes)?;
        Ok(Reserved { home: self.clone(), bytes })
    }

    /// Frees what is only kept.
    pub fn trim(&self) {
        self.lock().trim();
    }

    /// Bytes in use, kept, and at most.
    pub fn usage(&self) -> MemoryUsage {
        self.lock().usage
    }

    /// Takes memory back that [`HostMemory::alloc`] gave.
    pub(crate) fn give_back(&self, memory: Vec<Line>) {
        let (lines, size) = (memory.len(), memory.len() * size_of::<Line>());
        let mut state = self.lock();
        state.usage.in_use -= size;
        state.usage.kept += size;
        state.free.entry(lines).or_default().push(memory);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of the budget of a pool, for memory that is not of the pool. Dropping it gives the part back.
#[derive(Debug)]
pub struct Reserved {
    home: Arc<HostMemory>,
    bytes: usize,
}

impl Reserved {
    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.home.lock().usage.in_use -= self.bytes;
    }
}

impl State {
    /// Counts `size` bytes as used, within `budget` where there is one.
    fn take(&mut self, budget: Option<usize>, backend: &str, size: usize) -> Result<()> {
        if let Some(limit) = budget
            && (self.usage.in_use + self.usage.kept).saturating_add(size) > limit
        {
            self.trim();
            let available = limit.saturating_sub(self.usage.in_use);
            if size > available {
                let budget = "the buffer pool (memory.pool)";
                return Err(Error::OutOfMemory { backend: backend.into(), need: size, available, budget });
            }
        }
        self.usage.in_use += size;
        self.usage.high_water = self.usage.high_water.max(self.usage.in_use + self.usage.kept);
        Ok(())
    }

    fn trim(&mut self) {
        self.free.clear();
        self.usage.kept = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_at_most_a_fifth() {
        for bytes in (1..200_000).step_by(61) {
            let size = class(bytes) * 64;
            assert!(size >= bytes && size <= (bytes + bytes / 4).max(bytes + 63), "{bytes} -> {size}");
        }
        assert_eq!(class(0), 0);
    }

    #[test]
    fn memory_is_reused_and_zeroed_again() {
        let pool = Arc::new(HostMemory::new(None));
        let mut first = pool.alloc("test", 1000).unwrap();
        first.as_host_mut().unwrap().fill(7);
        let at = first.as_host().unwrap().as_ptr();
        drop(first);
        assert_eq!(pool.usage(), MemoryUsage { in_use: 0, kept: 1024, high_water: 1024 });
        let second = pool.alloc("test", 1001).unwrap();
        assert_eq!(second.as_host().unwrap().as_ptr(), at);
        assert!(second.as_host().unwrap().iter().all(|b| *b == 0));
        assert_eq!((second.bytes(), pool.usage().kept), (1001, 0));
    }

    #[test]
    fn the_budget_holds_and_what_is_kept_makes_room() {
        let pool = Arc::new(HostMemory::new(Some(10_000)));
        let alive = pool.alloc("test", 4096).unwrap();
        drop(pool.alloc("test", 4096).unwrap());
        let e = pool.alloc("test", 8000).unwrap_err().to_string();
        assert!(e.contains("memory.pool") && e.contains("5904"), "{e}");
        assert_eq!(pool.usage(), MemoryUsage { in_use: 4096, kept: 0, high_water: 8192 });
        drop(alive);
        assert_eq!(pool.alloc("test", 8000).unwrap().bytes(), 8000);
        pool.trim();
        assert_eq!(pool.usage().kept, 0);
        assert!(pool.usage().high_water <= 10_000);
    }

    #[test]
    fn what_is_reserved_counts_until_it_is_dropped() {
        let pool = Arc::new(HostMemory::new(Some(10_000)));
        drop(pool.alloc("test", 4096).unwrap());
        let reserved = pool.reserve("test", 8000).unwrap();
        assert_eq!(pool.usage(), MemoryUsage { in_use: 8000, kept: 0, high_water: 8000 });
        assert!(pool.alloc("test", 4096).is_err() && pool.reserve("test", 2001).is_err());
        assert_eq!(reserved.bytes(), 8000);
        drop(reserved);
        assert_eq!(pool.usage().in_use, 0);
        assert!(pool.reserve("test", usize::MAX).is_err());
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        let pool = Arc::new(HostMemory::new(None));
        assert!(matches!(pool.alloc("test", isize::MAX as usize - 64), Err(Error::OutOfMemory { .. })));
        assert_eq!(pool.usage().in_use, 0);
    }
}
