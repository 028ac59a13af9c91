//! One read of the weights where one scale is for all of them.
//!
//! Codes need the scale, which is known when the last weight has been seen: so weights are read twice, and where they come from
//! memory that is what takes the time. But a sample of one weight in 64 says within half a per cent what half the scale will
//! be, and only the codes of weights whose magnitude is within that half a per cent, 3 in a thousand, depend on the rest. So the
//! first read encodes as well, with weights in between as zeros, and remembers these; when the scale is known, their codes are
//! put right.
//!
//! The sample decides how long it takes and never what comes out. If half the scale is not where the sample says, or too many
//! weights are in between (weights can be chosen so), all are encoded again.
//!
//! For f32 and the formats that are encoded with least arithmetic, where it gains: 4 M weights from memory, one thread of a Zen 5, 4.7 -> 7.5
//! Gelem/s (`i2_s` with AVX-512), 4.7 -> 6.9 (AVX2). Tried and left out: `tl2` (16 M, AVX-512 5.6 -> 6.1, AVX2 5.2 -> 4.1), `tq1_0` (5.2 -> 5.3 and
//! 4.7 -> 4.2), f16 and bf16 (8.1 -> 8.9 and 6.4 -> 6.2), which are bound by arithmetic already. The next chunk is asked for while one
//! is summed: 7.8 Gelem/s; in halves while it is summed and encoded 7.4, 8 KiB ahead 6.9, 24 KiB 7.0.

use tersor_core::codec::absmean::{CHUNK, ChunkStats, MIN_SCALE, Stats};
use tersor_core::codec::{self, Rows};
use tersor_core::{Floats, Format, Result, f16};

use super::Context;
use super::quantize::{RowEncoder, TASK_ELEMENTS, TQ2_BYTES};
use crate::arch::prefetch;
use crate::codes::{Codes, Marks, Nothing};
use crate::isa::{Body, Simd};
use crate::lanes::Lanes;
use crate::split::{self, Parts};

/// Tensors from this many weights on are read once. 2 M weights that a cache holds are encoded faster in two reads (12.8 against
/// 10.7 Gelem/s), and slower where they come from memory (4.8 against 7.7), as weights do that are quantized once.
const LEAST: usize = 1 << 21;

/// Weights of a chunk that the sample sees.
const SAMPLE: usize = 64;

/// How many samples ahead memory is asked for one. Nothing foresees where they are.
const SAMPLES_AHEAD: usize = 12;

/// Parts of the sample whose means tell how sure it is.
const BATCHES: usize = 64;

/// Standard deviations of the sample's mean on either side of it. With more of them fewer tensors are read again (3 in a thousand
/// with these), and more weights are put right in all others.
const DEVIATIONS: f64 = 3.0;

/// The widest part of the mean on either side of it: with bell-shaped weights 12 in a thousand are near then, and to put them right
/// takes as long as to read again.
const WIDEST: f64 = 0.02;

/// One weight in so many may be near.
const MOST: usize = 64;

/// Scales that guesses are made for, far from where f32 ends.
const SCALES: std::ops::Range<f64> = 1e-30..1e30;

/// Statistics of no weights.
const NOTHING: ChunkStats = ChunkStats { sum: 0.0, max_bits: 0, min_bits: u32::MAX };

/// Half of the scale, supposedly: at least `low` and at most `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Guess {
    low: f32,
    high: f32,
}

impl Guess {
    /// From samples of as many weights each. `None` if they say nothing.
    fn of(samples: &[ChunkStats]) -> Option<Guess> {
        let per_batch = samples.len() / BATCHES;
        let max = samples.iter().map(|s| s.max_bits).max()?;
        let min = samples.iter().map(|s| s.min_bits).min()?;
        if per_batch == 0 || !SCALES.contains(&f64::from(f32::from_bits(max))) {
            return None;
        }
        if max == min {
            // Ternary weights have their own magnitude for a scale.
            let half = 0.5 * f32::from_bits(max);
            return Some(Guess { low: half, high: half });
        }
        // Every 64th sample to a batch: all of them see the whole tensor.
        let mut means = [0.0; BATCHES];
        for batch in samples.as_chunks::<BATCHES>().0 {
            means.iter_mut().zip(batch).for_each(|(mean, s)| *mean += f64::from(s.sum));
        }
        let count = BATCHES as f64;
        means.iter_mut().for_each(|mean| *mean /= (per_batch * SAMPLE) as f64);
        let mean = means.iter().sum::<f64>() / count;
        let variance = means.iter().map(|m| (m - mean) * (m - mean)).sum::<f64>() / (count - 1.0);
        let sure = DEVIATIONS * (variance / count).sqrt();
        let half = |mean: f64| (0.5 * mean.max(f64::from(MIN_SCALE))) as f32;
        let narrow = sure < WIDEST * mean;
        (narrow && SCALES.contains(&mean)).then(|| Guess { low: half(mean - sure), high: half(mean + sure) })
    }
}

/// Where a chunk's sample begins: somewhere else in each, lest all samples see the same columns.
#[inline(always)]
fn sample_at(chunk: usize) -> usize {
    chunk * CHUNK + ((chunk as u32).wrapping_mul(0x9e37_79b1) >> 26) as usize * SAMPLE
}

/// Statistics of a sample of each chunk.
struct Samples<'a> {
    w: &'a [f32],
    first: usize,
    out: &'a mut [ChunkStats],
}

impl Body for Samples<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (chunk, out) in (self.first..).zip(self.out) {
            // May be past the end.
            let next = self.w.as_ptr().wrapping_add(sample_at(chunk + SAMPLES_AHEAD)).cast::<u8>();
            for line in 0..SAMPLE / 16 {
                prefetch(next.wrapping_add(64 * line));
            }
            *out = S::F32::chunk_stats::<0>(simd, &self.w[sample_at(chunk)..][..SAMPLE]);
        }
    }
}

/// A weight whose code depends on the scale.
#[derive(Debug, Clone, Copy)]
struct Near {
    at: u32,
    value: f32,
}

/// Sums and encodes chunks.
struct Once<'a> {
    w: &'a [f32],
    guess: Guess,
    format: Format,
    first: usize,
    bytes: usize,
    out: &'a mut [u8],
    chunks: &'a mut [ChunkStats],
    near: &'a mut Vec<Near>,
}

impl Body for Once<'_> {
    /// Whether few enough are near.
    type Out = bool;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        let Once { w, guess: Guess { low, high }, format, first, bytes, out, chunks, near } = self;
        let encoder = RowEncoder { format, stored: 0.0 };
        let most = chunks.len() * CHUNK / MOST;
        near.reserve(most + CHUNK);
        let mut marks = Marks { values: [0; _], lines: 0 };
        for (i, (out, stats)) in out.chunks_mut(bytes).zip(chunks).enumerate() {
            let at = (first + i) * CHUNK;
            let w = &w[at..w.len().min(at + CHUNK)];
            let mut whole;
            let chunk = match w.as_array() {
                Some(w) => w,
                None => {
                    // Zeros change no statistics, see `absmean::chunk_stats`, and are not near.
                    whole = [0.0; CHUNK];
                    whole[..w.len()].copy_from_slice(w);
                    &whole
                }
            };
            *stats = S::F32::chunk_stats_near(simd, chunk, low, high, &mut marks);
            remember(chunk, &marks, at, near);
            encoder.encode::<Nothing, S>(simd, w, high, out);
            if near.len() > most {
                return false;
            }
        }
        true
    }
}

/// Appends the marked values of a chunk that begins at `at`.
#[inline(always)]
fn remember(w: &[f32; CHUNK], marks: &Marks, at: usize, near: &mut Vec<Near>) {
    near.reserve(CHUNK);
    let (room, mut found) = (near.spare_capacity_mut(), 0);
    // By lines that have marks, so that the loops end where that can be foreseen: one mark in a line is the rule.
    let mut lines = marks.lines;
    while lines != 0 {
        let line = lines.trailing_zeros() as usize % marks.values.len();
        let mut values = marks.values[line];
        loop {
            let place = 64 * line + values.trailing_zeros() as usize % 64;
            room[found].write(Near { at: (at + place) as u32, value: w[place] });
            found += 1;
            values &= values.wrapping_sub(1);
            if values == 0 {
                break;
            }
        }
        lines &= lines - 1;
    }
    let len = near.len() + found;
    // SAFETY: as many have been written behind those that were there.
    unsafe { near.set_len(len) };
}

/// What came of it.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// All is encoded, but for the tail.
    Encoded(f32),
    /// The scale is known, and was not where it was guessed.
    Missed(f32),
    /// Nothing is known: it was not tried, or too much was near.
    Unknown,
}

impl<S: Simd> Context<'_, S> {
    /// Encodes the rows of a tensor with one scale in one read, if a sample foretells the scale and it is worth while.
    ///
    /// # Errors
    /// As [`codec::quantize`].
    pub(super) fn single_read(&self, w: Floats<'_>, format: Format, rows: Rows, codes: &mut [u8]) -> Result<Outcome> {
        // Rows follow each other without a gap, so that chunks are as good as rows.
        let suits = match format {
            Format::I2S | Format::TQ2_0 => true,
            Format::TL1 => rows.cols.is_multiple_of(4),
            _ => false,
        };
        match w {
            Floats::F32(w) if suits && w.len() >= LEAST && u32::try_from(w.len()).is_ok() => match self.guess(w) {
                Some(guess) => self.with_guess(w, format, guess, codes),
                None => Ok(Outcome::Unknown),
            },
            _ => Ok(Outcome::Unknown),
        }
    }

    fn guess(&self, w: &[f32]) -> Option<Guess> {
        let isa = self.kernels.isa;
        let tasks = split::task_count(self.executor, w.len(), TASK_ELEMENTS);
        let mut samples = vec![NOTHING; w.len() / CHUNK];
        split::chunks_mut(self.executor, &mut samples, 1, tasks, |first, out| isa.run(Samples { w, first, out }));
        Guess::of(&samples)
    }

    fn with_guess(&self, w: &[f32], format: Format, guess: Guess, codes: &mut [u8]) -> Result<Outcome> {
        let Some(bytes) = format.row_bytes(CHUNK) else { return Ok(Outcome::Unknown) };
        let isa = self.kernels.isa;
        let tasks = split::task_count(self.executor, w.len(), TASK_ELEMENTS);
        let mut chunks = vec![NOTHING; w.len().div_ceil(CHUNK)];
        let mut lists = vec![(Vec::new(), false); tasks];
        {
            let count = chunks.len();
            let (out, chunks, lists) = (Parts::new(&mut *codes), Parts::new(&mut chunks), Parts::new(&mut lists));
            split::run(self.executor, tasks, |task| {
                let of = split::part_of(count, 1, tasks, task);
                let first = of.start;
                // SAFETY: tasks have disjoint ranges of chunks, of their codes, and a list each.
                let (out, chunks, lists) = unsafe {
                    (out.part(of.start * bytes..of.end * bytes), chunks.part(of), lists.part(task..task + 1))
                };
                for (near, few) in lists {
                    *few = isa.run(Once { w, guess, format, first, bytes, out, chunks, near });
                }
            });
        }
        if lists.iter().any(|(_, few)| !few) {
            return Ok(Outcome::Unknown);
        }
        let mut stats = Stats::default();
        for (i, chunk) in chunks.into_iter().enumerate() {
            stats.push(chunk, CHUNK.min(w.len() - i * CHUNK));
        }
        let scale = stats.scale().ok_or_else(|| codec::non_finite(Floats::F32(w)))?;
        let (half, stored) = (0.5 * scale, codec::storable_scale(format, scale)?);
        if half < guess.low || half > guess.high {
            return Ok(Outcome::Missed(scale));
        }
        let codes = Parts::new(codes);
        split::run(self.executor, tasks, |task| {
            let of = split::part_of(w.len().div_ceil(CHUNK), 1, tasks, task);
            // SAFETY: as above.
            let out = unsafe { codes.part(of.start * bytes..of.end * bytes) };
            put_right(format, of.start * CHUNK, out, &lists[task].0, half);
            write_scales(format, out, stored);
        });
        Ok(Outcome::Encoded(scale))
    }
}

/// Writes the codes of what is near, in the bytes of all weights from `start` on.
fn put_right(format: Format, start: usize, out: &mut [u8], near: &[Near], half: f32) {
    for n in near {
        let at = n.at as usize - start;
        // Half of them stay zeros, unforeseeably: no branch.
        let sign = i8::from(n.value > half) - i8::from(n.value < -half);
        let (byte, place) = match format {
            Format::TQ2_0 => (at / 256 * TQ2_BYTES + at % 256 / 128 * 32 + at % 32, 1 << (2 * (at % 128 / 32))),
            Format::TL1 => (at / 4, [48, 16, 3, 1][at % 4]),
            // `i2_s`.
            _ => (at / 128 * 32 + at % 32, 1 << (6 - 2 * (at % 128 / 32))),
        };
        out[byte] = out[byte].wrapping_add_signed(sign * place);
    }
}

/// Writes the scale into each block of the format that has it there.
fn write_scales(format: Format, out: &mut [u8], scale: f32) {
    if format == Format::TQ2_0 {
        let scale = f16::from_f32(scale).to_le_bytes();
        out.as_chunks_mut::<TQ2_BYTES>().0.iter_mut().for_each(|b| b[TQ2_BYTES - 2..].copy_from_slice(&scale));
    }
}

#[cfg(test)]
mod tests;
