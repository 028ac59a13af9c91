//! The functions that the oracle borrows from `tersor-core`, held against `f64`. They judge the core and not the backend; a
//! kit that trusts them says here why.

use tersor_core::reference::math::{exp, ln, rope_tables};
use tersor_core::reference::sample::gumbel;

use super::Case;
use crate::compare::fail;
use crate::oracle::float::ulps;
use crate::rig::Verdict;
use crate::suite::Profile;

pub(super) fn cases(_: Profile) -> Vec<Case> {
    vec![
        Case::new("math/exp", |_| {
            let points = (0..400_000u32).map(|i| -(i as f32) * 2.17e-4);
            within(2.0, points.map(|x| (x, exp(x), f64::from(x).exp())))
        }),
        Case::new("math/ln", |_| {
            // Arguments of the Gumbel noise: (0, 1), and the logarithms of those. Near 1 the result has no last place to
            // measure by, so the points keep away from it.
            let points = (1..400_000u32).map(|i| i as f32 * 4.1e-5).filter(|x| (x - 1.0).abs() > 0.1);
            within(2.0, points.map(|x| (x, ln(x), f64::from(x).ln())))
        }),
        Case::new("math/rope-tables", |_| {
            for (theta, dim) in [(500_000.0f32, 128), (10_000.0, 64), (10_000.0, 80)] {
                let (cos, sin) = rope_tables(theta, dim, 300);
                let angle = |i: usize| {
                    let (position, pair) = (i / (dim / 2), i % (dim / 2));
                    let exponent = f64::from((2 * pair) as f32 / dim as f32);
                    f64::from(position as f32 * (1.0 / f64::from(theta).powf(exponent) as f32))
                };
                within(1.0, (0..cos.len()).map(|i| (i as f32, cos[i], angle(i).cos())))?;
                within(1.0, (0..sin.len()).map(|i| (i as f32, sin[i], angle(i).sin())))?;
            }
            Ok(())
        }),
        Case::new("math/gumbel", |_| {
            // The mean is Euler's constant and the variance pi^2 / 6; 200,000 draws come within 0.01 of both.
            let draws: Vec<f64> =
                (0..200_000u32).map(|i| f64::from(gumbel(3, u64::from(i / 1000), i % 1000))).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let variance = draws.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / draws.len() as f64;
            let off = [mean - 0.577_215_66, variance - std::f64::consts::PI.powi(2) / 6.0];
            if off.iter().all(|d| d.abs() < 0.02) { Ok(()) } else { fail(format!("mean {mean}, variance {variance}")) }
        }),
    ]
}

fn within(limit: f64, points: impl Iterator<Item = (f32, f32, f64)>) -> Verdict {
    for (x, got, exact) in points {
        let off = ulps(got, exact);
        if off.is_nan() || off > limit {
            return fail(format!("at {x:e}: {got:e} is {off:.2} units in the last place from {exact:e}"));
        }
    }
    Ok(())
}
