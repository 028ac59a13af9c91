//! Attention over a cache, each row up to its own position: of one sequence, of several that share the cache, and in windows.

use tersor_core::{Op, Span};

use super::Case;
use crate::compare::same;
use crate::oracle::attention;
use crate::rig::{Rig, Verdict};
use crate::suite::Profile;

#[derive(Debug, Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

/// So many rows that a backend may take them in tiles: each of 75 positions once, out of order, on both sides of two ends of chunks.
const MANY: [u32; 75] = {
    let mut positions = [0; 75];
    let mut i = 0;
    while i < positions.len() {
        positions[i] = (i as u32 * 37 + 20) % 75 + 60;
        i += 1;
    }
    positions
};

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    // Positions on both sides of the chunks of 64 and the lanes of the sum.
    let mut positions: Vec<(&str, &[u32])> = vec![
        ("first", &[0]),
        ("few", &[1, 2, 5]),
        ("chunk-ends", &[62, 63, 64, 65]),
        ("prefill", &[0, 1, 2, 3, 4, 5, 6, 7]),
        ("unordered", &[130, 3, 127, 128]),
        ("many-rows", &MANY),
    ];
    if profile == Profile::Full {
        positions.extend([("long", [1000, 700].as_slice()), ("second-chunk-ends", &[126, 127, 128, 129, 191, 192])]);
    }
    let shapes = [(1, 1, 32), (4, 2, 80), (8, 2, 64), (20, 5, 128), (3, 3, 2), (2, 1, 66), (7, 1, 192)];
    // First and last cache rows of what each row sees: sequences of different lengths, out of order, and some so long that
    // rows of one are chunks; rows of the same sequence; windows that begin anywhere.
    let mut spans: Vec<(&str, &[(u32, u32)])> = vec![
        ("sequences", &[(40, 43), (0, 0), (80, 209), (20, 39)]),
        ("sequences-of-one-row", &[(0, 0), (5, 5), (3, 3)]),
        ("mixed-prefill", &[(0, 3), (0, 4), (64, 64), (64, 65), (64, 66), (130, 193), (130, 194)]),
        ("windows", &[(0, 7), (3, 10), (70, 140), (71, 141)]),
        (
            "nine-sequences",
            &[(0, 5), (10, 12), (20, 27), (30, 38), (40, 40), (50, 51), (60, 130), (140, 206), (210, 210)],
        ),
    ];
    if profile == Profile::Full {
        spans.extend([("long-sequences", [(1000, 1999), (0, 700), (2000, 2063)].as_slice())]);
    }
    let mut cases = Vec::new();
    for (heads, kv_heads, dim) in shapes {
        for (what, spans) in spans.iter().copied() {
            let name = format!("attention/heads{heads}.kv{kv_heads}.dim{dim}/{what}");
            let heads = Heads { heads, kv_heads, dim };
            cases.push(Case::new(name, move |rig| judge(rig, heads, spans, true, 1.0)));
        }
    }
    for (heads, kv_heads, dim) in shapes {
        for (what, positions) in &positions {
            let name = format!("attention/heads{heads}.kv{kv_heads}.dim{dim}/{what}");
            let heads = Heads { heads, kv_heads, dim };
            let rows: Vec<(u32, u32)> = positions.iter().map(|p| (0, *p)).collect();
            cases.push(Case::new(name, move |rig| judge(rig, heads, &rows, false, 1.0)));
        }
    }
    // Scores so far apart that most weights are exactly zero.
    let heads = Heads { heads: 4, kv_heads: 2, dim: 80 };
    cases.push(Case::new("attention/heads4.kv2.dim80/large-scores", move |rig| {
        judge(rig, heads, &[(0, 70), (0, 129)], false, 40.0)
    }));
    cases
}

/// `rows` are the first and last cache rows that each row sees; `spanned` says whether the op is told the first.
fn judge(rig: &mut Rig<'_>, h: Heads, spans: &[(u32, u32)], spanned: bool, size: f32) -> Verdict {
    let (rows, width) = (spans.len(), h.kv_heads * h.dim);
    let last = spans.iter().map(|(_, p)| *p as usize).max().unwrap_or(0);
    let longest = spans.iter().map(|(first, p)| (p - first) as usize + 1).max().unwrap_or(1);
    let capacity = last + 5;
    let q: Vec<f32> = rig.rng.gaussians(rows * h.heads * h.dim).into_iter().map(|v| v * size).collect();
    let [k, v] = [0, 1].map(|_| {
        let mut cache = rig.rng.gaussians(capacity * width);
        // Nothing may be read that no row sees.
        for (row, values) in cache.chunks_mut(width).enumerate() {
            if !spans.iter().any(|(first, p)| (*first as usize..=*p as usize).contains(&row)) {
                values.fill(f32::NAN);
            }
        }
        cache
    });
    let mut want = Vec::new();
    for (row, (first, p)) in q.chunks(h.heads * h.dim).zip(spans) {
        let (first, count) = (*first as usize, (p - first) as usize + 1);
        for (i, q) in row.chunks(h.dim).enumerate() {
            let at = i / (h.heads / h.kv_heads) * h.dim;
            let seen = |cache: &'_ [f32]| -> Vec<Vec<f32>> {
                cache.chunks(width).skip(first).take(count).map(|row| row[at..at + h.dim].to_vec()).collect()
            };
            let (keys, values) = (seen(&k), seen(&v));
            let [keys, values] = [&keys, &values].map(|rows| rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
            want.extend(attention::head(q, &keys, &values));
        }
    }
    let (first, positions): (Vec<u32>, Vec<u32>) = spans.iter().copied().unzip();
    let (q, positions, k, v) = (rig.hold(&q)?, rig.hold(&positions)?, rig.hold(&k)?, rig.hold(&v)?);
    let first = rig.hold(&first)?;
    let mut y = rig.blank(want.len())?;
    rig.submit(Op::Attention {
        q: q.input(),
        heads: h.heads,
        kv_heads: h.kv_heads,
        head_dim: h.dim,
        positions: positions.input(),
        span: spanned.then(|| Span { first: first.input(), longest }),
        k_cache: k.input(),
        v_cache: v.input(),
        y: y.output(),
    })?;
    same("attended", h.heads * h.dim, &rig.read(&y)?, &want)
}
