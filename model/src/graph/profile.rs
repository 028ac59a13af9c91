//! Where the time goes: per layer and kind of operation, measured only when asked for.

use std::fmt;
use std::time::Duration;

use tersor_core::OpKind;

/// The part of the model that an operation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Embedding lookup.
    Embedding,
    /// A transformer block.
    Layer(usize),
    /// Final norm, head and sampling.
    Head,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Embedding => f.pad("embedding"),
            Place::Layer(l) => f.pad(&format!("layer {l}")),
            Place::Head => f.pad("head"),
        }
    }
}

/// Calls and the time they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// How often.
    pub calls: u64,
    /// How long, together.
    pub time: Duration,
}

impl Spent {
    fn add(&mut self, other: Spent) {
        self.calls += other.calls;
        self.time += other.time;
    }
}

/// Time per place and kind of operation.
///
/// Each operation is waited for before its clock stops. Host backends work that way anyway; on a device the waiting costs
/// overlap, so the sum is more than an unprofiled run takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Embedding, layers, head.
    places: Vec<[Spent; OpKind::ALL.len()]>,
}

impl Profile {
    pub(crate) fn new(layers: usize) -> Self {
        Profile { places: vec![[Spent::default(); OpKind::ALL.len()]; layers + 2] }
    }

    pub(crate) fn record(&mut self, place: Place, kind: OpKind, time: Duration) {
        let last = self.places.len() - 1;
        let row = match place {
            Place::Embedding => 0,
            Place::Layer(l) => l + 1,
            Place::Head => last,
        };
        let column = OpKind::ALL.iter().position(|k| *k == kind);
        if let (Some(row), Some(column)) = (self.places.get_mut(row), column) {
            row[column].add(Spent { calls: 1, time });
        }
    }

    /// The same places, in which nothing ran.
    pub(crate) fn emptied(&self) -> Self {
        Profile::new(self.places.len() - 2)
    }

    /// Adds another part of the same model's work.
    pub(crate) fn add(&mut self, more: &Profile) {
        let all = self.places.iter_mut().flatten().zip(more.places.iter().flatten());
        all.for_each(|(sum, part)| sum.add(*part));
    }

    /// Everything that ran, in the order of the model.
    pub fn entries(&self) -> impl Iterator<Item = (Place, OpKind, Spent)> {
        let last = self.places.len() - 1;
        self.places.iter().enumerate().flat_map(move |(i, row)| {
            let place = match i {
                0 => Place::Embedding,
                i if i == last => Place::Head,
                i => Place::Layer(i - 1),
            };
            let ran = OpKind::ALL.iter().zip(row).filter(|(_, s)| s.calls > 0);
            ran.map(move |(kind, spent)| (place, *kind, *spent))
        })
    }

    /// Sums over the model for each kind that ran, longest first.
    #[must_use]
    pub fn by_kind(&self) -> Vec<(OpKind, Spent)> {
        let mut sums = sum_by(self.entries().map(|(_, kind, spent)| (kind, spent)));
        sums.sort_by_key(|(kind, spent)| (std::cmp::Reverse(spent.time), *kind));
        sums
    }

    /// Sums over the kinds for each place that ran, in the order of the model.
    #[must_use]
    pub fn by_place(&self) -> Vec<(Place, Spent)> {
        sum_by(self.entries().map(|(place, _, spent)| (place, spent)))
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.entries().map(|(_, _, spent)| spent.time).sum()
    }
}

fn sum_by<K: PartialEq>(entries: impl Iterator<Item = (K, Spent)>) -> Vec<(K, Spent)> {
    let mut sums: Vec<(K, Spent)> = Vec::new();
    for (key, spent) in entries {
        match sums.iter_mut().find(|(k, _)| *k == key) {
            Some((_, sum)) => sum.add(spent),
            None => sums.push((key, spent)),
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_agree_whichever_way_they_are_taken() {
        let ms = Duration::from_millis;
        let mut p = Profile::new(2);
        p.record(Place::Layer(1), OpKind::MatMul, ms(5));
        p.record(Place::Layer(0), OpKind::MatMul, ms(4));
        p.record(Place::Layer(0), OpKind::Rope, ms(1));
        p.record(Place::Head, OpKind::MatMul, ms(7));
        p.record(Place::Embedding, OpKind::GatherRows, ms(2));
        assert_eq!(p.total(), ms(19));
        assert_eq!(p.by_kind()[0], (OpKind::MatMul, Spent { calls: 3, time: ms(16) }));
        let places: Vec<_> = p.by_place().into_iter().map(|(place, s)| (place.to_string(), s.time)).collect();
        let want = [("embedding", 2), ("layer 0", 5), ("layer 1", 5), ("head", 7)];
        assert_eq!(places, want.map(|(name, t)| (name.to_owned(), ms(t))));
    }
}
