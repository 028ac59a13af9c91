//! Backends that are the scalar one, altered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tersor_backend_scalar as _;
use tersor_core::{
    BackendInfo, Checked, Error, FloatOut, Format, HostContext, Op, OpSpec, Out, Output, PackedWeight, QuantBackend,
    Ran, RawBuffer, Result, Shape, Stream, Support, Weight, entries,
};

use crate::tune::Contender;

/// What is altered.
#[derive(Debug, Clone)]
pub(super) enum Alter {
    /// Nothing.
    Nothing,
    /// Each op takes this many times as long.
    Slower(f64),
    /// The last result of each op is wrong.
    Wrong,
    /// Ops fail while this is set.
    Fails(Arc<AtomicBool>),
}

#[derive(Debug)]
struct Altered {
    info: BackendInfo,
    inner: Arc<dyn QuantBackend>,
    alter: Alter,
}

/// A candidate of this name.
pub(super) fn contender(name: &'static str, alter: Alter) -> Contender {
    let entry = entries().find(|e| e.id == "scalar").unwrap();
    let inner = (entry.open)(&HostContext::inline()).unwrap();
    let info = BackendInfo { id: name.into(), ..inner.info().clone() };
    Contender::new(Arc::new(Altered { info, inner, alter }))
}

impl QuantBackend for Altered {
    fn info(&self) -> &BackendInfo {
        &self.info
    }
    fn supports(&self, spec: &OpSpec) -> Support {
        self.inner.supports(spec)
    }
    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        self.inner.packed_size(format, shape)
    }
    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        self.inner.pack(weight)
    }
    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        self.inner.alloc(bytes)
    }
    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(AlteredStream { inner: self.inner.open_stream()?, alter: self.alter.clone() }))
    }
}

struct AlteredStream {
    inner: Box<dyn Stream>,
    alter: Alter,
}

impl Stream for AlteredStream {
    fn submit(&mut self, mut op: Checked<'_>) -> Result<Ran> {
        let begun = Instant::now();
        let ran = match &self.alter {
            Alter::Fails(now) if now.load(Ordering::Relaxed) => {
                return Err(Error::Device { backend: "fake".into(), message: "it broke".into() });
            }
            _ => self.inner.submit(op.reborrow())?,
        };
        match &self.alter {
            Alter::Wrong => spoil(op.op()),
            Alter::Slower(times) => {
                let until = begun.elapsed().mul_f64(*times);
                while begun.elapsed() < until {
                    std::hint::spin_loop();
                }
            }
            Alter::Nothing | Alter::Fails(_) => {}
        }
        Ok(ran)
    }
    fn synchronize(&mut self) -> Result<()> {
        self.inner.synchronize()
    }
}

/// Changes the last result of an op.
fn spoil(op: Op<'_>) {
    let float = |y: Option<&mut f32>| y.into_iter().for_each(|y| *y += 1.0);
    match op {
        Op::MatMul { y: Output::F32(Out::Host(y)), .. }
        | Op::Dequantize { y: FloatOut::F32(Out::Host(y)), .. }
        | Op::Attention { y: Out::Host(y), .. } => float(y.last_mut()),
        Op::QuantizeRows { scales: Out::Host(scales), .. } | Op::RmsNormQuantize { scales: Out::Host(scales), .. } => {
            float(scales.last_mut());
        }
        Op::Quantize { codes: Out::Host(codes), .. } => codes.iter_mut().take(1).for_each(|code| *code ^= 1),
        _ => {}
    }
}
