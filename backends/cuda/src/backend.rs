//! The backend: what it supports, packing, memory, and the trait's methods on host slices.

use std::sync::Arc;

use tersor_core::{
    BackendInfo, Buffer, DType, DeviceInfo, DeviceSlice, Element, Error, FloatIn, FloatOut, Floats, FloatsMut, Format,
    HostContext, In, Op, OpKind, OpSpec, PackedWeight, QuantBackend, Ran, RawBuffer, Result, Shape, Stream, Support,
    Weight,
};

use crate::driver::Driver;
use crate::memory::{Counters, Device};
use crate::names::Names;
use crate::stream::CudaStream;
use crate::{ID, KERNEL_REVISION, ops, pack};

/// The most rows that a launch's second dimension can have.
const MAX_ROWS: usize = 65_535;

/// A GPU that is ready to work.
#[derive(Debug)]
pub struct CudaBackend {
    pub(crate) device: Arc<Device>,
    host: HostContext,
    info: BackendInfo,
    names: Arc<Names>,
}

impl CudaBackend {
    pub(crate) fn open(info: DeviceInfo, host: &HostContext, portable: bool) -> Result<Self> {
        let driver = Driver::open(info.index as i32, portable)?;
        let (isa, warpgroups) = (driver.isa, driver.warpgroups);
        let device = Arc::new(Device::new(driver, host.clone()));
        let names = Arc::new(Names::new(isa, warpgroups, device.limits()));
        let info = BackendInfo {
            id: ID.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            kernel_revision: KERNEL_REVISION,
            device: info,
            isa: None,
        };
        Ok(CudaBackend { device, host: host.clone(), info, names })
    }

    /// What went over the bus and into device memory since the backend was opened.
    pub fn counters(&self) -> Counters {
        self.device.counters()
    }

    /// The kernels of the images that were loaded, and whether each has been launched since the backend was opened.
    pub fn kernels(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.device.kernels()
    }

    /// Whether recurring sequences of launches are replayed as CUDA graphs, as they are by default. Results are the same.
    pub fn set_graphs(&self, on: bool) {
        self.device.set_graphs(on);
    }

    /// Bytes of device memory that are free, and all there are.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver fails.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.device.driver.memory()
    }

    /// Dequantizes through `run`, which submits the op, and brings the values back.
    fn expand<T: Element>(
        &self,
        y: &mut [T],
        run: impl FnOnce(&mut dyn Stream, &mut Buffer<T>) -> Result<Ran>,
    ) -> Result<Ran> {
        let mut stream = self.open_stream()?;
        let mut buffer = Buffer::<T>::alloc(self, y.len())?;
        let ran = run(&mut *stream, &mut buffer)?;
        buffer.read(&mut *stream, 0, y)?;
        Ok(ran)
    }
}

/// Why an op cannot be run; `None` if it can. Asked by `supports` and by `submit`.
pub(crate) fn refusal(device: &Device, spec: &OpSpec) -> Option<String> {
    match spec {
        OpSpec::Quantize { from: t, format, shape } | OpSpec::Dequantize { to: t, format, shape } => {
            if !format.is_ternary() && spec.kind() == OpKind::Quantize {
                return Some(format!("{format} is not a ternary format"));
            }
            if crate::names::float(*t).is_none() {
                return Some(format!("{t:?} is not a float type"));
            }
            format.encoded_len(*shape).err().map(|e| e.to_string())
        }
        OpSpec::MatMul { format, activations, output, scale_block, k, m, n, .. } => {
            let expected = if format.is_ternary() || format.is_block() { DType::I8 } else { DType::F32 };
            if *activations != expected {
                return Some(format!("{format} weights take {expected:?} activations, not {activations:?}"));
            }
            if *output != DType::F32 && !(format.is_ternary() && *output == DType::I32) {
                return Some(format!("{format} products are not stored as {output:?}"));
            }
            if format.is_block() && *scale_block != format.scale_block() {
                return Some(format!("{format} has a scale for each block"));
            }
            let rows = crate::names::Product::of(*format, *scale_block, *output, (*m, *k), device.limits()).head_rows();
            if rows * k > device.driver.dynamic_shared() as usize {
                return Some(format!("{rows} rows of {k} activations are more than a block has room for"));
            }
            if let Some(block) = scale_block.filter(|b| !k.is_multiple_of(*b)) {
                return Some(format!("a group of {block} weights straddles rows of {k}"));
            }
            if let Err(e) = Shape::new(*n, *k).and_then(|s| format.encoded_len(s)) {
                return Some(e.to_string());
            }
            (*m > MAX_ROWS).then(|| format!("{m} rows of activations are more than {MAX_ROWS}"))
        }
        OpSpec::GatherRows { format, .. } if format.is_ternary() => Some("rows are gathered from dense tables".into()),
        OpSpec::GatherRows { format, cols, .. } => {
            Shape::new(1, *cols).and_then(|row| format.encoded_len(row)).err().map(|e| e.to_string())
        }
        OpSpec::Attention { capacity, span, .. } => {
            let (room, seen) = (ops::attention::room(device), span.unwrap_or(*capacity));
            (seen > room).then(|| format!("{seen} positions that a row sees are more than the {room} of one block"))
        }
        OpSpec::Sample { rows, .. } => (*rows > MAX_ROWS).then(|| format!("{rows} rows are more than {MAX_ROWS}")),
        _ => None,
    }
}

impl QuantBackend for CudaBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, spec: &OpSpec) -> Support {
        match (refusal(&self.device, spec), self.names.of(spec)) {
            (Some(reason), _) => Support::no(reason),
            (None, Some(kernel)) => Support::Yes { kernel },
            (None, None) => Support::no(format!("{ID} does not know {}", spec.kind())),
        }
    }

    fn follows_order(&self, spec: &OpSpec) -> bool {
        self.names.follow_order(spec)
    }

    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        pack::packed_size(format, shape)
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let _span = tracing::debug_span!("pack", format = %weight.format(), shape = %weight.shape()).entered();
        pack::pack(&self.device, weight)
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        Ok(RawBuffer::device(Box::new(self.device.take_zeroed(bytes)?)))
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<RawBuffer> {
        Ok(RawBuffer::pinned(Box::new(self.device.take_pinned(bytes)?)))
    }

    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(CudaStream::new(self.device.clone(), self.names.clone(), self.host.clone())?))
    }

    fn quantize(
        &self,
        w: Floats<'_>,
        shape: Shape,
        format: Format,
        codes: &mut [u8],
        scales: &mut [f32],
    ) -> Result<Ran> {
        // Checks the slices before anything is copied.
        let spec = Op::Quantize {
            w: FloatIn::from(w),
            shape,
            format,
            codes: tersor_core::Out::Host(codes),
            scales: tersor_core::Out::Host(scales),
        }
        .check()?
        .spec();
        if let Support::No { reason } = self.supports(&spec) {
            return Err(Error::Unsupported { backend: ID.into(), op: spec.to_string(), reason });
        }
        let mut stream = self.open_stream()?;
        let stream = &mut *stream;
        let (mut c, mut s) = (Buffer::<u8>::alloc(self, codes.len())?, Buffer::<f32>::alloc(self, scales.len())?);
        // Straight into memory that nobody uses: the copy runs beside the kernels that quantize another tensor.
        let (bytes, len): (&[u8], usize) = match w {
            Floats::F32(w) => (bytemuck::cast_slice(w), w.len()),
            Floats::F16(w) => (bytemuck::cast_slice(w), w.len()),
            Floats::BF16(w) => (bytemuck::cast_slice(w), w.len()),
        };
        let source = self.device.take_with(bytes)?;
        let slice = DeviceSlice { memory: &source, offset: 0, len };
        let resident = match w {
            Floats::F32(_) => FloatIn::F32(In::Device(slice)),
            Floats::F16(_) => FloatIn::F16(In::Device(slice)),
            Floats::BF16(_) => FloatIn::BF16(In::Device(slice)),
        };
        let op = Op::Quantize { w: resident, shape, format, codes: c.output(), scales: s.output() };
        let ran = stream.submit(op.check()?)?;
        stream.synchronize()?;
        c.read(stream, 0, codes)?;
        s.read(stream, 0, scales)?;
        Ok(ran)
    }

    fn dequantize(&self, weight: &Weight, y: FloatsMut<'_>) -> Result<Ran> {
        let run = |stream: &mut dyn Stream, y: FloatOut<'_>| stream.submit(Op::Dequantize { w: weight, y }.check()?);
        match y {
            FloatsMut::F32(y) => self.expand(y, |s, b| run(s, FloatOut::F32(b.output()))),
            FloatsMut::F16(y) => self.expand(y, |s, b| run(s, FloatOut::F16(b.output()))),
            FloatsMut::BF16(y) => self.expand(y, |s, b| run(s, FloatOut::BF16(b.output()))),
        }
    }
}
