//! A panic in the exported symbol itself: a status, and a host that lives on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests; their helpers are not marked as such")]

use std::sync::atomic::{AtomicBool, Ordering};

use tersor_abi::host::Plugin;
use tersor_backend_scalar as _;
use tersor_core::BackendEntry;

static MENDED: AtomicBool = AtomicBool::new(false);

fn entry() -> &'static BackendEntry {
    assert!(MENDED.load(Ordering::SeqCst), "this plugin panics while it makes its tables");
    tersor_core::entries().find(|entry| entry.id == "scalar").unwrap()
}
tersor_abi::export_backend!(entry());

#[test]
fn a_panic_in_the_init_symbol_is_a_refusal() {
    // SAFETY: our own symbol.
    let connect = || unsafe { Plugin::connect(tersor_plugin_v1) };
    let e = connect().unwrap_err().to_string();
    assert!(e.contains("panic"), "{e}");
    // Nothing half-made is left behind.
    MENDED.store(true, Ordering::SeqCst);
    assert_eq!(connect().unwrap().backends[0].id, "scalar");
}
