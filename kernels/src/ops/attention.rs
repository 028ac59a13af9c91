//! Attention, by heads that share a key/value head: what they read is read once for all of them.
//!
//! A task has a range of (row, head) pairs and takes up to [`GROUP`] of them at a time. Keys pass in blocks of 32
//! positions, values in chunks of 64, which stay in the first-level cache while one head after another meets them. Scores are made
//! for whole registers of positions ([`Lanes::scores`]); values are added for as many heads as there are registers for, so that
//! their chains of additions overlap. The order of the sums is that of [`attend`].
//!
//! For heads of 64 that are four to a key/value head, a head and position costs 157 / 16 operations of the vector pipes for its score,
//! 2 for exp and 8 for its value at 512 bits: 5 cycles of four pipes, measured 7.3 from the second-level cache and 8.8 to 10 from
//! the third (Zen 5); at 256 bits 13 and 15. One head at a time, four keys folded together, took 20 and 22. Prefetching keys
//! or values was slower in every place that was tried, by 5 to 30 %: the processor's own prefetchers follow these rows.

use tersor_core::reference::attention::{HeadRows, attend};
use tersor_core::reference::lanes::LANES;
use tersor_core::reference::math::exp;

use super::Context;
use crate::isa::{Body, Simd};
use crate::lanes::Lanes;
use crate::positions::{Rows, TILE};
use crate::split::{self, Parts};

/// Multiply-adds that one task should have at least.
const TASK_MACS: usize = 1 << 14;

/// Positions whose keys meet one head after another.
const BLOCK: usize = 32;

/// Heads that are taken together at most.
const GROUP: usize = 4;

/// Heads of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// The cache rows that each row of queries sees, both ends included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans<'a> {
    /// `None`: the first of the cache.
    pub(super) first: Option<&'a [u32]>,
    pub(super) last: &'a [u32],
}

impl Spans<'_> {
    fn first(&self, row: usize) -> usize {
        self.first.map_or(0, |first| first[row] as usize)
    }
    fn len(&self, row: usize) -> usize {
        self.last[row] as usize + 1 - self.first(row)
    }
}

/// Some heads of one row, all of the same key/value head.
struct Group<'a> {
    /// Heads one after another.
    q: &'a [f32],
    heads: usize,
    cache: [HeadRows<'a>; 2],
    /// How many positions they see.
    seen: usize,
    /// A row of whole lanes for each head.
    scores: &'a mut [f32],
    y: &'a mut [f32],
}

impl Body for Group<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Group { q, heads, cache: [k, v], seen, scores, y } = self;
        let (dim, width) = (q.len() / heads, scores.len() / heads);
        let (q_chunks, rest) = q.as_chunks::<LANES>();
        if !rest.is_empty() || !dim.is_multiple_of(LANES) {
            for ((q, y), scores) in q.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).zip(scores.chunks_exact_mut(width))
            {
                attend(q, k, v, &mut scores[..seen], y);
            }
            return;
        }
        let [keys, values] = [k, v].map(|r| Rows::new(r.data, r.offset, r.stride, seen, dim));
        let scale = 1.0 / (dim as f32).sqrt();
        for at in (0..seen).step_by(BLOCK) {
            let keys = keys.part(at, BLOCK);
            for (q, scores) in q_chunks.chunks_exact(dim / LANES).zip(scores.chunks_exact_mut(width)) {
                let tiles = &mut scores[at..].as_chunks_mut().0[..keys.count().div_ceil(TILE)];
                // SAFETY: a query of as many chunks as the keys, at least one.
                unsafe { S::F32::scores(simd, q, keys, scale, tiles) };
            }
        }
        let mut max = [0.0; GROUP];
        for (scores, max) in scores.chunks_exact(width).zip(&mut max) {
            *max = S::F32::largest(simd, &scores.as_chunks().0[..seen.div_ceil(TILE)]);
        }
        let mut sums = [S::F32::splat(simd, 0.0); GROUP];
        for ((scores, sum), max) in scores.chunks_exact_mut(width).zip(&mut sums).zip(max) {
            let mut lanes = S::F32::splat(simd, 0.0);
            for (i, chunk) in scores.as_chunks_mut::<LANES>().0.iter_mut().enumerate().take(seen.div_ceil(LANES)) {
                // Adding +0 changes no lane: a lane is never -0, as it began at +0.
                let there = (seen - i * LANES).min(LANES) as u32;
                for (first, tile) in (0u32..).step_by(TILE).zip(chunk.as_chunks_mut::<TILE>().0) {
                    if first >= there {
                        tile.fill(0.0);
                        continue;
                    }
                    for (i, s) in (first..).zip(tile) {
                        *s = if i < there { exp(*s - max) } else { 0.0 };
                    }
                }
                lanes = lanes.add(S::F32::load(simd, chunk));
            }
            *sum = lanes;
        }
        let totals = S::F32::fold4(sums);
        y.fill(0.0);
        for at in (0..seen).step_by(LANES) {
            let values = values.part(at, LANES);
            let mut head = 0;
            while head < heads {
                let scores = &scores[head * width + at..];
                let y = &mut y[head * dim..];
                head += match heads - head {
                    4.. if S::F32::COLUMNS >= 4 => add_values::<S, 4>(simd, scores, width, values, y),
                    2.. if S::F32::COLUMNS >= 2 => add_values::<S, 2>(simd, scores, width, values, y),
                    _ => add_values::<S, 1>(simd, scores, width, values, y),
                };
            }
        }
        for (y, total) in y.chunks_exact_mut(dim).zip(totals) {
            y.as_chunks_mut::<LANES>().0.iter_mut().flatten().for_each(|y| *y /= total);
        }
    }
}

/// Adds a chunk's sums of `e * value` to the results of `H` heads, whose weights lie `width` apart. Returns `H`.
#[inline(always)]
fn add_values<S: Simd, const H: usize>(
    simd: S,
    weights: &[f32],
    width: usize,
    values: Rows<'_>,
    y: &mut [f32],
) -> usize {
    let chunks = values.chunks();
    assert!(weights.len() >= (H - 1) * width + values.count() && y.len() >= H * chunks * LANES, "{H} heads");
    let (y, _) = y.as_chunks_mut::<LANES>();
    for chunk in 0..chunks {
        let mut sums = [S::F32::splat(simd, 0.0); H];
        for position in 0..values.count() {
            // SAFETY: positions and chunks that there are.
            let value = S::F32::load(simd, unsafe { values.chunk(position, chunk) });
            for (h, sum) in sums.iter_mut().enumerate() {
                // SAFETY: asserted above.
                let e = unsafe { *weights.get_unchecked(h * width + position) };
                *sum = sum.add(S::F32::splat(simd, e).mul(value));
            }
        }
        for (h, sum) in sums.into_iter().enumerate() {
            let y = &mut y[h * chunks + chunk];
            S::F32::load(simd, y).add(sum).store(y);
        }
    }
    H
}

impl<S: Simd> Context<'_, S> {
    pub(super) fn attention(self, g: Geometry, q: &[f32], spans: Spans<'_>, cache: (&[f32], &[f32]), y: &mut [f32]) {
        let Geometry { heads, kv_heads, head_dim } = g;
        let (isa, rows, shared) = (self.kernels.isa, spans.last.len(), heads / kv_heads);
        let longest = (0..rows).map(|row| spans.len(row)).max().unwrap_or(0);
        let macs = (0..rows).map(|row| spans.len(row) * heads * head_dim * 2).sum();
        let pairs = rows * heads;
        let (tasks, grain) = match split::task_count(self.executor, macs, TASK_MACS) {
            1 => (1, 1),
            many if rows == 1 => (many.min(pairs), 1),
            // Rows late in a prompt attend to more positions: several times as many tasks as threads evens that out.
            many => ((4 * many).min(rows * kv_heads), shared),
        };
        // Whole lanes for each head that a task has at a time.
        let width = longest.next_multiple_of(LANES);
        let scores = stale(&mut self.scratch.scores, tasks * GROUP * width);
        let (scores, y) = (Parts::new(scores), Parts::new(y));
        split::run(self.executor, tasks, |task| {
            // SAFETY: each task has its own rows of scores.
            let scores = unsafe { scores.part(task * GROUP * width..(task + 1) * GROUP * width) };
            let range = split::part_of(pairs, grain, tasks, task);
            let mut pair = range.start;
            while pair < range.end {
                let (row, kv) = (pair / heads, pair % heads / shared);
                let count = (row * heads + (kv + 1) * shared).min(range.end).min(pair + GROUP) - pair;
                let stride = kv_heads * head_dim;
                let seen = spans.first(row) * stride;
                let of = |cache| HeadRows { data: cache, stride, offset: seen + kv * head_dim };
                let at = pair * head_dim..(pair + count) * head_dim;
                isa.run(Group {
                    q: &q[at.clone()],
                    heads: count,
                    cache: [of(cache.0), of(cache.1)],
                    seen: spans.len(row),
                    scores: &mut scores[..count * width],
                    // SAFETY: tasks have disjoint ranges of pairs.
                    y: unsafe { y.part(at) },
                });
                pair += count;
            }
        });
    }
}

/// `len` floats of `memory` that begin at a cache line, with what was left in them.
fn stale(memory: &mut Vec<f32>, len: usize) -> &mut [f32] {
    let most = 64 / size_of::<f32>();
    memory.resize(memory.len().max(len + most), 0.0);
    let skip = memory.as_ptr().align_offset(64).min(most);
    &mut memory[skip..][..len]
}
