//! What every operation should have answered, computed a second time from the documents alone.
//!
//! Nothing here calls the codecs or the reference operations of `tersor-core`: the byte layouts follow `docs/formats.md` and
//! the float operations `docs/numerics.md`, in code that spends nothing on speed. Sums of codes are `i64`, quotients and
//! roundings `f64`; where the documents fix an order of `f32` operations, it is that order, word for word.
//!
//! Two functions are taken from `tersor-core` because there *is* no other definition: `exp`, and the Gumbel noise of
//! sampling. A case of its own compares them with `f64`.

pub mod attention;
pub mod blocks;
pub mod float;
pub mod layout;
pub mod matmul;
pub mod ops;
pub mod quantize;
pub mod sample;
pub mod sums;
