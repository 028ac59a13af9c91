//! A [`QuantBackend`] from a set of kernels.

use std::sync::Arc;

use tersor_core::{
    BackendInfo, Checked, DType, DeviceInfo, DeviceKind, Error, Format, HostContext, OpKind, OpSpec, PackedWeight,
    QuantBackend, Ran, RawBuffer, Result, Shape, Stream, Support, Weight, intern,
};

use crate::isa::Simd;
use crate::ops::{self, Scratch};
use crate::pack;

/// A block of weight rows and of activation rows whose products a kernel computes.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// 2-bit codes of `rows` rows in blocks, see [`crate::pack`].
    pub w: &'a [u8],
    /// Bytes from one weight row to the next: 32 for each block of 128 weights.
    pub row_bytes: usize,
    /// Weight rows; at most [`Tile::MAX_ROWS`].
    pub rows: usize,
    /// `m` rows of int8 activations.
    pub x: &'a [i8],
    /// Elements from one activation row to the next, which is also their length: `4 * row_bytes`.
    pub stride: usize,
    /// Activation rows; at most [`Tile::MAX_M`].
    pub m: usize,
}

impl Tile<'_> {
    /// The most weight rows of a tile.
    pub const MAX_ROWS: usize = 16;
    /// The most activation rows of a tile.
    pub const MAX_M: usize = 64;
}

/// What a CPU backend brings: a token and the products that it overrides.
#[derive(Debug, Clone, Copy)]
pub struct Kernels<S> {
    /// Id of the backend.
    pub backend: &'static str,
    /// The token that bodies run through.
    pub isa: S,
    /// Writes `sum(code * x)` over each pair of rows to `out[row * m + column]`, with codes 0, 1, 2 as stored, exactly.
    pub dots: fn(S, Tile<'_>, &mut [i32]),
    /// Weight rows x activation rows that `dots` keeps in registers for one row of activations, for kernel names.
    pub gemv_tile: &'static str,
    /// The same for more rows.
    pub gemm_tile: &'static str,
}

impl<S: Simd> Kernels<S> {
    /// The shared bodies alone.
    pub fn shared(backend: &'static str, isa: S) -> Self {
        let dots = |isa: S, tile: Tile<'_>, out: &mut [i32]| isa.run(ops::matmul::Dots { tile, out });
        Kernels { backend, isa, dots, gemv_tile: "1x1", gemm_tile: "1x1" }
    }
}

/// A CPU backend.
#[derive(Debug)]
pub struct CpuBackend<S: Simd> {
    kernels: Kernels<S>,
    host: HostContext,
    info: BackendInfo,
    names: Arc<Names>,
}

impl<S: Simd> CpuBackend<S> {
    /// A backend ready to work. `version` and `kernel_revision` are the entry's.
    pub fn new(
        kernels: Kernels<S>,
        host: &HostContext,
        version: &'static str,
        kernel_revision: u32,
        device: DeviceInfo,
    ) -> Self {
        let info =
            BackendInfo { id: kernels.backend.into(), version: version.into(), kernel_revision, device, isa: S::ISA };
        CpuBackend { kernels, host: host.clone(), info, names: Arc::new(Names::new(&kernels)) }
    }
}

/// The host's processor as a device.
pub fn cpu_device(isas: Vec<tersor_core::Isa>) -> DeviceInfo {
    DeviceInfo { index: 0, kind: DeviceKind::Cpu, name: cpu_name(), isas, memory: None }
}

#[cfg(target_arch = "x86_64")]
fn cpu_name() -> String {
    let mut bytes = Vec::new();
    if std::arch::x86_64::__cpuid(0x8000_0000).eax >= 0x8000_0004 {
        for leaf in 0x8000_0002u32..=0x8000_0004 {
            let r = std::arch::x86_64::__cpuid(leaf);
            bytes.extend([r.eax, r.ebx, r.ecx, r.edx].iter().flat_map(|w| w.to_le_bytes()));
        }
    }
    let name = String::from_utf8_lossy(&bytes);
    let name = name.trim_end_matches('\0').split_whitespace().collect::<Vec<_>>().join(" ");
    if name.is_empty() { "x86-64 processor".into() } else { name }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_name() -> String {
    format!("{} processor", std::env::consts::ARCH)
}

impl<S: Simd> QuantBackend for CpuBackend<S> {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, spec: &OpSpec) -> Support {
        if let Err(e) = spec.check() {
            return Support::no(e.to_string());
        }
        if let OpSpec::MatMul { format, .. } | OpSpec::GatherRows { format, .. } = spec
            && format.is_block()
        {
            return Support::no(format!("{} has no {format} kernels", self.kernels.backend));
        }
        if let OpSpec::MatMul { scale_block: Some(block), k, .. } = spec
            && !k.is_multiple_of(*block)
        {
            return Support::no(format!("a group of {block} weights straddles rows of {k}"));
        }
        match self.names.of(spec) {
            Some(kernel) => Support::Yes { kernel },
            None => Support::no(format!("{} does not know {}", self.kernels.backend, spec.kind())),
        }
    }

    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        pack::packed_size(format, shape)
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let _span = tracing::debug_span!("pack", format = %weight.format(), shape = %weight.shape()).entered();
        pack::pack(self.kernels.backend, self.kernels.isa, self.host.executor(), weight)
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        Ok(RawBuffer::host(bytes))
    }

    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(CpuStream {
            kernels: self.kernels,
            host: self.host.clone(),
            names: self.names.clone(),
            scratch: Scratch::default(),
        }))
    }
}

/// Runs each op when it is submitted.
#[derive(Debug)]
struct CpuStream<S: Simd> {
    kernels: Kernels<S>,
    host: HostContext,
    names: Arc<Names>,
    scratch: Scratch,
}

impl<S: Simd> Stream for CpuStream<S> {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        if self.host.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let spec = op.spec();
        let Some(kernel) = self.names.of(&spec) else {
            let reason = "no such kernel".to_owned();
            return Err(Error::Unsupported { backend: self.kernels.backend.into(), op: spec.to_string(), reason });
        };
        let _span = tracing::trace_span!("op", kernel).entered();
        let ctx = ops::Context { kernels: self.kernels, executor: self.host.executor(), scratch: &mut self.scratch };
        ctx.run(op.op())?;
        Ok(Ran { kernel })
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Kernel names, made once.
#[derive(Debug)]
struct Names {
    simple: [&'static str; OpKind::ALL.len()],
    quantize: [[&'static str; 3]; Format::COUNT],
    dequantize: [[&'static str; 3]; Format::COUNT],
    gather: [&'static str; Format::COUNT],
    /// One row, more rows, and the same with several scales a row.
    matmul: [[&'static str; 4]; Format::COUNT],
}

const FLOATS: [&str; 3] = ["f32", "f16", "bf16"];

impl Names {
    fn new<S: Simd>(kernels: &Kernels<S>) -> Self {
        let isa = kernels.isa.name();
        let mut names = Names {
            simple: OpKind::ALL.map(|kind| intern(format!("{kind}.f32.{isa}"))),
            quantize: [[""; 3]; Format::COUNT],
            dequantize: [[""; 3]; Format::COUNT],
            gather: [""; Format::COUNT],
            matmul: [[""; 4]; Format::COUNT],
        };
        for f in Format::all() {
            let i = f.index();
            names.quantize[i] = FLOATS.map(|t| intern(format!("quantize.{f}-{t}.{isa}")));
            names.dequantize[i] = FLOATS.map(|t| intern(format!("dequantize.{f}-{t}.{isa}")));
            names.gather[i] = intern(format!("gather_rows.{f}.{isa}"));
            let (act, gemv, gemm) =
                if f.is_ternary() { ("i8", kernels.gemv_tile, kernels.gemm_tile) } else { ("f32", "1x1", "1x1") };
            names.matmul[i] = [("gemv", gemv), ("gemm", gemm), ("gemv", "blocks"), ("gemm", "blocks")]
                .map(|(op, tile)| intern(format!("{op}.{f}-{act}.{isa}.{tile}")));
        }
        names
    }

    fn of(&self, spec: &OpSpec) -> Option<&'static str> {
        let float = |t: &DType| match t {
            DType::F32 => Some(0),
            DType::F16 => Some(1),
            DType::BF16 => Some(2),
            _ => None,
        };
        Some(match spec {
            OpSpec::Quantize { from, format, .. } => self.quantize[format.index()][float(from)?],
            OpSpec::Dequantize { to, format, .. } => self.dequantize[format.index()][float(to)?],
            OpSpec::GatherRows { format, .. } => self.gather[format.index()],
            OpSpec::MatMul { format, scale_block, output, m, .. } => {
                let blocks = scale_block.is_some() && *output == DType::F32;
                self.matmul[format.index()][usize::from(*m > 1) + 2 * usize::from(blocks)]
            }
            other => self.simple[OpKind::ALL.iter().position(|k| *k == other.kind())?],
        })
    }
}
