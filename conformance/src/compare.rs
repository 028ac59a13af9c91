//! Elements of operands: what an untouched one looks like, and the first that is wrong.

use half::{bf16, f16};
use tersor_core::Element;

use crate::rig::{Stop, Verdict};

/// An element that outputs are made of.
pub(crate) trait Cell: Element + PartialEq {
    /// What outputs and guards hold before an op runs: a NaN, or the byte 0x5A.
    const POISON: Self;
    /// The bit pattern.
    fn bits(self) -> u64;
}

macro_rules! cells {
    ($($t:ty: $poison:expr, $bits:expr;)*) => { $(
        impl Cell for $t {
            const POISON: Self = $poison;
            fn bits(self) -> u64 {
                let bits: fn($t) -> u64 = $bits;
                bits(self)
            }
        }
    )* };
}
cells! {
    f32: f32::from_bits(0x7fda_5a5a), |v| u64::from(v.to_bits());
    f16: f16::from_bits(0x7e5a), |v| u64::from(v.to_bits());
    bf16: bf16::from_bits(0x7fda), |v| u64::from(v.to_bits());
    i8: 0x5a, |v| u64::from(v as u8);
    u8: 0x5a, |v| u64::from(v);
    i32: 0x5a5a_5a5a, |v| u64::from(v as u32);
    u32: 0x5a5a_5a5a, |v| u64::from(v);
}

/// A failure.
pub(crate) fn fail<T>(message: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed(message.into()))
}

/// The largest mean square error of the faster kernels of `docs/numerics.md`, over that of `bounds`.
const NEAR: f64 = 1e-11;

/// Nearness as `docs/numerics.md` has it for products that need not follow the order. `bounds` are what the squares of a
/// result's terms can come to, `floor` an error that is none.
pub(crate) fn near(what: &str, got: &[f32], want: &[f32], bounds: &[f64], floor: f64) -> Verdict {
    if got.len() != want.len() {
        return fail(format!("{what}: {} elements instead of {}", got.len(), want.len()));
    }
    let errors = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - f64::from(*want)).powi(2));
    let (error, bound) = (errors.sum::<f64>(), bounds.iter().sum::<f64>());
    let limit = NEAR * bound + got.len() as f64 * floor * floor;
    // A NaN is not below anything.
    if error <= limit {
        return Ok(());
    }
    fail(format!("{what}: the square error is {:e} of its bound instead of {NEAR:e} at most", error / bound))
}

/// Bit equality of all elements; `cols` is the length of a row, for saying where a difference is.
pub(crate) fn same<T: Cell>(what: &str, cols: usize, got: &[T], want: &[T]) -> Verdict {
    if got.len() != want.len() {
        return fail(format!("{what}: {} elements instead of {}", got.len(), want.len()));
    }
    let differs = |i: &usize| got[*i].bits() != want[*i].bits();
    let Some(i) = (0..got.len()).find(differs) else { return Ok(()) };
    let count = (i..got.len()).filter(differs).count();
    let never_written = if got[i].bits() == T::POISON.bits() { ", as before the call" } else { "" };
    fail(format!(
        "{what}: row {}, column {} is {:?} ({:#x}{never_written}) instead of {:?} ({:#x}); {count} of {} differ",
        i / cols.max(1),
        i % cols.max(1),
        got[i],
        got[i].bits(),
        want[i],
        want[i].bits(),
        got.len()
    ))
}
