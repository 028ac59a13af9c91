//! One case list for every Tersor backend, judged by an independent oracle.
//!
//! A backend is free in how it stores weights, which instructions it uses and how it splits work. It is not free in what
//! comes out: one byte layout per format (`docs/formats.md`), exact integer sums, and one order for every float sum
//! (`docs/numerics.md`). So a test of a backend is an equality, and one list of cases serves them all: those of this
//! repository, and yours.
//!
//! # Your backend in ten lines
//!
//! ```
//! use std::sync::Arc;
//! use tersor_conformance::{Options, Suite};
//! use tersor_core::QuantBackend;
//! # fn open() -> Arc<dyn QuantBackend> {
//! #     use tersor_backend_scalar as _;
//! #     let entry = tersor_core::entries().find(|e| e.id == "scalar").unwrap();
//! #     (entry.open)(&tersor_core::HostContext::inline()).unwrap()
//! # }
//! let backend: Arc<dyn QuantBackend> = open();                   // however your crate does that
//! let suite = Suite::new(Options::quick());                      // seconds; Options::full() takes longer
//! let report = suite.run(&*backend, &mut |case| {
//!     if let Some(message) = case.failure() {
//!         eprintln!("{}: {message}", case.name);
//!     }
//! });
//! println!("{report}");                                          // counts, failures, what is not supported and why
//! assert!(report.conforms());
//! ```
//!
//! The [`Report`] serializes with serde. While you work on one kernel, [`Options::with_only`] runs only the cases whose names
//! contain a word, such as `matmul/tl2/`. Backends that registered themselves are run by [`run_all_registered`]: each in
//! every ISA tier of the machine and with several numbers of threads.
//!
//! # What is judged
//!
//! | names begin with | the fact |
//! |---|---|
//! | `required/` | the least that makes a backend: some ternary format, and for each format it multiplies also quantizing, dequantizing and exact sums |
//! | `math/` | `exp`, `ln`, tables and noise of the core are within two units of `f64`; they are the only definitions that the oracle borrows |
//! | `memory/` | buffers are zeroed, hold what is written, and refuse ranges that are not theirs and memory of others |
//! | `foreign-pack/`, `pack/`, `check/` | packed weights know their maker, their shape and their size |
//! | `quantize/`, `dequantize/` | canonical bytes from f32, f16, bf16, and back: Gaussian, ternary, zero, tied, huge, tiny and denormal data, every tail; a NaN is named by its index |
//! | `matmul/.../sums`, `extremes`, `onehot`, `long` | i32 sums equal those in i64, for every tail and up to K = 27,648 of all-alike weights times all-alike activations |
//! | `matmul/.../scaled`, `block-scales`, `*-add` | what follows the sums, bit for bit |
//! | `quantize_rows/`, `rms_norm/`, `rope/`, `attention/`, ... | every other operation, bit for bit |
//! | `unaligned/`, `stale/` | operands that are aligned to nothing, results that happen to be zero |
//! | `determinism/` | the same bits again, and in stream order |
//! | `supports/`, `kernel-names/` | over the whole run: yes means that it works, no means that it is refused as `Unsupported`, and the kernel that ran is the one that was promised |
//!
//! A name states the operation, the format, the shape and what is special about the data:
//! `matmul/i2_s/m1.n2.k27648/extremes`. Names are stable, and a case's data depends on the seed and its name alone.
//!
//! # How it is judged
//!
//! * **The oracle is a second opinion.** [`oracle`] is written from the documents and calls neither the codecs nor the
//!   reference operations of `tersor-core`, which backends are built on. It sums in `i64`, rounds in `f64`, and follows
//!   the documents' order of additions word for word.
//! * **Operands live in the backend's memory.** The kit uses the trait alone: buffers that the backend allocated, written and
//!   read through its streams. On host backends they are ordinary slices; a device backend is judged by the same cases.
//! * **Outputs are poisoned and guarded.** Before each call an output and its surroundings are NaN, or bytes 0x5A. Every
//!   element is compared, and nothing around them may have changed.
//! * **Not supported is not passed.** Such cases are counted and listed with the backend's reason. What is required fails.
//! * **A panic is a failure** of its case; the next case gets a new stream.
//!
//! # How we know that it catches anything
//!
//! `conformance/broken` plants three dozen faults in a correct backend, one at a time: a tail off by one, swapped nibbles,
//! saturating sums, a lying `supports`, a contracted multiply-add. Its test demands of each that a case fails whose name
//! says what is wrong, and of the correct backend that it passes. Found a fault that no case catches? Plant it there first.
//!
//! # What is not judged
//!
//! Speed; memory budgets; cancellation; what happens to a stream after an error, other than that a new one works. And of the
//! order of additions only what it changes: data whose sums are exact in any order cannot tell orders apart, so the cases
//! for orders use data whose sums are not.
#![forbid(unsafe_code)]

mod cases;
mod compare;
mod error;
mod executor;
mod ledger;
pub mod oracle;
pub mod pipeline;
mod reals;
pub mod registered;
mod report;
mod rig;
mod rng;
mod suite;

pub use error::Error;
pub use executor::Threads;
pub use registered::{RegisteredReport, run_all_registered};
pub use report::{CaseResult, Outcome, Report};
pub use suite::{Options, Profile, Suite};
