//! The trait that a backend implements.

use std::any::Any;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    DeviceInfo, DeviceKind, Error, FloatIn, FloatOut, Floats, FloatsMut, Format, Isa, Op, OpSpec, Out, RawBuffer,
    Result, Shape, Stream, Weight,
};

/// Who a backend is and what it runs on.
#[derive(Debug, Clone)]
pub struct BackendInfo {
    /// The entry's id.
    pub id: Cow<'static, str>,
    /// Version of the crate or plugin.
    pub version: Cow<'static, str>,
    /// The entry's kernel revision.
    pub kernel_revision: u32,
    /// The device that this instance works on.
    pub device: DeviceInfo,
    /// The ISA tier that its kernels were chosen for; `None` for portable code and GPUs.
    pub isa: Option<Isa>,
}

impl BackendInfo {
    /// Whether operands are host memory.
    pub fn is_host(&self) -> bool {
        self.device.kind == DeviceKind::Cpu
    }
}

/// The answer to [`QuantBackend::supports`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// It does, with this kernel.
    Yes {
        /// Name of the kernel that [`Stream::submit`] would run.
        kernel: &'static str,
    },
    /// It does not.
    No {
        /// Why not.
        reason: String,
    },
}

impl Support {
    /// A "no".
    pub fn no(reason: impl Into<String>) -> Self {
        Support::No { reason: reason.into() }
    }

    /// Whether the answer is yes.
    pub fn is_yes(&self) -> bool {
        matches!(self, Support::Yes { .. })
    }
}

/// What [`Stream::submit`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Name of the kernel, as the dispatcher that chose it knows it: `op.weight-act.isa.tile`.
    pub kernel: &'static str,
}

/// Makes a name live as long as the program. Kernel names are few; equal names share one allocation.
pub fn intern(name: impl AsRef<str>) -> &'static str {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_with(HashSet::new);
    match names.get(name.as_ref()) {
        Some(known) => known,
        None => {
            let leaked: &'static str = Box::leak(name.as_ref().into());
            names.insert(leaked);
            leaked
        }
    }
}

/// Which backend made a [`PackedWeight`], and in which of its layouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackTag {
    /// Backend id.
    pub backend: Cow<'static, str>,
    /// The backend's name for the layout.
    pub packing: &'static str,
}

/// A weight in the private layout of the backend that packed it. Cloning shares the data.
#[derive(Clone)]
pub struct PackedWeight {
    tag: PackTag,
    format: Format,
    shape: Shape,
    scale_block: Option<usize>,
    bytes: usize,
    borrowed: bool,
    data: Arc<dyn Any + Send + Sync>,
}

impl PackedWeight {
    /// For backends. `bytes` is what the packed form occupies; `borrowed` says that it uses the weight's own bytes in
    /// place.
    pub fn new(tag: PackTag, weight: &Weight, bytes: usize, borrowed: bool, data: Arc<dyn Any + Send + Sync>) -> Self {
        let scale_block = match weight.uniform_scale() {
            Some(_) => None,
            None => weight.format().scale_block(),
        };
        PackedWeight { tag, format: weight.format(), shape: weight.shape(), scale_block, bytes, borrowed, data }
    }

    /// Who packed it.
    pub fn tag(&self) -> &PackTag {
        &self.tag
    }

    /// Format of the weight it was packed from.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows (N) and columns (K).
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Weights of a row that share a scale; `None` for a single-scale (or float) weight.
    pub fn scale_block(&self) -> Option<usize> {
        self.scale_block
    }

    /// Bytes it occupies, borrowed ones included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it uses the weight's own bytes in place; otherwise they may be dropped.
    pub fn borrowed(&self) -> bool {
        self.borrowed
    }

    /// The private data, for the backend that made it; an error for every other.
    pub fn data<T: Any>(&self, backend: &str) -> Result<&T> {
        let foreign = || Error::ForeignPack {
            made_by: format!("{} ({})", self.tag.backend, self.tag.packing),
            given_to: backend.to_owned(),
        };
        if self.tag.backend != backend {
            return Err(foreign());
        }
        self.data.downcast_ref().ok_or_else(foreign)
    }
}

impl fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedWeight")
            .field("tag", &self.tag)
            .field("format", &self.format)
            .field("shape", &self.shape)
            .field("bytes", &self.bytes)
            .field("borrowed", &self.borrowed)
            .finish_non_exhaustive()
    }
}

/// A backend that is ready to work. Used as `Arc<dyn QuantBackend>`.
///
/// A backend that knows `Quantize`, `Dequantize`, `QuantizeRows` and `MatMul` is complete; it says no, with a reason, to
/// the ops that keep a model on the device.
pub trait QuantBackend: Send + Sync + fmt::Debug {
    /// Who it is.
    fn info(&self) -> &BackendInfo;

    /// Whether [`Stream::submit`] would run an op of this spec, and with which kernel.
    fn supports(&self, spec: &OpSpec) -> Support;

    /// Whether ops of this spec have the results that `docs/numerics.md` defines, bit for bit. Always, unless the host has not
    /// asked for that ([`crate::HostContext::reproducible`]) and this backend has something faster, for which the page states
    /// a tolerance.
    fn follows_order(&self, _spec: &OpSpec) -> bool {
        true
    }

    /// Bytes that [`QuantBackend::pack`] occupies at most for a weight of this format and shape; exactly that many unless
    /// the format has several scales and the weight turns out to need one.
    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize>;

    /// Brings a weight into the layout that this backend's matrix products take.
    fn pack(&self, weight: &Weight) -> Result<PackedWeight>;

    /// Zeroed memory for operands. Host backends return host memory.
    fn alloc(&self, bytes: usize) -> Result<RawBuffer>;

    /// Zeroed host memory that copies to and from the device at the speed of the link between them: page-locked where the
    /// backend has a device, counted in the host's buffer pool. Host backends have no such copies; the default is
    /// [`QuantBackend::alloc`] for them, and ordinary host memory for all others.
    fn alloc_pinned(&self, bytes: usize) -> Result<RawBuffer> {
        if self.info().is_host() { self.alloc(bytes) } else { Ok(RawBuffer::host(bytes)) }
    }

    /// Opens an ordered queue of work.
    fn open_stream(&self) -> Result<Box<dyn Stream>>;

    /// Quantizes host weights into host slices of the lengths that [`Format::encoded_len`] states, and waits.
    fn quantize(
        &self,
        w: Floats<'_>,
        shape: Shape,
        format: Format,
        codes: &mut [u8],
        scales: &mut [f32],
    ) -> Result<Ran> {
        let mut stream = self.open_stream()?;
        let op =
            Op::Quantize { w: FloatIn::from(w), shape, format, codes: Out::Host(codes), scales: Out::Host(scales) };
        let ran = stream.submit(op.check()?)?;
        stream.synchronize()?;
        Ok(ran)
    }

    /// Expands host weights to `weight.shape().len()` floats in a host slice, and waits.
    fn dequantize(&self, weight: &Weight, y: FloatsMut<'_>) -> Result<Ran> {
        let mut stream = self.open_stream()?;
        let ran = stream.submit(Op::Dequantize { w: weight, y: FloatOut::from(y) }.check()?)?;
        stream.synchronize()?;
        Ok(ran)
    }
}
