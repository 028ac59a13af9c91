//! ISA tokens: values that exist only where the CPU and the OS support what they stand for.

use tersor_core::Isa;

use crate::codes::Codes;
use crate::heads::{self, Columns, Group};
use crate::lanes::Array;

/// A piece of work that can be instantiated for an ISA. Mark `run` and what it calls `#[inline(always)]`: only code that
/// ends up inside the token's `#[target_feature]` function is compiled for the ISA.
pub trait Body {
    /// What it returns.
    type Out;
    /// Does the work. `simd` is the token that it runs under, for its [`Lanes`](crate::lanes::Lanes).
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// A token of an ISA.
pub trait Simd: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// The tier; `None` for portable code.
    const ISA: Option<Isa>;

    /// 64 f32 in the ISA's registers.
    type F32: Codes<Self>;

    /// Runs a body, compiled for this ISA.
    fn run<B: Body>(self, body: B) -> B::Out;

    /// [`heads::add_group`] of a group of `q6_k` or `q8_0`. To be called inside of [`Simd::run`].
    ///
    /// # Safety
    /// As for [`heads::add_group`].
    #[inline(always)]
    unsafe fn add_group<const Q6: bool, const C: usize>(self, group: Group<'_>, columns: Columns) {
        // SAFETY: the caller's contract.
        unsafe { heads::add_group::<Q6, C>(group, columns) }
    }

    /// The name in kernel names.
    fn name(self) -> &'static str {
        Self::ISA.map_or("scalar", Isa::id)
    }
}

/// What the compilation target guarantees, and nothing more. Always there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Portable;

impl Simd for Portable {
    const ISA: Option<Isa> = None;
    type F32 = Array;

    #[inline(always)]
    fn run<B: Body>(self, body: B) -> B::Out {
        body.run(self)
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_token {
    ($(#[$doc:meta])* $name:ident, $isa:expr, $lanes:ty, $features:literal, [$($detect:tt),*]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name(());

        impl $name {
            /// The token, if CPU and OS support the ISA.
            pub fn detect() -> Option<Self> {
                // The macro asks CPUID and, for register state, XGETBV: an OS that does not save the registers says no.
                ($(std::arch::is_x86_feature_detected!($detect))&&*).then_some($name(()))
            }
        }

        impl Simd for $name {
            const ISA: Option<Isa> = Some($isa);
            type F32 = $lanes;

            #[inline(always)]
            unsafe fn add_group<const Q6: bool, const C: usize>(self, group: Group<'_>, columns: Columns) {
                // SAFETY: the caller's contract.
                unsafe { crate::arch::x86_64::heads::add_group::<Self, Q6, C>(self, group, columns) }
            }

            #[inline]
            fn run<B: Body>(self, body: B) -> B::Out {
                #[target_feature(enable = $features)]
                fn inner<B: Body>(simd: $name, body: B) -> B::Out {
                    body.run(simd)
                }
                // SAFETY: a token exists only where `detect` found every feature that `inner` enables.
                unsafe { inner(self, body) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_token!(
    /// x86-64 with AVX2. F16C is part of every CPU that has it. FMA is left out: no defined float operation contracts.
    Avx2,
    Isa::Avx2,
    crate::arch::x86_64::avx2::F32x64,
    "avx2,f16c,bmi1,bmi2,lzcnt,popcnt",
    ["avx2", "f16c", "bmi1", "bmi2", "lzcnt", "popcnt"]
);

#[cfg(target_arch = "x86_64")]
x86_token!(
    /// AVX2 with the 256-bit dot product `vpdpbusd` (Alder Lake, Sapphire Rapids, Zen 5 and later).
    AvxVnni,
    Isa::AvxVnni,
    crate::arch::x86_64::avx2::F32x64,
    "avx2,f16c,bmi1,bmi2,lzcnt,popcnt,avxvnni",
    ["avx2", "f16c", "bmi1", "bmi2", "lzcnt", "popcnt", "avxvnni"]
);

#[cfg(target_arch = "x86_64")]
x86_token!(
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    Isa::Avx512,
    crate::arch::x86_64::avx512::F32x64,
    "avx2,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl",
    ["avx2", "f16c", "bmi1", "bmi2", "lzcnt", "popcnt", "avx512f", "avx512bw", "avx512dq", "avx512vl"]
);

#[cfg(target_arch = "x86_64")]
x86_token!(
    /// [`Avx512`] with the dot product `vpdpbusd` on 512 bits.
    Avx512Vnni,
    Isa::Avx512Vnni,
    crate::arch::x86_64::avx512::F32x64,
    "avx2,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    ["avx2", "f16c", "bmi1", "bmi2", "lzcnt", "popcnt", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"]
);

#[cfg(target_arch = "x86_64")]
x86_token!(
    /// [`Avx512Vnni`] with byte permutations of two registers (`vpermi2b`).
    Avx512Vbmi,
    Isa::Avx512Vbmi,
    crate::arch::x86_64::avx512::F32x64,
    "avx2,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi",
    ["avx2", "f16c", "bmi1", "bmi2", "lzcnt", "popcnt", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512vbmi"]
);

/// AArch64 with Advanced SIMD.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub struct Neon(());

#[cfg(target_arch = "aarch64")]
impl Neon {
    /// The token, if CPU and OS support NEON.
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

#[cfg(target_arch = "aarch64")]
impl Simd for Neon {
    const ISA: Option<Isa> = Some(Isa::Neon);
    type F32 = crate::arch::aarch64::neon::F32x64;

    #[inline]
    fn run<B: Body>(self, body: B) -> B::Out {
        #[target_feature(enable = "neon")]
        fn inner<B: Body>(simd: Neon, body: B) -> B::Out {
            body.run(simd)
        }
        // SAFETY: a token exists only where `detect` found NEON.
        unsafe { inner(self, body) }
    }
}

/// [`Neon`] with the dot product instructions.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub struct NeonDot(());

#[cfg(target_arch = "aarch64")]
impl NeonDot {
    /// The token, if CPU and OS support NEON and its dot products.
    pub fn detect() -> Option<Self> {
        let both =
            std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod");
        both.then_some(NeonDot(()))
    }
}

#[cfg(target_arch = "aarch64")]
impl Simd for NeonDot {
    const ISA: Option<Isa> = Some(Isa::NeonDotprod);
    type F32 = crate::arch::aarch64::neon::F32x64;

    #[inline]
    fn run<B: Body>(self, body: B) -> B::Out {
        #[target_feature(enable = "neon,dotprod")]
        fn inner<B: Body>(simd: NeonDot, body: B) -> B::Out {
            body.run(simd)
        }
        // SAFETY: a token exists only where `detect` found both features.
        unsafe { inner(self, body) }
    }
}

/// [`NeonDot`] with the int8 matrix instructions.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub struct NeonI8mm(());

#[cfg(target_arch = "aarch64")]
impl NeonI8mm {
    /// The token, if CPU and OS support NEON, its dot products and its int8 matrix products.
    pub fn detect() -> Option<Self> {
        let i8mm = std::arch::is_aarch64_feature_detected!("i8mm");
        (NeonDot::detect().is_some() && i8mm).then_some(NeonI8mm(()))
    }
}

#[cfg(target_arch = "aarch64")]
impl Simd for NeonI8mm {
    const ISA: Option<Isa> = Some(Isa::NeonI8mm);
    type F32 = crate::arch::aarch64::neon::F32x64;

    #[inline]
    fn run<B: Body>(self, body: B) -> B::Out {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn inner<B: Body>(simd: NeonI8mm, body: B) -> B::Out {
            body.run(simd)
        }
        // SAFETY: a token exists only where `detect` found all three features.
        unsafe { inner(self, body) }
    }
}
