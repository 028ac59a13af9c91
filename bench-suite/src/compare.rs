//! Two reports side by side, if they measured the same thing.

use std::fmt;

use crate::error::{Error, Result};
use crate::report::{Figure, Report};

/// What changed between two reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Cases that both have.
    pub changes: Vec<Change>,
    /// Cases that only the first has.
    pub gone: Vec<String>,
    /// Cases that only the second has.
    pub new: Vec<String>,
}

/// A case in both reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The case.
    pub case: String,
    /// Median seconds in the first report.
    pub before: f64,
    /// Median seconds in the second.
    pub after: f64,
    /// Whether the two ranges from the tenth to the ninetieth percentile have nothing in common. What is not clear is noise
    /// until it is measured again.
    pub clear: bool,
    /// Kernels, where others ran.
    pub kernels: Option<(Vec<String>, Vec<String>)>,
}

/// Compares `after` with `before`.
///
/// # Errors
/// [`Error::Axes`] where they ran on other machines, with other threads, another model, another head, other data sizes or
/// in another build profile: such figures say nothing about each other.
pub fn compare(before: &Report, after: &Report) -> Result<Comparison> {
    let axes: Vec<String> = axes(before)
        .into_iter()
        .zip(axes(after))
        .filter(|(a, b)| a != b)
        .map(|((name, a), (_, b))| format!("{name}: {a} and {b}"))
        .collect();
    if !axes.is_empty() {
        return Err(Error::Axes { axes });
    }
    let find = |report: &Report, case: &str| -> Option<Figure> {
        report.figures.iter().find(|f| f.time.is_some() && f.case() == case).cloned()
    };
    let mut comparison = Comparison { changes: Vec::new(), gone: Vec::new(), new: Vec::new() };
    for a in before.figures.iter().filter(|f| f.time.is_some()) {
        let case = a.case();
        let Some((b, (ta, tb))) = find(after, &case).and_then(|b| Some((b.clone(), a.time.zip(b.time)?))) else {
            comparison.gone.push(case);
            continue;
        };
        comparison.changes.push(Change {
            case,
            before: ta.median,
            after: tb.median,
            clear: ta.p90 < tb.p10 || tb.p90 < ta.p10,
            kernels: (a.kernels != b.kernels).then(|| (a.kernels.clone(), b.kernels.clone())),
        });
    }
    for b in after.figures.iter().filter(|f| f.time.is_some()) {
        let case = b.case();
        if find(before, &case).is_none() {
            comparison.new.push(case);
        }
    }
    Ok(comparison)
}

fn axes(r: &Report) -> Vec<(&'static str, String)> {
    vec![
        ("processor", r.machine.cpu.clone()),
        ("architecture", r.machine.arch.clone()),
        ("processors", r.machine.threads.to_string()),
        ("caches", r.machine.last_level_cache().map_or_else(String::new, |c| format!("{} MB", c.bytes >> 20))),
        ("profile", format!("{} -O{}", r.build.profile, r.build.opt_level)),
        ("debug assertions", r.build.debug_assertions.to_string()),
        ("threads", format!("{:?}", r.settings.threads)),
        ("model", r.settings.model.clone()),
        ("head format", r.settings.head_format.clone()),
        ("tokens of a decode sample", r.settings.tokens.to_string()),
        ("elements of the large quantization", r.settings.quantize_elements.to_string()),
        ("bytes rotated through", r.settings.cold_bytes.to_string()),
    ]
}

impl Change {
    /// How many times as fast it is now.
    pub fn speedup(&self) -> f64 {
        self.before / self.after
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut changes: Vec<&Change> = self.changes.iter().collect();
        changes.sort_by(|a, b| a.speedup().total_cmp(&b.speedup()));
        writeln!(f, "| case | before | after | speed | |\n|---|--:|--:|--:|---|")?;
        for c in changes {
            let verdict = match (c.clear, c.speedup() < 1.0) {
                (false, _) => "within the spread",
                (true, true) => "slower",
                (true, false) => "faster",
            };
            let kernels =
                c.kernels.as_ref().map_or_else(String::new, |(a, b)| format!("; {} -> {}", a.join(" "), b.join(" ")));
            let (before, after) = (1e6 * c.before, 1e6 * c.after);
            writeln!(f, "| {} | {before:.1} us | {after:.1} us | {:.2}x | {verdict}{kernels} |", c.case, c.speedup())?;
        }
        for (cases, what) in [(&self.gone, "no longer measured"), (&self.new, "not measured before")] {
            if !cases.is_empty() {
                writeln!(f, "\n{what}: {}", cases.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::example;

    #[test]
    fn a_report_compared_with_itself_shows_no_change() {
        let r = example();
        let c = compare(&r, &r).unwrap();
        assert_eq!(c.changes.len(), r.figures.iter().filter(|f| f.time.is_some()).count());
        assert!(c.changes.iter().all(|c| c.speedup() == 1.0 && !c.clear && c.kernels.is_none()));
        assert!(c.gone.is_empty() && c.new.is_empty());
    }

    #[test]
    fn a_clear_change_is_told_from_noise() {
        let (a, mut b) = (example(), example());
        let faster = |f: &mut Figure, by: f64| {
            let samples: Vec<f64> = f.samples.iter().map(|s| s / by).collect();
            f.time = crate::stats::Summary::of(&samples);
            f.samples = samples;
        };
        faster(&mut b.figures[0], 2.0);
        let text = compare(&a, &b).unwrap().to_string();
        assert!(text.contains("2.00x | faster"), "{text}");
        b.figures[0].kernels = vec!["other".into()];
        assert!(compare(&a, &b).unwrap().to_string().contains("-> other"));
    }

    #[test]
    fn other_axes_are_refused_and_named() {
        let a = example();
        type Change = fn(&mut Report);
        let change: [(&str, Change); 5] = [
            ("processor", |r| r.machine.cpu = "other".into()),
            ("threads", |r| r.settings.threads = vec![1]),
            ("head format", |r| r.settings.head_format = "Q6_K".into()),
            ("profile", |r| r.build.profile = "debug".into()),
            ("bytes rotated", |r| r.settings.cold_bytes = 1),
        ];
        for (name, change) in change {
            let mut b = example();
            change(&mut b);
            let e = compare(&a, &b).unwrap_err().to_string();
            assert!(e.contains(name), "{e}");
        }
    }

    #[test]
    fn cases_of_one_side_are_listed() {
        let (mut a, mut b) = (example(), example());
        b.figures.remove(0);
        a.figures.remove(1);
        let text = compare(&a, &b).unwrap().to_string();
        assert!(text.contains("no longer measured") && text.contains("not measured before"), "{text}");
    }
}
