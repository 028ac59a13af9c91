//! Fused kernels read the weights of a norm before the kernel ahead of them is done. So they may not be used where an op wrote
//! these weights.

use tersor_core::{Activations, Buffer, Epilogue, Floats, Format, Op, Output, QuantBackend, Result, Shape, codec};

use crate::{log, logged};

const COLS: usize = 256;
const ROWS: usize = 40;

/// A norm and the product that takes it, with weights that were uploaded, and then with the same after an op wrote to them.
pub(crate) fn work(backend: &dyn QuantBackend) -> Result<()> {
    let values: Vec<f32> = (0..ROWS * COLS).map(|i| (i % 7) as f32 - 3.0).collect();
    let shape = Shape::new(ROWS, COLS)?;
    let packed = backend.pack(&codec::quantize(Floats::F32(&values), shape, Format::I2S)?)?;
    let mut stream = backend.open_stream()?;
    let (mut x, mut w) = (Buffer::<f32>::alloc(backend, COLS)?, Buffer::<f32>::alloc(backend, COLS)?);
    let (mut q, mut scales) = (Buffer::<i8>::alloc(backend, COLS)?, Buffer::<f32>::alloc(backend, 1)?);
    let mut y = Buffer::<f32>::alloc(backend, ROWS)?;
    x.write(&mut *stream, &values[..COLS])?;
    w.write(&mut *stream, &values[..COLS])?;
    for name in ["uploaded", "written"] {
        if name == "written" {
            let op = Op::RmsNorm { x: x.input(), w: x.input(), eps: 1e-5, y: w.output() };
            stream.submit(op.check()?)?;
        }
        stream.synchronize()?;
        log(name);
        let (q_out, s_out) = (q.output(), scales.output());
        let op = Op::RmsNormQuantize { x: x.input(), w: w.input(), eps: 1e-5, q: q_out, scales: s_out };
        stream.submit(op.check()?)?;
        let taken = Activations::Int8 { q: q.input(), scales: scales.input() };
        let op = Op::MatMul { w: &packed, x: taken, y: Output::F32(y.output()), epilogue: Epilogue::Add };
        stream.submit(op.check()?)?;
        stream.synchronize()?;
        log("done");
    }
    Ok(())
}

#[test]
fn weights_of_a_norm_that_an_op_wrote_are_not_read_early() {
    let calls = logged("settled", &[]);
    let launched = |from: &str| -> Vec<String> {
        let between = calls.iter().skip_while(|line| *line != from).take_while(|line| *line != "done");
        between.filter_map(|call| call.strip_prefix("cuLaunchKernelEx ")).map(str::to_owned).collect()
    };
    assert_eq!(launched("uploaded"), ["norm_gemv"]);
    let written = launched("written");
    assert!(written.len() == 2 && !written.iter().any(|kernel| kernel.starts_with("norm_gemv")), "{written:?}");
}
