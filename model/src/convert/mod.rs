//! Conversion: any model this program reads, to GGUF in any ternary format.
//!
//! Ternary layers keep their codes and scales bit for bit (the `tq` formats round scales to f16, and the report says when
//! that changed one). Master weights are quantized, and the report says what that cost. Embedding and head keep their type
//! unless another is asked for, norms become f32.

pub(crate) mod head;
mod ordered;
mod plan;
mod report;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use tersor_core::{Format, codec};

use crate::error::{Error, Result};
use crate::gguf::GgufWriter;
use crate::names::Role;
use crate::quantizer::{Quantizer, Reference};
use crate::source::ModelFile;

pub(crate) use plan::ggml_type;
pub use report::{ConvertReport, Fidelity, TensorReport, TernaryReport};

/// What to convert to, and how.
#[derive(Clone, Copy)]
pub struct ConvertOptions<'a> {
    /// The format of the linear layers: one of [`Format::TERNARY`].
    pub format: Format,
    /// Quantizes master weights.
    pub quantizer: &'a dyn Quantizer,
    /// Accept linear layers that are entirely zero. Some published files have them; they are usually broken.
    pub allow_all_zero: bool,
    /// The format of embedding and head, one of [`Format::tables`]; `None`: that of the source.
    pub head: Option<Format>,
    /// `general.name` of the new file, instead of the source's.
    pub name: Option<&'a str>,
    /// Tensors worked on at once, each by a thread of its own: with a GPU, one crosses the link while another is quantized.
    pub streams: usize,
}

impl ConvertOptions<'_> {
    /// Conversion to `format` with the reference quantizer, refusing layers of zeros.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, quantizer: &Reference, allow_all_zero: false, head: None, name: None, streams: 1 }
    }
}

/// Where a conversion stands: told after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Tensors written.
    pub done: usize,
    /// Tensors in all.
    pub total: usize,
    /// The one just written.
    pub tensor: &'a TensorReport,
}

/// Converts `model` to a GGUF file at `out`. The file appears when it is complete and not before; an error or
/// [`ControlFlow::Break`] from `progress` leaves nothing behind.
///
/// ```
/// use std::ops::ControlFlow;
/// use std::path::Path;
/// use tersor_core::Format;
/// use tersor_model::{ConvertOptions, ModelFile, convert, verify};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let out = &directory.path().join("fable-26m.gguf");
/// let packed = ModelFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fable-26m/packed"))?;
/// let report = convert(&packed, out, &ConvertOptions::new(Format::TQ1_0), &mut |_| ControlFlow::Continue(()))?;
/// let [minus, zero, plus] = report.tensors[2].ternary.ok_or("not a linear layer")?.shares();
/// assert!(minus > 0.3 && zero > 0.3 && plus > 0.3);
/// assert!(verify(&packed, &ModelFile::open(out)?)?.identical());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InTensor`] with [`tersor_core::Error::Unit`] where a row length does not fit the format, before anything is
/// written; [`Error::AllZero`]; [`tersor_core::Error::Cancelled`] after a break; whatever reading and writing can give.
pub fn convert(
    model: &ModelFile,
    out: &Path,
    options: &ConvertOptions<'_>,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<ConvertReport> {
    let start = Instant::now();
    let roles: Vec<Role> = Role::all(model.config()).collect();
    let plans = plan::tensors(model, &roles, options)?;
    let metadata = plan::metadata(model, options);
    let mut writer = GgufWriter::create(out, &metadata, plans)?;
    let mut tensors = Vec::with_capacity(roles.len());
    let work = |i: usize| (roles[i], one(model, roles[i], options));
    ordered::in_order(roles.len(), options.streams, work, |(role, done)| {
        let (bytes, report) = done?;
        writer.write_tensor(&role.gguf_name(), &bytes)?;
        tensors.push(report);
        let now = Progress { done: tensors.len(), total: roles.len(), tensor: &tensors[tensors.len() - 1] };
        if progress(now).is_break() { Err(Error::from(tersor_core::Error::Cancelled)) } else { Ok(()) }
    })?;
    let path = writer.finish()?;
    Ok(ConvertReport {
        path,
        format: options.format.id(),
        quantizer: options.quantizer.name().to_owned(),
        tensors,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The bytes of one tensor of the new file, and what became of it.
fn one(model: &ModelFile, role: Role, options: &ConvertOptions<'_>) -> Result<(Bytes, TensorReport)> {
    let start = Instant::now();
    let (bytes, stored, ternary) = if role.is_linear() {
        let (bytes, report) = linear(model, role, options)?;
        (bytes, options.format.id().to_owned(), Some(report))
    } else {
        let dense = model.dense(role)?;
        if role.is_norm() {
            let values = dense.to_f32()?;
            (values.iter().flat_map(|v| v.to_le_bytes()).collect(), "f32".to_owned(), None)
        } else {
            match options.head {
                Some(format) => (head::recode(&dense, format)?, format.id().to_owned(), None),
                None => (dense.data, dense.ty.to_string(), None),
            }
        }
    };
    let source = model.entry(role).map_or_else(String::new, |e| e.stored.clone());
    let report = TensorReport {
        name: role.gguf_name(),
        shape: role.shape(model.config()),
        source,
        stored,
        bytes: bytes.len() as u64,
        seconds: start.elapsed().as_secs_f64(),
        ternary,
    };
    Ok((bytes, report))
}

fn linear(model: &ModelFile, role: Role, options: &ConvertOptions<'_>) -> Result<(Bytes, TernaryReport)> {
    let name = model.entry(role).map_or_else(|| role.gguf_name(), |e| e.name.clone());
    let source = model.linear(role)?;
    let weight = source.to_weight(Some(options.format), options.quantizer).map_err(|e| e.in_tensor(&name))?;
    let written = codec::decode(&weight)?;
    let report = TernaryReport::new(&source, &written)?;
    if report.minus + report.plus == 0 && !options.allow_all_zero {
        return Err(Error::AllZero { name });
    }
    Ok((weight.shared_codes(), report))
}
