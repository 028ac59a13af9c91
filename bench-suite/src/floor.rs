//! The least time that the machine's measured limits allow.

use serde::{Deserialize, Serialize};

use crate::report::Work;

/// Which limit sets the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Moving the bytes.
    Bytes,
    /// Doing the arithmetic.
    Arithmetic,
}

/// The least time for a piece of work: the larger of moving its bytes and doing its multiply-accumulates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Seconds.
    pub seconds: f64,
    /// Which of the two it is.
    pub bound: Bound,
    /// Bytes a second that were assumed; `None` where they were not measured.
    pub bandwidth: Option<f64>,
    /// int8 multiply-accumulates a second that were assumed; `None` where they were not measured.
    pub int8_rate: Option<f64>,
    /// Seconds at the limits' medians instead of their fastest samples; what a median time is held against. `None` in reports
    /// from before it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usual: Option<f64>,
}

/// The floor of `work`; `None` where neither limit was measured, or there is no work that they limit. A limit that was not
/// measured is not guessed: the floor is then that of the other alone.
pub fn floor(work: &Work, bandwidth: Option<f64>, int8_rate: Option<f64>) -> Option<Floor> {
    let time = |amount: f64, rate: Option<f64>| {
        rate.filter(|r| r.is_finite() && *r > 0.0).map(|r| amount / r).filter(|t| t.is_finite() && *t > 0.0)
    };
    let (bytes, macs) = (time(work.bytes, bandwidth), time(work.macs, int8_rate));
    let (seconds, bound) = match (bytes, macs) {
        (Some(b), Some(m)) if m > b => (m, Bound::Arithmetic),
        (Some(b), _) => (b, Bound::Bytes),
        (None, Some(m)) => (m, Bound::Arithmetic),
        (None, None) => return None,
    };
    Some(Floor { seconds, bound, bandwidth, int8_rate, usual: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { units: 1.0, bytes: 2e9, macs: 6e9 };

    #[test]
    fn the_larger_of_the_two_times_is_the_floor() {
        let f = floor(&WORK, Some(1e9), Some(6e9)).unwrap();
        assert_eq!((f.seconds, f.bound), (2.0, Bound::Bytes));
        let f = floor(&WORK, Some(4e9), Some(6e9)).unwrap();
        assert_eq!((f.seconds, f.bound), (1.0, Bound::Arithmetic));
    }

    #[test]
    fn a_limit_that_was_not_measured_is_not_guessed() {
        assert_eq!(floor(&WORK, Some(1e9), None).unwrap().bound, Bound::Bytes);
        assert_eq!(floor(&WORK, None, Some(6e9)).unwrap().bound, Bound::Arithmetic);
        assert_eq!(floor(&WORK, None, None), None);
        assert_eq!(floor(&WORK, Some(0.0), Some(f64::NAN)), None);
        assert_eq!(floor(&Work::default(), Some(1e9), Some(1e9)), None);
    }

    #[test]
    fn one_decoded_token_of_2b_4t_at_32_gigabytes_a_second() {
        // 2 bits a weight and a Q6_K head: 790 MB, 40.5 tokens a second (docs/performance.md).
        let work = Work { units: 1.0, bytes: 521.0e6 + 269.3e6, macs: 2_084_044_800.0 };
        let f = floor(&work, Some(32e9), Some(200e9)).unwrap();
        assert_eq!(f.bound, Bound::Bytes);
        assert!((1.0 / f.seconds - 40.5).abs() < 0.05, "{f:?}");
    }
}
