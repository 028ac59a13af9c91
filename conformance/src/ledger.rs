//! What the backend said it would do, held against what it did, over the whole run.

use std::collections::BTreeMap;

use tersor_core::{Error, OpKind, OpSpec, Ran, Result};

use crate::report::Outcome;

#[derive(Debug, Default)]
struct Account {
    yes: usize,
    no: usize,
    lies: Vec<String>,
    wrong_names: Vec<String>,
}

/// One account for each op.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<OpKind, Account>);

impl Ledger {
    /// `supports` said no; `answer` is what `submit` said.
    pub(crate) fn refused(&mut self, spec: &OpSpec, reason: &str, answer: &Result<Ran>) {
        let account = self.0.entry(spec.kind()).or_default();
        account.no += 1;
        let lie = match answer {
            Err(Error::Unsupported { .. }) if reason.trim().is_empty() => {
                "supports says no without a reason".to_owned()
            }
            Err(Error::Unsupported { .. }) => return,
            Err(e) => format!("supports says no ({reason}), and submit fails with another error than Unsupported: {e}"),
            Ok(ran) => format!("supports says no ({reason}), but submit ran {}", ran.kernel),
        };
        account.lies.push(format!("{spec}: {lie}"));
    }

    /// `supports` said yes and promised `kernel`.
    pub(crate) fn accepted(&mut self, spec: &OpSpec, kernel: &str, answer: &Result<Ran>) {
        let account = self.0.entry(spec.kind()).or_default();
        account.yes += 1;
        match answer {
            Err(e @ Error::Unsupported { .. }) => {
                account.lies.push(format!("{spec}: supports says yes ({kernel}), but submit says: {e}"));
            }
            // Any other failure is the case's own.
            Err(_) => {}
            Ok(ran) if ran.kernel != kernel => {
                account.wrong_names.push(format!("{spec}: supports promises {kernel}, submit ran {}", ran.kernel));
            }
            Ok(_) if !well_named(spec.kind(), kernel) => {
                account.wrong_names.push(format!("{spec}: {kernel:?} is no kernel name, op.weight-act.isa.tile"));
            }
            Ok(_) => {}
        }
    }

    /// The ledger's own cases, two for each op that was asked about.
    pub(crate) fn verdicts(&self) -> Vec<(String, Outcome)> {
        let judge = |found: &[String], asked: usize| match found.first() {
            None => Outcome::Passed,
            Some(first) => Outcome::Failed { message: format!("{} of {asked} times, first {first}", found.len()) },
        };
        let mut verdicts = Vec::new();
        for (kind, account) in &self.0 {
            verdicts.push((format!("supports/{kind}"), judge(&account.lies, account.yes + account.no)));
            if account.yes > 0 {
                verdicts.push((format!("kernel-names/{kind}"), judge(&account.wrong_names, account.yes)));
            }
        }
        verdicts
    }
}

/// The first part of a kernel's name is its op; products are `gemv` for one row and `gemm` for more, but one kernel may
/// well serve both.
fn well_named(kind: OpKind, kernel: &str) -> bool {
    match (kind, kernel.split_once('.')) {
        (OpKind::MatMul, Some((op, rest))) => (op == "gemv" || op == "gemm") && !rest.is_empty(),
        (_, Some((op, rest))) => op == kind.id() && !rest.is_empty(),
        (_, None) => false,
    }
}
