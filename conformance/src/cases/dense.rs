//! Dense weights: heads in f32, f16 and bf16 times f32 activations, and embedding tables.

use tersor_core::{Activations, DType, Epilogue, Format, Op, Output, Shape, Weight};

use super::Case;
use crate::compare::same;
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
        cases.push(Case::new(format!("matmul/{format}/m2.n3.k200/add"), move |rig| {
            judge(rig, format, (2, 3, 200), (1.0, 1.0), Epilogue::Add)
        }));
        // Products far below the smallest normal number: flushing them to zero is no rounding.
        cases.push(Case::new(format!("matmul/{format}/m2.n3.k200/denormals"), move |rig| {
            judge(rig, format, (2, 3, 200), (1e-6, 1e-36), Epilogue::Store)
        }));
        cases.push(Case::new(format!("gather_rows/{format}/random"), move |rig| gather(rig, format)));
        if profile == Profile::Full {
            cases.push(Case::new(format!("matmul/{format}/m1.n1000.k2560/random"), move |rig| {
                judge(rig, format, (1, 1000, 2560), (1.0, 1.0), Epilogue::Store)
            }));
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
    let packed = rig.pack(Weight::dense(format, Shape::new(n, k)?, w.bytes())?)?;
    let x = rig.hold(&x)?;
    let mut y = if adds { rig.hold(&held)? } else { rig.blank(m * n)? };
    rig.submit(Op::MatMul { w: &packed, x: Activations::F32(x.input()), y: Output::F32(y.output()), epilogue })?;
    same("results", n, &rig.read(&y)?, &want)
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
