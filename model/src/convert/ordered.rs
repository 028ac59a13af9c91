//! Work on several tensors at once, results in order.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Results that are not yet taken, and what is to be done next.
struct State<T> {
    next: usize,
    taken: usize,
    done: BTreeMap<usize, T>,
    stop: bool,
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `work` for `0..count` on `workers` threads and hands the results to `sink`, on this thread and in order. Nobody works
/// further ahead of the sink than there are workers, so that results do not pile up. The first error of the sink ends it, and
/// what is being worked on is waited for.
pub(super) fn in_order<T: Send, E>(
    count: usize,
    workers: usize,
    work: impl Fn(usize) -> T + Sync,
    mut sink: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    if workers < 2 {
        return (0..count).try_for_each(|i| sink(work(i)));
    }
    let state = Mutex::new(State { next: 0, taken: 0, done: BTreeMap::new(), stop: false });
    let changed = Condvar::new();
    let wait = |state| changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    let worker = || {
        let _end = OnPanic(&state, &changed);
        loop {
            let mut s = lock(&state);
            while !s.stop && s.next < count && s.next >= s.taken + workers {
                s = wait(s);
            }
            if s.stop || s.next >= count {
                return;
            }
            let i = s.next;
            s.next += 1;
            drop(s);
            let result = work(i);
            lock(&state).done.insert(i, result);
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        (0..workers.min(count)).for_each(|_| drop(scope.spawn(worker)));
        let _end = OnReturn(&state, &changed);
        for i in 0..count {
            let mut s = lock(&state);
            let result = loop {
                match s.done.remove(&i) {
                    Some(result) => break result,
                    // A worker panicked; the scope passes that on.
                    None if s.stop => return Ok(()),
                    None => s = wait(s),
                }
            };
            s.taken = i + 1;
            drop(s);
            changed.notify_all();
            sink(result)?;
        }
        Ok(())
    })
}

/// Ends everybody when the thread that takes the results is done with it, however.
struct OnReturn<'a, T>(&'a Mutex<State<T>>, &'a Condvar);

impl<T> Drop for OnReturn<'_, T> {
    fn drop(&mut self) {
        lock(self.0).stop = true;
        self.1.notify_all();
    }
}

/// The same when a worker panics.
struct OnPanic<'a, T>(&'a Mutex<State<T>>, &'a Condvar);

impl<T> Drop for OnPanic<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(self.0).stop = true;
            self.1.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn results_come_in_order_whoever_is_faster() {
        for workers in [0, 1, 2, 3, 7, 50] {
            let mut seen = Vec::new();
            let work = |i: usize| {
                std::thread::sleep(Duration::from_micros((i * 7 % 5 * 200) as u64));
                i
            };
            let sink = |i| {
                seen.push(i);
                Ok::<_, ()>(())
            };
            in_order(23, workers, work, sink).unwrap();
            assert_eq!(seen, (0..23).collect::<Vec<_>>(), "{workers}");
        }
    }

    #[test]
    fn nobody_works_far_ahead() {
        let (started, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |i: usize| {
            started.fetch_add(1, Ordering::SeqCst);
            i
        };
        let sink = |i: usize| {
            std::thread::sleep(Duration::from_millis(2));
            let ahead = started.load(Ordering::SeqCst) - i;
            taken.fetch_add(1, Ordering::SeqCst);
            if ahead <= 5 { Ok(()) } else { Err(ahead) }
        };
        in_order(40, 4, work, sink).unwrap();
        assert_eq!(taken.into_inner(), 40);
    }

    #[test]
    fn an_error_of_the_sink_ends_it() {
        let worked = AtomicUsize::new(0);
        let work = |i| {
            worked.fetch_add(1, Ordering::SeqCst);
            i
        };
        let e = in_order(1000, 3, work, |i| if i == 5 { Err("enough") } else { Ok(()) });
        assert_eq!(e, Err("enough"));
        assert!(worked.into_inner() <= 10);
    }

    #[test]
    fn a_panic_is_passed_on_and_nobody_waits_for_it() {
        let work = |i| {
            assert_ne!(i, 4);
            i
        };
        let outcome = std::panic::catch_unwind(|| in_order(100, 3, work, |_| Ok::<_, ()>(())));
        assert!(outcome.is_err());
    }
}
