//! The portable backend behind the ABI, judged by the case list like the backend itself. Host and plugin are one program
//! here; loading from a file is the registry's, and tested there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests; their helpers are not marked as such")]

use std::sync::Arc;

use tersor_abi::host::Plugin;
use tersor_abi::host::abuse::{self, Ended};
use tersor_backend_scalar as _;
use tersor_conformance::{Options, Suite, Threads};
use tersor_core::{BackendEntry, HostContext, Probe};

fn scalar() -> &'static BackendEntry {
    tersor_core::entries().find(|entry| entry.id == "scalar").unwrap()
}

tersor_abi::export_backend!(scalar());

#[test]
fn a_backend_answers_every_case_through_the_abi_as_it_does_without() {
    // SAFETY: our own symbol.
    let plugin = unsafe { Plugin::connect(tersor_plugin_v1) }.unwrap();
    assert_eq!((plugin.name, plugin.backends.len()), ("tersor-abi", 1));
    let backend = plugin.backends[0];
    assert_eq!((backend.id, backend.kernel_revision, backend.priority), ("scalar", scalar().kernel_revision, 0));
    assert_eq!(backend.probe(), (scalar().probe)());
    assert!(matches!(backend.probe(), Probe::Usable { .. }));
    for threads in [1, 3] {
        let host = HostContext::new(Arc::new(Threads::new(threads)));
        let (direct, through) = ((scalar().open)(&host).unwrap(), backend.open(&host).unwrap());
        let suite = Suite::new(Options::quick());
        let (direct, through) = (suite.run(&*direct, &mut |_| {}), suite.run(&*through, &mut |_| {}));
        assert!(through.counts().0 > 1000 && through.counts().2 == direct.counts().2, "{through}");
        // The backend's own failures, were there any, are its own: the boundary adds and hides none.
        for (a, b) in direct.cases.iter().zip(&through.cases) {
            assert_eq!((&a.name, &a.outcome, &a.kernels), (&b.name, &b.outcome, &b.kernels));
        }
        assert_eq!(direct.cases.len(), through.cases.len());
    }
}

#[test]
fn the_export_macro_survives_calls_of_other_hosts_and_a_pool_that_panics() {
    // SAFETY: our own symbol.
    let plugin = unsafe { Plugin::connect(tersor_plugin_v1) }.unwrap();
    let ended = abuse::cases(&plugin.backends[0]);
    assert_eq!(ended.len(), 7);
    for (name, ended) in ended {
        assert_eq!(ended, Ended::Passed, "{name}");
    }
}
