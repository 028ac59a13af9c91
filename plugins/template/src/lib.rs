//! {{project-name}}: a Tersor backend for `i2_s` weights.
//!
//! It conforms as it stands, and is as slow as the definitions that it computes by. `multiply` is the place for a kernel.

use std::sync::Arc;

use tersor_core::{
    Activations, BackendEntry, BackendInfo, Checked, DType, DeviceInfo, DeviceKind, Epilogue, Error, Format,
    HostContext, Op, OpSpec, Output, PackTag, PackedWeight, Probe, QuantBackend, Ran, RawBuffer, Result, Shape, Stream,
    Support, Weight, codec, reference,
};

const ID: &str = "{{project-name}}";

/// Raise it with every change of a kernel: measurements of older kernels are forgotten then.
const KERNEL_REVISION: u32 = 1;

static ENTRY: BackendEntry = BackendEntry {
    id: ID,
    version: env!("CARGO_PKG_VERSION"),
    kernel_revision: KERNEL_REVISION,
    // Where nothing was measured, higher comes first; Tersor's own CPU backends have 0 to 100.
    priority: -10,
    // Look for your device here, and say why it cannot be used: Probe::Unusable { reason }.
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
        let version = env!("CARGO_PKG_VERSION").into();
        let info = BackendInfo { id: ID.into(), version, kernel_revision: KERNEL_REVISION, device: device(), isa: None };
        Backend { info, host: host.clone() }
    }
}

/// A weight in this backend's own layout: -1, 0 and 1 row by row, and their scale.
#[derive(Debug)]
struct Packed {
    codes: Vec<i8>,
    scale: f32,
}

/// One sum: a row of the weight times a row of activations, exact. This is what a kernel replaces.
fn multiply(row: &[i8], x: &[i8]) -> i32 {
    reference::matmul::ternary(row, x)
}

/// The name of the kernel that runs an op, or why none does. Names appear in reports.
fn kernel_of(spec: &OpSpec) -> Result<&'static str, String> {
    match spec {
        OpSpec::QuantizeRows { .. } => Ok("quantize_rows.f32.reference"),
        OpSpec::Quantize { format, shape, .. } | OpSpec::Dequantize { format, shape, .. }
            if *format != Format::I2S || format.encoded_len(*shape).is_err() =>
        {
            Err(format!("{format} {shape} is not an i2_s weight"))
        }
        OpSpec::Quantize { from: DType::F32 | DType::F16 | DType::BF16, .. } => Ok("quantize.i2_s.reference"),
        OpSpec::Dequantize { to: DType::F32 | DType::F16 | DType::BF16, .. } => Ok("dequantize.i2_s.reference"),
        OpSpec::MatMul { format: Format::I2S, activations: DType::I8, output, scale_block: None, m, k, .. }
            if matches!(output, DType::F32 | DType::I32) && k.is_multiple_of(Format::I2S.unit()) =>
        {
            // op.weight-activations.isa.tile
            Ok(if *m == 1 { "gemv.i2_s-i8.reference.1x1" } else { "gemm.i2_s-i8.reference.1x1" })
        }
        other => Err(format!("it does not do {}", other.kind())),
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
            Err(reason) => Support::no(reason),
        }
    }

    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        format.encoded_len(shape)?;
        if format != Format::I2S {
            return Err(unsupported(format!("pack {format} {shape}"), format!("{format} is not i2_s")));
        }
        Ok(shape.len())
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let bytes = self.packed_size(weight.format(), weight.shape())?;
        let decoded = codec::decode(weight)?;
        let scale = decoded.scales.first().copied().unwrap_or(0.0);
        let tag = PackTag { backend: ID.into(), packing: "a byte a weight" };
        Ok(PackedWeight::new(tag, weight, bytes, false, Arc::new(Packed { codes: decoded.codes, scale })))
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        Ok(RawBuffer::host(bytes))
    }

    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(Work { host: self.host.clone() }))
    }
}

struct Work {
    host: HostContext,
}

impl Stream for Work {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        if self.host.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let spec = op.spec();
        let kernel = kernel_of(&spec).map_err(|reason| unsupported(spec, reason))?;
        match op.op() {
            Op::Quantize { w, shape, format, codes, scales } => {
                let (codes, scales) = (codes.host("codes", ID)?, scales.host("scales", ID)?);
                codec::quantize_into(w.host("weights", ID)?, shape, format, codes, scales)?;
            }
            Op::Dequantize { w, y } => codec::dequantize_into(w, y.host("dequantized values", ID)?)?,
            Op::QuantizeRows { x, cols, q, scales } => {
                quantize_rows(x.host("x", ID)?, cols, q.host("q", ID)?, scales.host("scales", ID)?)?;
            }
            Op::MatMul { w, x: Activations::Int8 { q, scales }, y, epilogue } => {
                let (packed, k) = (w.data::<Packed>(ID)?, w.shape().cols());
                let (x, scales) = (q.host("activations", ID)?, scales.host("activation scales", ID)?);
                matmul(packed, k, x, scales, y, epilogue == Epilogue::Add)?;
            }
            _ => return Err(unsupported(spec, "not with these operands".into())),
        }
        Ok(Ran { kernel })
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

fn matmul(w: &Packed, k: usize, x: &[i8], x_scales: &[f32], y: Output<'_>, add: bool) -> Result<()> {
    let n = w.codes.len() / k;
    let sum = |i: usize| multiply(&w.codes[i % n * k..][..k], &x[i / n * k..][..k]);
    match y {
        Output::I32(y) => {
            for (i, y) in y.host("y", ID)?.iter_mut().enumerate() {
                *y = if add { y.wrapping_add(sum(i)) } else { sum(i) };
            }
        }
        Output::F32(y) => {
            for (i, y) in y.host("y", ID)?.iter_mut().enumerate() {
                let value = reference::matmul::scaled(sum(i), w.scale, x_scales[i / n]);
                *y = if add { *y + value } else { value };
            }
        }
    }
    Ok(())
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
