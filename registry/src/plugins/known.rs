//! Known answers: what a backend has to get right before it may be chosen. Much less than the conformance cases; enough to
//! crash, to hang or to be plainly wrong here rather than in the host.

use tersor_core::{
    Activations, Epilogue, Error, Floats, FloatsMut, Format, In, Op, OpSpec, Out, Output, QuantBackend, Shape, Support,
    Ternary, codec, reference,
};

const ROWS: usize = 6;
const COLS: usize = 768;

/// Runs everything that the backend says it does at small shapes. Returns how many answers were compared.
pub(super) fn check(backend: &dyn QuantBackend) -> Result<usize, String> {
    let mut compared = 0;
    let mut count = |name: &str, ran: Result<bool, String>| match ran {
        Ok(ran) => {
            compared += usize::from(ran);
            Ok(())
        }
        Err(e) => Err(format!("{name}: {e}")),
    };
    let shape = Shape::new(ROWS, COLS).map_err(text)?;
    for format in Format::TERNARY.into_iter().chain(Format::GROUPED) {
        count(&format!("quantize {format}"), quantize(backend, format, shape))?;
        count(&format!("dequantize {format}"), dequantize(backend, format, shape))?;
        for m in [1, 3] {
            count(&format!("matmul {format} M={m}"), matmul(backend, format, shape, m))?;
        }
    }
    count("quantize_rows", quantize_rows(backend))?;
    if compared == 0 {
        return Err("it does none of the operations whose answers are known".into());
    }
    Ok(compared)
}

fn text(e: Error) -> String {
    e.to_string()
}

fn does(backend: &dyn QuantBackend, spec: OpSpec) -> bool {
    matches!(backend.supports(&spec), Support::Yes { .. })
}

fn same<T: PartialEq + std::fmt::Debug>(got: &[T], want: &[T]) -> Result<bool, String> {
    match got.iter().zip(want).position(|(a, b)| a != b) {
        None => Ok(true),
        Some(i) => Err(format!("element {i} is {:?}, and {:?} would be right", got[i], want[i])),
    }
}

/// Numbers that look arbitrary and are the same everywhere.
fn numbers(n: usize) -> impl Iterator<Item = u32> {
    let step = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(*state >> 16)
    };
    std::iter::repeat(()).scan(12_345u32, move |state, ()| step(state)).take(n)
}

fn reals(n: usize) -> Vec<f32> {
    numbers(n).map(|v| (v as f32 - 32_768.0) / 4096.0).collect()
}

fn quantize(backend: &dyn QuantBackend, format: Format, shape: Shape) -> Result<bool, String> {
    let w = reals(shape.len());
    if !does(backend, OpSpec::Quantize { from: Floats::F32(&w).dtype(), format, shape }) {
        return Ok(false);
    }
    let want = codec::quantize(Floats::F32(&w), shape, format).map_err(text)?;
    let (mut codes, mut scales) = (vec![0xa5; want.codes().len()], vec![f32::NAN; want.scales().len()]);
    backend.quantize(Floats::F32(&w), shape, format, &mut codes, &mut scales).map_err(text)?;
    same(&codes, want.codes())?;
    same(&scales, want.scales())
}

fn dequantize(backend: &dyn QuantBackend, format: Format, shape: Shape) -> Result<bool, String> {
    let w = codec::quantize(Floats::F32(&reals(shape.len())), shape, format).map_err(text)?;
    let mut y = vec![f32::NAN; shape.len()];
    if !does(backend, OpSpec::Dequantize { format, to: Floats::F32(&y).dtype(), shape }) {
        return Ok(false);
    }
    backend.dequantize(&w, FloatsMut::F32(&mut y)).map_err(text)?;
    same(&y, &codec::dequantize(&w).map_err(text)?)
}

fn quantize_rows(backend: &dyn QuantBackend) -> Result<bool, String> {
    if !does(backend, OpSpec::QuantizeRows { rows: ROWS, cols: COLS }) {
        return Ok(false);
    }
    let x = reals(ROWS * COLS);
    let (mut q, mut scales) = (vec![77i8; x.len()], vec![f32::NAN; ROWS]);
    let op = Op::QuantizeRows { x: In::Host(&x), cols: COLS, q: Out::Host(&mut q), scales: Out::Host(&mut scales) };
    run(backend, op)?;
    for (r, x) in x.chunks(COLS).enumerate() {
        let mut want = vec![0; COLS];
        let scale = reference::rows::quantize(x, &mut want).ok_or("the known row is not finite")?;
        same(&scales[r..=r], &[scale])?;
        same(&q[r * COLS..][..COLS], &want)?;
    }
    Ok(true)
}

fn run(backend: &dyn QuantBackend, op: Op<'_>) -> Result<(), String> {
    let mut stream = backend.open_stream().map_err(text)?;
    stream.submit(op.check().map_err(text)?).map_err(text)?;
    stream.synchronize().map_err(text)
}

fn matmul(backend: &dyn QuantBackend, format: Format, shape: Shape, m: usize) -> Result<bool, String> {
    let (n, k) = (shape.rows(), shape.cols());
    if !does(backend, OpSpec::matmul(format, m, n, k)) {
        return Ok(false);
    }
    let codes: Vec<i8> = numbers(shape.len()).map(|v| (v % 3) as i8 - 1).collect();
    let block = format.scale_block().unwrap_or(shape.len());
    // Exact in binary16 too, and one for all blocks: sums are of whole rows.
    let scales = vec![0.25; shape.len().div_ceil(block)];
    let ternary = Ternary { shape, codes, block, scales };
    let packed = backend.pack(&codec::encode(&ternary, format).map_err(text)?).map_err(text)?;
    let x: Vec<i8> = numbers(m * k).map(|v| (v % 255) as i8).collect();
    let x_scales: Vec<f32> = (0..m).map(|i| 3.0 + i as f32).collect();
    let mut y = vec![f32::NAN; m * n];
    let act = Activations::Int8 { q: In::Host(&x), scales: In::Host(&x_scales) };
    let out = Output::F32(Out::Host(&mut y));
    run(backend, Op::MatMul { w: &packed, x: act, y: out, epilogue: Epilogue::Store })?;
    let want: Vec<f32> = (0..m * n)
        .map(|i| {
            let (r, c) = (i / n, i % n);
            let sum = reference::matmul::ternary(&ternary.codes[c * k..][..k], &x[r * k..][..k]);
            reference::matmul::scaled(sum, 0.25, x_scales[r])
        })
        .collect();
    same(&y, &want)
}
