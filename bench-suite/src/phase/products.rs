//! Products of packed ternary weights and int8 activations, weights cold.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tersor_core::{
    Activations, Buffer, Bytes, Epilogue, Format, Op, Output, PackedWeight, QuantBackend, Result, Shape, Stream, Weight,
};

use super::{Cold, Found, POISON, Setup, Timed, first_difference, resident, set_floors};
use crate::candidates::{Candidate, Candidates};
use crate::limits::Collector;
use crate::material::{int8_activations, reference_product};
use crate::report::{Figure, Measure, Work};
use crate::schedule::Sample;

/// The products of BitNet b1.58 2B-4T: attention output and query, gate and up together, down.
pub(crate) fn shapes_2b_4t() -> Vec<Shape> {
    [(2560, 2560), (13824, 2560), (2560, 6912)].into_iter().filter_map(|(n, k)| Shape::new(n, k).ok()).collect()
}

/// One row of activations, or a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Gemv,
    Gemm,
}

impl Which {
    /// Rows of activations.
    pub(crate) fn m(self) -> usize {
        match self {
            Which::Gemv => 1,
            Which::Gemm => 128,
        }
    }

    fn measure(self) -> Measure {
        match self {
            Which::Gemv => Measure::Gemv,
            Which::Gemm => Measure::Gemm,
        }
    }
}

/// Packed bytes that one GEMV sample goes through at least: with less, the clock and the cold start of the code show.
const AT_LEAST: usize = 4 << 20;
/// The same for a device, whose caches nobody sweeps between samples: more than they hold. Small weights get as many copies
/// as are worth packing.
const DEVICE_AT_LEAST: usize = 128 << 20;
const DEVICE_COPIES: usize = 256;
/// Results of a batch on a device, in elements: as many copies as that gives, because one launch is over before it is timed.
const DEVICE_RESULTS: usize = 16 << 20;
/// Launches of a sample on a device at least, for one row and for a batch: the wait at the end takes as long as several.
const LAUNCHES: [usize; 2] = [200, 50];

/// A weight in a format, packed by each candidate, with the right answers.
struct InFormat {
    format: Format,
    /// Copies by candidate, or why there are none: one that shared its weights with another would find them in the cache.
    packed: Vec<Result<Vec<PackedWeight>, String>>,
    /// The product with the first row of activations, by the reference.
    first_row: Result<Vec<f32>, String>,
    /// The product with all rows, by the candidate that came first; its first row was checked.
    all_rows: OnceCell<Vec<f32>>,
}

/// One weight shape, ready to be multiplied.
pub(crate) struct Products {
    shape: Shape,
    formats: Vec<InFormat>,
    q: Vec<i8>,
    scales: Vec<f32>,
}

impl Products {
    /// Encodes and packs the model's codes, tiled to this shape, in every format for every candidate. Formats that come when
    /// `until` is over are left out: they get a reason instead of weights.
    pub(crate) fn new(setup: &Setup<'_>, shape: Shape, until: Instant) -> Self {
        let (q, scales) = int8_activations(Which::Gemm.m(), shape.cols());
        let formats = Format::TERNARY.into_iter().chain(Format::GROUPED);
        let formats = formats.map(|format| {
            if Instant::now() > until {
                return InFormat::without(setup.candidates, format, "cut by the time budget before it was packed");
            }
            match setup.material.weight(shape, format) {
                Err(e) => InFormat::without(setup.candidates, format, &e.to_string()),
                Ok(weight) => InFormat {
                    format,
                    packed: pack(setup.candidates, &weight),
                    first_row: reference_product(&weight, &q[..shape.cols()], scales[0]).map_err(|e| e.to_string()),
                    all_rows: OnceCell::new(),
                },
            }
        });
        Products { shape, formats: formats.collect(), q, scales }
    }

    /// Bytes of all packed copies together.
    pub(crate) fn bytes(&self) -> usize {
        let packed = self.formats.iter().flat_map(|f| f.packed.iter().flatten().flatten());
        packed.map(PackedWeight::bytes).sum()
    }

    /// Multiplies with one row or with a batch, candidates in turn, and reads `cold` before each round.
    pub(crate) fn measure(&self, setup: &mut Setup<'_>, which: Which, cold: &mut Cold, budget: Duration) -> Found {
        let (m, n, k) = (which.m(), self.shape.rows(), self.shape.cols());
        let ios: Vec<Rc<RefCell<Option<Io>>>> = setup.candidates.all.iter().map(|_| Rc::default()).collect();
        let mut cases = Vec::new();
        for format in &self.formats {
            for (i, candidate) in setup.candidates.all.iter().enumerate() {
                let mut figure = candidate.figure(which.measure(), format.format.id(), format!("{m}x{n}x{k}"));
                let packed = &format.packed[i];
                let copies = match which {
                    Which::Gemv => usize::MAX,
                    Which::Gemm if candidate.is_device() => (DEVICE_RESULTS / (m * n)).max(1),
                    Which::Gemm => 1,
                };
                let copies = copies.min(self.most_copies(i));
                let launches = if candidate.is_device() { LAUNCHES[usize::from(which == Which::Gemm)] } else { 1 };
                let bytes = packed.as_ref().map_or(0, |p| p.first().map_or(0, PackedWeight::bytes));
                let macs = (m * n * k) as f64;
                figure.work = Work { units: macs, bytes: (bytes + m * k + 4 * m * n) as f64, macs };
                figure.working_set = self.bytes() as u64 + cold.bytes();
                let io = ios[i].clone();
                let run = move |figure: &mut Figure| {
                    let packed = &packed.as_ref().map_err(Clone::clone)?[..];
                    let packed = &packed[..copies.min(packed.len())];
                    let io = &mut *io.borrow_mut();
                    let io = match io {
                        Some(io) => io,
                        None => io.insert(Io::new(&*candidate.backend, self, (m, copies)).map_err(|e| e.to_string())?),
                    };
                    let (sample, kernel) = io.run(candidate, packed, (m * n, launches)).map_err(|e| e.to_string())?;
                    figure.kernels = vec![kernel.to_owned()];
                    for got in io.results(packed.len() * m * n).map_err(|e| e.to_string())?.chunks_exact(m * n) {
                        format.check(got, n, figure)?;
                    }
                    Ok(sample)
                };
                cases.push(Timed { figure, group: i, run: Box::new(run) });
            }
        }
        let (mut read, mut int8) = (Collector::default(), Collector::default());
        let executors = setup.candidates.executors();
        let (mut devices, mut notes) = (std::mem::take(setup.devices), Vec::new());
        let mut figures = setup.measure(cases, budget, || {
            resident::sample(&mut devices, &mut notes);
            cold.arithmetic(&executors, &mut int8);
            cold.sweep(&executors, &mut read);
        });
        let phase = format!("{} {}", which.measure().id(), self.shape);
        let threads = setup.candidates.threads();
        let mut limits = cold.limits(&phase, &read, &int8, &threads);
        limits.extend(resident::limits(&mut devices, &phase, &threads));
        *setup.devices = devices;
        set_floors(&mut figures, &limits);
        Found { figures, limits, notes }
    }
}

impl InFormat {
    fn without(candidates: &Candidates, format: Format, reason: &str) -> Self {
        let packed = candidates.all.iter().map(|_| Err(reason.to_owned())).collect();
        InFormat { format, packed, first_row: Err(reason.to_owned()), all_rows: OnceCell::new() }
    }

    /// Compares all results with what they must be, bit for bit.
    fn check(&self, got: &[f32], n: usize, figure: &mut Figure) -> Result<(), String> {
        let wrong = |d| format!("WRONG RESULT: {d}");
        let first_row = self.first_row.as_ref().map_err(Clone::clone)?;
        if let Some(d) = first_difference(&got[..n], first_row) {
            return Err(wrong(d));
        }
        if got.len() == n {
            figure.checked = Some("every result equals the reference's, bit for bit".to_owned());
            return Ok(());
        }
        let all = self.all_rows.get_or_init(|| got.to_vec());
        figure.checked =
            Some("the first row equals the reference's, every result the first candidate's, bit for bit".to_owned());
        first_difference(got, all).map_or(Ok(()), |d| Err(wrong(d)))
    }
}

/// Packs copies for each candidate, each from bytes of its own, so that packing in place does not make one of them all.
fn pack(candidates: &Candidates, weight: &Weight) -> Vec<Result<Vec<PackedWeight>, String>> {
    let copies = |candidate: &Candidate| match candidate.is_device() {
        true => DEVICE_AT_LEAST.div_ceil(weight.bytes().max(1)).min(DEVICE_COPIES),
        false => AT_LEAST.div_ceil(weight.bytes().max(1)),
    };
    let copy = |candidate: &Candidate| {
        let codes = Bytes::copy_from_slice(weight.codes());
        let own = Weight::new(weight.format(), weight.shape(), codes, weight.scales())?;
        candidate.backend.pack(&own)
    };
    let all = |c: &Candidate| (0..copies(c)).map(|_| copy(c)).collect::<Result<_>>().map_err(|e| e.to_string());
    candidates.all.iter().map(all).collect()
}

/// A candidate's stream and operands, shared by its cases.
struct Io {
    stream: Box<dyn Stream>,
    q: Buffer<i8>,
    scales: Buffer<f32>,
    y: Buffer<f32>,
    host: Vec<f32>,
}

impl Io {
    fn new(backend: &dyn QuantBackend, of: &Products, (m, copies): (usize, usize)) -> Result<Self> {
        let mut stream = backend.open_stream()?;
        let mut q = Buffer::alloc(backend, m * of.shape.cols())?;
        q.write(&mut *stream, &of.q[..m * of.shape.cols()])?;
        let mut scales = Buffer::alloc(backend, m)?;
        scales.write(&mut *stream, &of.scales[..m])?;
        let len = copies * m * of.shape.rows();
        Ok(Io { stream, q, scales, y: Buffer::alloc(backend, len)?, host: vec![POISON; len] })
    }

    /// Poisons the output, then multiplies with each copy in turn, until there were so many launches.
    fn run(
        &mut self,
        by: &Candidate,
        packed: &[PackedWeight],
        (len, launches): (usize, usize),
    ) -> Result<(Sample, &'static str)> {
        self.host.fill(POISON);
        self.y.write(&mut *self.stream, &self.host)?;
        self.stream.synchronize()?;
        let mut kernel = "";
        let passes = launches.div_ceil(packed.len().max(1));
        let sample = by.time(passes * packed.len(), || {
            for (i, w) in (0..passes).flat_map(|_| packed.iter().enumerate()) {
                let x = Activations::Int8 { q: self.q.input(), scales: self.scales.input() };
                let y = Output::F32(self.y.output_range(i * len..(i + 1) * len));
                kernel = self.stream.submit(Op::MatMul { w, x, y, epilogue: Epilogue::Store }.check()?)?.kernel;
            }
            self.stream.synchronize()
        })?;
        Ok((sample, kernel))
    }

    fn results(&mut self, len: usize) -> Result<&[f32]> {
        self.y.read(&mut *self.stream, 0, &mut self.host[..len])?;
        Ok(&self.host[..len])
    }
}

impl Products {
    /// The most copies of any format that a candidate has.
    fn most_copies(&self, candidate: usize) -> usize {
        let packed = self.formats.iter().flat_map(|f| f.packed[candidate].iter());
        packed.map(Vec::len).max().unwrap_or(1).max(1)
    }
}
