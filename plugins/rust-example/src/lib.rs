//! A Tersor plugin in Rust, as its author's crate would stand: implement the trait, describe it, one macro line.
//!
//! The backend multiplies ternary weights of one scale by int8 activations without multiplying (see [`kernel`]), and takes
//! everything else from the reference code of `tersor-core`: a small backend need not be a partial one.

pub mod kernel;

use std::sync::{Arc, Mutex, PoisonError};

use kernel::{Planes, Sliced};
use tersor_core::{
    Activations, BackendEntry, BackendInfo, Checked, DType, DeviceInfo, DeviceKind, Epilogue, Error, Format,
    HostContext, Op, OpSpec, Output, PackTag, PackedWeight, Probe, QuantBackend, Ran, RawBuffer, Result, Shape, Stream,
    Support, Weight, codec, reference,
};

const ID: &str = "bitplanes";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const KERNEL_REVISION: u32 = 1;

static ENTRY: BackendEntry = BackendEntry {
    id: ID,
    version: VERSION,
    kernel_revision: KERNEL_REVISION,
    priority: -20,
    probe: || Probe::Usable { devices: vec![device()] },
    open: |host| match host.isa {
        None => Ok(Arc::new(Backend::new(host))),
        Some(isa) => Err(Error::Unusable { backend: ID.into(), reason: format!("it has no {isa} kernels") }),
    },
};
tersor_abi::export_backend!(&ENTRY);

fn device() -> DeviceInfo {
    let name = format!("{} processor", std::env::consts::ARCH);
    DeviceInfo { index: 0, kind: DeviceKind::Cpu, name, isas: Vec::new(), memory: None }
}

#[derive(Debug)]
struct Backend {
    info: BackendInfo,
    host: HostContext,
}

impl Backend {
    fn new(host: &HostContext) -> Self {
        let (id, version, kernel_revision) = (ID.into(), VERSION.into(), KERNEL_REVISION);
        let info = BackendInfo { id, version, kernel_revision, device: device(), isa: None };
        Backend { info, host: host.clone() }
    }
}

/// Weights in planes, and their scale.
#[derive(Debug)]
struct Packed {
    planes: Planes,
    scale: f32,
}

fn known(format: Format) -> bool {
    matches!(format, Format::I2S | Format::TL1 | Format::TL2)
}

/// The kernel that runs an op, or why none does.
fn kernel_of(spec: &OpSpec) -> Result<&'static str, String> {
    match spec {
        OpSpec::QuantizeRows { .. } => Ok("quantize_rows.f32.reference"),
        OpSpec::Quantize { format, .. } | OpSpec::Dequantize { format, .. } | OpSpec::MatMul { format, .. }
            if !known(*format) =>
        {
            Err(format!("{format} is not i2_s, tl1 or tl2"))
        }
        OpSpec::Quantize { format, shape, .. } | OpSpec::Dequantize { format, shape, .. }
            if format.encoded_len(*shape).is_err() =>
        {
            Err(format!("{format} has no rows of {}", shape.cols()))
        }
        OpSpec::Quantize { from: DType::F32 | DType::F16 | DType::BF16, .. } => Ok("quantize.ternary.reference"),
        OpSpec::Dequantize { to: DType::F32 | DType::F16 | DType::BF16, .. } => Ok("dequantize.ternary.reference"),
        OpSpec::MatMul { format, k, .. } if !k.is_multiple_of(format.unit()) => {
            Err(format!("{format} has no rows of {k}"))
        }
        OpSpec::MatMul { activations: DType::I8, output: DType::F32 | DType::I32, scale_block: None, m, .. } => {
            Ok(if *m == 1 { "gemv.ternary-i8.bitplanes.1x64" } else { "gemm.ternary-i8.bitplanes.1x64" })
        }
        OpSpec::Quantize { .. } | OpSpec::Dequantize { .. } | OpSpec::MatMul { .. } => {
            Err("not with these element types or scales".into())
        }
        other => Err(format!("it does not know {}", other.kind())),
    }
}

fn unsupported(op: impl ToString, reason: String) -> Error {
    Error::Unsupported { backend: ID.into(), op: op.to_string(), reason }
}

impl QuantBackend for Backend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, spec: &OpSpec) -> Support {
        match kernel_of(spec) {
            Ok(kernel) => Support::Yes { kernel },
            Err(reason) => Support::No { reason },
        }
    }

    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        format.encoded_len(shape)?;
        if !known(format) {
            return Err(unsupported("pack", format!("{format} is not i2_s, tl1 or tl2")));
        }
        Ok(Planes::bytes(shape.rows(), shape.cols()))
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let bytes = self.packed_size(weight.format(), weight.shape())?;
        let decoded = codec::decode(weight)?;
        let scale = decoded.scales.first().copied().unwrap_or(0.0);
        let planes = Planes::new(&decoded.codes, weight.shape().cols());
        let tag = PackTag { backend: ID.into(), packing: "planes-of-64" };
        Ok(PackedWeight::new(tag, weight, bytes, false, Arc::new(Packed { planes, scale })))
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        Ok(RawBuffer::host(bytes))
    }

    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(Queue { host: self.host.clone() }))
    }
}

struct Queue {
    host: HostContext,
}

impl Stream for Queue {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        if self.host.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let spec = op.spec();
        let kernel = kernel_of(&spec).map_err(|reason| unsupported(spec, reason))?;
        match op.op() {
            Op::Quantize { w, shape, format, codes, scales } => codec::quantize_into(
                w.host("weights", ID)?,
                shape,
                format,
                codes.host("codes", ID)?,
                scales.host("scales", ID)?,
            )?,
            Op::Dequantize { w, y } => codec::dequantize_into(w, y.host("dequantized values", ID)?)?,
            Op::QuantizeRows { x, cols, q, scales } => {
                quantize_rows(x.host("x", ID)?, cols, q.host("q", ID)?, scales.host("scales", ID)?)?;
            }
            Op::MatMul { w, x: Activations::Int8 { q, scales }, y, epilogue } => {
                let (w, shape) = (w.data::<Packed>(ID)?, w.shape());
                let (x, scales) = (q.host("activations", ID)?, scales.host("activation scales", ID)?);
                self.matmul(w, shape, x, scales, y, epilogue)?;
            }
            _ => return Err(unsupported(spec, "not with these operands".into())),
        }
        Ok(Ran { kernel })
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

fn quantize_rows(x: &[f32], cols: usize, q: &mut [i8], scales: &mut [f32]) -> Result<()> {
    for (r, ((x, q), scale)) in x.chunks(cols).zip(q.chunks_mut(cols)).zip(scales).enumerate() {
        let bad = || {
            let at = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
            Error::NotFinite { what: "activations", index: r * cols + at, value: x[at] }
        };
        *scale = reference::rows::quantize(x, q).ok_or_else(bad)?;
    }
    Ok(())
}

impl Queue {
    fn matmul(
        &self,
        w: &Packed,
        shape: Shape,
        x: &[i8],
        x_scales: &[f32],
        y: Output<'_>,
        epilogue: Epilogue,
    ) -> Result<()> {
        let (n, k, add) = (shape.rows(), shape.cols(), epilogue == Epilogue::Add);
        let sliced: Vec<Sliced> = x.chunks(k).map(Sliced::new).collect();
        match y {
            Output::I32(y) => self.each(y.host("y", ID)?, n, |r, c, y| {
                let sum = w.planes.dot(c, &sliced[r]);
                *y = if add { y.wrapping_add(sum) } else { sum };
            }),
            Output::F32(y) => self.each(y.host("y", ID)?, n, |r, c, y| {
                let value = reference::matmul::scaled(w.planes.dot(c, &sliced[r]), w.scale, x_scales[r]);
                *y = if add { *y + value } else { value };
            }),
        }
        Ok(())
    }

    /// Calls `set(row, column, element)` for all elements of a result of `n` columns, on the host's threads.
    fn each<T: Send>(&self, y: &mut [T], n: usize, set: impl Fn(usize, usize, &mut T) + Sync) {
        let executor = self.host.executor();
        // A lock for each part, taken once: safe, and nothing beside the work of a part.
        let len = y.len().div_ceil(4 * executor.threads()).max(256);
        let parts: Vec<_> = y.chunks_mut(len).map(Mutex::new).collect();
        executor.run(parts.len(), &|part| {
            let mut y = parts[part].lock().unwrap_or_else(PoisonError::into_inner);
            for (i, y) in y.iter_mut().enumerate() {
                let at = part * len + i;
                set(at / n, at % n, y);
            }
        });
    }
}
