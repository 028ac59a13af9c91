//! Operands that are not aligned to anything but their own element, and outputs that an op must write in full.

use tersor_core::{DType, Epilogue, Format, Shape};

use super::operands::{Product, Scales, judge_random, matrix, weight};
use super::{Case, ternary_formats};
use crate::rig::{Rig, Verdict};
use crate::suite::Profile;

/// Cases that are run again off their alignment: one of each op.
fn representative(name: &str) -> bool {
    const PARTS: [&str; 16] = [
        "/f32/3x512/random",
        "/f16/3x512/random",
        "/bf16/3x512/random",
        "/f32/3x6/gaussian",
        "/5x2560/gaussian",
        "/m1.n5.k64/random",
        "/m3.n7.k200/random",
        "quantize_rows/3x130/gaussian",
        "rms_norm/3x130/gaussian",
        "rms_norm_quantize/3x130/gaussian",
        "rope/rows2.heads8.dim64/random",
        "kv_write/rows2.width128/random",
        "relu_squared_mul/1000/random",
        "add/1000/random",
        "copy/1000/random",
        "sample/1000/top-5",
    ];
    PARTS.iter().any(|part| name.ends_with(part))
        || name.starts_with("gather_rows/")
        || name.ends_with("dim64/chunk-ends")
}

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    let families = [
        super::quantize::cases,
        super::dequantize::cases,
        super::rows::cases,
        super::dense::cases,
        super::model::cases,
    ];
    let more = [super::attention::cases, super::sample::cases];
    let all = families.into_iter().chain(more).flat_map(|family| family(profile));
    let mut cases: Vec<Case> = all
        .filter(|case| representative(&case.name))
        .map(|case| {
            Case::new(format!("unaligned/{}", case.name), move |rig| {
                for shift in [1, 3, 7] {
                    rig.shift = shift;
                    (case.run)(rig)?;
                }
                Ok(())
            })
        })
        .collect();
    for format in ternary_formats() {
        cases.push(Case::new(format!("unaligned/matmul/{format}"), move |rig| unaligned_product(rig, format)));
        cases.push(Case::new(format!("stale/matmul/{format}"), move |rig| stale_product(rig, format)));
    }
    cases
}

fn unaligned_product(rig: &mut Rig<'_>, format: Format) -> Verdict {
    for shift in [1, 2, 3, 5, 13, 31] {
        rig.shift = shift;
        for (m, n) in [(1, 5), (4, 17)] {
            judge_random(rig, format, (m, n, 512), Scales::Positive, DType::F32, Epilogue::Store)?;
            judge_random(rig, format, (m, n, 512), Scales::One, DType::I32, Epilogue::Store)?;
        }
    }
    Ok(())
}

/// Results that are zero have to be written like all others: rows of zero activations, and rows of zero weights.
fn stale_product(rig: &mut Rig<'_>, format: Format) -> Verdict {
    let (m, n, k) = (5, 9, 512);
    let mut codes = rig.rng.ternary(n * k);
    let mut x = rig.rng.int8(m * k);
    for r in [0, 4, 8] {
        codes[r * k..(r + 1) * k].fill(0);
    }
    for r in [1, 4] {
        x[r * k..(r + 1) * k].fill(0);
    }
    for scales in [Scales::One, Scales::Positive] {
        let matrix = matrix(&mut rig.rng, format, Shape::new(n, k)?, codes.clone(), scales);
        let packed = rig.pack(weight(&matrix)?)?;
        for rows in [1, m] {
            let x = &x[(m - rows) * k..];
            let x_scales = vec![127.0 / 1e-5; rows];
            let product = Product { matrix: &matrix, packed: &packed, x, x_scales: &x_scales };
            product.sums(rig, Epilogue::Store)?;
            product.scaled(rig, Epilogue::Store)?;
        }
    }
    Ok(())
}
