//! Reading memory as fast as it goes.

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use tersor_core::Executor;
use tersor_kernels::arena::{Arena, Region};
use tersor_kernels::stream;

/// How a range is walked. Which is fastest depends on the machine and on where the data is, so all are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// From front to back.
    One,
    /// From front to back, lines asked for before they are read.
    Ahead,
    /// Two halves at once: each keeps a prefetcher busy.
    Two,
    /// Four quarters at once.
    Four,
    /// Eight parts at once.
    Eight,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Pattern; 5] = [Pattern::One, Pattern::Ahead, Pattern::Two, Pattern::Four, Pattern::Eight];

    /// Its name in reports.
    pub const fn id(self) -> &'static str {
        match self {
            Pattern::One => "sum of u64, 1 stream a thread",
            Pattern::Ahead => "sum of u64, 1 stream a thread, prefetched",
            Pattern::Two => "sum of u64, 2 streams a thread",
            Pattern::Four => "sum of u64, 4 streams a thread",
            Pattern::Eight => "sum of u64, 8 streams a thread",
        }
    }
}

/// How far ahead the one that asks does so: as far as the kernels do.
const AHEAD: usize = 8192;
/// Words below which there is nothing to read in eight streams.
const LEAST: usize = 256;

fn sum(data: &[u64], pattern: Pattern) -> u64 {
    match pattern {
        Pattern::One => stream::sum::<1, 0>(data),
        Pattern::Ahead => stream::sum::<1, AHEAD>(data),
        Pattern::Two => stream::sum::<2, 0>(data),
        Pattern::Four => stream::sum::<4, 0>(data),
        Pattern::Eight => stream::sum::<8, 0>(data),
    }
}

/// Memory to read. Also what makes weights cold: who reads more than the last-level cache holds leaves nothing else in it.
#[derive(Debug)]
pub struct ReadProbe {
    memory: Memory,
    total: u64,
}

/// Where it is: as packed weights are, on huge pages if the system gives them, for a limit that weights could pass is none.
#[derive(Debug)]
enum Memory {
    Mapped(Region),
    Ordinary(Vec<u64>),
}

impl Memory {
    fn words(&self) -> &[u64] {
        match self {
            Memory::Mapped(region) => bytemuck::cast_slice(region.bytes()),
            Memory::Ordinary(words) => words,
        }
    }
}

impl ReadProbe {
    /// `bytes` of varying content, every page touched.
    pub fn new(bytes: usize) -> Self {
        let words = (bytes / 8).max(LEAST);
        let mut memory = match Arena::default().region(8 * words) {
            Ok(region) => Memory::Mapped(region),
            Err(e) => {
                tracing::debug!("the memory to read is on ordinary pages: {e}");
                Memory::Ordinary(vec![0; words])
            }
        };
        let data = match &mut memory {
            Memory::Mapped(region) => bytemuck::cast_slice_mut(region.bytes_mut()),
            Memory::Ordinary(words) => &mut words[..],
        };
        (0..).zip(&mut *data).for_each(|(i, word): (u64, _)| *word = i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let total = data.iter().fold(0, |a: u64, b| a.wrapping_add(*b));
        ReadProbe { memory, total }
    }

    fn data(&self) -> &[u64] {
        self.memory.words()
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.data().len() * 8
    }

    /// Reads part `i` of `n` once and returns bytes a second.
    pub fn read_part(&mut self, executor: &dyn Executor, pattern: Pattern, i: usize, n: usize) -> f64 {
        let step = self.data().len() / n.max(1);
        let range = i * step..if i + 1 == n { self.data().len() } else { (i + 1) * step };
        let bytes = range.len() * 8;
        super::awake(executor);
        let start = Instant::now();
        black_box(read(self.data(), range, executor, pattern));
        (bytes as f64 / start.elapsed().as_secs_f64()).round()
    }

    /// Reads all of it as often as it takes to read `at_least` bytes, and returns bytes a second.
    pub fn read_again(&mut self, executor: &dyn Executor, pattern: Pattern, at_least: usize) -> f64 {
        let times = at_least.div_ceil(self.bytes()).max(1);
        super::awake(executor);
        let start = Instant::now();
        for _ in 0..times {
            let all = 0..self.data().len();
            debug_assert_eq!(read(black_box(self.data()), all.clone(), executor, pattern), self.total);
            #[cfg(not(debug_assertions))]
            black_box(read(black_box(self.data()), all, executor, pattern));
        }
        ((times * self.bytes()) as f64 / start.elapsed().as_secs_f64()).round()
    }
}

/// Each thread a contiguous share.
fn read(data: &[u64], range: Range<usize>, executor: &dyn Executor, pattern: Pattern) -> u64 {
    let threads = executor.threads();
    let data = &data[range];
    if threads == 1 {
        return sum(data, pattern);
    }
    let total = std::sync::atomic::AtomicU64::new(0);
    let share = data.len().div_ceil(threads).max(1);
    executor.run(threads, &|task| {
        let part = data.get(task * share..data.len().min((task + 1) * share)).unwrap_or_default();
        total.fetch_add(sum(part, pattern), std::sync::atomic::Ordering::Relaxed);
    });
    total.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_registry::Pool;

    #[test]
    fn every_pattern_reads_every_word_at_any_thread_count() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            for words in [0, 1, 31, 32, 33, 255, 1000, 10_007] {
                let data: Vec<u64> = (0..words).map(|i| i * i + 1).collect();
                let total: u64 = data.iter().sum();
                for pattern in Pattern::ALL {
                    assert_eq!(read(&data, 0..data.len(), &pool, pattern), total, "{threads} {words} {pattern:?}");
                }
            }
        }
    }

    #[test]
    fn parts_cover_the_whole() {
        let mut probe = ReadProbe::new(100_000);
        assert!(probe.bytes() >= 99_000);
        assert!(probe.read_part(&tersor_core::Inline, Pattern::Four, 2, 3) > 0.0);
    }
}
