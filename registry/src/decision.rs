//! A choice that explains itself.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use tersor_core::QuantBackend;

use crate::tune::Route;

/// A backend and why it was chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Ready to work.
    pub backend: Arc<dyn QuantBackend>,
    /// Why this one.
    pub decision: Decision,
}

/// What was chosen, because of what, and why not the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// What was to be run.
    pub what: String,
    /// Id of the chosen backend.
    pub chosen: String,
    /// Why.
    pub because: Reason,
    /// Kernels that the chosen backend will run, in the order asked for, each once.
    pub kernels: Vec<&'static str>,
    /// The candidates that were not chosen.
    pub rejected: Vec<Rejected>,
    /// Who runs each operation that is measured, and by what measurement; empty where nothing was to be measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

/// Why a backend was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// Configuration names it.
    Named {
        /// The key, and who set it.
        by: String,
    },
    /// It is the first eligible one in `select.order`.
    Order {
        /// Place in the list, from 1.
        place: usize,
    },
    /// It has the highest static priority of the eligible ones.
    Priority {
        /// The priority.
        priority: i32,
    },
    /// It was measured; the routes have the times.
    Measured {
        /// Operations with a measurement.
        measured: usize,
        /// All of them.
        of: usize,
    },
    /// `cuda-or-cpu` was asked for, and no GPU can do it.
    Fallback {
        /// Why no GPU.
        reason: String,
    },
}

/// A backend that was not chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rejected {
    /// Its id.
    pub id: String,
    /// Why not.
    pub reason: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Named { by } => write!(f, "named by {by}"),
            Reason::Order { place } => write!(f, "number {place} in select.order"),
            Reason::Priority { priority } => {
                write!(f, "highest static priority ({priority}); nothing has been measured")
            }
            Reason::Measured { measured, of } => write!(f, "measured ({measured} of {of} operations)"),
            Reason::Fallback { reason } => write!(f, "cuda-or-cpu fell back to the CPU: {reason}"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} runs {}: {}", self.chosen, self.what, self.because)?;
        for r in &self.rejected {
            write!(f, "\n  not {}: {}", r.id, r.reason)?;
        }
        self.routes.iter().try_for_each(|route| write!(f, "\n  {route}"))
    }
}
