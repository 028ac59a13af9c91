//! Ops with operands, as calls of each candidate.

use tersor::core::{Activations, Bytes, DType, Epilogue, In, Op, OpSpec, Out, Output, PackedWeight, Stream, Weight};
use tersor::registry::tune::Contender;
use tersor_bench::material::{activations, int8_activations};

use crate::Outcome;

/// Runs an op once, on the operands of this turn.
pub(crate) type Call = Box<dyn FnMut(usize) -> Outcome<()>>;

fn done(stream: &mut dyn Stream, op: Op<'_>) -> Outcome<()> {
    stream.submit(op.check()?)?;
    Ok(stream.synchronize()?)
}

/// A product, over as many copies of the weight as are `bytes` long. Candidates that pack alike share them.
pub(crate) fn products(spec: &OpSpec, weight: &Weight, all: &[Contender], bytes: usize) -> Outcome<Vec<Call>> {
    let OpSpec::MatMul { activations: kind, m, n, k, epilogue, .. } = *spec else { return Err("no product".into()) };
    let mut made: Vec<Vec<PackedWeight>> = Vec::new();
    let mut calls: Vec<Call> = Vec::new();
    for contender in all {
        let copy = |_| -> Outcome<PackedWeight> {
            let codes = Bytes::copy_from_slice(weight.codes());
            let own = Weight::new(weight.format(), weight.shape(), codes, weight.scales())?;
            Ok(contender.backend.pack(&own)?)
        };
        let first = copy(0)?;
        let count = bytes.div_ceil(first.bytes()).max(2);
        let copies = match made.iter().find(|copies| copies[0].tag() == first.tag()) {
            Some(copies) => copies.clone(),
            None => (0..count).map(copy).collect::<Outcome<Vec<_>>>()?,
        };
        made.push(copies.clone());
        let mut stream = contender.backend.open_stream()?;
        let ((q, scales), floats, mut y) = (int8_activations(m, k), activations(m, k), vec![0.0f32; m * n]);
        calls.push(Box::new(move |turn| {
            let w = &copies[turn % copies.len()];
            let x = match kind {
                DType::I8 => Activations::Int8 { q: In::Host(&q), scales: In::Host(&scales) },
                _ => Activations::F32(In::Host(&floats)),
            };
            if epilogue == Epilogue::Add {
                // Sums would grow without end.
                y.fill(1.0);
            }
            done(&mut *stream, Op::MatMul { w, x, y: Output::F32(Out::Host(&mut y)), epilogue })
        }));
    }
    Ok(calls)
}

/// Another op of a pass. Keys and values of attention are as many copies as are `bytes` long.
pub(crate) fn others(spec: &OpSpec, all: &[Contender], bytes: usize) -> Outcome<Vec<Call>> {
    all.iter().map(|contender| other(spec, contender.backend.open_stream()?, bytes)).collect()
}

fn other(spec: &OpSpec, mut stream: Box<dyn Stream>, bytes: usize) -> Outcome<Call> {
    Ok(match *spec {
        OpSpec::RmsNormQuantize { rows, cols } => {
            let (x, w) = (activations(rows, cols), activations(1, cols));
            let (mut q, mut scales) = (vec![0; rows * cols], vec![0.0; rows]);
            Box::new(move |_| {
                let (q, scales) = (Out::Host(&mut q[..]), Out::Host(&mut scales[..]));
                done(&mut *stream, Op::RmsNormQuantize { x: In::Host(&x), w: In::Host(&w), eps: 1e-5, q, scales })
            })
        }
        OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, .. } => {
            let width = kv_heads * head_dim;
            let count = bytes.div_ceil(8 * capacity * width).max(2);
            let cache = || vec![activations(capacity, width); count];
            let (keys, values, q) = (cache(), cache(), activations(rows, heads * head_dim));
            let mut y = vec![0.0; q.len()];
            // Half of the context is filled.
            let last = (capacity / 2).max(rows);
            let positions: Vec<u32> = (last - rows..last).map(|p| p as u32).collect();
            Box::new(move |turn| {
                let op = Op::Attention {
                    q: In::Host(&q),
                    heads,
                    kv_heads,
                    head_dim,
                    positions: In::Host(&positions),
                    span: None,
                    k_cache: In::Host(&keys[turn % count]),
                    v_cache: In::Host(&values[turn % count]),
                    y: Out::Host(&mut y[..]),
                };
                done(&mut *stream, op)
            })
        }
        other => return Err(format!("nobody searches for {other}").into()),
    })
}
