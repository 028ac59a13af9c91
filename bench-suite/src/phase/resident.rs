//! What a device does with weights that are in its memory already, and the limits of that memory.

use std::cell::RefCell;

use tersor_core::{Buffer, FloatIn, Format, Op, Stream, Weight};

use super::{POISON, Timed, first_difference};
use crate::candidates::{Candidate, Candidates};
use crate::limits::DeviceProbe;
use crate::material::Values;
use crate::report::{Figure, Limit, Measure, Work};

/// Bytes that a sample goes through at least, so that no cache of a device holds them: those of today have 50 MB.
pub(crate) const COLD: usize = 256 << 20;
/// Times that a sample goes through them, so that it is not the wait at its end that is measured.
const PASSES: usize = 8;

/// A probe for each device among the candidates; second: why one has none.
pub(crate) fn probes(candidates: &Candidates) -> (Vec<DeviceProbe>, Vec<String>) {
    let (mut probes, mut notes) = (Vec::new(), Vec::new());
    for c in candidates.all.iter().filter(|c| c.is_device()) {
        match DeviceProbe::new(c.backend.clone(), COLD) {
            Ok(probe) => probes.push(probe),
            Err(e) => notes.push(format!("the memory of {} is not measured: {e}", c.name())),
        }
    }
    (probes, notes)
}

/// A sample of each device; who fails is left out from then on.
pub(crate) fn sample(probes: &mut Vec<DeviceProbe>, notes: &mut Vec<String>) {
    probes.retain_mut(|probe| match probe.sample() {
        Ok(()) => true,
        Err(e) => {
            notes.push(format!("the memory of {} is no longer measured: {e}", probe.backend().info().id));
            false
        }
    });
}

/// The limits of all samples since the last call.
pub(crate) fn limits(probes: &mut [DeviceProbe], phase: &str, threads: &[usize]) -> Vec<Limit> {
    let threads = threads.last().copied().unwrap_or(1);
    probes.iter_mut().flat_map(|probe| probe.limits(phase, threads)).collect()
}

/// Copies of a tensor in device memory, and where its codes go. Made at the first sample.
struct Io {
    stream: Box<dyn Stream>,
    copies: Vec<Buffer<f32>>,
    codes: Buffer<u8>,
    scales: Buffer<f32>,
}

impl Io {
    fn new(candidate: &Candidate, tensor: &Values, wanted: &Weight) -> tersor_core::Result<Self> {
        let backend = &*candidate.backend;
        let mut stream = backend.open_stream()?;
        let count = COLD.div_ceil(4 * tensor.values.len()).clamp(1, 64);
        let mut copy = || {
            let mut buffer = Buffer::alloc(backend, tensor.values.len())?;
            buffer.write(&mut *stream, &tensor.values)?;
            Ok(buffer)
        };
        let copies = (0..count).map(|_| copy()).collect::<tersor_core::Result<_>>()?;
        let codes = Buffer::alloc(backend, wanted.codes().len())?;
        let scales = Buffer::alloc(backend, wanted.scales().len())?;
        Ok(Io { stream, copies, codes, scales })
    }
}

/// Quantizing a tensor where it is.
pub(crate) fn quantize<'a>(
    candidate: &'a Candidate,
    (tensor, name): (&'a Values, &str),
    format: Format,
    wanted: &'a Result<Vec<Weight>, String>,
    (work, group): (Work, usize),
) -> Timed<'a> {
    let mut figure = candidate.figure(Measure::Quantize, format.id(), name.to_owned());
    (figure.work, figure.working_set) = (work, COLD as u64);
    let io: RefCell<Option<Io>> = RefCell::default();
    let run = move |figure: &mut Figure| {
        let wanted = wanted.as_ref().map_err(Clone::clone)?.first().ok_or("nothing to compare with")?;
        let io = &mut *io.borrow_mut();
        let mut attempt = || {
            let io = match &mut *io {
                Some(io) => io,
                none => none.insert(Io::new(candidate, tensor, wanted)?),
            };
            let Io { stream, copies, codes, scales } = io;
            let stream = &mut **stream;
            codes.write(stream, &vec![0xa5; codes.len()])?;
            scales.write(stream, &vec![POISON; scales.len()])?;
            stream.synchronize()?;
            let mut kernel = "";
            let sample = candidate.time(PASSES * copies.len(), || {
                for w in (0..PASSES).flat_map(|_| copies.iter()) {
                    let (w, shape) = (FloatIn::F32(w.input()), tensor.shape);
                    let op = Op::Quantize { w, shape, format, codes: codes.output(), scales: scales.output() };
                    kernel = stream.submit(op.check()?)?.kernel;
                }
                stream.synchronize()
            })?;
            let (mut got, mut got_scales) = (vec![0; codes.len()], vec![POISON; scales.len()]);
            codes.read(stream, 0, &mut got)?;
            scales.read(stream, 0, &mut got_scales)?;
            Ok::<_, tersor_core::Error>((sample, kernel, got, got_scales))
        };
        let (sample, kernel, got, got_scales) = attempt().map_err(|e| e.to_string())?;
        figure.kernels = vec![kernel.to_owned()];
        figure.checked = Some("every byte equals the reference codec's".to_owned());
        if let Some(at) = got.iter().zip(wanted.codes()).position(|(got, want)| got != want) {
            return Err(format!("WRONG RESULT: byte {at} of the codes differs from the reference codec's"));
        }
        match first_difference(&got_scales, wanted.scales()) {
            Some(d) => Err(format!("WRONG RESULT: scales: {d}")),
            None => Ok(sample),
        }
    };
    Timed { figure, group, run: Box::new(run) }
}
