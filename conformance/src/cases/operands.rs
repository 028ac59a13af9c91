//! Operands of products, made and encoded by the oracle.

use tersor_core::{Activations, DType, Epilogue, Format, Op, Output, PackedWeight, Shape, Weight};

use crate::compare::same;
use crate::oracle::layout;
use crate::oracle::matmul::Matrix;
use crate::rig::{Rig, Stop, Verdict};
use crate::rng::Rng;

/// How the scales of a weight are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// The same everywhere.
    One,
    /// Another one for each block, all of them positive.
    Positive,
    /// Another one for each block, some negative and some zero.
    Mixed,
}

/// A weight with the given codes.
pub(crate) fn matrix(rng: &mut Rng, format: Format, shape: Shape, codes: Vec<i8>, scales: Scales) -> Matrix {
    let blocks = shape.len().div_ceil(layout::block(format, shape));
    let scale = |b: usize| match scales {
        // As an f16 it is 1217 * 2^-15: as many significant bits as there are.
        Scales::One => 0.037_14,
        _ if b == 0 => 0.061_3,
        Scales::Mixed if b % 11 == 5 => 0.0,
        Scales::Mixed if b % 5 == 3 => -0.01 - 0.05 * rng.unit(),
        _ => 0.01 + 0.05 * rng.unit(),
    };
    let scales = (0..blocks).map(scale).map(|s| layout::stored_scale(format, s)).collect();
    Matrix { format, shape, codes, scales }
}

/// A weight with random codes.
pub(crate) fn random(rng: &mut Rng, format: Format, shape: Shape, scales: Scales) -> Matrix {
    let codes = rng.ternary(shape.len());
    matrix(rng, format, shape, codes, scales)
}

/// The weight in canonical bytes, as the core takes it.
pub(crate) fn weight(m: &Matrix) -> Result<Weight, Stop> {
    let (bytes, scales) = layout::encode(m.format, m.shape, &m.codes, &m.scales);
    Ok(Weight::new(m.format, m.shape, bytes, scales)?)
}

/// Codes and activations whose block sums are large. A tq scale has 11 significant bits, so that the product of a small sum
/// and its scale is exact, and then no order of additions would show.
pub(crate) fn heavy(rng: &mut Rng, codes: usize, x: usize) -> (Vec<i8>, Vec<i8>) {
    let codes = (0..codes).map(|_| [1, 1, 1, 1, 1, 0, 1, -1][rng.below(8)]).collect();
    (codes, (0..x).map(|_| 60 + rng.below(68) as i8).collect())
}

/// Scales of `m` rows of activations.
pub(crate) fn row_scales(rng: &mut Rng, m: usize) -> Vec<f32> {
    (0..m).map(|_| 127.0 / (0.3 + 5.0 * rng.unit())).collect()
}

/// A product to be judged.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) packed: &'a PackedWeight,
    /// `m x k` activations.
    pub(crate) x: &'a [i8],
    /// `m` scales.
    pub(crate) x_scales: &'a [f32],
}

impl Product<'_> {
    /// The exact sums.
    pub(crate) fn sums(&self, rig: &mut Rig<'_>, epilogue: Epilogue) -> Verdict {
        let n = self.matrix.shape.rows();
        let sums = self.matrix.sums(self.x);
        let held: Vec<i32> = sums.iter().map(|_| rig.rng.next() as i32 >> 8).collect();
        let adds = epilogue == Epilogue::Add;
        let want: Vec<i32> =
            sums.iter().zip(&held).map(|(s, h)| (*s + if adds { i64::from(*h) } else { 0 }) as i32).collect();
        let (q, scales) = (rig.hold(self.x)?, rig.hold(self.x_scales)?);
        let mut y = if adds { rig.hold(&held)? } else { rig.blank(sums.len())? };
        rig.submit(Op::MatMul {
            w: self.packed,
            x: Activations::Int8 { q: q.input(), scales: scales.input() },
            y: Output::I32(y.output()),
            epilogue,
        })?;
        same("sums", n, &rig.read(&y)?, &want)
    }

    /// The results after scaling.
    pub(crate) fn scaled(&self, rig: &mut Rig<'_>, epilogue: Epilogue) -> Verdict {
        let n = self.matrix.shape.rows();
        let scaled = self.matrix.scaled(self.x, self.x_scales);
        let held = rig.rng.gaussians(scaled.len());
        let adds = epilogue == Epilogue::Add;
        let want: Vec<f32> = scaled.iter().zip(&held).map(|(s, h)| if adds { h + s } else { *s }).collect();
        let (q, scales) = (rig.hold(self.x)?, rig.hold(self.x_scales)?);
        let mut y = if adds { rig.hold(&held)? } else { rig.blank(scaled.len())? };
        rig.submit(Op::MatMul {
            w: self.packed,
            x: Activations::Int8 { q: q.input(), scales: scales.input() },
            y: Output::F32(y.output()),
            epilogue,
        })?;
        same("results", n, &rig.read(&y)?, &want)
    }

    /// One of the two.
    pub(crate) fn judge(&self, rig: &mut Rig<'_>, output: DType, epilogue: Epilogue) -> Verdict {
        if output == DType::I32 { self.sums(rig, epilogue) } else { self.scaled(rig, epilogue) }
    }
}

/// A product of random operands.
pub(crate) fn judge_random(
    rig: &mut Rig<'_>,
    format: Format,
    (m, n, k): (usize, usize, usize),
    scales: Scales,
    output: DType,
    epilogue: Epilogue,
) -> Verdict {
    let (codes, x) = match scales {
        Scales::One => (rig.rng.ternary(n * k), rig.rng.int8(m * k)),
        Scales::Positive | Scales::Mixed => heavy(&mut rig.rng, n * k, m * k),
    };
    let matrix = matrix(&mut rig.rng, format, Shape::new(n, k)?, codes, scales);
    let packed = rig.pack(weight(&matrix)?)?;
    let x_scales = row_scales(&mut rig.rng, m);
    Product { matrix: &matrix, packed: &packed, x: &x, x_scales: &x_scales }.judge(rig, output, epilogue)
}
