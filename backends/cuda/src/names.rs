//! Which kernel serves which spec, and its name: the one place that both `supports` and `submit` ask.

use tersor_core::{DType, Format, OpKind, OpSpec, intern};

/// Rows of activations up to which the dp4a kernels are used.
pub(crate) const GEMV_ROWS: usize = 4;
/// Rows of activations up to which one block has them all, and its warps share the columns.
pub(crate) const SMALL_ROWS: usize = 64;

/// Which kernel multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    Gemv1,
    Gemv2,
    Gemv4,
    Small1,
    Small2,
    Small4,
    Small8,
    Large,
    Blocks,
    Dense,
    Head1,
    Head4,
    Head8,
}

impl Product {
    const ALL: [Product; 13] = [
        Product::Gemv1,
        Product::Gemv2,
        Product::Gemv4,
        Product::Small1,
        Product::Small2,
        Product::Small4,
        Product::Small8,
        Product::Large,
        Product::Blocks,
        Product::Dense,
        Product::Head1,
        Product::Head4,
        Product::Head8,
    ];

    pub(crate) fn of(format: Format, scale_block: Option<usize>, output: DType, m: usize) -> Self {
        match m {
            1 if format.is_block() => Product::Head1,
            2..=4 if format.is_block() => Product::Head4,
            _ if format.is_block() => Product::Head8,
            _ if !format.is_ternary() => Product::Dense,
            _ if scale_block.is_some() && output == DType::F32 => Product::Blocks,
            1 => Product::Gemv1,
            2 => Product::Gemv2,
            0..=GEMV_ROWS => Product::Gemv4,
            5..=8 => Product::Small1,
            9..=16 => Product::Small2,
            17..=32 => Product::Small4,
            33..=SMALL_ROWS => Product::Small8,
            _ => Product::Large,
        }
    }

    /// Rows of activations that a warp of the kernels for `q8_0` and `q6_k` has; 0 of the others.
    pub(crate) fn head_rows(self) -> usize {
        match self {
            Product::Head1 => 1,
            Product::Head4 => 4,
            Product::Head8 => 8,
            _ => 0,
        }
    }

    /// `op` and `tile` of the kernel's name: weight rows x activation rows that a block computes.
    fn parts(self) -> (&'static str, &'static str) {
        match self {
            Product::Gemv1 => ("gemv", "16x1"),
            Product::Gemv2 => ("gemv", "16x2"),
            Product::Gemv4 => ("gemv", "16x4"),
            Product::Small1 => ("gemm", "32x8"),
            Product::Small2 => ("gemm", "32x16"),
            Product::Small4 => ("gemm", "32x32"),
            Product::Small8 => ("gemm", "32x64"),
            Product::Large => ("gemm", "128x64"),
            Product::Blocks => ("gemm", "blocks"),
            Product::Dense => ("gemv", "32x1"),
            Product::Head1 => ("gemv", "blocks-1"),
            Product::Head4 => ("gemm", "blocks-4"),
            Product::Head8 => ("gemm", "blocks-8"),
        }
    }
}

/// Kernel names, made once.
#[derive(Debug)]
pub(crate) struct Names {
    simple: [&'static str; OpKind::ALL.len()],
    quantize: [[&'static str; 3]; Format::COUNT],
    dequantize: [[&'static str; 3]; Format::COUNT],
    gather: [&'static str; Format::COUNT],
    products: [[&'static str; Product::ALL.len()]; Format::COUNT],
}

const FLOATS: [&str; 3] = ["f32", "f16", "bf16"];

/// Position among [`FLOATS`], which is also the kernels' number for the type.
pub(crate) fn float(t: DType) -> Option<usize> {
    match t {
        DType::F32 => Some(0),
        DType::F16 => Some(1),
        DType::BF16 => Some(2),
        _ => None,
    }
}

impl Names {
    pub(crate) fn new(isa: &str) -> Self {
        let mut names = Names {
            simple: OpKind::ALL.map(|kind| intern(format!("{kind}.f32.{isa}"))),
            quantize: [[""; 3]; Format::COUNT],
            dequantize: [[""; 3]; Format::COUNT],
            gather: [""; Format::COUNT],
            products: [[""; Product::ALL.len()]; Format::COUNT],
        };
        for f in Format::all() {
            let i = f.index();
            names.quantize[i] = FLOATS.map(|t| intern(format!("quantize.{f}-{t}.{isa}")));
            names.dequantize[i] = FLOATS.map(|t| intern(format!("dequantize.{f}-{t}.{isa}")));
            names.gather[i] = intern(format!("gather_rows.{f}.{isa}"));
            let act = if f.is_ternary() || f.is_block() { "i8" } else { "f32" };
            names.products[i] = Product::ALL.map(|p| {
                let (op, tile) = p.parts();
                intern(format!("{op}.{f}-{act}.{isa}.{tile}"))
            });
        }
        names
    }

    pub(crate) fn of(&self, spec: &OpSpec) -> Option<&'static str> {
        Some(match spec {
            OpSpec::Quantize { from, format, .. } => self.quantize[format.index()][float(*from)?],
            OpSpec::Dequantize { to, format, .. } => self.dequantize[format.index()][float(*to)?],
            OpSpec::GatherRows { format, .. } => self.gather[format.index()],
            OpSpec::MatMul { format, scale_block, output, m, .. } => {
                self.products[format.index()][Product::of(*format, *scale_block, *output, *m) as usize]
            }
            other => self.simple[OpKind::ALL.iter().position(|k| *k == other.kind())?],
        })
    }
}
