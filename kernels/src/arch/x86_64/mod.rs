//! x86-64: the same names in each file, so that a diff shows what an ISA changes.

pub mod avx2;
pub mod avx512;
pub(crate) mod heads;
