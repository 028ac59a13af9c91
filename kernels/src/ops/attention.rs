//! Attention: one task has a range of (row, head) pairs and scratch for one row of scores.

use tersor_core::reference::attention::{HeadRows, attend};
use tersor_core::reference::lanes::LANES;
use tersor_core::reference::math::exp;

use super::Context;
use crate::isa::{Body, Simd};
use crate::lanes::{self, Lanes};
use crate::split::{self, Parts};

/// Multiply-adds that one task should have at least.
const TASK_MACS: usize = 1 << 16;

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

struct Head<'a> {
    q: &'a [f32],
    k: HeadRows<'a>,
    v: HeadRows<'a>,
    scores: &'a mut [f32],
    y: &'a mut [f32],
}

/// Rows `at..at + 4` of a head, in chunks of the lanes.
#[inline(always)]
fn four_rows(rows: HeadRows<'_>, at: usize, len: usize) -> [&[[f32; LANES]]; 4] {
    [
        rows.row(at, len).as_chunks().0,
        rows.row(at + 1, len).as_chunks().0,
        rows.row(at + 2, len).as_chunks().0,
        rows.row(at + 3, len).as_chunks().0,
    ]
}

impl Body for Head<'_> {
    type Out = ();
    /// The steps of [`attend`], with the sums in registers where the head is whole lanes.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Head { q, k, v, scores, y } = self;
        let (tiles, rest) = y.as_chunks_mut::<LANES>();
        if !rest.is_empty() {
            return attend(q, k, v, scores, y);
        }
        let scale = 1.0 / (q.len() as f32).sqrt();
        let mut max = f32::NEG_INFINITY;
        let mut done = 0;
        if S::F32::COLUMNS >= 4 {
            for (j, scores) in scores.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let keys = four_rows(k, 4 * j, q.len());
                let mut sums = [S::F32::splat(simd, 0.0); 4];
                for (i, q) in q.as_chunks::<LANES>().0.iter().enumerate() {
                    let q = S::F32::load(simd, q);
                    for (sum, key) in sums.iter_mut().zip(&keys) {
                        *sum = sum.add(q.mul(S::F32::load(simd, &key[i])));
                    }
                }
                for (score, sum) in scores.iter_mut().zip(S::F32::fold4(sums)) {
                    *score = sum * scale;
                    max = max.max(*score);
                }
            }
            done = scores.len() / 4 * 4;
        }
        for (j, s) in scores.iter_mut().enumerate().skip(done) {
            *s = lanes::dot(simd, q, k.row(j, q.len())) * scale;
            max = max.max(*s);
        }
        scores.iter_mut().for_each(|s| *s = exp(*s - max));
        let total = lanes::sum(simd, scores);
        for (tile, y) in tiles.iter_mut().enumerate() {
            let mut result = S::F32::splat(simd, 0.0);
            for (c, chunk) in scores.chunks(LANES).enumerate() {
                let mut sum = S::F32::splat(simd, 0.0);
                for (j, &e) in chunk.iter().enumerate() {
                    let row = &v.row(c * LANES + j, q.len())[tile * LANES..];
                    if let Some(row) = row.first_chunk() {
                        sum = sum.add(S::F32::splat(simd, e).mul(S::F32::load(simd, row)));
                    }
                }
                result = result.add(sum);
            }
            result.store(y);
            y.iter_mut().for_each(|y| *y /= total);
        }
    }
}

impl<S: Simd> Context<'_, S> {
    pub(super) fn attention(self, g: Geometry, q: &[f32], spans: Spans<'_>, cache: (&[f32], &[f32]), y: &mut [f32]) {
        let Geometry { heads, kv_heads, head_dim } = g;
        let isa = self.kernels.isa;
        let rows = spans.last.len();
        let longest = (0..rows).map(|row| spans.len(row)).max().unwrap_or(0);
        let macs = (0..rows).map(|row| spans.len(row) * heads * head_dim * 2).sum();
        let pairs = rows * heads;
        // Rows late in a prompt attend to more positions: twice as many tasks as threads evens that out.
        let tasks = match split::task_count(self.executor, macs, TASK_MACS) {
            1 => 1,
            many => (4 * many).min(pairs),
        };
        self.scratch.scores.resize(self.scratch.scores.len().max(tasks * longest), 0.0);
        let (scores, y) = (Parts::new(&mut self.scratch.scores), Parts::new(y));
        split::run(self.executor, tasks, |task| {
            // SAFETY: each task has its own row of scores.
            let scores = unsafe { scores.part(task * longest..(task + 1) * longest) };
            for pair in split::part_of(pairs, 1, tasks, task) {
                let (row, head) = (pair / heads, pair % heads);
                let stride = kv_heads * head_dim;
                let seen = spans.first(row) * stride;
                let kv = HeadRows { data: &cache.0[seen..], stride, offset: head / (heads / kv_heads) * head_dim };
                let at = pair * head_dim..(pair + 1) * head_dim;
                isa.run(Head {
                    q: &q[at.clone()],
                    k: kv,
                    v: HeadRows { data: &cache.1[seen..], ..kv },
                    scores: &mut scores[..spans.len(row)],
                    // SAFETY: tasks have disjoint ranges of pairs.
                    y: unsafe { y.part(at) },
                });
            }
        });
    }
}
