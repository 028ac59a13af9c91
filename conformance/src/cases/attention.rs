//! Attention over a cache, each row up to its own position.

use tersor_core::Op;

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

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    // Positions on both sides of the chunks of 64 and the lanes of the sum.
    let mut positions: Vec<(&str, &[u32])> = vec![
        ("first", &[0]),
        ("few", &[1, 2, 5]),
        ("chunk-ends", &[62, 63, 64, 65]),
        ("prefill", &[0, 1, 2, 3, 4, 5, 6, 7]),
        ("unordered", &[130, 3, 127, 128]),
    ];
    if profile == Profile::Full {
        positions.extend([("long", [1000, 700].as_slice()), ("second-chunk-ends", &[126, 127, 128, 129, 191, 192])]);
    }
    let shapes = [(1, 1, 32), (4, 2, 80), (8, 2, 64), (20, 5, 128), (3, 3, 2), (2, 1, 66)];
    let mut cases = Vec::new();
    for (heads, kv_heads, dim) in shapes {
        for (what, positions) in positions.iter().copied() {
            let name = format!("attention/heads{heads}.kv{kv_heads}.dim{dim}/{what}");
            let heads = Heads { heads, kv_heads, dim };
            cases.push(Case::new(name, move |rig| judge(rig, heads, positions, 1.0)));
        }
    }
    // Scores so far apart that most weights are exactly zero.
    let heads = Heads { heads: 4, kv_heads: 2, dim: 80 };
    cases.push(Case::new("attention/heads4.kv2.dim80/large-scores", move |rig| judge(rig, heads, &[70, 129], 40.0)));
    cases
}

fn judge(rig: &mut Rig<'_>, h: Heads, positions: &[u32], size: f32) -> Verdict {
    let (rows, width) = (positions.len(), h.kv_heads * h.dim);
    let last = positions.iter().max().map_or(0, |p| *p as usize);
    let capacity = last + 5;
    let q: Vec<f32> = rig.rng.gaussians(rows * h.heads * h.dim).into_iter().map(|v| v * size).collect();
    let [k, v] = [0, 1].map(|_| {
        let mut cache = rig.rng.gaussians(capacity * width);
        // Nothing may be read that no row sees.
        cache[(last + 1) * width..].fill(f32::NAN);
        cache
    });
    let mut want = Vec::new();
    for (row, p) in q.chunks(h.heads * h.dim).zip(positions) {
        for (i, q) in row.chunks(h.dim).enumerate() {
            let at = i / (h.heads / h.kv_heads) * h.dim;
            let seen = |cache: &'_ [f32]| -> Vec<Vec<f32>> {
                cache.chunks(width).take(*p as usize + 1).map(|row| row[at..at + h.dim].to_vec()).collect()
            };
            let (keys, values) = (seen(&k), seen(&v));
            let [keys, values] = [&keys, &values].map(|rows| rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
            want.extend(attention::head(q, &keys, &values));
        }
    }
    let (q, positions, k, v) = (rig.hold(&q)?, rig.hold(positions)?, rig.hold(&k)?, rig.hold(&v)?);
    let mut y = rig.blank(want.len())?;
    rig.submit(Op::Attention {
        q: q.input(),
        heads: h.heads,
        kv_heads: h.kv_heads,
        head_dim: h.dim,
        positions: positions.input(),
        k_cache: k.input(),
        v_cache: v.input(),
        y: y.output(),
    })?;
    same("attended", h.heads * h.dim, &rig.read(&y)?, &want)
}
