//! Names of the instruction sets that kernels are written for.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// An instruction set tier that a kernel needs. The names are those of `--isa`, `TERSOR_REQUIRE`, plugin manifests and
/// kernel names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// x86-64 AVX2.
    Avx2,
    /// x86-64 AVX-VNNI: 256-bit `vpdpbusd` without AVX-512.
    AvxVnni,
    /// x86-64 AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX-512 with VNNI and VBMI.
    Avx512Vbmi,
    /// AArch64 Advanced SIMD.
    Neon,
    /// NEON with the dot product instructions (`sdot`).
    NeonDotprod,
    /// NEON with the int8 matrix instructions (`smmla`).
    NeonI8mm,
    /// x86-64 AMX with int8 tiles.
    AmxInt8,
}

impl Isa {
    /// Every tier that has a name.
    pub const ALL: [Isa; 9] = [
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512,
        Isa::Avx512Vnni,
        Isa::Avx512Vbmi,
        Isa::Neon,
        Isa::NeonDotprod,
        Isa::NeonI8mm,
        Isa::AmxInt8,
    ];

    /// The tier's id, as users write it.
    pub const fn id(self) -> &'static str {
        match self {
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Avx512Vbmi => "avx512-vbmi",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
            Isa::AmxInt8 => "amx-int8",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

impl FromStr for Isa {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        Isa::ALL.into_iter().find(|isa| isa.id() == s).ok_or_else(|| Error::UnknownName {
            kind: "ISA",
            given: s.into(),
            valid: Isa::ALL.map(Isa::id).join(", "),
        })
    }
}
