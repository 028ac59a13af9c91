//! What the conformance kit asks that needs no kernel: what the backend says that it supports, requires and checks.

use tersor_conformance::{Options, Suite};
use tersor_core::{Error, QuantBackend, Result};

use crate::{ask, driver};

/// The parts of the kit whose answers do not depend on what kernels compute.
const PARTS: [&str; 6] = ["supports/", "check/", "memory/", "required/", "math/", "pack/"];

pub(crate) fn work(backend: &dyn QuantBackend) -> Result<()> {
    let report = Suite::new(Options::full().with_only(&PARTS)).run(backend, &mut |_| {});
    println!("{report}");
    let failed: Vec<String> = report.failures().map(|case| case.name.clone()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::Device { backend: "test".into(), message: failed.join(", ") })
}

#[test]
fn what_is_promised_without_a_kernel_conforms() {
    let text = ask(&driver(false), &[("FAKE_WORK", "promises"), ("FAKE_MEMORY", "20000000000")]);
    assert!(text.contains("outcome: ok") && text.contains(" 0 failed"), "{text}");
    let passed = text.split(" passed").next().and_then(|t| t.rsplit(' ').next()).and_then(|n| n.parse().ok());
    assert!(passed.is_some_and(|n: usize| n >= 40), "{text}");
}
