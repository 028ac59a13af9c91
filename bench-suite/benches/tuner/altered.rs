//! A good backend with a fault.

use std::sync::Arc;
use std::time::Instant;

use tersor::core::{
    BackendInfo, Checked, Format, Op, OpSpec, Out, Output, PackedWeight, QuantBackend, Ran, RawBuffer, Result, Shape,
    Stream, Support, Weight,
};

/// The fault.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Alter {
    /// Each op takes so many times as long.
    Slower(f64),
    /// The last result of each product is wrong.
    Wrong,
}

#[derive(Debug)]
pub(crate) struct Altered {
    info: BackendInfo,
    inner: Arc<dyn QuantBackend>,
    alter: Alter,
}

impl Altered {
    pub(crate) fn new(inner: Arc<dyn QuantBackend>, alter: Alter) -> Self {
        let info = BackendInfo { id: "altered".into(), ..inner.info().clone() };
        Altered { info, inner, alter }
    }
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
        Ok(Box::new(AlteredStream { inner: self.inner.open_stream()?, alter: self.alter }))
    }
}

struct AlteredStream {
    inner: Box<dyn Stream>,
    alter: Alter,
}

impl Stream for AlteredStream {
    fn submit(&mut self, mut op: Checked<'_>) -> Result<Ran> {
        let begun = Instant::now();
        let ran = self.inner.submit(op.reborrow())?;
        match (self.alter, op.op()) {
            (Alter::Slower(times), _) => {
                let until = begun.elapsed().mul_f64(times);
                while begun.elapsed() < until {
                    std::hint::spin_loop();
                }
            }
            (Alter::Wrong, Op::MatMul { y: Output::F32(Out::Host(y)), .. }) => {
                if let Some(last) = y.last_mut() {
                    *last += 1.0;
                }
            }
            (Alter::Wrong, _) => {}
        }
        Ok(ran)
    }
    fn synchronize(&mut self) -> Result<()> {
        self.inner.synchronize()
    }
}
