//! Medians and spreads.

use serde::{Deserialize, Serialize};

/// What a set of samples says. Order statistics only: one interrupted sample moves a mean, not a median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of samples.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// A tenth of the samples are at or below it.
    pub p10: f64,
    /// The middle one.
    pub median: f64,
    /// A tenth of the samples are at or above it.
    pub p90: f64,
    /// Median distance from the median.
    pub mad: f64,
}

impl Summary {
    /// `None` without samples, or where one of them is no positive finite time: a clock that goes backwards makes no figure.
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.is_empty() || samples.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = quantile(&sorted, 0.5);
        let mut distances: Vec<f64> = sorted.iter().map(|s| (s - median).abs()).collect();
        distances.sort_by(f64::total_cmp);
        Some(Summary {
            count: sorted.len(),
            min: sorted[0],
            p10: quantile(&sorted, 0.1),
            median,
            p90: quantile(&sorted, 0.9),
            mad: quantile(&distances, 0.5),
        })
    }

    /// Half the distance between the tenth and the ninetieth percentile, relative to the median.
    pub fn spread(&self) -> f64 {
        (self.p90 - self.p10) / 2.0 / self.median
    }
}

/// The quantile of sorted samples, interpolated between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_moves_neither_median_nor_mad() {
        let s = Summary::of(&[1.0, 2.0, 3.0, 4.0, 1000.0]).unwrap();
        assert_eq!((s.median, s.mad, s.min, s.count), (3.0, 1.0, 1.0, 5));
        assert!(s.p90 > 4.0 && s.p10 < 2.0);
    }

    #[test]
    fn an_even_count_has_its_median_between_the_two_in_the_middle() {
        let s = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(s.median, 2.5);
    }

    #[test]
    fn one_sample_is_its_own_summary_without_spread() {
        let s = Summary::of(&[2.0]).unwrap();
        assert_eq!((s.median, s.p10, s.p90, s.mad, s.spread()), (2.0, 2.0, 2.0, 0.0, 0.0));
    }

    #[test]
    fn no_samples_and_impossible_ones_make_no_figure() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[1.0, 0.0]), None);
        assert_eq!(Summary::of(&[f64::INFINITY]), None);
    }
}
