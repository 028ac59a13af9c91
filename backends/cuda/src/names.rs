//! Which kernel serves which spec, and its name: the one place that both `supports` and `submit` ask.

use tersor_core::{DType, Format, OpKind, OpSpec, intern};

/// Rows of activations up to which the dp4a kernels are used.
pub(crate) const GEMV_ROWS: usize = 4;
/// Rows of activations up to which one block has them all, and its warps share the columns.
pub(crate) const SMALL_ROWS: usize = 64;
/// Rows of activations from which on, and up to which, dense heads go through tensor cores where results need not follow the
/// order. More rows would need too much memory for their parts.
const MMA_LEAST: usize = 2;
const MMA_MOST: usize = 4096;
/// Columns up to which a row of weights with several scales has a kernel for one row of activations.
const SCALES_ONE_COLUMNS: usize = 8192;
/// Bytes of shared memory of a block of `gemm_scales_many`; see `kernels/scales.cu`.
pub(crate) const SCALES_SHARED: usize = 96_256;

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
    /// Of weights whose rows have several scales: one row of activations; blocks with up to 8, 16 and 32; and with many.
    ScalesOne,
    Scales1,
    Scales2,
    Scales4,
    ScalesMany,
    Dense,
    /// On tensor cores, not in the order of `docs/numerics.md`.
    DenseMma1,
    DenseMma2,
    DenseMma4,
    Head1,
    Head4,
    Head8,
    HeadMma1,
    HeadMma2,
    HeadMma4,
}

/// What products depend on beside their shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Only kernels that follow the order of `docs/numerics.md`.
    pub(crate) exact: bool,
    /// Bytes of dynamic shared memory that a block may ask for.
    pub(crate) shared: usize,
}

/// Bytes of shared memory that a block of `head_mma` needs for `8 * tiles` rows of `k` activations; see
/// `kernels/heads_mma.cu`.
pub(crate) fn head_mma_bytes(format: Format, k: usize, tiles: usize) -> usize {
    let (tile, blocks) = match format {
        Format::Q6K => (16 * (k / 2 + 16 + k / 4 + 16 + k / 16 + k / 128), k / 16),
        _ => (16 * (k + 16 + k / 16), k / 32),
    };
    2 * tile + 8 * tiles * k + 4 * 16 * blocks + 4 * 16 * 128 * tiles
}

impl Product {
    const ALL: [Product; 23] = [
        Product::Gemv1,
        Product::Gemv2,
        Product::Gemv4,
        Product::Small1,
        Product::Small2,
        Product::Small4,
        Product::Small8,
        Product::Large,
        Product::ScalesOne,
        Product::Scales1,
        Product::Scales2,
        Product::Scales4,
        Product::ScalesMany,
        Product::Dense,
        Product::DenseMma1,
        Product::DenseMma2,
        Product::DenseMma4,
        Product::Head1,
        Product::Head4,
        Product::Head8,
        Product::HeadMma1,
        Product::HeadMma2,
        Product::HeadMma4,
    ];

    /// For `m` rows of `k` activations.
    pub(crate) fn of(
        format: Format,
        scale_block: Option<usize>,
        output: DType,
        (m, k): (usize, usize),
        limits: Limits,
    ) -> Self {
        let (halves, exact) = (matches!(format, Format::F16 | Format::BF16), limits.exact);
        let fits = |tiles| format.is_block() && head_mma_bytes(format, k, tiles) <= limits.shared;
        match m {
            17.. if fits(4) => Product::HeadMma4,
            9.. if fits(2) => Product::HeadMma2,
            5.. if fits(1) => Product::HeadMma1,
            MMA_LEAST..=8 if halves && !exact => Product::DenseMma1,
            9..=16 if halves && !exact => Product::DenseMma2,
            17..=MMA_MOST if halves && !exact => Product::DenseMma4,
            1 if format.is_block() => Product::Head1,
            2..=4 if format.is_block() => Product::Head4,
            _ if format.is_block() => Product::Head8,
            _ if !format.is_ternary() => Product::Dense,
            _ if scale_block.is_some() && output == DType::F32 => match m {
                1 if k <= SCALES_ONE_COLUMNS => Product::ScalesOne,
                0..=8 => Product::Scales1,
                9..=16 => Product::Scales2,
                33.. if SCALES_SHARED <= limits.shared => Product::ScalesMany,
                _ => Product::Scales4,
            },
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

    /// Whether results are those of `docs/numerics.md`, bit for bit.
    pub(crate) fn follows_order(self) -> bool {
        self.mma_tiles() == 0
    }

    /// Whether it is of weights whose rows have several scales.
    pub(crate) fn scales(self) -> bool {
        use Product::{Scales1, Scales2, Scales4, ScalesMany, ScalesOne};
        matches!(self, ScalesOne | Scales1 | Scales2 | Scales4 | ScalesMany)
    }

    /// Times eight: rows of activations that a block of `dense_mma` has; 0 of the others.
    pub(crate) fn mma_tiles(self) -> usize {
        match self {
            Product::DenseMma1 => 1,
            Product::DenseMma2 => 2,
            Product::DenseMma4 => 4,
            _ => 0,
        }
    }

    /// The same of `head_mma`.
    pub(crate) fn head_mma_tiles(self) -> usize {
        match self {
            Product::HeadMma1 => 1,
            Product::HeadMma2 => 2,
            Product::HeadMma4 => 4,
            _ => 0,
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
            Product::Gemv1 => ("gemv", "rows-1"),
            Product::Gemv2 => ("gemv", "16x2"),
            Product::Gemv4 => ("gemv", "16x4"),
            Product::Small1 => ("gemm", "32x8"),
            Product::Small2 => ("gemm", "32x16"),
            Product::Small4 => ("gemm", "32x32"),
            Product::Small8 => ("gemm", "32x64"),
            Product::Large => ("gemm", "128x64"),
            Product::ScalesOne => ("gemv", "scales-rows-1"),
            Product::Scales1 => ("gemm", "scales-16x8"),
            Product::Scales2 => ("gemm", "scales-16x16"),
            Product::Scales4 => ("gemm", "scales-16x32"),
            Product::ScalesMany => ("gemm", "scales-64x64"),
            Product::Dense => ("gemv", "rows-1"),
            Product::DenseMma1 => ("gemm", "mma-256x8"),
            Product::DenseMma2 => ("gemm", "mma-256x16"),
            Product::DenseMma4 => ("gemm", "mma-256x32"),
            Product::Head1 => ("gemv", "blocks-1"),
            Product::Head4 => ("gemm", "blocks-4"),
            Product::Head8 => ("gemm", "blocks-8"),
            Product::HeadMma1 => ("gemm", "blocks-mma-16x8"),
            Product::HeadMma2 => ("gemm", "blocks-mma-16x16"),
            Product::HeadMma4 => ("gemm", "blocks-mma-16x32"),
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
    limits: Limits,
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
    /// `warpgroups`: many rows are multiplied by the kernels of `warpgroups.cu`.
    pub(crate) fn new(isa: &str, warpgroups: bool, limits: Limits) -> Self {
        let mut names = Names {
            simple: OpKind::ALL.map(|kind| intern(format!("{kind}.f32.{isa}"))),
            quantize: [[""; 3]; Format::COUNT],
            dequantize: [[""; 3]; Format::COUNT],
            gather: [""; Format::COUNT],
            products: [[""; Product::ALL.len()]; Format::COUNT],
            limits,
        };
        for f in Format::all() {
            let i = f.index();
            names.quantize[i] = FLOATS.map(|t| intern(format!("quantize.{f}-{t}.{isa}")));
            names.dequantize[i] = FLOATS.map(|t| intern(format!("dequantize.{f}-{t}.{isa}")));
            names.gather[i] = intern(format!("gather_rows.{f}.{isa}"));
            let act = if f.is_ternary() || f.is_block() { "i8" } else { "f32" };
            names.products[i] = Product::ALL.map(|p| {
                let (op, tile) = p.parts();
                let (isa, tile) = if warpgroups && p == Product::Large { ("sm90a", "warpgroups") } else { (isa, tile) };
                intern(format!("{op}.{f}-{act}.{isa}.{tile}"))
            });
        }
        names
    }

    /// Whether the kernel for these is one that follows the order.
    pub(crate) fn follow_order(&self, spec: &OpSpec) -> bool {
        let OpSpec::MatMul { format, scale_block, output, m, k, .. } = spec else { return true };
        Product::of(*format, *scale_block, *output, (*m, *k), self.limits).follows_order()
    }

    pub(crate) fn of(&self, spec: &OpSpec) -> Option<&'static str> {
        Some(match spec {
            OpSpec::Quantize { from, format, .. } => self.quantize[format.index()][float(*from)?],
            OpSpec::Dequantize { to, format, .. } => self.dequantize[format.index()][float(*to)?],
            OpSpec::GatherRows { format, .. } => self.gather[format.index()],
            OpSpec::MatMul { format, scale_block, output, m, k, .. } => {
                let product = Product::of(*format, *scale_block, *output, (*m, *k), self.limits);
                self.products[format.index()][product as usize]
            }
            other => self.simple[OpKind::ALL.iter().position(|k| *k == other.kind())?],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_scales_of_many_rows_need_no_more_shared_memory_than_there_is() {
        let of = |m, shared| {
            let (format, limits) = (Format::TQ2_0, Limits { exact: true, shared });
            Product::of(format, format.scale_block(), DType::F32, (m, 2560), limits)
        };
        // What compute capabilities 9.0 and 8.9 have for dynamic shared memory.
        let (large, small) = (215_040, 89_088);
        assert_eq!(
            [of(1, large), of(2, large), of(33, large)],
            [Product::ScalesOne, Product::Scales1, Product::ScalesMany]
        );
        assert_eq!([of(32, small), of(33, small), of(5000, small)], [Product::Scales4; 3]);
    }
}
