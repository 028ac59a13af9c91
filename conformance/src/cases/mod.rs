//! The case list.

mod attention;
mod blocks;
mod contract;
mod dense;
mod dequantize;
mod determinism;
mod math;
mod matmul;
mod memory;
mod model;
mod operands;
mod placement;
mod quantize;
mod required;
mod rows;
mod sample;
mod scaled;

use std::fmt;

use tersor_core::Format;

use crate::rig::{Rig, Verdict};
use crate::suite::Profile;

/// A name and what is judged under it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) run: Box<dyn Fn(&mut Rig<'_>) -> Verdict>,
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, run: impl Fn(&mut Rig<'_>) -> Verdict + 'static) -> Self {
        Case { name: name.into(), run: Box::new(run) }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every ternary format, those with group scales included.
pub(crate) fn ternary_formats() -> impl Iterator<Item = Format> {
    Format::TERNARY.into_iter().chain(Format::GROUPED)
}

/// All cases of a profile, in the order in which they run.
pub(crate) fn list(profile: Profile) -> Vec<Case> {
    let families: [fn(Profile) -> Vec<Case>; 16] = [
        required::cases,
        math::cases,
        memory::cases,
        contract::cases,
        quantize::cases,
        dequantize::cases,
        rows::cases,
        matmul::cases,
        scaled::cases,
        dense::cases,
        blocks::cases,
        model::cases,
        attention::cases,
        sample::cases,
        placement::cases,
        determinism::cases,
    ];
    families.iter().flat_map(|family| family(profile)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_quick_is_a_part_of_full() {
        let names = |profile| list(profile).into_iter().map(|c| c.name).collect::<Vec<_>>();
        let (quick, full) = (names(Profile::Quick), names(Profile::Full));
        for names in [&quick, &full] {
            let mut seen = HashSet::new();
            let twice: Vec<_> = names.iter().filter(|n| !seen.insert(n.as_str())).collect();
            assert!(twice.is_empty(), "{twice:?}");
        }
        let full: HashSet<_> = full.into_iter().collect();
        let missing: Vec<_> = quick.iter().filter(|n| !full.contains(*n)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
