//! The operations that keep a model on its device: rotation, cache, gate, sums and copies.

use tersor_core::Op;

use super::Case;
use crate::compare::same;
use crate::oracle::ops;
use crate::rig::{Rig, Verdict};
use crate::suite::Profile;

/// Lengths of plain vectors, around the widths of registers.
const LENGTHS: [usize; 12] = [1, 3, 7, 8, 15, 16, 17, 33, 64, 127, 1000, 6912];

pub(super) fn cases(_: Profile) -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, heads, head_dim) in [(1, 1, 2), (3, 2, 6), (4, 5, 32), (3, 3, 80), (2, 8, 64), (2, 20, 128)] {
        cases.push(Case::new(format!("rope/rows{rows}.heads{heads}.dim{head_dim}/random"), move |rig| {
            rope(rig, rows, heads, head_dim)
        }));
    }
    for (rows, width) in [(1, 1), (3, 7), (2, 128), (5, 640)] {
        cases
            .push(Case::new(format!("kv_write/rows{rows}.width{width}/random"), move |rig| kv_write(rig, rows, width)));
    }
    for len in LENGTHS {
        cases.push(Case::new(format!("relu_squared_mul/{len}/random"), move |rig| gate(rig, len)));
        for what in ["random", "denormals"] {
            cases.push(Case::new(format!("add/{len}/{what}"), move |rig| add(rig, len, what == "denormals")));
        }
        cases.push(Case::new(format!("copy/{len}/random"), move |rig| copy(rig, len)));
    }
    cases
}

fn rope(rig: &mut Rig<'_>, rows: usize, heads: usize, head_dim: usize) -> Verdict {
    let (known, half, width) = (9, head_dim / 2, heads * head_dim);
    let x = rig.rng.gaussians(rows * width);
    // Any numbers will do for a rotation; these tell the two tables apart.
    let (cos, sin) = (rig.rng.gaussians(known * half), rig.rng.gaussians(known * half));
    let positions: Vec<u32> = (0..rows).map(|r| [8, 0, 5, 5][r % 4]).collect();
    let want: Vec<f32> = x
        .chunks(width)
        .zip(&positions)
        .flat_map(|(row, p)| {
            let table = *p as usize * half..(*p as usize + 1) * half;
            ops::rope(row, head_dim, &cos[table.clone()], &sin[table])
        })
        .collect();
    let mut x = rig.hold(&x)?;
    let (positions, cos, sin) = (rig.hold(&positions)?, rig.hold(&cos)?, rig.hold(&sin)?);
    rig.submit(Op::Rope { x: x.output(), head_dim, positions: positions.input(), cos: cos.input(), sin: sin.input() })?;
    same("rotated", width, &rig.read(&x)?, &want)
}

fn kv_write(rig: &mut Rig<'_>, rows: usize, width: usize) -> Verdict {
    let capacity = 11;
    let (k, v) = (rig.rng.gaussians(rows * width), rig.rng.gaussians(rows * width));
    let held = [rig.rng.gaussians(capacity * width), rig.rng.gaussians(capacity * width)];
    let positions: Vec<u32> = (0..rows).map(|r| [10, 0, 4, 3, 9][r % 5]).collect();
    // What no row is for stays as it is.
    let mut want = held.clone();
    for (r, p) in positions.iter().enumerate() {
        let (from, to) = (r * width..(r + 1) * width, *p as usize * width);
        want[0][to..to + width].copy_from_slice(&k[from.clone()]);
        want[1][to..to + width].copy_from_slice(&v[from]);
    }
    let (k, v, positions) = (rig.hold(&k)?, rig.hold(&v)?, rig.hold(&positions)?);
    let (mut k_cache, mut v_cache) = (rig.hold(&held[0])?, rig.hold(&held[1])?);
    rig.submit(Op::KvWrite {
        k: k.input(),
        v: v.input(),
        width,
        positions: positions.input(),
        k_cache: k_cache.output(),
        v_cache: v_cache.output(),
    })?;
    same("keys", width, &rig.read(&k_cache)?, &want[0])?;
    same("values", width, &rig.read(&v_cache)?, &want[1])
}

fn gate(rig: &mut Rig<'_>, len: usize) -> Verdict {
    let (mut gate, up) = (rig.rng.gaussians(len), rig.rng.gaussians(len));
    // The square of the third is beyond f16, that of the last beyond f32's normal numbers.
    for (g, special) in gate.iter_mut().skip(1).zip([0.0, -0.0, 1000.0, 1e-20]) {
        *g = special;
    }
    let want = ops::gate(&gate, &up);
    let (gate, up) = (rig.hold(&gate)?, rig.hold(&up)?);
    let mut y = rig.blank(len)?;
    rig.submit(Op::ReluSquaredMul { gate: gate.input(), up: up.input(), y: y.output() })?;
    same("gated", len, &rig.read(&y)?, &want)
}

fn add(rig: &mut Rig<'_>, len: usize, denormals: bool) -> Verdict {
    let size = if denormals { 1e-39 } else { 1.0 };
    let [x, y] = [0, 1].map(|_| rig.rng.gaussians(len).into_iter().map(|v| v * size).collect::<Vec<f32>>());
    let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| y + x).collect();
    let (x, mut y) = (rig.hold(&x)?, rig.hold(&y)?);
    rig.submit(Op::Add { x: x.input(), y: y.output() })?;
    same("sum", len, &rig.read(&y)?, &want)
}

fn copy(rig: &mut Rig<'_>, len: usize) -> Verdict {
    let mut x = rig.rng.gaussians(len);
    for (v, special) in x.iter_mut().skip(1).zip([-0.0, 1e-40, f32::INFINITY, f32::NEG_INFINITY]) {
        *v = special;
    }
    let want = x.clone();
    let x = rig.hold(&x)?;
    let mut y = rig.blank(len)?;
    rig.submit(Op::Copy { x: x.input(), y: y.output() })?;
    same("copy", len, &rig.read(&y)?, &want)
}
