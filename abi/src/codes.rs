//! Numbers of the ABI and names of the core, both ways.

use tersor_core::{DType, Format, GroupSize, Isa, OpKind};

use crate::raw::*;

const FORMATS: [(Format, u32); Format::COUNT] = [
    (Format::I2S, TERSOR_I2_S),
    (Format::TL1, TERSOR_TL1),
    (Format::TL2, TERSOR_TL2),
    (Format::TQ1_0, TERSOR_TQ1_0),
    (Format::TQ2_0, TERSOR_TQ2_0),
    (Format::I2SGroup(GroupSize::G64), TERSOR_I2_S_G64),
    (Format::I2SGroup(GroupSize::G128), TERSOR_I2_S_G128),
    (Format::I2SGroup(GroupSize::G256), TERSOR_I2_S_G256),
    (Format::F32, TERSOR_DENSE_F32),
    (Format::F16, TERSOR_DENSE_F16),
    (Format::BF16, TERSOR_DENSE_BF16),
    (Format::Q8_0, TERSOR_Q8_0),
    (Format::Q6K, TERSOR_Q6_K),
];

const DTYPES: [(DType, u32); 7] = [
    (DType::F32, TERSOR_F32),
    (DType::F16, TERSOR_F16),
    (DType::BF16, TERSOR_BF16),
    (DType::I8, TERSOR_I8),
    (DType::U8, TERSOR_U8),
    (DType::I32, TERSOR_I32),
    (DType::U32, TERSOR_U32),
];

const ISAS: [(Isa, u32); Isa::ALL.len()] = [
    (Isa::Avx2, TERSOR_ISA_AVX2),
    (Isa::AvxVnni, TERSOR_ISA_AVX_VNNI),
    (Isa::Avx512, TERSOR_ISA_AVX512),
    (Isa::Avx512Vnni, TERSOR_ISA_AVX512_VNNI),
    (Isa::Avx512Vbmi, TERSOR_ISA_AVX512_VBMI),
    (Isa::Neon, TERSOR_ISA_NEON),
    (Isa::NeonDotprod, TERSOR_ISA_NEON_DOTPROD),
    (Isa::NeonI8mm, TERSOR_ISA_NEON_I8MM),
    (Isa::AmxInt8, TERSOR_ISA_AMX_INT8),
];

const OPS: [(OpKind, u32); OpKind::ALL.len()] = [
    (OpKind::Quantize, TERSOR_OP_QUANTIZE),
    (OpKind::Dequantize, TERSOR_OP_DEQUANTIZE),
    (OpKind::QuantizeRows, TERSOR_OP_QUANTIZE_ROWS),
    (OpKind::MatMul, TERSOR_OP_MATMUL),
    (OpKind::GatherRows, TERSOR_OP_GATHER_ROWS),
    (OpKind::RmsNorm, TERSOR_OP_RMS_NORM),
    (OpKind::RmsNormQuantize, TERSOR_OP_RMS_NORM_QUANTIZE),
    (OpKind::Rope, TERSOR_OP_ROPE),
    (OpKind::KvWrite, TERSOR_OP_KV_WRITE),
    (OpKind::Attention, TERSOR_OP_ATTENTION),
    (OpKind::ReluSquaredMul, TERSOR_OP_RELU_SQUARED_MUL),
    (OpKind::Add, TERSOR_OP_ADD),
    (OpKind::Copy, TERSOR_OP_COPY),
    (OpKind::Sample, TERSOR_OP_SAMPLE),
];

/// A name with a number.
pub(crate) trait Code: Sized + Copy + PartialEq + 'static {
    const TABLE: &'static [(Self, u32)];

    /// The number; `None` where the core knows more than this version of the ABI.
    fn number(self) -> Option<u32> {
        Self::TABLE.iter().find(|(name, _)| *name == self).map(|(_, number)| *number)
    }

    /// What the number stands for; `None` where the other side is newer.
    fn named(number: u32) -> Option<Self> {
        Self::TABLE.iter().find(|(_, n)| *n == number).map(|(name, _)| *name)
    }
}

impl Code for Format {
    const TABLE: &'static [(Self, u32)] = &FORMATS;
}
impl Code for DType {
    const TABLE: &'static [(Self, u32)] = &DTYPES;
}
impl Code for Isa {
    const TABLE: &'static [(Self, u32)] = &ISAS;
}
impl Code for OpKind {
    const TABLE: &'static [(Self, u32)] = &OPS;
}

/// The tiers of a mask, lowest first. Tiers that a newer side knows are left out.
pub(crate) fn isas_of(mask: u64) -> Vec<Isa> {
    ISAS.iter().filter(|(_, number)| mask >> number & 1 == 1).map(|(isa, _)| *isa).collect()
}

/// The mask of tiers.
pub(crate) fn mask_of(isas: &[Isa]) -> u64 {
    isas.iter().filter_map(|isa| isa.number()).fold(0, |mask, number| mask | 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_core_names_has_a_number() {
        assert!(Format::all().all(|f| f.number().and_then(Format::named) == Some(f)));
        assert!(Isa::ALL.iter().all(|i| i.number().and_then(Isa::named) == Some(*i)));
        assert!(OpKind::ALL.iter().all(|k| k.number().and_then(OpKind::named) == Some(*k)));
        assert!(DTYPES.iter().all(|(d, n)| DType::named(*n) == Some(*d)));
        assert_eq!(isas_of(mask_of(&Isa::ALL)), Isa::ALL);
        assert_eq!(Format::named(0), None);
        // Whoever knows spans asks for this number before; whoever does not answers that there is no such op.
        assert_eq!(OpKind::named(TERSOR_OP_ATTENTION_SPAN), None);
    }
}
