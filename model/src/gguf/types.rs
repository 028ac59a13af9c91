//! ggml tensor types: ids, names and sizes.
//!
//! Ids 36 to 39 mean different things to ggml and to bitnet.cpp, so an id alone is not a type: it is read in a [`Dialect`],
//! which the file's architecture decides.

use std::fmt;

/// Whose table of type ids a file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Upstream ggml: 39 is MXFP4; 36 to 38 were retired types.
    Ggml,
    /// bitnet.cpp's fork, used by the `bitnet*` architectures: 36 is I2_S, 37 I8_S, 38 TL1, 39 TL2.
    BitnetCpp,
}

impl Dialect {
    /// The dialect that a file of this `general.architecture` uses.
    #[must_use]
    pub fn of_architecture(architecture: Option<&str>) -> Self {
        match architecture {
            Some(a) if a == "bitnet" || a.starts_with("bitnet-") => Self::BitnetCpp,
            _ => Self::Ggml,
        }
    }
}

/// How many bytes a tensor of some type takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizing {
    /// Blocks of `values` consecutive elements of a row in `bytes` bytes each.
    Block {
        /// Elements per block; a row holds whole blocks.
        values: u64,
        /// Bytes per block.
        bytes: u64,
    },
    /// Codes of the whole tensor at two bits each, then a 32-byte tail whose first four bytes are the f32 scale.
    CodesAndTail,
    /// The size depends on a layout that the type id does not tell; the file's offsets bound it.
    Layout,
}

macro_rules! ggml_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal in $dialect:ident, $name:literal, $sizing:expr;)*) => {
        /// A tensor type that a GGUF file can name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[allow(non_camel_case_types, reason = "the names are ggml's, and IQ2_XXS reads better than Iq2Xxs")]
        pub enum GgmlType {
            $($(#[$doc])* $variant,)*
            /// An id this program does not know, or one that ggml has retired.
            Unknown(u32),
        }

        impl GgmlType {
            /// The type behind an id, in a dialect.
            #[must_use]
            pub fn from_id(id: u32, dialect: Dialect) -> Self {
                match (id, dialect) {
                    $(($id, d) if Owner::$dialect.speaks(d) => Self::$variant,)*
                    _ => Self::Unknown(id),
                }
            }

            /// The id written to files.
            #[must_use]
            pub fn id(self) -> u32 {
                match self { $(Self::$variant => $id,)* Self::Unknown(id) => id }
            }

            /// The lower-case name that ggml prints.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Unknown(_) => "unknown" }
            }

            /// How its size follows from its shape.
            #[must_use]
            pub fn sizing(self) -> Sizing {
                match self { $(Self::$variant => $sizing,)* Self::Unknown(_) => Sizing::Layout }
            }
        }

        /// Every known type, for tests and listings.
        #[cfg(test)]
        pub(crate) const ALL: &[GgmlType] = &[$(GgmlType::$variant),*];
    };
}

/// Which dialects give an id the meaning of a table row.
enum Owner {
    Both,
    Ggml,
    BitnetCpp,
}

impl Owner {
    fn speaks(&self, dialect: Dialect) -> bool {
        match self {
            Self::Both => true,
            Self::Ggml => dialect == Dialect::Ggml,
            Self::BitnetCpp => dialect == Dialect::BitnetCpp,
        }
    }
}

const fn block(values: u64, bytes: u64) -> Sizing {
    Sizing::Block { values, bytes }
}

ggml_types! {
    /// 32-bit float.
    F32 = 0 in Both, "f32", block(1, 4);
    /// IEEE half.
    F16 = 1 in Both, "f16", block(1, 2);
    /// 4-bit, f16 scale per 32.
    Q4_0 = 2 in Both, "q4_0", block(32, 18);
    /// 4-bit, f16 scale and minimum per 32.
    Q4_1 = 3 in Both, "q4_1", block(32, 20);
    /// 5-bit, f16 scale per 32.
    Q5_0 = 6 in Both, "q5_0", block(32, 22);
    /// 5-bit, f16 scale and minimum per 32.
    Q5_1 = 7 in Both, "q5_1", block(32, 24);
    /// 8-bit, f16 scale per 32.
    Q8_0 = 8 in Both, "q8_0", block(32, 34);
    /// 8-bit, two f16 per 32.
    Q8_1 = 9 in Both, "q8_1", block(32, 36);
    /// K-quant, 2 bits.
    Q2_K = 10 in Both, "q2_k", block(256, 84);
    /// K-quant, 3 bits.
    Q3_K = 11 in Both, "q3_k", block(256, 110);
    /// K-quant, 4 bits.
    Q4_K = 12 in Both, "q4_k", block(256, 144);
    /// K-quant, 5 bits.
    Q5_K = 13 in Both, "q5_k", block(256, 176);
    /// K-quant, 6 bits.
    Q6_K = 14 in Both, "q6_k", block(256, 210);
    /// K-quant, 8 bits (activations).
    Q8_K = 15 in Both, "q8_k", block(256, 292);
    /// I-quant, about 2.06 bits.
    IQ2_XXS = 16 in Both, "iq2_xxs", block(256, 66);
    /// I-quant, about 2.31 bits.
    IQ2_XS = 17 in Both, "iq2_xs", block(256, 74);
    /// I-quant, about 3.06 bits.
    IQ3_XXS = 18 in Both, "iq3_xxs", block(256, 98);
    /// I-quant, about 1.56 bits.
    IQ1_S = 19 in Both, "iq1_s", block(256, 50);
    /// Non-linear 4-bit.
    IQ4_NL = 20 in Both, "iq4_nl", block(32, 18);
    /// I-quant, about 3.44 bits.
    IQ3_S = 21 in Both, "iq3_s", block(256, 110);
    /// I-quant, about 2.5 bits.
    IQ2_S = 22 in Both, "iq2_s", block(256, 82);
    /// Non-linear 4-bit, 256 values.
    IQ4_XS = 23 in Both, "iq4_xs", block(256, 136);
    /// 8-bit integer.
    I8 = 24 in Both, "i8", block(1, 1);
    /// 16-bit integer.
    I16 = 25 in Both, "i16", block(1, 2);
    /// 32-bit integer.
    I32 = 26 in Both, "i32", block(1, 4);
    /// 64-bit integer.
    I64 = 27 in Both, "i64", block(1, 8);
    /// 64-bit float.
    F64 = 28 in Both, "f64", block(1, 8);
    /// I-quant, 1.75 bits.
    IQ1_M = 29 in Both, "iq1_m", block(256, 56);
    /// bfloat16.
    BF16 = 30 in Both, "bf16", block(1, 2);
    /// Ternary, 1.6875 bits: five trits a byte, f16 scale per 256.
    TQ1_0 = 34 in Both, "tq1_0", block(256, 54);
    /// Ternary, 2.0625 bits, f16 scale per 256.
    TQ2_0 = 35 in Both, "tq2_0", block(256, 66);
    /// bitnet.cpp's ternary 2-bit codes with one f32 scale per tensor.
    I2_S = 36 in BitnetCpp, "i2_s", Sizing::CodesAndTail;
    /// bitnet.cpp's 8-bit activations.
    I8_S = 37 in BitnetCpp, "i8_s", Sizing::Layout;
    /// bitnet.cpp's pair look-up codes.
    TL1 = 38 in BitnetCpp, "tl1", Sizing::Layout;
    /// bitnet.cpp's triple look-up codes.
    TL2 = 39 in BitnetCpp, "tl2", Sizing::Layout;
    /// Microscaling 4-bit float, 32 values with a shared exponent.
    MXFP4 = 39 in Ggml, "mxfp4", block(32, 17);
    /// NVIDIA's 4-bit float, 64 values with four scales.
    NVFP4 = 40 in Ggml, "nvfp4", block(64, 36);
    /// One bit, f16 scale per 128.
    Q1_0 = 41 in Ggml, "q1_0", block(128, 18);
}

impl GgmlType {
    /// The bytes of a tensor with rows of `dims[0]` elements, where the type alone determines them.
    ///
    /// `None` when it does not ([`Sizing::Layout`]), when a row is not made of whole blocks, or when the size overflows.
    #[must_use]
    pub fn byte_len(self, dims: &[u64]) -> Option<u64> {
        let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
        match self.sizing() {
            Sizing::Block { values, bytes } => {
                let row = dims.first().copied().unwrap_or(1);
                if row % values != 0 {
                    return None;
                }
                (elements / values).checked_mul(bytes)
            }
            Sizing::CodesAndTail => (elements % 4 == 0).then_some(elements / 4 + 32),
            Sizing::Layout => None,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(id) => write!(f, "unknown type {id}"),
            known => f.write_str(known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_in_their_dialect() {
        for &ty in ALL {
            let home = [Dialect::Ggml, Dialect::BitnetCpp].into_iter().find(|&d| GgmlType::from_id(ty.id(), d) == ty);
            assert!(home.is_some(), "{ty}");
        }
    }

    #[test]
    fn id_39_depends_on_the_architecture() {
        let bitnet = Dialect::of_architecture(Some("bitnet-b1.58"));
        let llama = Dialect::of_architecture(Some("gpt-oss"));
        assert_eq!(GgmlType::from_id(39, bitnet), GgmlType::TL2);
        assert_eq!(GgmlType::from_id(39, llama), GgmlType::MXFP4);
        assert_eq!(GgmlType::from_id(36, llama), GgmlType::Unknown(36));
        assert_eq!(Dialect::of_architecture(Some("bitnetwork")), Dialect::Ggml);
    }

    #[test]
    fn sizes_follow_ggml() {
        assert_eq!(GgmlType::TQ1_0.byte_len(&[512, 3]), Some(2 * 54 * 3));
        assert_eq!(GgmlType::TQ1_0.byte_len(&[128, 2]), None);
        assert_eq!(GgmlType::I2_S.byte_len(&[256, 256]), Some(16384 + 32));
        assert_eq!(GgmlType::F32.byte_len(&[u64::MAX, 2]), None);
    }
}
