//! What a run found: data first (it serializes with serde), a table for people second.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Every element was what the oracle says.
    Passed,
    /// Something was not.
    Failed {
        /// What, where, and what would be right.
        message: String,
    },
    /// The backend says that it does not do this. Counted and listed, never a pass.
    NotSupported {
        /// The backend's reason.
        reason: String,
    },
}

/// One case and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseResult {
    /// Stable name: operation, format or shape, what is special about the data.
    pub name: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Kernels that ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<String>,
    /// Time it took, oracle included, in microseconds.
    pub micros: u64,
}

impl CaseResult {
    /// What failed, if it failed.
    pub fn failure(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Failed { message } => Some(message),
            _ => None,
        }
    }
}

/// A backend judged by the case list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Backend id.
    pub backend: String,
    /// Version of the crate or plugin.
    pub version: String,
    /// The backend's kernel revision.
    pub kernel_revision: u32,
    /// Maker's name of the device.
    pub device: String,
    /// The ISA tier it was opened for, if it has tiers.
    pub isa: Option<String>,
    /// `quick` or `full`.
    pub profile: String,
    /// Seed of all data.
    pub seed: u64,
    /// Every kernel that ran, in order of name.
    pub kernels: Vec<String>,
    /// Every case, in the order of the list.
    pub cases: Vec<CaseResult>,
}

impl Report {
    /// Whether no case failed. What the backend does not support does not fail it, unless it is required: then a case of
    /// its own (`required/...`) fails.
    pub fn conforms(&self) -> bool {
        self.failures().next().is_none() && !self.cases.is_empty()
    }

    /// The failed cases.
    pub fn failures(&self) -> impl Iterator<Item = &CaseResult> {
        self.cases.iter().filter(|c| c.failure().is_some())
    }

    /// Number of cases that passed, failed, and were not supported.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |want: fn(&Outcome) -> bool| self.cases.iter().filter(|c| want(&c.outcome)).count();
        (
            count(|o| matches!(o, Outcome::Passed)),
            count(|o| matches!(o, Outcome::Failed { .. })),
            count(|o| matches!(o, Outcome::NotSupported { .. })),
        )
    }

    /// The reasons that the backend gave for what it does not do, with the number of cases each cost and one of their names.
    pub fn not_supported(&self) -> Vec<(&str, usize, &str)> {
        let mut reasons: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for case in &self.cases {
            if let Outcome::NotSupported { reason } = &case.outcome {
                reasons.entry(reason).or_insert((0, &case.name)).0 += 1;
            }
        }
        reasons.into_iter().map(|(reason, (count, name))| (reason, count, name)).collect()
    }
}

impl fmt::Display for Report {
    /// A summary: counts, failed cases with their messages, unsupported ones by reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, failed, not_supported) = self.counts();
        let millis = self.cases.iter().map(|c| c.micros).sum::<u64>() / 1000;
        writeln!(
            f,
            "{} {} on {} (ISA tier: {}): {passed} passed, {failed} failed, {not_supported} not supported; {} kernels, {millis} ms, profile {}",
            self.backend,
            self.version,
            self.device,
            self.isa.as_deref().unwrap_or("none"),
            self.kernels.len(),
            self.profile,
        )?;
        const SHOWN: usize = 40;
        for case in self.failures().take(SHOWN) {
            writeln!(f, "  FAILED {}: {}", case.name, case.failure().unwrap_or_default())?;
        }
        if failed > SHOWN {
            writeln!(f, "  FAILED and {} more", failed - SHOWN)?;
        }
        for (reason, count, name) in self.not_supported() {
            writeln!(f, "  not supported, {count} cases such as {name}: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Outcome]) -> Report {
        let case = |(i, outcome): (usize, &Outcome)| CaseResult {
            name: format!("case/{i}"),
            outcome: outcome.clone(),
            kernels: vec!["add.f32.scalar".into()],
            micros: 3,
        };
        Report {
            backend: "b".into(),
            version: "1".into(),
            kernel_revision: 1,
            device: "d".into(),
            isa: None,
            profile: "quick".into(),
            seed: 0,
            kernels: Vec::new(),
            cases: outcomes.iter().enumerate().map(case).collect(),
        }
    }

    #[test]
    fn json_says_everything_and_reads_back() {
        let failed = Outcome::Failed { message: "row 1".into() };
        let report = report(&[Outcome::Passed, failed, Outcome::NotSupported { reason: "no".into() }]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["cases"][1]["outcome"], "failed");
        assert_eq!(json["cases"][1]["message"], "row 1");
        assert_eq!(json["cases"][2]["reason"], "no");
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }

    #[test]
    fn only_failures_and_emptiness_do_not_conform() {
        assert!(report(&[Outcome::Passed, Outcome::NotSupported { reason: "no".into() }]).conforms());
        assert!(!report(&[Outcome::Passed, Outcome::Failed { message: String::new() }]).conforms());
        assert!(!report(&[]).conforms());
    }
}
