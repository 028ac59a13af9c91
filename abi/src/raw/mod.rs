//! The C declarations, and nothing else. `include/tersor_plugin.h` is generated from these files; `docs/plugin-abi.md` is
//! the contract that they are read by.

mod backend;
mod codes;
mod layout;
mod ops;
mod text;

pub use backend::*;
pub use codes::*;
pub use ops::*;
pub use text::*;

#[doc(hidden)]
pub use layout::offsets;
pub(crate) use layout::{Args, Prefixed};
