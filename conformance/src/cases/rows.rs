//! Operations on rows of activations: int8 quantization, RMSNorm, and both in one.

use tersor_core::{Error, Op};

use super::Case;
use crate::compare::{fail, same};
use crate::oracle::{ops, quantize};
use crate::rig::{Rig, Stop, Verdict};
use crate::rng::Rng;
use crate::suite::Profile;

const EPS: f32 = 1e-5;

/// Row lengths around the widths of registers and the 64 lanes of sums.
const COLS: [usize; 16] = [1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 130, 640, 2560];

/// Rows of activations.
fn data(rng: &mut Rng, what: &str, rows: usize, cols: usize) -> Vec<f32> {
    let n = rows * cols;
    match what {
        // 127 sets s = 1; the rest are ties.
        "ties" => (0..n).map(|i| if i % cols == 0 { 127.0 } else { rng.below(250) as f32 - 124.5 }).collect(),
        // The largest magnitude is where a loop over whole registers ends: in the last element.
        "peak-last" => (0..n).map(|i| if i % cols == cols - 1 { -40.0 } else { rng.gauss() }).collect(),
        "zero-rows" => {
            let x = rng.gaussians(n);
            x.into_iter().enumerate().map(|(i, v)| if (i / cols).is_multiple_of(2) { 0.0 } else { v }).collect()
        }
        "negative-zeros" => vec![-0.0; n],
        "tiny" => rng.gaussians(n).into_iter().map(|v| v * 3e-6).collect(),
        "denormals" => rng.gaussians(n).into_iter().map(|v| v * 1e-39).collect(),
        "huge" => rng.gaussians(n).into_iter().map(|v| v * 4e37).collect(),
        // Both ends of the int8 range.
        "plus-minus" => (0..n).map(|i| if i % 2 == 0 { 3.3 } else { -3.3 }).collect(),
        _ => rng.gaussians(n).into_iter().map(|v| v * 2.0).collect(),
    }
}

const QUANTIZE_DATA: [&str; 8] =
    ["ties", "peak-last", "zero-rows", "negative-zeros", "tiny", "denormals", "huge", "plus-minus"];

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    let rows: &[usize] = if profile == Profile::Full { &[1, 3, 17, 64] } else { &[1, 3] };
    let mut cases = Vec::new();
    for (&rows, cols) in rows.iter().flat_map(|r| COLS.map(|c| (r, c))) {
        let shape = format!("{rows}x{cols}");
        cases.push(Case::new(format!("quantize_rows/{shape}/gaussian"), move |rig| {
            rows_to_int8(rig, "gaussian", rows, cols)
        }));
        cases.push(Case::new(format!("rms_norm/{shape}/gaussian"), move |rig| norm(rig, 1.0, rows, cols)));
        cases.push(Case::new(format!("rms_norm_quantize/{shape}/gaussian"), move |rig| norm_to_int8(rig, rows, cols)));
    }
    for what in QUANTIZE_DATA {
        for (rows, cols) in [(3, 70), (2, 2560), (5, 1)] {
            cases.push(Case::new(format!("quantize_rows/{rows}x{cols}/{what}"), move |rig| {
                rows_to_int8(rig, what, rows, cols)
            }));
        }
    }
    for (what, bad) in [("nan", f32::NAN), ("infinity", f32::INFINITY)] {
        cases.push(Case::new(format!("quantize_rows/3x70/{what}"), move |rig| row_not_finite(rig, bad)));
        cases.push(Case::new(format!("rms_norm_quantize/3x70/{what}"), move |rig| norm_not_finite(rig, bad)));
    }
    for (what, size) in [("large", 1e15), ("small", 1e-15), ("squares-are-denormal", 1e-21)] {
        cases.push(Case::new(format!("rms_norm/3x130/{what}"), move |rig| norm(rig, size, 3, 130)));
    }
    cases.push(Case::new("rms_norm/64x128/contraction", contraction));
    cases.push(Case::new("rms_norm/64x2560/order", order));
    cases
}

/// All of a row but two elements of one lane is zero, so that the sum of squares has one addition and no more: a fused
/// multiply-add rounds it differently in about every third row. Among the sums of long rows that would drown.
fn contraction(rig: &mut Rig<'_>) -> Verdict {
    let cols = 128;
    let mut x = vec![0.0; 64 * cols];
    for (r, row) in x.chunks_mut(cols).enumerate() {
        (row[r], row[r + 64]) = (5.0 + 5.0 * rig.rng.unit(), 5.0 + 5.0 * rig.rng.unit());
    }
    judge_norm(rig, &x, cols)
}

/// One element so large that what is added to it later is lost in part: how much is lost, the order of additions says.
fn order(rig: &mut Rig<'_>) -> Verdict {
    let cols = 2560;
    let mut x: Vec<f32> = (0..64 * cols).map(|_| (0.5 + rig.rng.unit()) * 1.2e-4).collect();
    for (r, row) in x.chunks_mut(cols).enumerate() {
        row[r] = 1.0;
    }
    judge_norm(rig, &x, cols)
}

fn oracle_rows(x: &[f32], cols: usize) -> Result<(Vec<i8>, Vec<f32>), Stop> {
    let (mut q, mut scales) = (Vec::new(), Vec::new());
    for (r, row) in x.chunks(cols).enumerate() {
        let (codes, s) = quantize::row(row)
            .map_err(|i| Stop::Failed(format!("the case's own data is not finite at row {r}, column {i}")))?;
        q.extend(codes);
        scales.push(s);
    }
    Ok((q, scales))
}

fn rows_to_int8(rig: &mut Rig<'_>, what: &str, rows: usize, cols: usize) -> Verdict {
    let x = data(&mut rig.rng, what, rows, cols);
    let (want_q, want_s) = oracle_rows(&x, cols)?;
    let x = rig.hold(&x)?;
    let (mut q, mut s) = (rig.blank(rows * cols)?, rig.blank(rows)?);
    rig.submit(Op::QuantizeRows { x: x.input(), cols, q: q.output(), scales: s.output() })?;
    same("scales", 1, &rig.read(&s)?, &want_s)?;
    same("codes", cols, &rig.read(&q)?, &want_q)
}

fn norm(rig: &mut Rig<'_>, size: f32, rows: usize, cols: usize) -> Verdict {
    let x: Vec<f32> = rig.rng.gaussians(rows * cols).into_iter().map(|v| v * size).collect();
    judge_norm(rig, &x, cols)
}

fn judge_norm(rig: &mut Rig<'_>, x: &[f32], cols: usize) -> Verdict {
    let w = rig.rng.gaussians(cols);
    let want: Vec<f32> = x.chunks(cols).flat_map(|x| ops::rms_norm(x, &w, EPS)).collect();
    let (x, w) = (rig.hold(x)?, rig.hold(&w)?);
    let mut y = rig.blank(want.len())?;
    rig.submit(Op::RmsNorm { x: x.input(), w: w.input(), eps: EPS, y: y.output() })?;
    same("normalized", cols, &rig.read(&y)?, &want)
}

fn norm_to_int8(rig: &mut Rig<'_>, rows: usize, cols: usize) -> Verdict {
    let (x, w) = (rig.rng.gaussians(rows * cols), rig.rng.gaussians(cols));
    let normal: Vec<f32> = x.chunks(cols).flat_map(|x| ops::rms_norm(x, &w, EPS)).collect();
    let (want_q, want_s) = oracle_rows(&normal, cols)?;
    let (x, w) = (rig.hold(&x)?, rig.hold(&w)?);
    let (mut q, mut s) = (rig.blank(rows * cols)?, rig.blank(rows)?);
    rig.submit(Op::RmsNormQuantize { x: x.input(), w: w.input(), eps: EPS, q: q.output(), scales: s.output() })?;
    same("scales", 1, &rig.read(&s)?, &want_s)?;
    same("codes", cols, &rig.read(&q)?, &want_q)
}

fn row_not_finite(rig: &mut Rig<'_>, bad: f32) -> Verdict {
    let (rows, cols) = (3, 70);
    for at in [0, 69, 70, 139, 209] {
        let mut x = rig.rng.gaussians(rows * cols);
        x[at] = bad;
        let x = rig.hold(&x)?;
        let (mut q, mut s) = (rig.blank(rows * cols)?, rig.blank(rows)?);
        let op = Op::QuantizeRows { x: x.input(), cols, q: q.output(), scales: s.output() };
        let error = rig.refused(op, &format!("element {at} is {bad}"))?;
        if !matches!(error, Error::NotFinite { index, .. } if index == at) {
            return fail(format!("element {at} is {bad}, but the error is: {error}"));
        }
    }
    Ok(())
}

/// The norm of a row with a NaN is NaN throughout, and cannot be rounded to int8. Which element the error names is left
/// open, as long as it is one of that row.
fn norm_not_finite(rig: &mut Rig<'_>, bad: f32) -> Verdict {
    let (rows, cols) = (3, 70);
    let mut x = rig.rng.gaussians(rows * cols);
    x[100] = bad;
    let w = rig.rng.gaussians(cols);
    let (x, w) = (rig.hold(&x)?, rig.hold(&w)?);
    let (mut q, mut s) = (rig.blank(rows * cols)?, rig.blank(rows)?);
    let op = Op::RmsNormQuantize { x: x.input(), w: w.input(), eps: EPS, q: q.output(), scales: s.output() };
    let error = rig.refused(op, &format!("element 100 is {bad}"))?;
    match error {
        Error::NotFinite { index: 70..140, .. } => Ok(()),
        _ => fail(format!("element 100 is {bad}, but the error is: {error}")),
    }
}
