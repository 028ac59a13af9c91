//! What the memory of a device and its link to the host give, by the backend's own ops and copies.

use std::sync::Arc;
use std::time::Instant;

use tersor_core::{
    Activations, Buffer, Epilogue, Format, Op, Output, PackedWeight, QuantBackend, Result, SampleParams, Shape, Stream,
    Weight,
};

use super::Collector;
use crate::material::Rng;
use crate::report::{Limit, LimitKind};

/// Columns of the matrix that is read.
const COLS: usize = 4096;
/// Bytes that a sample reads at least, and the most launches: with less, it is the time of a wait that is measured.
const AT_LEAST: usize = 2 << 30;
const LAUNCHES: usize = 256;
/// Bytes of a copy between host and device.
const LINK: usize = 256 << 20;

/// A device, and memory on it to read.
pub struct DeviceProbe {
    backend: Arc<dyn QuantBackend>,
    stream: Box<dyn Stream>,
    bytes: usize,
    matrices: Vec<(&'static str, PackedWeight)>,
    row: Buffer<f32>,
    product: Buffer<f32>,
    from: Buffer<f32>,
    to: Buffer<f32>,
    step: Buffer<u32>,
    id: Buffer<u32>,
    here: Buffer<f32>,
    there: Buffer<f32>,
    read: Collector,
    copy: Collector,
    up: Collector,
    down: Collector,
}

impl DeviceProbe {
    /// Memory of about `bytes`, of random content.
    ///
    /// # Errors
    /// Those of the backend: no memory, most of all.
    pub fn new(backend: Arc<dyn QuantBackend>, bytes: usize) -> Result<Self> {
        let b = &*backend;
        let rows = (bytes / 4 / COLS).max(64);
        let mut rng = Rng::new(1);
        let some: Vec<f32> = (0..64 * COLS).map(|_| rng.normal()).collect();
        let values: Vec<f32> = some.iter().copied().cycle().take(rows * COLS).collect();
        let mut stream = b.open_stream()?;
        let matrix = |format, rows, bytes: Vec<u8>| b.pack(&Weight::dense(format, Shape::new(rows, COLS)?, bytes)?);
        let upper = |v: &f32| ((v.to_bits() >> 16) as u16).to_le_bytes();
        let mut halves: Vec<u8> = values.iter().flat_map(upper).collect();
        halves.extend_from_within(..);
        let matrices = vec![
            ("product of an f32 matrix", matrix(Format::F32, rows, bytemuck::cast_slice(&values).to_vec())?),
            ("product of a bf16 matrix", matrix(Format::BF16, 2 * rows, halves)?),
        ];
        let mut row = Buffer::alloc(b, COLS)?;
        row.write(&mut *stream, &values[..COLS])?;
        let mut from = Buffer::alloc(b, rows * COLS)?;
        from.write(&mut *stream, &values)?;
        let mut here = Buffer::pinned(b, LINK / 4)?;
        here.as_host_mut().into_iter().for_each(|h| h.iter_mut().zip(some.iter().cycle()).for_each(|(h, v)| *h = *v));
        Ok(DeviceProbe {
            bytes: 4 * rows * COLS,
            matrices,
            row,
            product: Buffer::alloc(b, 2 * rows)?,
            to: Buffer::alloc(b, rows * COLS)?,
            from,
            step: Buffer::alloc(b, 1)?,
            id: Buffer::alloc(b, 1)?,
            here,
            there: Buffer::alloc(b, LINK / 4)?,
            stream,
            backend,
            read: Collector::default(),
            copy: Collector::default(),
            up: Collector::default(),
            down: Collector::default(),
        })
    }

    /// Whose probe it is.
    pub fn backend(&self) -> &dyn QuantBackend {
        &*self.backend
    }

    /// The same, to keep.
    pub fn shared_backend(&self) -> Arc<dyn QuantBackend> {
        self.backend.clone()
    }

    /// A sample of each way to read, to copy, and to cross the link.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn sample(&mut self) -> Result<()> {
        let times = AT_LEAST.div_ceil(self.bytes).min(LAUNCHES);
        let read = (times * self.bytes) as f64;
        let Self { matrices, row, product, stream, from, to, step, id, here, there, .. } = self;
        let stream = &mut **stream;
        for (name, w) in matrices {
            let rows = w.shape().rows();
            let seconds = timed(stream, times, |s| {
                let y = Output::F32(product.output_range(0..rows));
                let op = Op::MatMul { w, x: Activations::F32(row.input()), y, epilogue: Epilogue::Store };
                s.submit(op.check()?).map(|_| ())
            })?;
            self.read.push(1, name, read / seconds);
        }
        let params = SampleParams { temperature: 0.0, top_k: None, seed: 0 };
        let seconds = timed(stream, times, |s| {
            let op = Op::Sample { logits: from.input(), params, steps: step.input(), ids: id.output() };
            s.submit(op.check()?).map(|_| ())
        })?;
        self.read.push(1, "argmax", read / seconds);
        let seconds =
            timed(stream, times, |s| s.submit(Op::Copy { x: from.input(), y: to.output() }.check()?).map(|_| ()))?;
        self.copy.push(1, "copy, read and written", 2.0 * read / seconds);
        // Memory that moves so many bytes in both directions would read as many.
        self.read.push(1, "copy, read and written", 2.0 * read / seconds);
        if let Some(host) = here.as_host() {
            let seconds = timed(stream, 1, |s| there.write(s, host))?;
            self.up.push(1, "pinned memory to the device", LINK as f64 / seconds);
        }
        if let Some(host) = here.as_host_mut() {
            let seconds = timed(stream, 1, |s| there.read(s, 0, host))?;
            self.down.push(1, "the device to pinned memory", LINK as f64 / seconds);
        }
        Ok(())
    }

    /// The limits of the samples since the last call.
    pub fn limits(&mut self, phase: &str, threads: usize) -> Vec<Limit> {
        let set = self.bytes as u64;
        let kinds = [
            (LimitKind::Read, &mut self.read, set),
            (LimitKind::Copy, &mut self.copy, set),
            (LimitKind::Up, &mut self.up, LINK as u64),
            (LimitKind::Down, &mut self.down, LINK as u64),
        ];
        let limits = kinds.into_iter().flat_map(|(kind, c, set)| std::mem::take(c).limits(kind, phase, set, &[1]));
        limits.map(|l| Limit { threads, device: "gpu".to_owned(), ..l }).collect()
    }
}

/// Seconds for all `times` calls of `work`.
fn timed(stream: &mut dyn Stream, times: usize, mut work: impl FnMut(&mut dyn Stream) -> Result<()>) -> Result<f64> {
    stream.synchronize()?;
    let start = Instant::now();
    (0..times).try_for_each(|_| work(stream))?;
    stream.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_core::HostContext;

    /// Any backend that runs a model can be probed; a host's stands in for a device's here.
    #[test]
    fn every_way_has_a_rate() {
        let scalar = tersor_core::entries().find(|e| e.id == "scalar").unwrap();
        let mut probe = DeviceProbe::new((scalar.open)(&HostContext::inline()).unwrap(), 1 << 20).unwrap();
        probe.sample().unwrap();
        probe.sample().unwrap();
        let limits = probe.limits("test", 3);
        let kinds: Vec<LimitKind> = limits.iter().map(|l| l.kind).collect();
        assert_eq!(kinds, [LimitKind::Read, LimitKind::Copy, LimitKind::Up, LimitKind::Down]);
        assert!(limits.iter().all(|l| l.best > 1e6 && l.device == "gpu" && l.threads == 3), "{limits:?}");
        assert!(probe.limits("test", 3).is_empty(), "each sample counts once");
    }
}
