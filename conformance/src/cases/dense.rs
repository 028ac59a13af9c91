//! Dense weights: heads in f32, f16 and bf16 times f32 activations, and embedding tables.

use tersor_core::{Activations, DType, Epilogue, Format, Op, Output, Shape, Weight};

use super::Case;
use crate::compare::{near, same};
use crate::oracle::matmul;
use crate::reals::Reals;
use crate::rig::{Rig, Verdict};
use crate::suite::Profile;

pub(super) fn dtype(format: Format) -> DType {
    match format {
        Format::F16 => DType::F16,
        Format::BF16 => DType::BF16,
        _ => DType::F32,
    }
}

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    let mut cases = Vec::new();
    for format in Format::DENSE {
        // The lanes of the sum are 64.
        for k in [1, 2, 15, 31, 63, 64, 65, 96, 127, 128, 129, 200, 2560] {
            let mut shapes = vec![(1, 1), (1, 5), (3, 7), (8, 4)];
            if profile == Profile::Full {
                shapes.extend([(1, 33), (2, 2), (5, 17), (9, 16), (64, 3)]);
            }
            for (m, n) in shapes {
                cases.push(Case::new(format!("matmul/{format}/m{m}.n{n}.k{k}/random"), move |rig| {
                    judge(rig, format, (m, n, k), (1.0, 1.0), Epilogue::Store)
                }));
            }
        }
        for (m, n, k) in [(2, 3, 200), (1, 19, 200)] {
            cases.push(Case::new(format!("matmul/{format}/m{m}.n{n}.k{k}/add"), move |rig| {
                judge(rig, format, (m, n, k), (1.0, 1.0), Epilogue::Add)
            }));
        }
        // More columns than kernels keep activations of.
        cases.push(Case::new(format!("matmul/{format}/m1.n21.k10300/random"), move |rig| {
            judge(rig, format, (1, 21, 10_300), (1.0, 1.0), Epilogue::Store)
        }));
        // Products far below the smallest normal number: flushing them to zero is no rounding.
        cases.push(Case::new(format!("matmul/{format}/m2.n3.k200/denormals"), move |rig| {
            judge(rig, format, (2, 3, 200), (1e-6, 1e-36), Epilogue::Store)
        }));
        cases.push(Case::new(format!("gather_rows/{format}/random"), move |rig| gather(rig, format)));
        if profile == Profile::Full {
            // Several blocks of weight rows, and groups of activations.
            for (m, n, k) in [(1, 1000, 2560), (7, 600, 320), (16, 257, 192), (40, 300, 640)] {
                cases.push(Case::new(format!("matmul/{format}/m{m}.n{n}.k{k}/random"), move |rig| {
                    judge(rig, format, (m, n, k), (1.0, 1.0), Epilogue::Store)
                }));
            }
            // Magnitudes that parts of activations in f16 could not have as they are.
            for size in [1e-30, 1e30] {
                cases.push(Case::new(format!("matmul/{format}/m3.n7.k200/times-{size:e}"), move |rig| {
                    judge(rig, format, (3, 7, 200), (1.0, size), Epilogue::Store)
                }));
            }
        }
    }
    cases
}

/// `size`: magnitudes of weights and activations.
fn judge(
    rig: &mut Rig<'_>,
    format: Format,
    (m, n, k): (usize, usize, usize),
    size: (f32, f32),
    epilogue: Epilogue,
) -> Verdict {
    let scaled = |v: Vec<f32>, by: f32| v.into_iter().map(|v| v * by).collect::<Vec<_>>();
    let w = Reals::new(dtype(format), &scaled(rig.rng.gaussians(n * k), size.0));
    let x = scaled(rig.rng.gaussians(m * k), size.1);
    let held = rig.rng.gaussians(m * n);
    let adds = epilogue == Epilogue::Add;
    let product = matmul::dense(&w.values(), k, &x);
    let want: Vec<f32> = product.iter().zip(&held).map(|(y, h)| if adds { h + y } else { *y }).collect();
    let squares = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let norms: Vec<f64> = w.values().chunks(k).map(squares).collect();
    let bounds: Vec<f64> = x.chunks(k).flat_map(|x| norms.iter().map(move |w| w * squares(x))).collect();
    let packed = rig.pack(Weight::dense(format, Shape::new(n, k)?, w.bytes())?)?;
    let x = rig.hold(&x)?;
    let mut y = if adds { rig.hold(&held)? } else { rig.blank(m * n)? };
    let op = Op::MatMul { w: &packed, x: Activations::F32(x.input()), y: Output::F32(y.output()), epilogue };
    let exact = rig.backend().follows_order(&op.check()?.spec());
    let op = Op::MatMul { w: &packed, x: Activations::F32(x.input()), y: Output::F32(y.output()), epilogue };
    rig.submit(op)?;
    let got = rig.read(&y)?;
    if exact {
        return same("results", n, &got, &want);
    }
    // Each product may be rounded to a multiple of the smallest number that there is.
    near("results", &got, &want, &bounds, k as f64 * f64::from(f32::from_bits(1)))?;
    // The same bits again.
    let mut again = if adds { rig.hold(&held)? } else { rig.blank(m * n)? };
    rig.submit(Op::MatMul { w: &packed, x: Activations::F32(x.input()), y: Output::F32(again.output()), epilogue })?;
    same("results of a second run", n, &rig.read(&again)?, &got)
}

fn gather(rig: &mut Rig<'_>, format: Format) -> Verdict {
    for (entries, cols) in [(1, 1), (5, 7), (40, 64), (33, 130)] {
        let table = Reals::new(dtype(format), &rig.rng.gaussians(entries * cols));
        let values = table.values();
        let mut ids = vec![entries as u32 - 1, 0];
        ids.extend((0..entries).map(|_| rig.rng.below(entries) as u32));
        let rows = ids.iter().flat_map(|id| values.chunks(cols).nth(*id as usize).unwrap_or_default());
        let want: Vec<f32> = rows.copied().collect();
        let packed = rig.pack(Weight::dense(format, Shape::new(entries, cols)?, table.bytes())?)?;
        let ids = rig.hold(&ids)?;
        let mut y = rig.blank(want.len())?;
        rig.submit(Op::GatherRows { table: &packed, ids: ids.input(), y: y.output() })?;
        same("gathered rows", cols, &rig.read(&y)?, &want)?;
    }
    Ok(())
}
