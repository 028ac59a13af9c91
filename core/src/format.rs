//! Formats: one byte layout per name, the same on every machine. The layouts are written out in `docs/formats.md`.

use std::fmt;
use std::str::FromStr;

use crate::{DType, Error, Result};

/// Rows x columns of a weight matrix, row-major. As an operand of a matrix product, rows are outputs (N) and columns are
/// the length of the sum (K).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rows: usize,
    cols: usize,
}

impl Shape {
    /// A shape with at least one row and one column whose element count fits in memory's address range.
    pub fn new(rows: usize, cols: usize) -> Result<Self> {
        let shape = Shape { rows, cols };
        if rows == 0 || cols == 0 {
            return Err(Error::shape(shape, "both dimensions must be at least 1"));
        }
        // f32 is the widest element that a weight is expanded to.
        match rows.checked_mul(cols).and_then(|n| n.checked_mul(4)) {
            Some(bytes) if bytes <= isize::MAX as usize => Ok(shape),
            _ => Err(Error::shape(shape, "the element count exceeds the address range")),
        }
    }

    /// Number of rows (N).
    pub const fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns (K).
    pub const fn cols(self) -> usize {
        self.cols
    }

    /// Number of elements.
    pub const fn len(self) -> usize {
        self.rows * self.cols
    }

    /// Never: a shape has at least one element.
    pub const fn is_empty(self) -> bool {
        false
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.rows, self.cols)
    }
}

/// How many values share one f32 scale in [`Format::I2SGroup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum GroupSize {
    /// 64 values.
    G64 = 64,
    /// 128 values.
    G128 = 128,
    /// 256 values.
    G256 = 256,
}

impl GroupSize {
    /// The number of values in a group.
    pub const fn values(self) -> usize {
        self as usize
    }
}

/// A weight format: a name for exactly one byte layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Format {
    /// bitnet.cpp's `I2_S`: 2 bits a weight in blocks of 128 values (32 bytes), one f32 scale in a 32-byte tail.
    I2S,
    /// `i2_s` blocks with an f32 scale for every group of values, codes and scales in two slices. Any element count.
    I2SGroup(GroupSize),
    /// `TL1`, row-major: 4 bits for two values, one f32 scale in a 32-byte tail.
    TL1,
    /// `TL2`, row-major: 5 bits for three values, one f32 scale in a 32-byte tail.
    TL2,
    /// ggml's `TQ1_0`: blocks of 256 values in 54 bytes, five values a byte, an f16 scale each.
    TQ1_0,
    /// ggml's `TQ2_0`: blocks of 256 values in 66 bytes, four values a byte, an f16 scale each.
    TQ2_0,
    /// IEEE binary32, little-endian.
    F32,
    /// IEEE binary16, little-endian.
    F16,
    /// bfloat16, little-endian.
    BF16,
    /// ggml's `Q8_0`: blocks of 32 values in 34 bytes, an f16 scale and 32 int8.
    Q8_0,
    /// ggml's `Q6_K`: 256 values in 210 bytes, 6 bits each, an int8 scale for every 16 and an f16 one over those.
    Q6K,
}

/// Lengths of an encoded tensor: bytes of codes (with what the layout stores among them) and separate f32 scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedLen {
    /// Bytes in the codes slice.
    pub bytes: usize,
    /// f32 elements in the scales slice; 0 where the layout stores its scales among the bytes.
    pub scales: usize,
}

/// Bytes behind the codes of `i2_s`, `tl1` and `tl2`; the first four are the f32 scale, the rest are zero.
pub const TAIL: usize = 32;

impl Format {
    /// The ternary formats that a file can hold.
    pub const TERNARY: [Format; 5] = [Format::I2S, Format::TL1, Format::TL2, Format::TQ1_0, Format::TQ2_0];

    /// The group-scale forms of `i2_s`, which live in caller slices only.
    pub const GROUPED: [Format; 3] =
        [Format::I2SGroup(GroupSize::G64), Format::I2SGroup(GroupSize::G128), Format::I2SGroup(GroupSize::G256)];

    /// The float formats of embeddings and heads.
    pub const DENSE: [Format; 3] = [Format::F32, Format::F16, Format::BF16];

    /// The formats of embeddings and heads that store int8 or 6-bit codes with a scale for each block of them.
    pub const BLOCK: [Format; 2] = [Format::Q8_0, Format::Q6K];

    /// Every format.
    pub fn all() -> impl Iterator<Item = Format> {
        Self::TERNARY.into_iter().chain(Self::GROUPED).chain(Self::tables())
    }

    /// The formats of embeddings and heads: those that are not ternary.
    pub fn tables() -> impl Iterator<Item = Format> {
        Self::DENSE.into_iter().chain(Self::BLOCK)
    }

    /// The id that users, files and kernel names use.
    pub const fn id(self) -> &'static str {
        match self {
            Format::I2S => "i2_s",
            Format::I2SGroup(GroupSize::G64) => "i2_s_g64",
            Format::I2SGroup(GroupSize::G128) => "i2_s_g128",
            Format::I2SGroup(GroupSize::G256) => "i2_s_g256",
            Format::TL1 => "tl1",
            Format::TL2 => "tl2",
            Format::TQ1_0 => "tq1_0",
            Format::TQ2_0 => "tq2_0",
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::BF16 => "bf16",
            Format::Q8_0 => "q8_0",
            Format::Q6K => "q6_k",
        }
    }

    /// Number of formats.
    pub const COUNT: usize = 13;

    /// Position in [`Format::all`], for tables.
    pub const fn index(self) -> usize {
        match self {
            Format::I2S => 0,
            Format::TL1 => 1,
            Format::TL2 => 2,
            Format::TQ1_0 => 3,
            Format::TQ2_0 => 4,
            Format::I2SGroup(GroupSize::G64) => 5,
            Format::I2SGroup(GroupSize::G128) => 6,
            Format::I2SGroup(GroupSize::G256) => 7,
            Format::F32 => 8,
            Format::F16 => 9,
            Format::BF16 => 10,
            Format::Q8_0 => 11,
            Format::Q6K => 12,
        }
    }

    /// Whether the weights are ternary.
    pub const fn is_ternary(self) -> bool {
        !self.is_float() && !self.is_block()
    }

    /// Whether the weights are plain floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Format::F32 | Format::F16 | Format::BF16)
    }

    /// Whether the weights are integer codes with a scale for each block, and not ternary: `q8_0` and `q6_k`.
    pub const fn is_block(self) -> bool {
        matches!(self, Format::Q8_0 | Format::Q6K)
    }

    /// The activations that a product with such a weight takes: int8 with a scale for each row, but f32 for float weights.
    pub const fn activations(self) -> DType {
        if self.is_float() { DType::F32 } else { DType::I8 }
    }

    /// A row (for the group forms: nothing) must be a multiple of this many values.
    pub const fn unit(self) -> usize {
        match self {
            Format::I2S => 128,
            Format::TL1 | Format::TL2 => 2,
            Format::TQ1_0 | Format::TQ2_0 | Format::Q6K => 256,
            Format::Q8_0 => 32,
            Format::I2SGroup(_) | Format::F32 | Format::F16 | Format::BF16 => 1,
        }
    }

    /// How many consecutive values share a scale: `None` where one scale serves the whole tensor (or none is stored).
    pub const fn scale_block(self) -> Option<usize> {
        match self {
            Format::TQ1_0 | Format::TQ2_0 => Some(256),
            Format::I2SGroup(g) => Some(g.values()),
            Format::Q8_0 => Some(32),
            // Its scale is the product of the f16 and the int8 one, which f32 holds exactly.
            Format::Q6K => Some(16),
            _ => None,
        }
    }

    /// Bytes of one encoded row, for formats whose rows are byte-aligned; `None` for the group forms, whose blocks run
    /// over the flattened tensor.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        Some(match self {
            Format::I2S => cols / 4,
            Format::I2SGroup(_) => return None,
            Format::TL1 => cols.div_ceil(4),
            Format::TL2 => {
                let t = tl2_triples(cols);
                t / 2 + t.div_ceil(8) + (cols - 3 * t).div_ceil(4)
            }
            Format::TQ1_0 => cols / 256 * 54,
            Format::TQ2_0 => cols / 256 * 66,
            Format::F32 => cols * 4,
            Format::F16 | Format::BF16 => cols * 2,
            Format::Q8_0 => cols / 32 * 34,
            Format::Q6K => cols / 256 * 210,
        })
    }

    /// Lengths of a tensor of this shape, or [`Error::Unit`] if the format cannot hold its rows.
    pub fn encoded_len(self, shape: Shape) -> Result<EncodedLen> {
        if !shape.cols().is_multiple_of(self.unit()) {
            let fits: Vec<_> = Format::all()
                .filter(|f| f.is_ternary() == self.is_ternary() && shape.cols().is_multiple_of(f.unit()))
                .map(Format::id)
                .collect();
            return Err(Error::Unit { format: self, unit: self.unit(), cols: shape.cols(), fits: fits.join(", ") });
        }
        Ok(match (self, self.row_bytes(shape.cols())) {
            (Format::I2SGroup(g), _) => {
                EncodedLen { bytes: shape.len().div_ceil(128) * 32, scales: shape.len().div_ceil(g.values()) }
            }
            (_, row) => {
                let tail = if matches!(self, Format::I2S | Format::TL1 | Format::TL2) { TAIL } else { 0 };
                EncodedLen { bytes: shape.rows() * row.unwrap_or(0) + tail, scales: 0 }
            }
        })
    }
}

/// Triples in a `tl2` row of `cols` values: the largest even count that fits.
pub const fn tl2_triples(cols: usize) -> usize {
    cols / 3 / 2 * 2
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

impl FromStr for Format {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Format::all().find(|f| f.id() == s).ok_or_else(|| Error::UnknownName {
            kind: "format",
            given: s.into(),
            valid: Format::all().map(Format::id).collect::<Vec<_>>().join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_match_the_documented_bits_per_weight() {
        let s = Shape::new(2, 2560).unwrap();
        let len = |f: Format| f.encoded_len(s).unwrap();
        assert_eq!(len(Format::I2S), EncodedLen { bytes: 2 * 640 + 32, scales: 0 });
        assert_eq!(len(Format::TL1), EncodedLen { bytes: 2 * 640 + 32, scales: 0 });
        // 852 triples: 426 bytes of nibbles, 107 of signs; 4 values left: 2 pairs, 1 byte.
        assert_eq!(len(Format::TL2), EncodedLen { bytes: 2 * (426 + 107 + 1) + 32, scales: 0 });
        assert_eq!(len(Format::TQ1_0), EncodedLen { bytes: 2 * 10 * 54, scales: 0 });
        assert_eq!(len(Format::TQ2_0), EncodedLen { bytes: 2 * 10 * 66, scales: 0 });
        assert_eq!(len(Format::I2SGroup(GroupSize::G128)), EncodedLen { bytes: 1280, scales: 40 });
        assert_eq!(len(Format::Q8_0), EncodedLen { bytes: 2 * 80 * 34, scales: 0 });
        assert_eq!(len(Format::Q6K), EncodedLen { bytes: 2 * 10 * 210, scales: 0 });
    }

    #[test]
    fn group_forms_take_any_count_and_round_up() {
        let s = Shape::new(1, 1_000_000).unwrap();
        let len = Format::I2SGroup(GroupSize::G256).encoded_len(s).unwrap();
        assert_eq!(len, EncodedLen { bytes: 7813 * 32, scales: 3907 });
    }

    #[test]
    fn a_row_that_does_not_fit_names_the_formats_that_would() {
        let e = Format::TQ2_0.encoded_len(Shape::new(4, 384).unwrap()).unwrap_err().to_string();
        assert!(e.contains("multiple of 256") && e.contains("i2_s, tl1, tl2"), "{e}");
        let e = Format::Q6K.encoded_len(Shape::new(4, 384).unwrap()).unwrap_err().to_string();
        assert!(e.contains("multiple of 256") && e.ends_with("f32, f16, bf16, q8_0"), "{e}");
    }

    #[test]
    fn impossible_shapes_are_errors() {
        assert!(Shape::new(0, 5).is_err());
        assert!(Shape::new(usize::MAX / 2, 3).is_err());
    }

    #[test]
    fn ids_parse_back() {
        assert_eq!(Format::all().count(), Format::COUNT);
        for (i, f) in Format::all().enumerate() {
            assert_eq!(f.index(), i);
            assert_eq!(f.id().parse::<Format>().unwrap(), f);
        }
        assert!("I2_S".parse::<Format>().is_err());
    }
}
