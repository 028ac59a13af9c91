//! What a call through the ABI costs over a direct one, for the smallest ops of the portable backend. Ends with 1 where that is
//! more than the limit.
//!
//! `cargo run --release -p tersor-abi --example boundary_cost`
#![allow(clippy::unwrap_used, reason = "an instrument")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use tersor_abi::host::Plugin;
use tersor_backend_scalar as _;
use tersor_core::{
    Activations, BackendEntry, Epilogue, Floats, Format, HostContext, In, Op, Out, Output, QuantBackend, Shape, Stream,
    codec,
};

/// Nanoseconds that a call may cost over a direct one.
const LIMIT: f64 = 60.0;
const CALLS: u32 = 2_000;
const BATCHES: usize = 500;

fn scalar() -> &'static BackendEntry {
    tersor_core::entries().find(|entry| entry.id == "scalar").unwrap()
}
tersor_abi::export_backend!(scalar());

/// One batch, in nanoseconds a call.
type Batch = Box<dyn FnMut() -> f64>;

fn batch(mut call: impl FnMut(&mut dyn Stream) + 'static, backend: &dyn QuantBackend) -> Batch {
    let mut stream = backend.open_stream().unwrap();
    Box::new(move || {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call(&mut *stream));
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    })
}

fn copy(backend: &dyn QuantBackend) -> Batch {
    let (x, mut y) = ([1.5f32], [0.0f32]);
    batch(
        move |stream| {
            let op = Op::Copy { x: In::Host(black_box(&x)), y: Out::Host(&mut y) };
            stream.submit(op.check().unwrap()).unwrap();
        },
        backend,
    )
}

fn product(backend: &dyn QuantBackend) -> Batch {
    let (shape, format) = (Shape::new(1, 128).unwrap(), Format::I2S);
    let weight = codec::quantize(Floats::F32(&[1.0; 128]), shape, format).unwrap();
    let packed = backend.pack(&weight).unwrap();
    let (q, scales, mut y) = ([3i8; 128], [1.0f32], [0.0f32]);
    batch(
        move |stream| {
            let x = Activations::Int8 { q: In::Host(black_box(&q)), scales: In::Host(&scales) };
            let y = Output::F32(Out::Host(&mut y));
            let op = Op::MatMul { w: &packed, x, y, epilogue: Epilogue::Store };
            stream.submit(op.check().unwrap()).unwrap();
        },
        backend,
    )
}

/// The fastest batches of both: taken in turn, so that both meet the same clock and the same neighbours.
fn fastest(direct: &mut Batch, through: &mut Batch) -> (f64, f64) {
    (0..BATCHES).fold((f64::INFINITY, f64::INFINITY), |(a, b), _| (a.min(direct()), b.min(through())))
}

fn main() -> ExitCode {
    let host = HostContext::inline();
    // SAFETY: our own symbol.
    let plugin = unsafe { Plugin::connect(tersor_plugin_v1) }.unwrap();
    let (direct, through) = ((scalar().open)(&host).unwrap(), plugin.backends[0].open(&host).unwrap());
    let mut most = 0.0f64;
    for (name, make) in [("copy of 1", copy as fn(&dyn QuantBackend) -> Batch), ("product of 1x128", product)] {
        let (direct, through) = fastest(&mut make(&*direct), &mut make(&*through));
        let more = through - direct;
        println!("{name}: direct {direct:.1} ns, through the ABI {through:.1} ns, {more:.1} ns more");
        most = most.max(more);
    }
    println!("at most {most:.1} ns more; the limit is {LIMIT} ns");
    if most <= LIMIT { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
