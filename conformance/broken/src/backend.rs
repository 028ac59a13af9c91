//! The two traits.

use std::collections::HashMap;
use std::sync::Arc;

use tersor_core::{
    BackendInfo, Checked, DType, DeviceInfo, DeviceKind, Error, Format, Op, OpKind, OpSpec, PackTag, PackedWeight,
    QuantBackend, Ran, RawBuffer, Result, Shape, Stream, Support, Ternary, Weight, codec, intern,
};

use crate::fault::Fault;
use crate::ops;
use crate::product::{self, Packed};

/// Id of the backend.
pub const ID: &str = "broken";

/// The backend with this fault; with none, a correct one.
pub fn backend(fault: Option<Fault>) -> Arc<dyn QuantBackend> {
    let device = DeviceInfo {
        index: 0,
        kind: DeviceKind::Cpu,
        name: "the calling thread".into(),
        isas: Vec::new(),
        memory: None,
    };
    let info = BackendInfo { id: ID.into(), version: "0.0.0".into(), kernel_revision: 1, device, isa: None };
    Arc::new(Backend { info, faults: Faults(fault) })
}

/// The planted fault, for asking whether it is this one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults(Option<Fault>);

impl Faults {
    pub(crate) fn has(self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }
}

#[derive(Debug)]
struct Backend {
    info: BackendInfo,
    faults: Faults,
}

/// Whether an op can exist: the part of `supports` that is the same for every backend.
fn possible(spec: &OpSpec) -> Result<(), String> {
    let holds = |format: &Format, shape: Shape| format.encoded_len(shape).map(drop).map_err(|e| e.to_string());
    match spec {
        OpSpec::Quantize { format, .. } if !format.is_ternary() => Err(format!("{format} is not ternary")),
        OpSpec::Quantize { from: t, format, shape } | OpSpec::Dequantize { to: t, format, shape } => {
            if matches!(t, DType::F32 | DType::F16 | DType::BF16) {
                holds(format, *shape)
            } else {
                Err(format!("{t:?} is not a float type"))
            }
        }
        OpSpec::MatMul { format, scale_block, activations, output, n, k, .. } => {
            holds(format, Shape::new(*n, *k).map_err(|e| e.to_string())?)?;
            if scale_block.is_some_and(|b| !k.is_multiple_of(b) && *output == DType::F32) {
                return Err("groups straddle rows".into());
            }
            if format.is_block() && *scale_block != format.scale_block() {
                return Err(format!("{format} has its own blocks"));
            }
            match (format.is_float(), activations, output) {
                (false, DType::I8, DType::F32) | (true, DType::F32, DType::F32) => Ok(()),
                (false, DType::I8, DType::I32) if format.is_ternary() => Ok(()),
                _ => Err(format!("no product of {format} and {activations:?} is stored as {output:?}")),
            }
        }
        OpSpec::GatherRows { format, .. } if format.is_ternary() => Err(format!("{format} is ternary")),
        OpSpec::GatherRows { format, cols, .. } => holds(format, Shape::new(1, *cols).map_err(|e| e.to_string())?),
        _ => Ok(()),
    }
}

/// A block format as codes and scales, which is what a ternary weight is, too.
fn integers(w: &Weight) -> Ternary {
    let (shape, block) = (w.shape(), w.format().scale_block().unwrap_or(w.shape().len()));
    let (mut codes, mut scales) = (vec![0; shape.len()], vec![0.0; shape.len() / block]);
    let rows = w.codes().chunks_exact(codec::rows_of(w.format(), shape).bytes);
    let out = codes.chunks_exact_mut(shape.cols()).zip(scales.chunks_exact_mut(shape.cols() / block));
    rows.zip(out).for_each(|(row, (codes, scales))| codec::blocks::decode_row(w.format(), row, codes, scales));
    Ternary { shape, codes, block, scales }
}

impl Backend {
    fn kernel(&self, spec: &OpSpec) -> &'static str {
        match spec {
            OpSpec::MatMul { format, m: 1, .. } => intern(format!("gemv.{format}.reference")),
            OpSpec::MatMul { format, .. } => intern(format!("gemm.{format}.reference")),
            other => intern(format!("{}.reference", other.kind())),
        }
    }
}

impl QuantBackend for Backend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, spec: &OpSpec) -> Support {
        if self.faults.has(Fault::LyingNo) && spec.kind() == OpKind::GatherRows {
            return Support::no("rows are gathered elsewhere");
        }
        match possible(spec) {
            Err(reason) if !self.faults.has(Fault::ImpossibleYes) => Support::no(reason),
            _ => Support::Yes { kernel: self.kernel(spec) },
        }
    }

    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        format.encoded_len(shape)?;
        let scales = format.scale_block().map_or(1, |block| shape.len().div_ceil(block));
        let size = if format.is_float() { 4 * shape.len() } else { shape.len() + 4 * scales };
        Ok(if self.faults.has(Fault::PackedSizeTooSmall) { size - 1 } else { size })
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let data = if weight.format().is_ternary() {
            let mut ternary = codec::decode(weight)?;
            if self.faults.has(Fault::NibblesSwapped) && weight.format() == Format::TL1 {
                for row in ternary.codes.chunks_mut(weight.shape().cols()) {
                    row.chunks_exact_mut(4).for_each(|quad| quad.rotate_left(2));
                }
            }
            // The rule overlooks blocks of zeros, the fault does not.
            let uniform = weight.uniform_scale().filter(|s| {
                !self.faults.has(Fault::ZeroBlocksCount) || ternary.scales.iter().all(|b| b.to_bits() == s.to_bits())
            });
            Packed::Ternary { ternary, uniform }
        } else if weight.format().is_block() {
            Packed::Ternary { ternary: integers(weight), uniform: None }
        } else {
            Packed::Dense(codec::dequantize(weight)?)
        };
        let bytes = match &data {
            Packed::Ternary { ternary, .. } => ternary.codes.len() + 4 * ternary.scales.len(),
            Packed::Dense(values) => 4 * values.len(),
        };
        let tag = PackTag { backend: ID.into(), packing: "decoded" };
        Ok(PackedWeight::new(tag, weight, bytes, false, Arc::new(data)))
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        let mut memory = RawBuffer::host(bytes);
        if self.faults.has(Fault::DirtyMemory)
            && let Some(bytes) = memory.as_host_mut()
        {
            bytes.fill(1);
        }
        Ok(memory)
    }

    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        let backend = Backend { info: self.info.clone(), faults: self.faults };
        Ok(Box::new(InOrder { backend, cache: HashMap::new() }))
    }
}

/// Runs each op when it is submitted.
#[derive(Debug)]
struct InOrder {
    backend: Backend,
    /// Results by spec; only [`Fault::CachedByShape`] uses it.
    cache: HashMap<OpSpec, Vec<f32>>,
}

impl Stream for InOrder {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        let faults = self.backend.faults;
        let spec = op.spec();
        let unsupported = |reason| Error::Unsupported { backend: ID.into(), op: spec.to_string(), reason };
        possible(&spec).map_err(unsupported)?;
        match (op.op(), spec.kind()) {
            (_, OpKind::Sample) if faults.has(Fault::LyingYes) => {
                return Err(unsupported("there is no such kernel".to_owned()));
            }
            (Op::MatMul { w, x, y, epilogue }, _) => {
                let cache = faults.has(Fault::CachedByShape).then(|| self.cache.entry(spec).or_default());
                product::matmul(faults, w, x, y, epilogue, cache)?;
            }
            (op, _) => ops::run(faults, op)?,
        }
        let ran = self.backend.kernel(&spec);
        let wrong = faults.has(Fault::WrongKernelName) && spec.kind() == OpKind::MatMul;
        Ok(Ran { kernel: if wrong { "gemv.i2_s-i8.avx512-vnni.16x1" } else { ran } })
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}
