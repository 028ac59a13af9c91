//! "Did you mean": the valid name that resembles a wrong one.

use super::env::OTHER_VARIABLES;
use super::schema::{KEYS, SECTIONS};

/// The candidate that resembles `given` most, where a slip of the hand explains the difference (a third of the letters, at
/// least one) or `given` was cut short.
pub(super) fn nearest<S: AsRef<str>>(given: &str, candidates: impl IntoIterator<Item = S>) -> Option<S> {
    let given = given.to_lowercase();
    let measured = candidates.into_iter().map(|candidate| {
        let name = candidate.as_ref().to_lowercase();
        let cut_short = given.len() >= 3 && name.starts_with(&given);
        let distance = if cut_short { 0 } else { strsim::damerau_levenshtein(&given, &name) };
        ((distance, name.len()), candidate)
    });
    let ((distance, _), best) = measured.min_by_key(|(rank, _)| *rank)?;
    (distance <= (given.chars().count() / 3).max(1)).then_some(best)
}

/// Section and last part of a path.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// The keys and sections directly in a section, or in the root for `""`.
pub(super) fn names_in(section: &str) -> Vec<String> {
    let sections = SECTIONS.iter().map(|section| section.path);
    let all = KEYS.iter().map(|key| key.path).chain(sections);
    all.filter(|path| split(path).0 == section).map(str::to_owned).collect()
}

/// The key or section that was meant by a path that is none. Parts are compared one by one: in a long path a third of the
/// letters would be a whole other name.
pub(super) fn nearest_key(path: &str) -> Option<String> {
    let (given_section, leaf) = split(path);
    let sections = || SECTIONS.iter().map(|section| section.path).chain([""]);
    let section = sections().find(|it| *it == given_section).or_else(|| nearest(given_section, sections()));
    let names = section.map(names_in).unwrap_or_default();
    let here = nearest(leaf, names.iter().map(|name| split(name).1));
    let here = here.and_then(|leaf| names.iter().find(|name| split(name).1 == leaf)).cloned();
    // Else the right name in the wrong section.
    here.or_else(|| KEYS.iter().find(|key| split(key.path).1 == leaf).map(|key| key.path.to_owned()))
}

/// All variables of ours.
pub(super) fn variables() -> impl Iterator<Item = String> {
    let keys = KEYS.iter().flat_map(|key| [Some(key.variable()), key.alias.map(str::to_owned)]);
    keys.flatten().chain(OTHER_VARIABLES.iter().map(|other| other.name.to_owned()))
}

/// The variable of ours that was meant by one that is none. The prefix that all share does not count as resemblance.
pub(super) fn nearest_variable(given: &str) -> Option<String> {
    const PREFIX: &str = "TERSOR_";
    let names: Vec<String> = variables().collect();
    let stems = names.iter().filter_map(|name| name.strip_prefix(PREFIX));
    nearest(given.strip_prefix(PREFIX)?, stems).map(|stem| format!("{PREFIX}{stem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_noise_finds_none() {
        let words = ["count", "affinity"];
        assert_eq!(nearest("cuont", words), Some("count"));
        assert_eq!(nearest("Count", words), Some("count"));
        assert_eq!(nearest("afinity", words), Some("affinity"));
        assert_eq!(nearest("aff", words), Some("affinity"));
        assert_eq!(nearest("flavour", words), None);
        assert_eq!(nearest("x", Vec::<String>::new()), None);
    }

    #[test]
    fn a_key_is_found_through_a_slip_in_any_part_or_in_another_section() {
        let found = |path: &str| nearest_key(path).unwrap_or_default();
        assert_eq!(found("threads.cuont"), "threads.count");
        assert_eq!(found("thread.count"), "threads.count");
        assert_eq!(found("thread"), "threads");
        assert_eq!(found("select.format"), "select.formats");
        assert_eq!(found("select.formats.tq1"), "select.formats.tq1_0");
        assert_eq!(found("select.formats.foo"), "");
        assert_eq!(found("seed"), "run.seed");
        assert_eq!(found("gpu.seed"), "run.seed");
        assert_eq!(found("no.such.thing"), "");
    }

    #[test]
    fn the_common_prefix_of_variables_is_no_resemblance() {
        assert_eq!(nearest_variable("TERSOR_THREAD").as_deref(), Some("TERSOR_THREADS"));
        assert_eq!(nearest_variable("TERSOR_FOO"), None);
        assert_eq!(nearest_variable("TERSOR_"), None);
    }
}
