//! A [`QuantBackend`] from a set of kernels.

use std::sync::Arc;

use tersor_core::{
    BackendInfo, Checked, DType, DeviceInfo, DeviceKind, Error, Format, HostContext, OpKind, OpSpec, PackedWeight,
    QuantBackend, Ran, RawBuffer, Result, Shape, Stream, Support, Weight, intern,
};

use crate::arch::panels::{PanelTile, ScaledTile};
use crate::arena::Arena;
use crate::isa::Simd;
use crate::ops::{self, Scratch};
use crate::pack::panels::Layout;
use crate::pack::{self, Packer};

/// What a CPU backend brings: a token and the products that it overrides.
#[derive(Debug, Clone, Copy)]
pub struct Kernels<S: 'static> {
    /// Id of the backend.
    pub backend: &'static str,
    /// The token that bodies run through.
    pub isa: S,
    /// Products of panels, preferred first; none: the portable products of blocks.
    pub panels: &'static [PanelKernels<S>],
}

/// Products of one packing in panels.
#[derive(Debug)]
pub struct PanelKernels<S> {
    /// The packing.
    pub layout: Layout,
    /// Raw sums of a tile, exactly.
    pub sums: fn(S, PanelTile<'_>, &mut [i32]),
    /// Sums of rows with several scales; `None` where blocks of scales are not whole steps.
    pub scaled: Option<fn(S, ScaledTile<'_>, &mut [f32])>,
    /// Rows x columns of the tile for one row of activations, and for more, for kernel names.
    pub tiles: [&'static str; 2],
}

impl<S: Simd> Kernels<S> {
    /// The shared bodies alone.
    pub fn shared(backend: &'static str, isa: S) -> Self {
        Kernels { backend, isa, panels: &[] }
    }
}

/// A CPU backend.
#[derive(Debug)]
pub struct CpuBackend<S: Simd> {
    kernels: Kernels<S>,
    layouts: Vec<Layout>,
    arena: Arena,
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
        let layouts = kernels.panels.iter().map(|p| p.layout).collect();
        CpuBackend {
            kernels,
            layouts,
            arena: Arena::default(),
            host: host.clone(),
            info,
            names: Arc::new(Names::new(&kernels)),
        }
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
        pack::packed_size(&self.layouts, format, shape)
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let _span = tracing::debug_span!("pack", format = %weight.format(), shape = %weight.shape()).entered();
        let packer = Packer {
            backend: self.kernels.backend,
            isa: self.kernels.isa,
            layouts: &self.layouts,
            executor: self.host.executor(),
            arena: &self.arena,
            zero_copy: self.host.zero_copy,
        };
        packer.pack(weight)
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        self.host.memory().alloc(self.kernels.backend, bytes)
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
    /// One row, more rows; the same with several scales a row; the same for their sums alone.
    matmul: [[&'static str; 6]; Format::COUNT],
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
            matmul: [[""; 6]; Format::COUNT],
        };
        for f in Format::all() {
            let i = f.index();
            names.quantize[i] = FLOATS.map(|t| intern(format!("quantize.{f}-{t}.{isa}")));
            names.dequantize[i] = FLOATS.map(|t| intern(format!("dequantize.{f}-{t}.{isa}")));
            names.gather[i] = intern(format!("gather_rows.{f}.{isa}"));
            let tiles =
                |panels: Option<&PanelKernels<S>>| panels.filter(|_| f.is_ternary()).map_or(["1x1"; 2], |p| p.tiles);
            let (one, several) =
                (tiles(kernels.panels.first()), tiles(kernels.panels.iter().find(|p| p.scaled.is_some())));
            let act = if f.is_float() { "f32" } else { "i8" };
            names.matmul[i] = std::array::from_fn(|j| {
                let op = ["gemv", "gemm"][j % 2];
                let tile = match j / 2 {
                    0 => one[j % 2].to_owned(),
                    1 => format!("{}-blocks", several[j % 2]),
                    _ => several[j % 2].to_owned(),
                };
                intern(format!("{op}.{f}-{act}.{isa}.{tile}"))
            });
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
                let kind = match (scale_block, output) {
                    (None, _) => 0,
                    (Some(_), DType::F32) => 2,
                    (Some(_), _) => 4,
                };
                self.matmul[format.index()][kind + usize::from(*m > 1)]
            }
            other => self.simple[OpKind::ALL.iter().position(|k| *k == other.kind())?],
        })
    }
}
