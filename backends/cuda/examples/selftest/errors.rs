//! What goes wrong on a GPU, and that work goes on afterwards.

use std::ffi::c_void;
use std::process::Command;
use std::sync::Arc;

use cudarc::driver::sys;
use tersor_backend_cuda::{CudaBackend, open_device};
use tersor_core::{
    Activations, Buffer, Epilogue, Error, Floats, Format, HostContext, HostMemory, In, Op, Out, Output, QuantBackend,
    RawBuffer, Shape, Weight, codec,
};

use crate::bench::{i2s, noise};
use crate::{kernels, model};

type Part = fn(&CudaBackend) -> Result<(), String>;

pub(crate) fn run(gpu: &Arc<CudaBackend>) -> bool {
    let parts: [(&str, Part); 5] = [
        ("out of memory", out_of_memory),
        ("bad arguments", bad_arguments),
        ("a position out of range", kernels::position_out_of_range),
        ("budget of page-locked memory", budget),
        ("no such device", |_| no_such_device()),
    ];
    // A lost device is lost for the process, so this needs one of its own; and memory for a context, of which the backend here
    // leaves none once it has had all: what is freed is kept for the next allocation.
    let lost = std::env::current_exe().and_then(|exe| Command::new(exe).arg("errors=lost").status());
    let lost = lost.is_ok_and(|status| status.success());
    println!("lost device: {}", if lost { "an error, and the CPU goes on" } else { "FAILED" });
    let mut ok = lost;
    for (name, part) in parts {
        let outcome = part(gpu).and_then(|()| works(&**gpu));
        println!("{name}: {}", outcome.as_ref().map_or_else(String::as_str, |()| "as it should be, and work goes on"));
        ok &= outcome.is_ok();
    }
    ok
}

fn expect<T>(what: &str, got: Result<T, Error>, right: impl Fn(&Error) -> bool) -> Result<(), String> {
    match got {
        Err(e) if right(&e) => Ok(()),
        Err(e) => Err(format!("{what}: FAILED with another error: {e}")),
        Ok(_) => Err(format!("{what}: FAILED: no error")),
    }
}

fn is_memory(e: &Error) -> bool {
    matches!(e, Error::OutOfMemory { backend, .. } if backend == "cuda")
}

/// Quantizes, packs and multiplies, and compares all of it with the reference.
pub(crate) fn works(backend: &dyn QuantBackend) -> Result<(), String> {
    let text = |e: Error| format!("FAILED afterwards: {e}");
    let shape = Shape::new(64, 4096).map_err(text)?;
    let w = noise(shape.len());
    let want = codec::quantize(Floats::F32(&w), shape, Format::I2S).map_err(text)?;
    let mut codes = vec![0x5a; want.codes().len()];
    backend.quantize(Floats::F32(&w), shape, Format::I2S, &mut codes, &mut []).map_err(text)?;
    if codes != want.codes() {
        return Err("FAILED afterwards: codes differ from the reference's".into());
    }
    let packed = backend.pack(&want).map_err(text)?;
    let mut stream = backend.open_stream().map_err(text)?;
    let q: Vec<i8> = noise(shape.cols()).iter().map(|v| (v * 127.0) as i8).collect();
    let mut x = Buffer::<i8>::alloc(backend, q.len()).map_err(text)?;
    let mut scales = Buffer::<f32>::alloc(backend, 1).map_err(text)?;
    let mut y = Buffer::<i32>::alloc(backend, shape.rows()).map_err(text)?;
    x.write(&mut *stream, &q).map_err(text)?;
    scales.write(&mut *stream, &[1.0]).map_err(text)?;
    let op = Op::MatMul {
        w: &packed,
        x: Activations::Int8 { q: x.input(), scales: scales.input() },
        y: Output::I32(y.output()),
        epilogue: Epilogue::Store,
    };
    stream.submit(op.check().map_err(text)?).map_err(text)?;
    let mut got = vec![0; shape.rows()];
    y.read(&mut *stream, 0, &mut got).map_err(text)?;
    let values = codec::decode(&want).map_err(text)?;
    let product = |row: &[i8]| row.iter().zip(&q).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum::<i32>();
    let right: Vec<i32> = values.codes.chunks_exact(shape.cols()).map(product).collect();
    if got == right { Ok(()) } else { Err("FAILED afterwards: sums differ from the reference's".into()) }
}

fn out_of_memory(gpu: &CudaBackend) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    expect("a petabyte", gpu.alloc(1 << 50), is_memory)?;
    let (free, _) = gpu.memory().map_err(text)?;
    expect("more than is free", gpu.alloc(free + (1 << 30)), is_memory)?;
    // Everything but less than a gigabyte, in pieces.
    let mut held: Vec<RawBuffer> = Vec::new();
    loop {
        match gpu.alloc(1 << 30) {
            Ok(buffer) => held.push(buffer),
            Err(e) if is_memory(&e) => break,
            Err(e) => return Err(format!("filling the device: FAILED with another error: {e}")),
        }
    }
    let shape = Shape::new(32_768, 16_384).map_err(text)?;
    let values = vec![0.5f32; shape.len()];
    let len = Format::I2S.encoded_len(shape).map_err(text)?;
    let mut codes = vec![0; len.bytes];
    let quantized = gpu.quantize(Floats::F32(&values), shape, Format::I2S, &mut codes, &mut []);
    expect("quantize 2 GiB", quantized, is_memory)?;
    let dense = Weight::dense(Format::F32, shape, bytemuck::cast_slice::<f32, u8>(&values).to_vec()).map_err(text)?;
    drop(values);
    expect("pack 2 GiB", gpu.pack(&dense), is_memory)?;
    println!("{} GiB were held when memory was out", held.len());
    // The small things still go.
    works(gpu)
}

fn bad_arguments(gpu: &CudaBackend) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    let shape = Shape::new(64, 256).map_err(text)?;
    let mut stream = gpu.open_stream().map_err(text)?;
    let mut raw = gpu.alloc(1000).map_err(text)?;
    let range = |e: &Error| matches!(e, Error::Length { .. });
    expect("upload past the end", stream.upload(&[0; 100], &mut raw, 901), range)?;
    expect("download past the end", stream.download(&raw, usize::MAX, &mut [0; 2]), range)?;
    let mut short = vec![0; 10];
    let w = noise(shape.len());
    let quantized = gpu.quantize(Floats::F32(&w), shape, Format::I2S, &mut short, &mut []);
    expect("codes too short", quantized, range)?;
    let mut codes = vec![0; Format::I2S.encoded_len(shape).map_err(text)?.bytes];
    let mut with_nan = w.clone();
    with_nan[777] = f32::NAN;
    let quantized = gpu.quantize(Floats::F32(&with_nan), shape, Format::I2S, &mut codes, &mut []);
    expect("a NaN", quantized, |e| matches!(e, Error::NotFinite { index: 777, .. }))?;
    let (other, weight) = (open_device(0, &HostContext::inline()).map_err(text)?, i2s(shape, 1));
    let packed = other.pack(&weight).map_err(text)?;
    let (q, scales) = (Buffer::<i8>::alloc(gpu, 256).map_err(text)?, Buffer::<f32>::alloc(gpu, 1).map_err(text)?);
    let mut y = Buffer::<f32>::alloc(gpu, 64).map_err(text)?;
    let int8 = Activations::Int8 { q: q.input(), scales: scales.input() };
    let op = Op::MatMul { w: &packed, x: int8, y: Output::F32(y.output()), epilogue: Epilogue::Store };
    let op = op.check().map_err(text)?;
    expect("a weight of another backend", stream.submit(op), |e| matches!(e, Error::ForeignPack { .. }))?;
    let (x, mut y) = (vec![1.0f32; 64], vec![0.0f32; 64]);
    let op = Op::Copy { x: In::Host(&x), y: Out::Host(&mut y) }.check().map_err(text)?;
    expect("host slices", stream.submit(op), |e| matches!(e, Error::Memory { .. }))
}

fn budget(_: &CudaBackend) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    let open = |bytes| open_device(0, &HostContext::inline().with_memory(Arc::new(HostMemory::new(Some(bytes)))));
    let pool = |e: &Error| matches!(e, Error::OutOfMemory { budget, .. } if budget.contains("memory.pool"));
    let data = noise(1 << 20);
    let small = open(1 << 20).map_err(text)?;
    expect("pinned memory beyond the pool", small.alloc_pinned(2 << 20), pool)?;
    // Slots of 256 KiB at most.
    let mut stream = small.open_stream().map_err(text)?;
    let mut buffer = Buffer::<f32>::alloc(&small, data.len()).map_err(text)?;
    buffer.write(&mut *stream, &data).map_err(text)?;
    let none = open(1000).map_err(text)?;
    let mut other = Buffer::<f32>::alloc(&none, data.len()).map_err(text)?;
    let mut upload = none.open_stream().map_err(text)?;
    expect("a pool without room for slots", other.write(&mut *upload, &data), pool)
}

fn no_such_device() -> Result<(), String> {
    let missing = open_device(99, &HostContext::inline());
    expect("GPU 99", missing, |e| matches!(e, Error::Unusable { reason, .. } if reason.contains("99")))
}

/// A kernel of its own makes the context unusable, as broken hardware does. Then every call is an error, none a panic, and
/// the CPU does the work.
pub(crate) fn lost_device(gpu: &Arc<CudaBackend>) -> bool {
    let mut stream = gpu.open_stream().unwrap();
    let mut buffer = Buffer::<f32>::alloc(&**gpu, 1 << 20).unwrap();
    works(&**gpu).unwrap();
    // SAFETY: the backend has made its context current on this thread; the module is valid PTX, the kernel takes nothing.
    unsafe {
        let ptx = c".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry stop() {\n trap;\n ret;\n}\n";
        let (mut module, mut kernel) = (std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuModuleLoadData(&mut module, ptx.as_ptr().cast::<c_void>()).result().unwrap();
        sys::cuModuleGetFunction(&mut kernel, module, c"stop".as_ptr()).result().unwrap();
        let (stream, none) = (std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, none, none).result().unwrap();
        println!("after a trap: {:?}", sys::cuCtxSynchronize());
    }
    let device = |e: &Error| matches!(e, Error::Device { .. });
    let data = vec![1.0f32; 1 << 20];
    let mut out = vec![0.0f32; 1 << 20];
    let outcomes = [
        expect("synchronize", stream.synchronize(), device),
        expect("upload", buffer.write(&mut *stream, &data), device),
        expect("small upload", buffer.write(&mut *stream, &[1.0]), device),
        expect("download", buffer.read(&mut *stream, 0, &mut out), device),
        expect("alloc", gpu.alloc(3 << 20), device),
        expect("alloc_pinned", gpu.alloc_pinned(3 << 20), device),
        expect("pack", gpu.pack(&i2s(Shape::new(64, 256).unwrap(), 1)), device),
        expect("memory", gpu.memory(), device),
    ];
    for outcome in &outcomes {
        println!("{}", outcome.as_ref().map_or_else(String::as_str, |()| "a device error"));
    }
    drop((buffer, stream));
    let cpu = works(&*model::cpu());
    println!("on the CPU: {cpu:?}");
    outcomes.iter().all(Result::is_ok) && cpu.is_ok()
}
