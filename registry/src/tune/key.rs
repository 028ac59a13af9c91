//! What is measured: a product of one weight shape with so many rows of activations, or another op of one size.

use std::fmt;

use tersor_core::{DType, Epilogue, Format, OpSpec, Shape};

/// Weights that share format and shape, and therefore what is best for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightClass {
    /// The format.
    pub format: Format,
    /// Weights of a row that share a scale; `None` for single-scale and dense weights.
    pub scale_block: Option<usize>,
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
}

/// Rows of activations that are taken to behave alike: 1, 2-4, 5-8, 9-16, then doubling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowBucket(usize);

impl RowBucket {
    /// Number of buckets that [`RowBucket::index`] can name.
    pub const COUNT: usize = usize::BITS as usize;

    /// The bucket of `m` rows.
    pub fn of(m: usize) -> Self {
        RowBucket(if m <= 1 { 1 } else { m.checked_next_power_of_two().unwrap_or(1 << (usize::BITS - 1)).max(4) })
    }

    /// The most rows in it, which is the number that is measured.
    pub fn upper(self) -> usize {
        self.0
    }

    /// Its place in a table.
    pub fn index(self) -> usize {
        (self.0.trailing_zeros() as usize).saturating_sub(1)
    }
}

impl fmt::Display for RowBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1"),
            4 => f.write_str("2-4"),
            upper => write!(f, "{}-{upper}", upper / 2 + 1),
        }
    }
}

/// A matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    /// The weight.
    pub weight: WeightClass,
    /// Rows of activations.
    pub rows: RowBucket,
    /// Type of the activations.
    pub activations: DType,
    /// Type of the result.
    pub output: DType,
    /// What is done with the result.
    pub epilogue: Epilogue,
    /// Threads of the pool.
    pub threads: usize,
}

impl Product {
    /// The product of a spec; `None` for other ops.
    pub fn of(spec: &OpSpec, threads: usize) -> Option<Self> {
        let OpSpec::MatMul { format, scale_block, activations, output, m, n, k, epilogue } = *spec else {
            return None;
        };
        let weight = WeightClass { format, scale_block, n, k };
        Some(Product { weight, rows: RowBucket::of(m), activations, output, epilogue, threads })
    }

    /// The spec that is measured for it.
    pub fn spec(&self) -> OpSpec {
        let Product { weight: WeightClass { format, scale_block, n, k }, activations, output, epilogue, .. } = *self;
        OpSpec::MatMul { format, scale_block, activations, output, m: self.rows.upper(), n, k, epilogue }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WeightClass { format, scale_block, n, k } = self.weight;
        let blocks = scale_block.map(|b| format!("/{b}")).unwrap_or_default();
        let (x, y, epilogue) = (id(self.activations), id(self.output), format!("{:?}", self.epilogue).to_lowercase());
        write!(f, "matmul {format}{blocks}-{x}-{y} {n}x{k} m{} {epilogue} {}t", self.rows, self.threads)
    }
}

fn id(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}

/// An op that is no product. Its spec is that of its bucket: [`Task::bucket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Task {
    /// The spec that is measured for it.
    pub spec: OpSpec,
    /// Threads of the pool.
    pub threads: usize,
}

impl Task {
    /// The spec that stands for all of a bucket; `None` for products and for ops that are not measured, see [`not_measured`].
    pub fn bucket(spec: &OpSpec) -> Option<OpSpec> {
        let upper = |rows: usize| RowBucket::of(rows).upper();
        Some(match *spec {
            OpSpec::Quantize { .. } | OpSpec::Dequantize { .. } => *spec,
            OpSpec::QuantizeRows { rows, cols } => OpSpec::QuantizeRows { rows: upper(rows), cols },
            OpSpec::RmsNormQuantize { rows, cols } => OpSpec::RmsNormQuantize { rows: upper(rows), cols },
            OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, span: None } => {
                let rows = upper(rows);
                let capacity = upper(capacity).max(rows);
                OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, span: None }
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.spec.kind();
        let sides = |shape: Shape| format!("{}x{}", shape.rows(), shape.cols());
        match self.spec {
            OpSpec::Quantize { from, format, shape } => write!(f, "{kind} {format}-{} {}", id(from), sides(shape))?,
            OpSpec::Dequantize { format, to, shape } => write!(f, "{kind} {format}-{} {}", id(to), sides(shape))?,
            OpSpec::QuantizeRows { rows, cols } | OpSpec::RmsNormQuantize { rows, cols } => {
                write!(f, "{kind} f32 {cols} m{}", RowBucket::of(rows))?;
            }
            OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, .. } => {
                write!(f, "{kind} f32 {heads}/{kv_heads}x{head_dim} of {capacity} m{}", RowBucket::of(rows))?;
            }
            other => write!(f, "{other}")?,
        }
        write!(f, " {}t", self.threads)
    }
}

/// Why an op is not measured; `None` for those that are.
pub fn not_measured(spec: &OpSpec) -> Option<&'static str> {
    match spec {
        OpSpec::MatMul { .. } => None,
        spec if Task::bucket(spec).is_some() => None,
        OpSpec::Attention { .. } => Some("attention over a window of the cache goes by static priority"),
        OpSpec::GatherRows { .. } => Some("rows are gathered by whoever packed the table"),
        _ => Some("it takes less than 2 % of a pass, which measuring would not show: static priority decides"),
    }
}

/// What a measurement is filed under, besides the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// A matrix product.
    Product(Product),
    /// Another op.
    Task(Task),
}

impl Key {
    /// The key of an op; `None` for ops that are not measured.
    pub fn of(spec: &OpSpec, threads: usize) -> Option<Self> {
        let task = || Task::bucket(spec).map(|spec| Key::Task(Task { spec, threads }));
        Product::of(spec, threads).map(Key::Product).or_else(task)
    }

    /// The product, if it is one.
    pub fn product(&self) -> Option<&Product> {
        match self {
            Key::Product(product) => Some(product),
            Key::Task(_) => None,
        }
    }

    /// The spec that is measured for it.
    pub fn spec(&self) -> OpSpec {
        match self {
            Key::Product(product) => product.spec(),
            Key::Task(task) => task.spec,
        }
    }

    /// Threads of the pool.
    pub fn threads(&self) -> usize {
        match self {
            Key::Product(Product { threads, .. }) | Key::Task(Task { threads, .. }) => *threads,
        }
    }

    /// The name that caches and reports use, such as `matmul i2_s-i8-f32 2560x6912 m1 store 2t`.
    pub fn id(&self) -> String {
        self.to_string()
    }

    /// How early it is measured where time is short: by its expected share of what a program does. Products first, those
    /// with few rows before those with many, as decoding is what counts; then attention, norms and the rest of a pass; what
    /// is done once, when a model is loaded or converted, last.
    pub(super) fn turn(&self) -> (u8, usize) {
        match self {
            Key::Product(product) => (0, product.rows.upper()),
            Key::Task(task) => match task.spec {
                OpSpec::Attention { rows, .. } => (1, rows),
                OpSpec::RmsNormQuantize { rows, .. } | OpSpec::QuantizeRows { rows, .. } => (2, rows),
                _ => (3, 0),
            },
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Product(product) => product.fmt(f),
            Key::Task(task) => task.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_1_then_2_to_4_then_doubling() {
        let names: Vec<_> = [1, 2, 4, 5, 8, 9, 16, 17, 128, 129].map(|m| RowBucket::of(m).to_string()).into();
        assert_eq!(names, ["1", "2-4", "2-4", "5-8", "5-8", "9-16", "9-16", "17-32", "65-128", "129-256"]);
        let index: Vec<_> = [1, 3, 8, 16, 128].map(|m| RowBucket::of(m).index()).into();
        assert_eq!(index, [0, 1, 2, 3, 6]);
        assert!(RowBucket::of(usize::MAX).index() < RowBucket::COUNT);
    }

    #[test]
    fn everything_that_changes_the_best_kernel_is_in_the_name() {
        let product = |m, n, format| Product::of(&OpSpec::matmul(format, m, n, 256), 2).unwrap();
        let base = product(1, 64, Format::I2S);
        assert_eq!(base.to_string(), "matmul i2_s-i8-f32 64x256 m1 store 2t");
        let blocks = WeightClass { scale_block: Some(256), ..base.weight };
        let others = [
            product(2, 64, Format::I2S),
            product(1, 65, Format::I2S),
            product(1, 64, Format::TL1),
            Product { threads: 1, ..base },
            Product { epilogue: Epilogue::Add, ..base },
            Product { output: DType::I32, ..base },
            Product { weight: blocks, ..base },
        ];
        for other in others {
            assert_ne!(Key::Product(other).id(), Key::Product(base).id());
        }
        assert_eq!(Product::of(&base.spec(), 2), Some(base));
    }

    #[test]
    fn other_ops_have_keys_by_bucket_or_a_reason() {
        let shape = Shape::new(64, 256).unwrap();
        let attention =
            |rows, capacity, span| OpSpec::Attention { rows, heads: 8, kv_heads: 2, head_dim: 64, capacity, span };
        let names = [
            (OpSpec::Quantize { from: DType::BF16, format: Format::TL2, shape }, "quantize tl2-bf16 64x256 2t"),
            (OpSpec::Dequantize { format: Format::I2S, to: DType::F32, shape }, "dequantize i2_s-f32 64x256 2t"),
            (OpSpec::QuantizeRows { rows: 3, cols: 512 }, "quantize_rows f32 512 m2-4 2t"),
            (OpSpec::RmsNormQuantize { rows: 1, cols: 512 }, "rms_norm_quantize f32 512 m1 2t"),
            (attention(1, 300, None), "attention f32 8/2x64 of 512 m1 2t"),
        ];
        for (spec, name) in names {
            let key = Key::of(&spec, 2).unwrap();
            assert_eq!(key.id(), name);
            assert_eq!(Key::of(&key.spec(), 2), Some(key), "a bucket stands for itself");
            assert_eq!(not_measured(&spec), None);
        }
        let others = [
            OpSpec::RmsNorm { rows: 1, cols: 4 },
            OpSpec::Sample { rows: 1, vocab: 8 },
            OpSpec::ReluSquaredMul { len: 1000 },
            attention(1, 300, Some(64)),
            OpSpec::GatherRows { format: Format::F16, rows: 1, cols: 8 },
        ];
        for spec in others {
            assert_eq!(Key::of(&spec, 2), None);
            assert!(not_measured(&spec).is_some(), "{spec}");
        }
    }

    #[test]
    fn products_are_measured_first_and_what_is_done_once_last() {
        let shape = Shape::new(64, 256).unwrap();
        let specs = [
            OpSpec::matmul(Format::I2S, 1, 64, 256),
            OpSpec::matmul(Format::I2S, 128, 64, 256),
            OpSpec::Attention { rows: 1, heads: 8, kv_heads: 2, head_dim: 64, capacity: 512, span: None },
            OpSpec::RmsNormQuantize { rows: 1, cols: 512 },
            OpSpec::Quantize { from: DType::F32, format: Format::I2S, shape },
        ];
        let turns: Vec<_> = specs.iter().filter_map(|s| Key::of(s, 2)).map(|k| k.turn()).collect();
        assert!(turns.is_sorted() && turns.len() == specs.len(), "{turns:?}");
    }
}
