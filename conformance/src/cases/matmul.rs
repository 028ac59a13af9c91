//! Exact sums: ternary weights times int8 activations, for every shape and tail, and at the extremes of both.

use std::collections::BTreeSet;

use tersor_core::{DType, Epilogue, Format, GroupSize, Shape};

use super::operands::{Product, Scales, judge_random, matrix, row_scales, weight};
use super::{Case, ternary_formats};
use crate::suite::Profile;

pub(super) const M: [usize; 12] = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 64, 128];
pub(super) const N: [usize; 10] = [1, 2, 3, 4, 5, 7, 8, 16, 17, 33];

/// A short row with an odd number of the format's smallest pieces: where tails of blocks, registers and padded sections
/// meet.
pub(super) fn short_row(format: Format) -> usize {
    match format {
        Format::I2S | Format::I2SGroup(GroupSize::G128) => 384,
        // Rows begin in the middle of a block of 128.
        Format::I2SGroup(GroupSize::G64) => 192,
        // 42 triples and 4 values left; 65 pairs.
        Format::TL1 | Format::TL2 => 130,
        _ => 256,
    }
}

/// Row lengths: every one that the format allows up to a few units, so that every tail occurs, and those of models.
fn row_lengths(format: Format) -> Vec<usize> {
    let unit = match format {
        Format::I2SGroup(g) => g.values(),
        _ => format.unit(),
    };
    let short = if unit == 2 { 256 } else { 9 * unit };
    let mut lengths: Vec<usize> = (unit..=short).step_by(unit).collect();
    lengths.extend([352, 1536, 2560, 6912].into_iter().filter(|k| k % unit == 0 && *k > short));
    lengths
}

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    let full = profile == Profile::Full;
    let mut cases = Vec::new();
    for format in ternary_formats() {
        cases.push(one_hot(format, 256));
        if format.unit() == 2 {
            cases.push(one_hot(format, 130));
        }
        let short = short_row(format);
        let grid = |k: usize| M.into_iter().flat_map(move |m| N.map(|n| (k, m, n)));
        // A set, because a shape may be both in the sweep over row lengths and in the grid of M and N.
        let mut shapes: BTreeSet<(usize, usize, usize)> = grid(short).collect();
        for k in row_lengths(format) {
            shapes.extend([(k, 1, 3), (k, 4, 5)]);
            if full && k >= 1536 {
                shapes.extend([(k, 1, 64), (k, 17, 33), (k, 64, 16), (k, 128, 7)]);
            }
        }
        if full {
            shapes.extend([1024, 2560].into_iter().flat_map(grid));
            // Layers of the published 2B-4T model.
            shapes.extend([(2560, 1, 2560), (2560, 1, 6912), (6912, 1, 2560), (2560, 16, 640), (6912, 128, 256)]);
        }
        cases.extend(shapes.into_iter().map(|(k, m, n)| sums(format, m, n, k, "sums")));
        let mut long: Vec<(usize, usize, usize)> = vec![(1, 2, 2560), (5, 3, 6912), (1, 2, 27_648), (4, 1, 27_648)];
        if full {
            long.extend([(1, 5, 13_824), (9, 4, 13_824), (16, 8, 27_648), (128, 2, 6912)]);
        }
        for (m, n, k) in long {
            cases.push(extremes(format, m, n, k));
            cases.push(sums(format, m, n + 3, k, "long"));
        }
        cases.push(Case::new(format!("matmul/{format}/m3.n5.k{short}/sums-add"), move |rig| {
            judge_random(rig, format, (3, 5, short), Scales::One, DType::I32, Epilogue::Add)
        }));
    }
    cases
}

fn sums(format: Format, m: usize, n: usize, k: usize, what: &str) -> Case {
    Case::new(format!("matmul/{format}/m{m}.n{n}.k{k}/{what}"), move |rig| {
        judge_random(rig, format, (m, n, k), Scales::One, DType::I32, Epilogue::Store)
    })
}

/// Row r of the weight is zero but for its element r, so that result r *is* activation r, negated in odd rows: a value that
/// is read from another place is named by its position.
fn one_hot(format: Format, k: usize) -> Case {
    Case::new(format!("matmul/{format}/m2.n{k}.k{k}/onehot"), move |rig| {
        let mut codes = vec![0; k * k];
        (0..k).for_each(|r| codes[r * k + r] = if r % 2 == 0 { 1 } else { -1 });
        let matrix = matrix(&mut rig.rng, format, Shape::new(k, k)?, codes, Scales::One);
        let packed = rig.pack(weight(&matrix)?)?;
        let x: Vec<i8> = (0..2 * k).map(|i| if i < k { i as u8 as i8 } else { (i * 37 + 11) as u8 as i8 }).collect();
        let x_scales = row_scales(&mut rig.rng, 2);
        Product { matrix: &matrix, packed: &packed, x: &x, x_scales: &x_scales }.sums(rig, Epilogue::Store)
    })
}

/// The sums that are largest in magnitude: all weights alike times all activations alike. Partial sums in int16 overflow
/// after 64 additions of pairs of products of codes 0..2.
fn extremes(format: Format, m: usize, n: usize, k: usize) -> Case {
    Case::new(format!("matmul/{format}/m{m}.n{n}.k{k}/extremes"), move |rig| {
        let x_scales = row_scales(&mut rig.rng, m);
        for code in [1, -1] {
            let matrix = matrix(&mut rig.rng, format, Shape::new(n, k)?, vec![code; n * k], Scales::One);
            let packed = rig.pack(weight(&matrix)?)?;
            for x in [-128, 127, -127] {
                let x = vec![x; m * k];
                Product { matrix: &matrix, packed: &packed, x: &x, x_scales: &x_scales }.sums(rig, Epilogue::Store)?;
            }
        }
        Ok(())
    })
}
