//! Canonical bytes to real weights: code times scale, rounded to the type asked for.

use tersor_core::{DType, Error, Format, Op, Shape, Weight};

use super::operands::{Scales, random, weight};
use super::{Case, dense, ternary_formats};
use crate::compare::fail;
use crate::oracle::layout;
use crate::oracle::matmul::Matrix;
use crate::oracle::quantize::{Quantized, quantize};
use crate::reals::{RealOperand, Reals, TYPES, type_id};
use crate::rig::{Rig, Stop, Verdict};
use crate::suite::Profile;

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    let mut cases = Vec::new();
    for format in ternary_formats() {
        for to in TYPES {
            let id = type_id(to);
            let mut shapes = vec![(1, format.unit()), (3, 512), (5, 2560)];
            if profile == Profile::Full {
                shapes.push((64, 6912));
            }
            for (rows, cols) in shapes {
                cases.push(Case::new(format!("dequantize/{format}/{id}/{rows}x{cols}/random"), move |rig| {
                    let m = random(&mut rig.rng, format, Shape::new(rows, cols)?, Scales::Positive);
                    judge(rig, &m, to)
                }));
            }
            cases.push(Case::new(format!("dequantize/{format}/{id}/tails"), move |rig| tails(rig, format, to)));
            // The largest and smallest scales: f16 overflows to infinity, denormals stay what they are.
            for (what, s) in [("large-scale", 65_000.0), ("denormal-scale", 3e-7), ("smallest-scale", 1e-40)] {
                cases.push(Case::new(format!("dequantize/{format}/{id}/3x512/{what}"), move |rig| {
                    let mut m = random(&mut rig.rng, format, Shape::new(3, 512)?, Scales::One);
                    m.scales.fill(layout::stored_scale(format, s));
                    judge(rig, &m, to)
                }));
            }
        }
        cases.push(Case::new(format!("dequantize/{format}/methods"), move |rig| methods(rig, format)));
    }
    for format in Format::DENSE {
        for to in TYPES {
            let id = type_id(to);
            cases.push(Case::new(format!("dequantize/{format}/{id}/7x65/random"), move |rig| dense(rig, format, to)));
        }
    }
    cases
}

fn values(m: &Matrix) -> Vec<f32> {
    let block = layout::block(m.format, m.shape);
    m.codes.iter().enumerate().map(|(i, t)| f32::from(*t) * m.scales[i / block]).collect()
}

fn run(rig: &mut Rig<'_>, w: &Weight, want: &Reals, to: DType) -> Verdict {
    let mut y = RealOperand::blank(rig, to, w.shape().len())?;
    rig.submit(Op::Dequantize { w, y: y.output() })?;
    y.read(rig)?.same("values", w.shape().cols(), want)
}

fn judge(rig: &mut Rig<'_>, m: &Matrix, to: DType) -> Verdict {
    run(rig, &weight(m)?, &Reals::new(to, &values(m)), to)
}

fn tails(rig: &mut Rig<'_>, format: Format, to: DType) -> Verdict {
    let (step, last) = match format {
        Format::I2SGroup(g) => (1, 2 * g.values() + 2),
        _ => (format.unit(), format.unit().max(32) * 8),
    };
    for cols in (step..=last).step_by(step) {
        let shape = Shape::new(if step == 1 { 1 } else { 2 }, cols)?;
        let m = random(&mut rig.rng, format, shape, Scales::Positive);
        match judge(rig, &m, to) {
            Err(Stop::Failed(message)) => return fail(format!("shape {shape}: {message}")),
            other => other?,
        }
    }
    Ok(())
}

fn dense(rig: &mut Rig<'_>, format: Format, to: DType) -> Verdict {
    let shape = Shape::new(7, 65)?;
    let mut values = rig.rng.gaussians(shape.len());
    for (v, special) in values.iter_mut().zip([0.0, -0.0, 65_519.0, 65_521.0, -1e-7, 3e-8, 1e-40, 1.000_488_3]) {
        *v = special;
    }
    let held = Reals::new(dense::dtype(format), &values);
    let w = Weight::dense(format, shape, held.bytes())?;
    run(rig, &w, &Reals::new(to, &held.values()), to)
}

/// The trait's own methods, with plain slices that begin in the middle of an allocation.
fn methods(rig: &mut Rig<'_>, format: Format) -> Verdict {
    let shape = Shape::new(5, 512)?;
    let unsupported = |e: Error| match e {
        Error::Unsupported { reason, .. } => Stop::NotSupported(reason),
        e => e.into(),
    };
    for dtype in TYPES {
        let w = Reals::new(dtype, &rig.rng.gaussians(shape.len() + 3));
        let values = w.values();
        let want = match quantize(&values[3..], shape, format) {
            Ok(want) => want,
            Err(refusal) => return fail(format!("the case's own data cannot be quantized: {refusal:?}")),
        };
        let (mut bytes, mut scales) = (vec![0x5a; want.bytes.len() + 2], vec![f32::NAN; want.scales.len() + 2]);
        let (codes_end, scales_end) = (bytes.len() - 1, scales.len() - 1);
        let backend = rig.backend();
        backend
            .quantize(w.slice(3), shape, format, &mut bytes[1..codes_end], &mut scales[1..scales_end])
            .map_err(unsupported)?;
        if bytes[0] != 0x5a || bytes[codes_end] != 0x5a || !scales[0].is_nan() || !scales[scales_end].is_nan() {
            return fail("quantize wrote outside its slices");
        }
        let got = Quantized { bytes: bytes[1..codes_end].to_vec(), scales: scales[1..scales_end].to_vec() };
        super::quantize::equal(format, shape, &got, &want)?;
        let weight = Weight::new(format, shape, got.bytes, got.scales)?;
        let codes = layout::decode(format, shape, weight.codes());
        let m = Matrix { format, shape, codes, scales: weight.block_scales().0 };
        let mut y = Reals::new(dtype, &vec![f32::NAN; shape.len() + 1]);
        backend.dequantize(&weight, y.slice_mut(1)).map_err(unsupported)?;
        let want: Vec<f32> = [f32::NAN].into_iter().chain(self::values(&m)).collect();
        y.same("a NaN that is no output, and the values", shape.len() + 1, &Reals::new(dtype, &want))?;
    }
    Ok(())
}
