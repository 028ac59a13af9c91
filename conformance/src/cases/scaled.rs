//! What follows the exact sums: scales of weights and activations in their fixed order, and adding to the residual stream.

use tersor_core::{DType, Epilogue, Format, Shape};

use super::matmul::{M, N, short_row};
use super::operands::{Product, Scales, heavy, judge_random, matrix, random, row_scales, weight};
use super::{Case, ternary_formats};
use crate::compare::fail;
use crate::rig::Stop;
use crate::suite::Profile;

fn scaled(format: Format, (m, n, k): (usize, usize, usize), what: &'static str) -> Case {
    let (scales, epilogue) = match what {
        "block-scales" => (Scales::Mixed, Epilogue::Store),
        "block-scales-add" => (Scales::Mixed, Epilogue::Add),
        "scaled-add" => (Scales::One, Epilogue::Add),
        _ => (Scales::One, Epilogue::Store),
    };
    Case::new(format!("matmul/{format}/m{m}.n{n}.k{k}/{what}"), move |rig| {
        judge_random(rig, format, (m, n, k), scales, DType::F32, epilogue)
    })
}

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    let full = profile == Profile::Full;
    let mut cases = Vec::new();
    for format in ternary_formats() {
        let k = short_row(format);
        cases.extend(M.into_iter().flat_map(|m| N.map(|n| (m, n))).map(|(m, n)| scaled(format, (m, n, k), "scaled")));
        for shape in [(1, 5, 2560), (4, 3, 6912), (1, 2, 27_648)] {
            cases.push(scaled(format, shape, "scaled"));
        }
        cases.extend([(1, 17, k), (7, 5, 2560)].map(|shape| scaled(format, shape, "scaled-add")));
        if full {
            let grid = M.into_iter().flat_map(|m| N.map(|n| (m, n, 1024)));
            cases.extend(grid.map(|shape| scaled(format, shape, "scaled")));
        }
        cases.push(small_and_large_scales(format));
        let Some(block) = format.scale_block() else { continue };
        // 65 and 130 blocks: lane 0 gets a second and a third one.
        let mut shapes =
            vec![(1, 1, 2560), (1, 7, 6912), (3, 4, 2560), (8, 17, 1024), (1, 3, 65 * block), (2, 2, 130 * block)];
        if full {
            shapes.extend([(1, 33, 6912), (17, 5, 6912), (64, 3, 2560), (5, 3, 27_648)]);
        }
        cases.extend(shapes.into_iter().map(|shape| scaled(format, shape, "block-scales")));
        cases.push(scaled(format, (5, 3, 2560), "block-scales-add"));
        cases.push(zero_blocks(format, block));
        if matches!(format, Format::I2SGroup(_)) {
            cases.extend([100, block + 1, 3 * block - 7].map(|k| straddling(format, k)));
        }
    }
    cases
}

/// A block of zeros has a scale of no meaning, often 0: a weight whose other blocks share one scale is single-scale.
fn zero_blocks(format: Format, block: usize) -> Case {
    Case::new(format!("matmul/{format}/m3.n4.k{}/zero-blocks", 5 * block), move |rig| {
        let shape = Shape::new(4, 5 * block)?;
        let (codes, x) = heavy(&mut rig.rng, shape.len(), 3 * 5 * block);
        let mut matrix = matrix(&mut rig.rng, format, shape, codes, Scales::One);
        for b in [0, 7, 8] {
            matrix.codes[b * block..(b + 1) * block].fill(0);
            matrix.scales[b] = 0.0;
        }
        let packed = rig.pack(weight(&matrix)?)?;
        let x_scales = row_scales(&mut rig.rng, 3);
        let product = Product { matrix: &matrix, packed: &packed, x: &x, x_scales: &x_scales };
        product.sums(rig, Epilogue::Store)?;
        product.scaled(rig, Epilogue::Store)
    })
}

/// Groups run over the flattened tensor and may straddle rows. Sums have no scale and one scale has no groups, so both are
/// defined; with different scales the definition has no answer, and `supports` has to say no.
fn straddling(format: Format, k: usize) -> Case {
    Case::new(format!("matmul/{format}/m3.n5.k{k}/straddling-groups"), move |rig| {
        judge_random(rig, format, (3, 5, k), Scales::One, DType::I32, Epilogue::Store)?;
        judge_random(rig, format, (3, 5, k), Scales::One, DType::F32, Epilogue::Store)?;
        match judge_random(rig, format, (3, 5, k), Scales::Positive, DType::F32, Epilogue::Store) {
            Err(Stop::NotSupported(_)) => Ok(()),
            Err(stop) => Err(stop),
            Ok(()) => fail("groups that straddle rows were multiplied with several scales, which is not defined"),
        }
    })
}

/// Activation scales from the smallest that a row of large numbers has to the one of a row of zeros.
fn small_and_large_scales(format: Format) -> Case {
    let k = short_row(format);
    Case::new(format!("matmul/{format}/m6.n4.k{k}/scale-range"), move |rig| {
        let matrix = random(&mut rig.rng, format, Shape::new(4, k)?, Scales::One);
        let packed = rig.pack(weight(&matrix)?)?;
        let x = rig.rng.int8(6 * k);
        let mut x_scales = row_scales(&mut rig.rng, 3);
        x_scales.extend([127.0 / f32::MAX, 127.0 / 1e-5, 1.0]);
        Product { matrix: &matrix, packed: &packed, x: &x, x_scales: &x_scales }.scaled(rig, Epilogue::Store)
    })
}
