//! Calls that a plugin must survive though the usual host does not make them: those of a newer host, of a host that wants no
//! message, with numbers that nobody knows, and with a thread pool that panics.
//!
//! All are within the contract of `docs/plugin-abi.md`: a plugin that fails one would fail a host that is to come.

use std::ffi::c_void;
use std::panic::resume_unwind;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tersor_core::{
    Activations, DType, Epilogue, Executor, Format, HostContext, In, Op, OpSpec, Out, Output, QuantBackend, Shape,
    Support, Ternary, codec, reference,
};

use super::context::HostSide;
use super::{PluginBackend, call, status};
use crate::raw::*;

/// An op, a format and a tier that no version has.
const NOBODY_KNOWS: u32 = 60_000;
const COLS: usize = 256;

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// As the contract says.
    Passed,
    /// Otherwise.
    Failed(String),
    /// It could not be tried.
    NotTried(String),
}

/// Makes all calls, on instances of their own. Names are `abi_abuse/...` and `panic/...`.
pub fn cases(backend: &PluginBackend) -> Vec<(&'static str, Ended)> {
    let ended = |result: Result<(), String>| result.map_or_else(Ended::Failed, |()| Ended::Passed);
    vec![
        ("abi_abuse/unknown-device", ended(unknown_device(backend))),
        ("abi_abuse/unknown-isa", ended(unknown_isa(backend))),
        ("abi_abuse/unknown-op", ended(with_stream(backend, unknown_op))),
        ("abi_abuse/unknown-format", ended(with_stream(backend, unknown_format))),
        ("abi_abuse/message-is-cut", ended(with_stream(backend, message_is_cut))),
        ("abi_abuse/longer-structs", ended(with_stream(backend, longer_structs))),
        ("panic/pool", pool_panics(backend)),
    ]
}

/// A struct of a later version: fields follow that the plugin does not know.
#[repr(C)]
struct Longer<T>(T, [u64; 4]);

fn expect(what: &str, got: i32, want: &[i32]) -> Result<(), String> {
    if want.contains(&got) {
        return Ok(());
    }
    let want: Vec<_> = want.iter().map(|w| status::name(*w)).collect();
    Err(format!("{what}: status {got} ({}) instead of {}", status::name(got), want.join(" or ")))
}

/// Handles of one instance, closed in order.
struct Raw<'a> {
    backend: &'a PluginBackend,
    instance: *mut c_void,
    stream: *mut c_void,
}

/// Opens by a host table of a later version, and closes.
fn with_stream(backend: &PluginBackend, case: fn(&Raw<'_>) -> Result<(), String>) -> Result<(), String> {
    let side = HostSide::new(&HostContext::inline());
    // SAFETY: the table is ours and alive; it is `Copy` data and functions.
    let mut table = unsafe { *side.table() };
    table.struct_size = size_of::<Longer<TersorHost>>() as u32;
    table.abi_minor += 9;
    let host = Longer(table, [u64::MAX; 4]);
    let options = TersorOptions { struct_size: size_of::<TersorOptions>() as u32, isa: 0 };
    let (mut instance, mut stream) = (null_mut(), null_mut());
    // SAFETY: the plugin's functions with its own handles; `host` and `side` outlive them.
    unsafe {
        let got = call!(backend.table, open, backend.own, &host.0, &options, &mut instance, null_mut());
        expect("open by a newer host", got, &[TERSOR_OK])?;
        let got = call!(backend.table, open_stream, instance, &mut stream, null_mut());
        let result = expect("open_stream", got, &[TERSOR_OK]).and_then(|()| {
            let result = case(&Raw { backend, instance, stream });
            call!(backend.table, close_stream, stream);
            result
        });
        call!(backend.table, close, instance);
        result
    }
}

fn unknown_device(backend: &PluginBackend) -> Result<(), String> {
    let mut name = [0u8; 64];
    let text = TersorText { data: name.as_mut_ptr().cast(), capacity: 64, len: 0 };
    let struct_size = size_of::<TersorDevice>() as u32;
    let mut out = TersorDevice { struct_size, kind: 0, isas: 0, memory: 0, name: text };
    // SAFETY: the plugin's function with its own table and memory of ours.
    let got = unsafe { call!(backend.table, device, backend.own, NOBODY_KNOWS, &mut out, null_mut()) };
    if got == TERSOR_OK { Err(format!("it describes a device {NOBODY_KNOWS}")) } else { Ok(()) }
}

fn unknown_isa(backend: &PluginBackend) -> Result<(), String> {
    let side = HostSide::new(&HostContext::inline());
    let options = TersorOptions { struct_size: size_of::<TersorOptions>() as u32, isa: NOBODY_KNOWS };
    let mut instance = null_mut();
    // SAFETY: the plugin's functions with its own handles; `side` outlives them.
    unsafe {
        let got = call!(backend.table, open, backend.own, side.table(), &options, &mut instance, null_mut());
        if got == TERSOR_OK && !instance.is_null() {
            call!(backend.table, close, instance);
        }
        expect("open for an unknown ISA tier", got, &[TERSOR_UNUSABLE])
    }
}

fn unknown_op(raw: &Raw<'_>) -> Result<(), String> {
    let mut out = ran();
    // Not one valid field but the size: a plugin must look at the number of the op first.
    let args = Longer(size_of::<Longer<u64>>() as u64, [0; 4]);
    // SAFETY: handles of this plugin, memory of ours, and no message wanted.
    unsafe {
        let stream = raw.stream;
        let got =
            call!(raw.backend.table, submit, stream, NOBODY_KNOWS, (&raw const args).cast(), &mut out, null_mut());
        expect("submit of an unknown op", got, &[TERSOR_UNSUPPORTED])?;
        let got = call!(raw.backend.table, supports, raw.instance, &question(NOBODY_KNOWS), &mut out, null_mut());
        expect("supports of an unknown op", got, &[TERSOR_UNSUPPORTED])
    }
}

fn unknown_format(raw: &Raw<'_>) -> Result<(), String> {
    let mut bytes = 0;
    let refused = [TERSOR_UNSUPPORTED, TERSOR_INVALID];
    let asked = TersorSpec { format: NOBODY_KNOWS, n: 4, ..question(TERSOR_OP_MATMUL) };
    // SAFETY: as in `unknown_op`.
    unsafe {
        let table = raw.backend.table;
        let got = call!(table, packed_size, raw.instance, NOBODY_KNOWS, 4, COLS as u64, &mut bytes, null_mut());
        expect("packed_size of an unknown format", got, &refused)?;
        expect(
            "supports of an unknown format",
            call!(table, supports, raw.instance, &asked, &mut ran(), null_mut()),
            &refused,
        )
    }
}

/// Buffers of 0 and of 8 bytes: nothing behind them is written.
fn message_is_cut(raw: &Raw<'_>) -> Result<(), String> {
    for capacity in [0u64, 8] {
        let mut buffer = [0x5au8; 512];
        let data = if capacity == 0 { null_mut() } else { buffer.as_mut_ptr().cast() };
        let message = TersorText { data, capacity, len: 0 };
        let struct_size = size_of::<TersorError>() as u32;
        let mut error = TersorError { struct_size, reserved: 0, index: 0, value: 0.0, reserved2: 0, message };
        // SAFETY: as in `unknown_op`; the buffer is longer than its capacity says.
        let got = unsafe {
            call!(raw.backend.table, supports, raw.instance, &question(NOBODY_KNOWS), &mut ran(), &mut error)
        };
        expect("supports of an unknown op", got, &[TERSOR_UNSUPPORTED])?;
        if buffer[capacity as usize..].iter().any(|b| *b != 0x5a) {
            return Err(format!("a message was written behind a buffer of {capacity} bytes"));
        }
        if error.message.len == 0 {
            return Err("a refusal without a reason".into());
        }
    }
    Ok(())
}

/// An op and its question in structs of a later version: served, and what is behind the known part left alone.
fn longer_structs(raw: &Raw<'_>) -> Result<(), String> {
    let mut out = Longer(TersorRan { struct_size: size_of::<Longer<TersorRan>>() as u32, ..ran() }, [7; 4]);
    let mut asked = Longer(question(TERSOR_OP_QUANTIZE_ROWS), [u64::MAX; 4]);
    asked.0.struct_size = size_of::<Longer<TersorSpec>>() as u32;
    let x: Vec<f32> = (0..COLS).map(|i| (i as f32 - 100.0) / 16.0).collect();
    let (mut q, mut scale) = (vec![0x5a_i8; COLS], [f32::NAN]);
    let args = TersorQuantizeRows {
        struct_size: size_of::<Longer<TersorQuantizeRows>>() as u32,
        reserved: 0,
        cols: COLS as u64,
        x: TersorF32 { data: x.as_ptr(), len: COLS as u64 },
        q: TersorI8Mut { data: q.as_mut_ptr(), len: COLS as u64 },
        scales: TersorF32Mut { data: scale.as_mut_ptr(), len: 1 },
    };
    let args = Longer(args, [u64::MAX; 4]);
    // SAFETY: as in `unknown_op`; operands are valid and as long as they say.
    unsafe {
        let table = raw.backend.table;
        let got = call!(table, supports, raw.instance, &asked.0, &mut out.0, null_mut());
        expect("supports of quantize_rows", got, &[TERSOR_OK])?;
        let args = (&raw const args).cast();
        let got = call!(table, submit, raw.stream, TERSOR_OP_QUANTIZE_ROWS, args, &mut out.0, null_mut());
        expect("submit of quantize_rows", got, &[TERSOR_OK])?;
        expect("synchronize", call!(table, synchronize, raw.stream, null_mut()), &[TERSOR_OK])?;
    }
    if out.1 != [7; 4] {
        return Err("it wrote behind the part of TersorRan that it knows".into());
    }
    let mut want = vec![0; COLS];
    let wanted = reference::rows::quantize(&x, &mut want).ok_or("the known row is not finite")?;
    if q != want || scale != [wanted] {
        return Err("quantize_rows gives other results when its struct is longer".into());
    }
    Ok(())
}

fn ran() -> TersorRan {
    let kernel = TersorStr { data: std::ptr::null(), len: 0 };
    TersorRan { struct_size: size_of::<TersorRan>() as u32, flags: 0, kernel }
}

fn question(op: u32) -> TersorSpec {
    TersorSpec {
        struct_size: size_of::<TersorSpec>() as u32,
        op,
        format: 0,
        input: TERSOR_I8,
        output: TERSOR_I32,
        epilogue: TERSOR_STORE,
        scale_block: 0,
        m: 1,
        n: 0,
        k: COLS as u64,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        capacity: 0,
    }
}

/// Threads of which one panics, until they are mended.
struct Panicking {
    mended: AtomicBool,
    asked: AtomicUsize,
}

impl Executor for Panicking {
    fn threads(&self) -> usize {
        4
    }
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if !self.mended.load(Ordering::SeqCst) {
            // As if a worker had died; without the message of a panic on standard error, which is for accidents.
            resume_unwind(Box::new("the pool of this test panics"));
        }
        (0..tasks).for_each(task);
    }
}

/// A product whose parallel part the host could not run is an error, and what the instance answers later is an error or right.
fn pool_panics(backend: &PluginBackend) -> Ended {
    let pool = Arc::new(Panicking { mended: AtomicBool::new(false), asked: AtomicUsize::new(0) });
    let host = HostContext::new(pool.clone());
    let opened = match backend.open(&host) {
        Ok(opened) => opened,
        Err(e) => return Ended::Failed(format!("open: {e}")),
    };
    let (n, k) = (1024, 768);
    let is_done = |f: &Format| {
        let epilogue = Epilogue::Store;
        let (activations, output) = (DType::I8, DType::I32);
        let spec = OpSpec::MatMul { format: *f, scale_block: None, activations, output, m: 1, n, k, epilogue };
        f.is_ternary() && matches!(opened.supports(&spec), Support::Yes { .. })
    };
    let Some(format) = Format::all().find(is_done) else {
        return Ended::NotTried(format!("it multiplies by no ternary weight of {n}x{k}"));
    };
    let first = product(&*opened, format, n, k);
    if pool.asked.load(Ordering::SeqCst) == 0 {
        return Ended::NotTried(format!("a product of {n}x{k} did not use the host's threads"));
    }
    if first.is_ok() {
        return Ended::Failed("the host's parallel_for failed, and the plugin says that the product was made".into());
    }
    pool.mended.store(true, Ordering::SeqCst);
    // The instance may be poisoned; if it answers, it answers right.
    if matches!(product(&*opened, format, n, k), Ok(false)) {
        return Ended::Failed("after a panic in the host's pool, the instance multiplies wrong".into());
    }
    match backend.open(&host).and_then(|other| product(&*other, format, n, k)) {
        Ok(true) => Ended::Passed,
        Ok(false) => Ended::Failed("after a panic in the host's pool, another instance multiplies wrong".into()),
        Err(e) => Ended::Failed(format!("after a panic in the host's pool, another instance does nothing: {e}")),
    }
}

/// Whether a product is right.
fn product(backend: &dyn QuantBackend, format: Format, n: usize, k: usize) -> tersor_core::Result<bool> {
    let shape = Shape::new(n, k)?;
    let codes: Vec<i8> = (0..n * k).map(|i| (i * 7 % 11 % 3) as i8 - 1).collect();
    let block = format.scale_block().unwrap_or(shape.len());
    let ternary = Ternary { shape, codes, block, scales: vec![1.0; shape.len().div_ceil(block)] };
    let packed = backend.pack(&codec::encode(&ternary, format)?)?;
    let x: Vec<i8> = (0..k).map(|i| (i * 37 % 251) as u8 as i8).collect();
    let mut y = vec![i32::MIN; n];
    let act = Activations::Int8 { q: In::Host(&x), scales: In::Host(&[1.0]) };
    let op = Op::MatMul { w: &packed, x: act, y: Output::I32(Out::Host(&mut y)), epilogue: Epilogue::Store };
    let mut stream = backend.open_stream()?;
    stream.submit(op.check()?)?;
    stream.synchronize()?;
    Ok(ternary.codes.chunks(k).map(|row| reference::matmul::ternary(row, &x)).eq(y.iter().copied()))
}
