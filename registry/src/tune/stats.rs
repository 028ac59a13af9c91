//! From samples to a verdict.
//!
//! Candidates are sampled in turn, so that a slow moment of the machine hits all of them. What is compared is therefore not
//! two medians but the median of the *ratios* of samples that were taken one after the other: a neighbour that takes half
//! of the machine for a second doubles both times and leaves their ratio alone.

/// Candidates whose times differ by less than this are equal: they go to the fixed order, so that two processes agree.
pub const TIE: f64 = 0.02;
/// A candidate this much slower than the best is not sampled further.
pub const FAR_BEHIND: f64 = 1.5;
/// A ratio known so well needs no more samples.
pub const FINE: f64 = 0.005;
/// A ratio known no better than this decides nothing.
pub const UNSURE: f64 = 0.05;
/// Samples without which no margin is believed.
pub const LEAST: usize = 7;

/// A median and how far it may be off, with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// Half the width of its confidence interval.
    pub margin: f64,
    /// Number of samples.
    pub count: usize,
}

/// 95 % confidence of a median, in units of IQR / sqrt(n): 1.96 standard errors of 1.253 sigma / sqrt(n), where the IQR is
/// 1.349 sigma. The estimate of spread by quartiles is that of notched box plots (McGill, Tukey and Larsen 1978).
const NOTCH: f64 = 1.96 * 1.253 / 1.349;
/// Who looks after every round sees chance pass for a difference sooner or later: to stop early, a difference has to be
/// clear by this many margins.
const PEEKING: f64 = 1.5;

/// The median of `samples` with its margin; `None` without samples. Fewer than [`LEAST`] samples have an infinite margin.
pub fn estimate(samples: impl IntoIterator<Item = f64>) -> Option<Estimate> {
    let mut sorted: Vec<f64> = samples.into_iter().filter(|s| s.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    let quantile = |q: f64| {
        let at = q * (count.checked_sub(1)? as f64);
        let (low, high) = (*sorted.get(at.floor() as usize)?, *sorted.get(at.ceil() as usize)?);
        Some(low + (high - low) * at.fract())
    };
    let (low, median, high) = (quantile(0.25)?, quantile(0.5)?, quantile(0.75)?);
    let margin = if count < LEAST { f64::INFINITY } else { NOTCH * (high - low) / (count as f64).sqrt() };
    Some(Estimate { median, margin, count })
}

/// What the samples of all candidates say. Indices are those of the candidates, whose order is the fixed one.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The candidate of least median time.
    pub fastest: usize,
    /// The first candidate, in the fixed order, that cannot be told from the fastest.
    pub winner: usize,
    /// Time of each candidate relative to the fastest; `None` where there are no samples.
    pub ratios: Vec<Option<Estimate>>,
    /// Whether more samples could change the winner.
    pub open: bool,
    /// Whether the winner may be believed.
    pub sure: bool,
}

impl Verdict {
    /// Whether a candidate is behind beyond what chance explains, however often one looks.
    pub fn clearly_slower(&self, c: usize) -> bool {
        let clear = |r: &Estimate| r.median - PEEKING * r.margin > 1.0 + TIE;
        c != self.fastest && c != self.winner && self.ratios.get(c).is_some_and(|r| r.as_ref().is_some_and(clear))
    }
}

/// Judges samples: `times[c][round]`, where a candidate that was dropped has fewer. `None` where nothing was sampled.
pub fn judge(times: &[Vec<f64>]) -> Option<Verdict> {
    let rounds = times.iter().map(Vec::len).max()?;
    // Who was dropped is behind whatever the rounds that it missed would have said.
    let running = |c: usize| times[c].len() == rounds && rounds > 0;
    let median = |c: usize| estimate(times[c].iter().copied()).map_or(f64::INFINITY, |e| e.median);
    let mut fastest = (0..times.len()).filter(|c| running(*c)).min_by(|a, b| median(*a).total_cmp(&median(*b)))?;
    let to = |best: usize| -> Vec<Option<Estimate>> {
        times.iter().map(|t| estimate(t.iter().zip(&times[best]).map(|(own, best)| own / best))).collect()
    };
    let mut ratios = to(fastest);
    // Medians and ratios need not agree on a restless machine; the ratios are right. Each step goes to one that is faster
    // round by round; they are few, and a circle ends with the steps.
    for _ in 0..times.len() {
        let faster = |c: &usize| running(*c) && ratios[*c].is_some_and(|r| r.median < 1.0);
        let ratio = |c: usize| ratios[c].map_or(f64::INFINITY, |r| r.median);
        let Some(best) = (0..times.len()).filter(faster).min_by(|a, b| ratio(*a).total_cmp(&ratio(*b))) else { break };
        fastest = best;
        ratios = to(fastest);
    }
    let tied =
        |c: &usize| running(*c) && ratios[*c].is_some_and(|r| r.median - r.margin <= 1.0 || r.median <= 1.0 + TIE);
    let winner = (0..times.len()).find(tied).unwrap_or(fastest);
    let within =
        |c: usize, decides: &dyn Fn(Estimate) -> bool| running(c) && c != fastest && ratios[c].is_some_and(decides);
    // Who comes before the fastest wins if the two are equal; who comes behind it, if it is faster after all. Either is open
    // while the line may lie on both sides, however near the two are: else what differs by a little more than a tie would
    // be one thing in this process and another in the next.
    let open = (0..times.len()).any(|c| {
        within(c, &|r| {
            let (low, high) = (r.median - PEEKING * r.margin, r.median + PEEKING * r.margin);
            let line = if c < fastest { 1.0 + TIE } else { 1.0 / (1.0 + TIE) };
            r.margin > FINE && low <= line && (c > fastest || high >= line)
        })
    });
    let unsure = |c| within(c, &|r| r.margin > UNSURE && r.median - r.margin <= 1.0 + TIE);
    let sure = rounds >= LEAST && !(0..times.len()).any(unsure);
    Some(Verdict { fastest, winner, ratios, open, sure })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples around `time` that wander together with the round, as those of interleaved candidates do.
    fn samples(time: f64, rounds: usize, seed: u64) -> Vec<f64> {
        let noise = |i: usize| ((i as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9) >> 7 & 1023) as f64;
        (0..rounds).map(|i| time * (1.0 + (i % 5) as f64) * (1.0 + noise(i) / 1023.0 * 0.02)).collect()
    }

    #[test]
    fn noise_that_hits_all_alike_hides_nothing() {
        // The machine's speed changes fivefold between rounds; ten percent are found nevertheless.
        let v = judge(&[samples(1.1, 30, 3), samples(1.0, 30, 5)]).unwrap();
        assert_eq!((v.winner, v.sure), (1, true), "{v:?}");
        let ratio = v.ratios[0].unwrap();
        assert!((ratio.median - 1.1).abs() < 0.02 && ratio.margin < 0.02, "{ratio:?}");
    }

    #[test]
    fn what_differs_by_less_than_two_percent_goes_to_the_first() {
        let v = judge(&[samples(1.01, 40, 3), samples(1.0, 40, 5)]).unwrap();
        assert_eq!(v.winner, 0, "{v:?}");
    }

    /// What is 3 % slower and known to 2 % only would be a tie in one process and none in another.
    #[test]
    fn near_the_line_of_a_tie_more_samples_are_wanted() {
        let spread = |ratio: f64, by: f64| (0..25).map(|i| ratio + by * [-1.0, -0.5, 0.0, 0.5, 1.0][i % 5]).collect();
        let open = |first: Vec<f64>| judge(&[first, vec![1.0; 25]]).unwrap().open;
        assert!(open(spread(1.03, 0.04)), "the line lies within the margins");
        assert!(!open(spread(1.03, 0.005)), "it does not");
        assert!(!open(spread(1.10, 0.04)) && !open(spread(1.0, 0.01)), "far from it on either side");
        // Behind the fastest in the fixed order, a tie changes nothing.
        assert!(!judge(&[vec![1.0; 25], spread(1.03, 0.04)]).unwrap().open);
    }

    #[test]
    fn few_samples_decide_nothing() {
        let v = judge(&[vec![2.0; LEAST - 1], vec![1.99; LEAST - 1]]).unwrap();
        assert!(v.open && !v.sure, "{v:?}");
        assert_eq!(judge(&[]), None);
        assert_eq!(judge(&[vec![], vec![]]), None);
    }

    #[test]
    fn a_margin_above_five_percent_is_not_believed() {
        let wild: Vec<f64> = (0..9).map(|i| if i % 2 == 0 { 0.7 } else { 1.6 }).collect();
        let v = judge(&[wild, vec![1.0; 9]]).unwrap();
        assert!(!v.sure, "{v:?}");
    }

    /// Seen on a busy machine: 1.7 times the fastest, give or take 0.7, was taken for a tie.
    #[test]
    fn a_wide_margin_around_a_large_ratio_decides_nothing_either() {
        let wild: Vec<f64> = (0..10).map(|i| [0.6, 2.8][i % 2]).collect();
        let v = judge(&[wild, vec![1.0; 10]]).unwrap();
        assert!(v.open && !v.sure, "{v:?}");
    }

    #[test]
    fn who_is_clearly_slower_is_known_after_few_samples_and_who_is_near_is_not() {
        let near: Vec<f64> = (0..8).map(|i| [1.0, 1.09][i % 2]).collect();
        let v = judge(&[vec![1.2; 8], near, vec![1.0; 8]]).unwrap();
        assert_eq!([0, 1, 2].map(|c| v.clearly_slower(c)), [true, false, false], "{v:?}");
    }

    #[test]
    fn who_was_dropped_cannot_win() {
        let v = judge(&[vec![3.0, 3.0, 0.1], vec![1.0; 9]]).unwrap();
        assert_eq!((v.winner, v.fastest, v.sure), (1, 1, true));
    }

    #[test]
    fn nobody_is_faster_than_the_fastest() {
        // The first has the lower median, the second is faster in most rounds.
        let (a, b) = (vec![1.0, 1.0, 5.0, 5.0, 5.0, 9.0, 9.0], vec![1.1, 1.1, 4.9, 4.9, 5.5, 9.9, 9.9]);
        let v = judge(&[b, a]).unwrap();
        assert_eq!(v.fastest, 1, "{v:?}");
        assert!(v.ratios.iter().flatten().all(|r| r.median >= 1.0), "{v:?}");
    }

    #[test]
    fn an_outlier_moves_no_median() {
        let mut spiky = vec![1.0; 15];
        spiky[7] = 1000.0;
        let e = estimate(spiky).unwrap();
        assert_eq!((e.median, e.margin), (1.0, 0.0));
        assert!(estimate([1.0, 2.0]).unwrap().margin.is_infinite());
        assert_eq!(estimate([]), None);
    }
}
