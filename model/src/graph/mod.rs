//! The BitNet b1.58 graph, as operations that any backend can run.
//!
//! A [`Model`] is a checked configuration and weights that one backend has packed. A [`Session`] is one sequence on it: the
//! key/value cache, one set of activation buffers, and the stream that all work goes through. A [`Batch`] is several sequences
//! that go through the model together.
//!
//! ```text
//! x = embedding[ids]
//! per layer:  q8 = quantize(rms_norm(x))         q, k, v = Wq q8, Wk q8, Wv q8      rotate q, k; write k, v
//!             q8 = quantize(rms_norm(attend(q))) x += Wo q8
//!             q8 = quantize(rms_norm(x))         gate, up = Wg q8, Wu q8
//!             q8 = quantize(rms_norm(max(gate, 0)^2 * up))                          x += Wd q8
//! logits = head rms_norm(x)                      next = sample(logits)
//! ```
//!
//! Nothing in the pass touches host memory: operands are buffers of the backend, positions are ranges of a buffer that
//! counts from zero, and the sampled id stays where the next embedding lookup reads it. Per token, one id comes back, and on a
//! device that works by itself the next step is on its way by then.
//! Nothing is allocated after [`Session::new`]: rows of a prompt go through in chunks of [`SessionOptions::batch`].
//!
//! Every operation has one order of evaluation ([`tersor_core::reference`]) and each row is computed on its own, so logits
//! do not depend on the backend, on the number of threads, or on how a prompt was cut into chunks.

mod batch;
mod buffers;
mod file;
mod forward;
mod model;
mod needs;
mod places;
mod profile;
mod run;
mod session;
mod steps;
mod weights;

pub use batch::{Batch, BatchOptions, Drawn};
pub use file::InFormat;
pub use model::{LoadProgress, Model};
pub use needs::{required_batch_ops, required_ops};
pub use profile::{Place, Profile, Spent};
pub use session::{Session, SessionOptions};
pub use weights::TensorSource;
