//! What can go wrong in a benchmark.

use std::io;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A benchmark that cannot be run, written or compared. A single case that fails is no error: it is in the report, absent
/// with its reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Discovery, configuration or selection.
    #[error(transparent)]
    Registry(#[from] tersor_registry::Error),
    /// An operation.
    #[error(transparent)]
    Core(#[from] tersor_core::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] tersor::model::Error),
    /// Nothing is left to measure.
    #[error("no backend can be measured:{}", list(.reasons))]
    NoBackend {
        /// Each backend with the reason why not.
        reasons: Vec<String>,
    },
    /// A file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: create, write, read.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file that is no report of this version.
    #[error("{}: not a report that this version can read: {problem}", path.display())]
    NotAReport {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A picture that could not be drawn.
    #[error("cannot draw {}: {problem}", path.display())]
    Drawing {
        /// The file.
        path: PathBuf,
        /// What the drawing library said.
        problem: String,
    },
    /// Two reports that measured different things.
    #[error("the two reports cannot be compared, because they differ in{}", list(.axes))]
    Axes {
        /// Each axis with both values.
        axes: Vec<String>,
    },
}

fn list(lines: &[String]) -> String {
    lines.iter().map(|l| format!("\n  {l}")).collect()
}
