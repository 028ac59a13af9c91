//! The phases of a run. Each makes figures from cases that it interleaves, and measures the limits in between.

mod cold;
mod inference;
mod products;
mod quantize;
mod resident;
mod rows;

use std::time::Duration;

use crate::candidates::Candidates;
use crate::limits::DeviceProbe;
use crate::machine::Machine;
use crate::material::Material;
use crate::report::{Figure, Limit, LimitKind};
use crate::schedule::{self, Case, Outcome, Plan, Sample};
use crate::{floor, floor::Floor, stats::Summary};

pub(crate) use cold::Cold;
pub(crate) use inference::{Inference, Loaded};
pub(crate) use products::{Products, Which, shapes_2b_4t};
pub(crate) use quantize::{Large, profile as profile_quantization, quantize};
pub(crate) use resident::probes;
pub(crate) use rows::rows;

/// What every phase needs.
pub(crate) struct Setup<'a> {
    pub(crate) candidates: &'a Candidates,
    pub(crate) material: &'a Material,
    pub(crate) machine: &'a Machine,
    pub(crate) warmup: usize,
    pub(crate) iterations: usize,
    /// The devices among the candidates.
    pub(crate) devices: &'a mut Vec<DeviceProbe>,
    /// Told the name of each case as it is first run.
    pub(crate) progress: &'a mut dyn FnMut(&str),
}

/// What a phase found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) figures: Vec<Figure>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) notes: Vec<String>,
}

/// Runs a sample: prepares, times, checks; may note the kernel that ran.
type Run<'a> = Box<dyn FnMut(&mut Figure) -> Result<Sample, String> + 'a>;

/// A case of any phase.
pub(crate) struct Timed<'a> {
    pub(crate) figure: Figure,
    pub(crate) group: usize,
    pub(crate) run: Run<'a>,
}

impl Case for Timed<'_> {
    fn group(&self) -> usize {
        self.group
    }

    fn sample(&mut self) -> Result<Sample, String> {
        (self.run)(&mut self.figure)
    }
}

impl Setup<'_> {
    /// Measures cases in turn and makes figures of them, floors not yet set.
    pub(crate) fn measure(&mut self, cases: Vec<Timed<'_>>, budget: Duration, between: impl FnMut()) -> Vec<Figure> {
        let plan = Plan { warmup: self.warmup, samples: self.iterations, budget };
        let mut cases = cases;
        let names: Vec<String> = cases.iter().map(|c| c.figure.case()).collect();
        let outcomes = schedule::round_robin(&mut cases, plan, between, |i| (self.progress)(&names[i]));
        cases.into_iter().zip(outcomes).map(|(case, outcome)| finished(case.figure, outcome)).collect()
    }
}

/// What is said of a figure that is there, but not as it should be.
pub(crate) const ONLY_WARM_UP: &str = "one sample without warm-up, for want of time";

fn finished(mut figure: Figure, outcome: Outcome) -> Figure {
    figure.utilisation = outcome.utilisation(figure.threads).filter(|_| figure.device == "cpu");
    figure.time = Summary::of(&outcome.samples);
    if figure.time.is_none() {
        figure.absent = outcome.failed.or_else(|| Some("the clock gave no usable time".to_owned()));
        figure.checked = None;
    } else if outcome.cold {
        figure.absent = Some(ONLY_WARM_UP.to_owned());
    }
    figure.samples = outcome.samples;
    figure
}

/// Sets the floor of each figure from the limits of its phase at its thread count.
pub(crate) fn set_floors(figures: &mut [Figure], limits: &[Limit]) {
    for f in figures {
        let own = |l: &&Limit| l.device == f.device && l.threads == f.threads;
        let limit = |kind| limits.iter().filter(own).find(|l| l.kind == kind);
        let at = |rate: fn(&Limit) -> f64| {
            floor::floor(&f.work, limit(LimitKind::Read).map(rate), limit(LimitKind::Int8).map(rate))
        };
        let usual = at(|l| l.median).map(|floor| floor.seconds);
        f.floor = at(|l| l.best).map(|floor| Floor { usual, ..floor });
    }
}

/// The first element that differs, NaN being different from everything but the same bits.
pub(crate) fn first_difference(got: &[f32], want: &[f32]) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} results, {} expected", got.len(), want.len()));
    }
    let at = got.iter().zip(want).position(|(g, w)| g.is_nan() || g.to_bits() != w.to_bits())?;
    Some(format!("result {at} is {} but should be {}", got[at], want[at]))
}

/// What is put where a result is to be.
pub(crate) const POISON: f32 = f32::NAN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_never_passes() {
        assert_eq!(first_difference(&[1.0, 2.0], &[1.0, 2.0]), None);
        assert!(first_difference(&[f32::NAN], &[f32::NAN]).is_some());
        assert!(first_difference(&[0.0], &[-0.0]).unwrap().contains("result 0"));
        assert!(first_difference(&[], &[1.0]).is_some());
    }
}
