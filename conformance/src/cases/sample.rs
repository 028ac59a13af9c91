//! Drawing tokens.

use tersor_core::{Op, SampleParams};

use super::Case;
use crate::compare::same;
use crate::oracle::sample;
use crate::rig::{Rig, Verdict};
use crate::rng::Rng;
use crate::suite::Profile;

pub(super) fn cases(_: Profile) -> Vec<Case> {
    let mut cases = Vec::new();
    for vocab in [1, 2, 63, 64, 65, 1000, 32_003] {
        let mut case = |what: &'static str, temperature: f32, top_k: Option<u32>, ties: bool| {
            cases.push(Case::new(format!("sample/{vocab}/{what}"), move |rig| {
                judge(rig, vocab, temperature, top_k, ties)
            }));
        };
        case("argmax", 0.0, None, false);
        case("argmax-ties", 0.0, None, true);
        case("argmax-top-3", 0.0, Some(3), true);
        case("temperature", 0.8, None, false);
        case("hot", 5.0, None, true);
        case("top-1", 1.0, Some(1), true);
        case("top-5", 0.7, Some(5), false);
        case("top-5-ties", 0.7, Some(5), true);
        case("top-more-than-there-are", 1.0, Some(40_000), false);
    }
    cases.push(Case::new("sample/65/nan", |rig| {
        let params = SampleParams { temperature: 0.0, top_k: None, seed: 1 };
        let mut logits = rig.rng.gaussians(2 * 65);
        logits[100] = f32::NAN;
        let (logits, steps) = (rig.hold(&logits)?, rig.hold(&[0u32, 1])?);
        let mut ids = rig.blank(2)?;
        let op = Op::Sample { logits: logits.input(), params, steps: steps.input(), ids: ids.output() };
        rig.refused(op, "a logit is NaN").map(drop)
    }));
    cases
}

fn logits(rng: &mut Rng, n: usize, ties: bool) -> Vec<f32> {
    if !ties {
        return rng.gaussians(n).into_iter().map(|v| v * 3.0).collect();
    }
    // A few values, the largest of them many times; no zeros, whose two signs would be equal and yet differ.
    (0..n).map(|_| [-1.5, 0.5, 2.25, 2.25][rng.below(4)]).collect()
}

fn judge(rig: &mut Rig<'_>, vocab: usize, temperature: f32, top_k: Option<u32>, ties: bool) -> Verdict {
    let rows = 4;
    let params = SampleParams { temperature, top_k, seed: rig.rng.next() };
    let x = logits(&mut rig.rng, rows * vocab, ties);
    let steps = [0, 1, 77, 100_000];
    let want: Vec<u32> = x.chunks(vocab).zip(steps).map(|(x, step)| sample::sample(x, &params, step)).collect();
    let (x, steps) = (rig.hold(&x)?, rig.hold(&steps)?);
    let mut ids = rig.blank(rows)?;
    rig.submit(Op::Sample { logits: x.input(), params, steps: steps.input(), ids: ids.output() })?;
    same("tokens", 1, &rig.read(&ids)?, &want)
}
