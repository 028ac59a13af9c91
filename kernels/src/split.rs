//! Splitting work into tasks for the host's executor.

use std::marker::PhantomData;
use std::ops::Range;

use tersor_core::Executor;

/// A mutable slice whose parts go to different tasks.
#[derive(Debug)]
pub struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Parts` is an exclusive borrow of the slice; `part`'s contract keeps its pieces from overlapping, so that
// sharing it among threads shares no element.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: like the exclusive borrow that it stands for.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Takes the slice.
    pub fn new(slice: &'a mut [T]) -> Self {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements of `range`, cut to the slice's length.
    ///
    /// # Safety
    /// Ranges of parts that are alive at the same time must not overlap.
    #[allow(clippy::mut_from_ref, reason = "the contract makes the parts disjoint")]
    #[inline]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        let start = range.start.min(self.len);
        let end = range.end.clamp(start, self.len);
        // SAFETY: the range lies within the borrowed slice, and the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }
}

/// The `i`th of `tasks` nearly equal parts of `0..len`, cut at multiples of `grain`.
pub fn part_of(len: usize, grain: usize, tasks: usize, i: usize) -> Range<usize> {
    let grains = len.div_ceil(grain);
    let at = |i: usize| (grains * i / tasks * grain).min(len);
    at(i)..at(i + 1)
}

/// How many tasks to make of `work` units, if one task should have at least `least` of them: at most a few a thread.
pub fn task_count(executor: &dyn Executor, work: usize, least: usize) -> usize {
    (work / least.max(1)).clamp(1, executor.threads())
}

/// Calls `f` once for each task, with the task's number; on the calling thread if there is only one.
#[inline]
pub fn run(executor: &dyn Executor, tasks: usize, f: impl Fn(usize) + Sync) {
    if tasks == 1 { f(0) } else { executor.run(tasks, &f) }
}

/// Splits `data` into parts at multiples of `grain` and calls `f(first element, part)` for each, in `tasks` tasks.
pub fn chunks_mut<T: Send>(
    executor: &dyn Executor,
    data: &mut [T],
    grain: usize,
    tasks: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let len = data.len();
    let parts = Parts::new(data);
    run(executor, tasks, |i| {
        let range = part_of(len, grain, tasks, i);
        // SAFETY: `part_of` cuts `0..len` into ranges that do not overlap, and each task has its own.
        f(range.start, unsafe { parts.part(range.clone()) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_core::Inline;

    #[test]
    fn parts_cover_everything_once_and_start_at_grains() {
        for len in [0, 1, 5, 64, 100, 1000] {
            for grain in [1, 3, 64] {
                for tasks in 1..9 {
                    let ranges: Vec<_> = (0..tasks).map(|i| part_of(len, grain, tasks, i)).collect();
                    assert_eq!((ranges[0].start, ranges[tasks - 1].end), (0, len));
                    assert!(
                        ranges
                            .windows(2)
                            .all(|w| w[0].end == w[1].start && w[1].start % grain == 0 || w[1].start == len)
                    );
                }
            }
        }
    }

    #[test]
    fn every_element_is_visited_once() {
        let mut data = vec![0; 1001];
        chunks_mut(&Inline, &mut data, 7, 5, |start, part| {
            part.iter_mut().enumerate().for_each(|(i, v)| *v += start + i + 1);
        });
        assert!(data.iter().enumerate().all(|(i, v)| *v == i + 1));
    }
}
