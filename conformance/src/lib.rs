//! One case list for every Tersor backend, judged by an independent oracle.
#![forbid(unsafe_code)]

mod cases;
mod compare;
mod error;
mod executor;
mod ledger;
pub mod oracle;
mod reals;
pub mod registered;
mod report;
mod rig;
mod rng;
mod suite;

pub use error::Error;
pub use executor::Threads;
pub use registered::{RegisteredReport, run_all_registered};
pub use report::{CaseResult, Outcome, Report};
pub use suite::{Options, Profile, Suite};
