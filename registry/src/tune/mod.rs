//! The autotuner: which kernel is fastest, measured.
//!
//! Static rules pick wrong (the widest instruction set wins on one processor and loses on its neighbour), and noisy
//! measurement picks wrong too. So a [`Tuner`] measures, says how sure it is, and repeats itself:
//!
//! * [`key`]: what is measured: a product of a weight shape for a range of rows, or another op of one size.
//! * [`candidate`]: who takes part: a backend at one of its ISA tiers, known by name, kernel, revision and build.
//! * [`race`] and [`task`]: the oracle's gate and cold operands, of products and of other ops.
//! * [`rounds`]: the measurement: candidates in turn, until the verdict is clear.
//! * [`stats`]: the verdict: medians of ratios with margins, ties to a fixed order.
//! * [`tuner`]: the budget, what is remembered, what stays on static priority and why.
//! * [`cache`] and [`record`]: what is remembered on disk; [`fingerprint`]: for which machine.
//! * [`routed`]: a backend that hands each product to its winner.
//!
//! Where a measurement cannot be had (the budget is too small for cold weights, the machine too noisy, its cache unknown),
//! the choice stays with static priority, and [`Basis::Static`] says why.

pub mod cache;
pub mod candidate;
pub mod fingerprint;
mod jobs;
pub mod key;
pub mod race;
pub mod record;
pub mod rounds;
pub mod routed;
pub(crate) mod select;
pub mod stats;
mod subject;
pub mod task;
pub mod tuner;
mod waits;

pub use cache::Cache;
pub use candidate::{BUILD_ID, Contender, Identity};
pub use fingerprint::Fingerprint;
pub use key::{Key, Product, RowBucket, Task, WeightClass};
pub use record::{Fate, Measured, Record};
pub use routed::Routed;
pub use select::{Route, Workload};
pub use tuner::{Basis, Effort, Resolved, Tuner};

#[cfg(test)]
mod tests;
