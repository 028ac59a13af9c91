//! What a call through the ABI costs over a direct one: the portable backend copies one float, both ways.
//!
//! `cargo run --release -p tersor-abi --example boundary_cost`
#![allow(clippy::unwrap_used, reason = "an instrument")]

use std::hint::black_box;
use std::time::Instant;

use tersor_abi::host::Plugin;
use tersor_backend_scalar as _;
use tersor_core::{BackendEntry, HostContext, In, Op, Out, QuantBackend};

fn scalar() -> &'static BackendEntry {
    tersor_core::entries().find(|entry| entry.id == "scalar").unwrap()
}
tersor_abi::export_backend!(scalar());

/// The fastest of many rounds, in nanoseconds a call.
fn nanos(backend: &dyn QuantBackend) -> f64 {
    const CALLS: u32 = 10_000;
    let mut stream = backend.open_stream().unwrap();
    let (x, mut y) = ([1.5f32], [0.0f32]);
    let round = |_| {
        let start = Instant::now();
        for _ in 0..CALLS {
            let op = Op::Copy { x: In::Host(black_box(&x)), y: Out::Host(&mut y) };
            stream.submit(op.check().unwrap()).unwrap();
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    (0..200).map(round).fold(f64::INFINITY, f64::min)
}

fn main() {
    let host = HostContext::inline();
    // SAFETY: our own symbol.
    let plugin = unsafe { Plugin::connect(tersor_plugin_v1) }.unwrap();
    let (direct, through) = ((scalar().open)(&host).unwrap(), plugin.backends[0].open(&host).unwrap());
    let (direct, through) = (nanos(&*direct), nanos(&*through));
    println!("direct {direct:.1} ns, through the ABI {through:.1} ns, difference {:.1} ns", through - direct);
}
