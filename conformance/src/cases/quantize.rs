//! Real weights to canonical bytes.

use tersor_core::{DType, Epilogue, Error, Format, Op, Shape, Weight};

use super::operands::{Product, row_scales};
use super::{Case, ternary_formats};
use crate::compare::{fail, same};
use crate::oracle::matmul::Matrix;
use crate::oracle::quantize::{Quantized, Refusal, quantize};
use crate::oracle::{float, layout};
use crate::reals::{RealOperand, Reals, TYPES, type_id};
use crate::rig::{Rig, Stop, Verdict};
use crate::rng::Rng;
use crate::suite::Profile;

/// What weights look like.
const DATA: [&str; 12] = [
    "gaussian",
    "ternary",
    "ternary-denormal",
    "zeros",
    "single-nonzero",
    "ties",
    "near-ties",
    "huge",
    "tiny",
    "around-the-smallest-scale",
    "denormal",
    "sum-overflows",
];

fn data(rng: &mut Rng, what: &str, dtype: DType, n: usize) -> Reals {
    // Halves and one and a half times a power of two, as many of each: their mean is that power, and the halves are ties.
    let tie = |i: usize| [0.5, -1.5, -0.5, 1.5][i % 4] * 0.031_25f32;
    let large = if dtype == DType::F16 { 8e3 } else { 1e33 };
    let values: Vec<f32> = match what {
        "ternary" => rng.ternary(n).into_iter().map(|t| f32::from(t) * 0.037_1).collect(),
        "ternary-denormal" => {
            let s = if dtype == DType::F16 { float::f16_value(3) } else { 1e-40 };
            rng.ternary(n).into_iter().map(|t| f32::from(t) * s).collect()
        }
        "zeros" => (0..n).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect(),
        "single-nonzero" => {
            let at = rng.below(n);
            (0..n).map(|i| if i == at { -0.3 } else { 0.0 }).collect()
        }
        "ties" => (0..n).map(tie).collect(),
        "near-ties" => (0..n)
            .map(|i| match rng.below(8) {
                0 => f32::from_bits(tie(i).to_bits() + 1),
                1 => f32::from_bits(tie(i).to_bits() - 1),
                _ => tie(i),
            })
            .collect(),
        "huge" => rng.gaussians(n).into_iter().map(|g| g * large).collect(),
        "tiny" => rng.gaussians(n).into_iter().map(|g| g * 1e-7).collect(),
        "around-the-smallest-scale" => rng.gaussians(n).into_iter().map(|g| g * 6e-6).collect(),
        "denormal" => rng.gaussians(n).into_iter().map(|g| g * 1e-39).collect(),
        "sum-overflows" => (0..n).map(|i| if i % 2 == 0 { 3e38 } else { -2.5e38 }).collect(),
        _ => rng.gaussians(n).into_iter().map(|g| g * 0.02).collect(),
    };
    Reals::new(dtype, &values)
}

/// Shapes below, at and beyond the 4,096 elements of a chunk of the mean, and with several levels of its tree.
fn shapes(format: Format, profile: Profile) -> Vec<(usize, usize)> {
    let mut shapes = match format {
        Format::I2S => vec![(1, 128), (3, 384), (32, 128), (33, 128), (5, 2560), (11, 2560)],
        Format::TL1 | Format::TL2 => {
            vec![(1, 2), (3, 6), (1, 4094), (1, 4096), (1, 4098), (7, 1366), (5, 2560), (11, 2562)]
        }
        Format::TQ1_0 | Format::TQ2_0 => vec![(1, 256), (3, 512), (16, 256), (17, 256), (5, 2560), (11, 2560)],
        _ => vec![(1, 1), (1, 8), (3, 100), (5, 1001), (5, 2560), (11, 2560)],
    };
    if profile == Profile::Full {
        shapes.extend([(128, 6912), (100, 1024)]);
        if matches!(format, Format::I2S | Format::TL1 | Format::TQ2_0) {
            // So many that a backend may do them in another way than few.
            shapes.push((833, 2560));
        }
    }
    shapes
}

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    let mut cases = Vec::new();
    for format in ternary_formats() {
        for dtype in TYPES {
            let from = type_id(dtype);
            let case = |rows: usize, cols: usize, what: &'static str| {
                Case::new(format!("quantize/{format}/{from}/{rows}x{cols}/{what}"), move |rig| {
                    let w = data(&mut rig.rng, what, dtype, rows * cols);
                    judge(rig, format, Shape::new(rows, cols)?, &w)
                })
            };
            let shapes = shapes(format, profile);
            cases.extend(shapes.iter().map(|(r, c)| case(*r, *c, "gaussian")));
            for what in &DATA[1..] {
                // f16 holds nothing whose sum could overflow.
                if (*what, dtype) != ("sum-overflows", DType::F16) {
                    cases.extend(
                        [(3, if format.unit() == 2 { 130 } else { 512 }), (5, 2560)].map(|(r, c)| case(r, c, what)),
                    );
                }
            }
            for what in ["nan", "infinity"] {
                cases.push(Case::new(format!("quantize/{format}/{from}/5x2560/{what}"), move |rig| {
                    non_finite(rig, format, dtype, if what == "nan" { f32::NAN } else { f32::NEG_INFINITY })
                }));
            }
            cases.push(Case::new(format!("quantize/{format}/{from}/tails"), move |rig| tails(rig, format, dtype)));
        }
        cases.push(Case::new(format!("quantize/{format}/to-product"), move |rig| to_product(rig, format)));
    }
    cases
}

/// Quantizes with the op, in the backend's memory.
fn run(rig: &mut Rig<'_>, format: Format, shape: Shape, w: &Reals) -> Result<Quantized, Stop> {
    let len = format.encoded_len(shape)?;
    let w = RealOperand::hold(rig, w)?;
    let (mut codes, mut scales) = (rig.blank(len.bytes)?, rig.blank(len.scales)?);
    rig.submit(Op::Quantize { w: w.input(), shape, format, codes: codes.output(), scales: scales.output() })?;
    Ok(Quantized { bytes: rig.read(&codes)?, scales: rig.read(&scales)? })
}

fn judge(rig: &mut Rig<'_>, format: Format, shape: Shape, w: &Reals) -> Verdict {
    match quantize(&w.values(), shape, format) {
        Ok(want) => {
            let got = run(rig, format, shape, w)?;
            equal(format, shape, &got, &want)
        }
        Err(refusal) => {
            let error = refused(rig, format, shape, w, refusal)?;
            let right = match refusal {
                Refusal::NotFinite(at) => matches!(error, Error::NotFinite { index, .. } if index == at),
                Refusal::Overflow => matches!(error, Error::NotFinite { .. }),
                Refusal::Scale => matches!(error, Error::Scale { .. }),
            };
            if right { Ok(()) } else { fail(format!("{refusal:?} was expected, but the error is: {error}")) }
        }
    }
}

fn refused(rig: &mut Rig<'_>, format: Format, shape: Shape, w: &Reals, refusal: Refusal) -> Result<Error, Stop> {
    let len = format.encoded_len(shape)?;
    let w = RealOperand::hold(rig, w)?;
    let (mut codes, mut scales) = (rig.blank(len.bytes)?, rig.blank(len.scales)?);
    let op = Op::Quantize { w: w.input(), shape, format, codes: codes.output(), scales: scales.output() };
    let error = rig.refused(op, &format!("the weights cannot be quantized ({refusal:?})"))?;
    rig.read(&codes)?;
    rig.read(&scales)?;
    Ok(error)
}

/// Scales first, because a wrong one explains wrong codes; then the values, which are easier to read than bytes; then the
/// bytes.
pub(super) fn equal(format: Format, shape: Shape, got: &Quantized, want: &Quantized) -> Verdict {
    same("scales", 1, &got.scales, &want.scales)?;
    if matches!(format, Format::I2S | Format::TL1 | Format::TL2) {
        let tail = want.bytes.len() - 32;
        same(
            "tail (the scale in its first four bytes)",
            32,
            got.bytes.get(tail..).unwrap_or_default(),
            &want.bytes[tail..],
        )?;
    }
    let [g, w] = [got, want].map(|q| layout::decode(format, shape, &q.bytes));
    same("codes", shape.cols(), &g, &w)?;
    same("bytes", want.bytes.len(), &got.bytes, &want.bytes)
}

fn non_finite(rig: &mut Rig<'_>, format: Format, dtype: DType, bad: f32) -> Verdict {
    let shape = Shape::new(5, 2560)?;
    for at in [0, 1, 4095, 4096, 8193, shape.len() - 1] {
        let mut values = data(&mut rig.rng, "gaussian", dtype, shape.len()).values();
        values[at] = bad;
        // A second one further on: the first is the one to name.
        values[(at + 700).min(shape.len() - 1)] = bad;
        judge(rig, format, shape, &Reals::new(dtype, &values))?;
    }
    Ok(())
}

/// Every row length up to a few units, or for group scales every number of elements.
fn tails(rig: &mut Rig<'_>, format: Format, dtype: DType) -> Verdict {
    let (step, last) = match format {
        Format::I2SGroup(g) => (1, 2 * g.values() + 2),
        _ => (format.unit(), format.unit().max(32) * 8),
    };
    for cols in (step..=last).step_by(step) {
        let shape = Shape::new(if step == 1 { 1 } else { 2 }, cols)?;
        let w = data(&mut rig.rng, "gaussian", dtype, shape.len());
        match judge(rig, format, shape, &w) {
            Err(Stop::Failed(message)) => return fail(format!("shape {shape}: {message}")),
            other => other?,
        }
    }
    Ok(())
}

/// What was quantized here is packed and multiplied here: the whole way, through the trait's own method.
fn to_product(rig: &mut Rig<'_>, format: Format) -> Verdict {
    let (shape, m) = (Shape::new(7, 512)?, 3);
    let w = data(&mut rig.rng, "gaussian", DType::F32, shape.len());
    let want = match quantize(&w.values(), shape, format) {
        Ok(want) => want,
        Err(refusal) => return fail(format!("the case's own data cannot be quantized: {refusal:?}")),
    };
    let (mut bytes, mut scales) = (vec![0x5a; want.bytes.len()], vec![f32::NAN; want.scales.len()]);
    match rig.backend().quantize(w.slice(0), shape, format, &mut bytes, &mut scales) {
        Err(Error::Unsupported { reason, .. }) => return Err(Stop::NotSupported(reason)),
        ran => ran?,
    };
    let codes = layout::decode(format, shape, &bytes);
    let weight = Weight::new(format, shape, bytes, scales)?;
    let matrix = Matrix { format, shape, codes, scales: weight.block_scales().0 };
    let packed = rig.pack(weight)?;
    let (x, x_scales) = (rig.rng.int8(m * shape.cols()), row_scales(&mut rig.rng, m));
    let product = Product { matrix: &matrix, packed: &packed, x: &x, x_scales: &x_scales };
    product.sums(rig, Epilogue::Store)?;
    product.scaled(rig, Epilogue::Store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::quantize::scale;

    #[test]
    fn the_data_of_ties_has_ties() {
        for dtype in TYPES {
            let values = data(&mut Rng::new(0, "x"), "ties", dtype, 12_800).values();
            let s = scale(&values).unwrap();
            assert_eq!(values.iter().filter(|v| v.abs() == s / 2.0).count(), 6400, "{dtype:?}");
        }
    }

    #[test]
    fn data_that_should_be_refused_is() {
        let shape = Shape::new(5, 2560).unwrap();
        let refusal = |what, format| {
            quantize(&data(&mut Rng::new(0, "x"), what, DType::F32, shape.len()).values(), shape, format).unwrap_err()
        };
        assert_eq!(refusal("sum-overflows", Format::I2S), Refusal::Overflow);
        assert_eq!(refusal("huge", Format::TQ2_0), Refusal::Scale);
        assert_eq!(refusal("ternary-denormal", Format::TQ1_0), Refusal::Scale);
    }
}
