//! The same op gives the same bits again: at once, after other work, and for other data of the same shape.

use tersor_core::{DType, Epilogue, Format, Op, Shape};

use super::operands::{Product, Scales, judge_random, random, row_scales, weight};
use super::{Case, ternary_formats};
use crate::compare::same;
use crate::oracle::ops;
use crate::rig::{Rig, Verdict};
use crate::suite::Profile;

pub(super) fn cases(_: Profile) -> Vec<Case> {
    let mut cases: Vec<Case> = ternary_formats()
        .map(|format| Case::new(format!("determinism/matmul/{format}"), move |rig| products(rig, format)))
        .collect();
    cases.push(Case::new("determinism/rms_norm", norms));
    cases.push(Case::new("determinism/in-stream-order", in_stream_order));
    cases
}

/// A, A, B of the same shape, something else, A.
fn products(rig: &mut Rig<'_>, format: Format) -> Verdict {
    let (m, n, k) = (3, 17, 2560);
    let matrix = random(&mut rig.rng, format, Shape::new(n, k)?, Scales::Positive);
    let packed = rig.pack(weight(&matrix)?)?;
    let (x, x_scales) = (rig.rng.int8(m * k), row_scales(&mut rig.rng, m));
    let a = Product { matrix: &matrix, packed: &packed, x: &x, x_scales: &x_scales };
    for output in [DType::F32, DType::I32, DType::F32] {
        a.judge(rig, output, Epilogue::Store)?;
        a.judge(rig, output, Epilogue::Store)?;
        let other = rig.rng.int8(m * k);
        Product { x: &other, ..a }.judge(rig, output, Epilogue::Store)?;
        judge_random(rig, format, (1, 5, 512), Scales::One, output, Epilogue::Store)?;
        a.judge(rig, output, Epilogue::Store)?;
    }
    Ok(())
}

/// Many runs, so that a work split that depends on timing has its chance to show.
fn norms(rig: &mut Rig<'_>) -> Verdict {
    let (rows, cols) = (16, 2560);
    let (x, w) = (rig.rng.gaussians(rows * cols), rig.rng.gaussians(cols));
    let want: Vec<f32> = x.chunks(cols).flat_map(|x| ops::rms_norm(x, &w, 1e-5)).collect();
    let (x, w) = (rig.hold(&x)?, rig.hold(&w)?);
    for _ in 0..20 {
        let mut y = rig.blank(want.len())?;
        rig.submit(Op::RmsNorm { x: x.input(), w: w.input(), eps: 1e-5, y: y.output() })?;
        same("normalized", cols, &rig.read(&y)?, &want)?;
    }
    Ok(())
}

/// Ops see what ops before them wrote, with no waiting in between.
fn in_stream_order(rig: &mut Rig<'_>) -> Verdict {
    let n = 5000;
    let (x, y) = (rig.rng.gaussians(n), rig.rng.gaussians(n));
    let mut want = y.clone();
    let (x_held, mut y, mut z) = (rig.hold(&x)?, rig.hold(&y)?, rig.blank(n)?);
    for _ in 0..30 {
        rig.enqueue(Op::Add { x: x_held.input(), y: y.output() })?;
        want.iter_mut().zip(&x).for_each(|(w, x)| *w += x);
    }
    rig.enqueue(Op::Copy { x: y.input(), y: z.output() })?;
    rig.enqueue(Op::Add { x: x_held.input(), y: y.output() })?;
    // Reading waits for what was submitted before it.
    same("copied between two additions", n, &rig.read(&z)?, &want)
}
