//! What is measured: a product of one weight shape with so many rows of activations.

use std::fmt;

use tersor_core::{DType, Epilogue, Format, OpSpec};

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

/// What a measurement is filed under, besides the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
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

impl Key {
    /// The key of an op; `None` for ops that are not tuned.
    pub fn of(spec: &OpSpec, threads: usize) -> Option<Self> {
        let OpSpec::MatMul { format, scale_block, activations, output, m, n, k, epilogue } = *spec else {
            return None;
        };
        let weight = WeightClass { format, scale_block, n, k };
        Some(Key { weight, rows: RowBucket::of(m), activations, output, epilogue, threads })
    }

    /// The spec that is measured for it.
    pub fn spec(&self) -> OpSpec {
        let Key { weight: WeightClass { format, scale_block, n, k }, activations, output, epilogue, .. } = *self;
        OpSpec::MatMul { format, scale_block, activations, output, m: self.rows.upper(), n, k, epilogue }
    }

    /// The name that caches and reports use, such as `matmul i2_s-i8-f32 2560x6912 m1 store 2t`.
    pub fn id(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WeightClass { format, scale_block, n, k } = self.weight;
        let types = format!("{:?}-{:?}", self.activations, self.output).to_lowercase();
        let blocks = scale_block.map(|b| format!("/{b}")).unwrap_or_default();
        let epilogue = format!("{:?}", self.epilogue).to_lowercase();
        write!(f, "matmul {format}{blocks}-{types} {n}x{k} m{} {epilogue} {}t", self.rows, self.threads)
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
        let key = |m, n, format| Key::of(&OpSpec::matmul(format, m, n, 256), 2).unwrap();
        let base = key(1, 64, Format::I2S);
        assert_eq!(base.id(), "matmul i2_s-i8-f32 64x256 m1 store 2t");
        let blocks = WeightClass { scale_block: Some(256), ..base.weight };
        let others = [
            key(2, 64, Format::I2S),
            key(1, 65, Format::I2S),
            key(1, 64, Format::TL1),
            Key { threads: 1, ..base },
            Key { epilogue: Epilogue::Add, ..base },
            Key { output: DType::I32, ..base },
            Key { weight: blocks, ..base },
        ];
        for other in others {
            assert_ne!(other.id(), base.id());
        }
        assert_eq!(Key::of(&base.spec(), 2), Some(base));
        assert_eq!(Key::of(&OpSpec::RmsNorm { rows: 1, cols: 4 }, 2), None);
    }
}
