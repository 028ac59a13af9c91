//! Quantizing real weights, and what belongs to it: dequantizing, packing.

use std::cell::RefCell;
use std::time::Duration;

use tersor_core::{Floats, FloatsMut, Format, Shape, Weight, bf16, codec, f16};

use super::{Cold, Found, POISON, Setup, Timed, first_difference, resident, set_floors};
use crate::floor::{self, Floor};
use crate::limits::{Collector, Pattern, ReadProbe};
use crate::material::Values;
use crate::report::{Limit, LimitKind, Measure, Work};

/// The large case: the model's values, tiled to rows of 4,096.
pub(crate) struct Large {
    pub(crate) elements: usize,
}

/// What is put where codes are to be.
const POISON_BYTE: u8 = 0xa5;

/// Codes and scales as the reference quantizes each tensor; the first error if a format cannot hold one of them.
fn expected(tensors: &[Values], format: Format) -> Result<Vec<Weight>, String> {
    tensors
        .iter()
        .map(|t| codec::quantize(Floats::F32(&t.values), t.shape, format).map_err(|e| e.to_string()))
        .collect()
}

/// What quantizing has to move: the values and the result once. A device reads them twice for a tensor's own scale, whose absmean
/// comes first; a CPU may guess it from a sample.
fn quantize_work(tensors: &[Values], format: Format, on_device: bool) -> Work {
    let reads = if on_device && !matches!(format, Format::I2SGroup(_)) { 2.0 } else { 1.0 };
    tensors.iter().fold(Work::default(), |w, t| {
        let n = t.values.len() as f64;
        let out = format.encoded_len(t.shape).map_or(0.0, |l| (l.bytes + 4 * l.scales) as f64);
        Work { units: w.units + n, bytes: w.bytes + reads * 4.0 * n + out, macs: 0.0 }
    })
}

/// Quantizes the tensors of a layer, and one large tensor, in every ternary format.
pub(crate) fn quantize(setup: &mut Setup<'_>, large: &Large, budget: Duration) -> Found {
    let mut found = Found::default();
    let layer = setup.material.layer_values();
    let rows = (large.elements / 4096).max(1);
    let tiled = Shape::new(rows, 4096).map(|shape| vec![setup.material.tiled_values(shape)]);
    let layer_name = format!("{} tensors of a layer", layer.len());
    quantize_set(setup, &layer, &layer_name, budget.mul_f64(0.3), &mut found);
    if let Ok(tiled) = tiled {
        let name = format!("{rows}x4096");
        quantize_set(setup, &tiled, &name, budget.mul_f64(0.7), &mut found);
    }
    found
}

fn quantize_set(setup: &mut Setup<'_>, tensors: &[Values], name: &str, budget: Duration, found: &mut Found) {
    let start = std::time::Instant::now();
    let bytes: usize = tensors.iter().map(|t| 4 * t.values.len()).sum();
    let formats: Vec<Format> = Format::TERNARY.into_iter().chain(Format::GROUPED).collect();
    let wanted: Vec<_> = formats.iter().map(|f| expected(tensors, *f)).collect();
    // One output for all cases: each poisons it first.
    let out: RefCell<(Vec<u8>, Vec<f32>)> = RefCell::default();
    let mut cases = Vec::new();
    for (format, wanted) in formats.iter().zip(&wanted) {
        for (i, candidate) in setup.candidates.all.iter().enumerate() {
            let work = quantize_work(tensors, *format, candidate.is_device());
            let mut shape = name.to_owned();
            if candidate.is_device() {
                shape += FROM_HOST;
                if let [tensor] = tensors {
                    cases.push(resident::quantize(candidate, (tensor, name), *format, wanted, (work, 2 * i)));
                }
            }
            let mut figure = candidate.figure(Measure::Quantize, format.id(), shape);
            (figure.work, figure.working_set) = (work, bytes as u64);
            let (format, out) = (*format, &out);
            let run = move |figure: &mut crate::report::Figure| {
                let wanted = wanted.as_ref().map_err(Clone::clone)?;
                let (codes, scales) = &mut *out.borrow_mut();
                codes.clear();
                scales.clear();
                codes.resize(wanted.iter().map(|w| w.codes().len()).sum(), POISON_BYTE);
                scales.resize(wanted.iter().map(|w| w.scales().len()).sum(), POISON);
                let mut ran = None;
                let sample = candidate
                    .time(1, || {
                        let (mut codes, mut scales) = (&mut codes[..], &mut scales[..]);
                        for (t, w) in tensors.iter().zip(wanted) {
                            let (c, rest) = std::mem::take(&mut codes).split_at_mut(w.codes().len());
                            let (s, rest_scales) = std::mem::take(&mut scales).split_at_mut(w.scales().len());
                            (codes, scales) = (rest, rest_scales);
                            ran = Some(candidate.backend.quantize(Floats::F32(&t.values), t.shape, format, c, s)?);
                        }
                        Ok(())
                    })
                    .map_err(|e: tersor_core::Error| e.to_string())?;
                note(figure, ran.map(|r| r.kernel), "every byte equals the reference codec's");
                let (mut c, mut s) = (&codes[..], &scales[..]);
                for w in wanted {
                    let (bytes, rest) = c.split_at(w.codes().len());
                    let (values, rest_scales) = s.split_at(w.scales().len());
                    (c, s) = (rest, rest_scales);
                    if let Some(at) = bytes.iter().zip(w.codes()).position(|(got, want)| got != want) {
                        return Err(format!("WRONG RESULT: byte {at} of the codes differs from the reference codec's"));
                    }
                    if let Some(d) = first_difference(values, w.scales()) {
                        return Err(format!("WRONG RESULT: scales: {d}"));
                    }
                }
                Ok(sample)
            };
            cases.push(Timed { figure, group: 2 * i + 1, run: Box::new(run) });
        }
    }
    let phase = format!("quantize {name}");
    let (before, limits) = (found.figures.len(), found.limits.len());
    measure_with_reads(setup, cases, bytes, &phase, budget.saturating_sub(start.elapsed()), found);
    // What comes from the host has to cross the link, once.
    let up = found.limits[limits..].iter().find(|l| l.kind == LimitKind::Up);
    for f in found.figures[before..].iter_mut().filter(|f| f.shape.ends_with(FROM_HOST)) {
        let crossing = Work { bytes: bytes as f64, macs: 0.0, ..f.work };
        let at = |rate: fn(&Limit) -> f64| floor::floor(&crossing, up.map(rate), None);
        let usual = at(|l| l.median).map(|floor| floor.seconds);
        f.floor = at(|l| l.best).map(|floor| Floor { usual, ..floor });
    }
}

/// What the shape says of a device's case where codes and values are in host memory.
const FROM_HOST: &str = " from the host";

fn note(figure: &mut crate::report::Figure, kernel: Option<&'static str>, checked: &str) {
    if let Some(kernel) = kernel
        && !figure.kernels.iter().any(|k| k == kernel)
    {
        figure.kernels.push(kernel.to_owned());
    }
    figure.checked.get_or_insert_with(|| checked.to_owned());
}

/// Measures cases; before each round, memory as large as their input is read with every pattern, or several last-level caches
/// where their input is larger than one.
fn measure_with_reads(
    setup: &mut Setup<'_>,
    cases: Vec<Timed<'_>>,
    bytes: usize,
    phase: &str,
    budget: Duration,
    found: &mut Found,
) {
    let executors = setup.candidates.executors();
    let beyond = Cold::beyond(setup.machine, bytes);
    let (mut memory, mut read) = (beyond.map(Cold::new), Collector::default());
    let mut probe = ReadProbe::new(if memory.is_some() { 0 } else { bytes });
    let (mut devices, mut notes) = (std::mem::take(setup.devices), Vec::new());
    let mut figures = setup.measure(cases, budget, || {
        resident::sample(&mut devices, &mut notes);
        if let Some(memory) = &mut memory {
            memory.sweep(&executors, &mut read);
            return;
        }
        for executor in &executors {
            for pattern in Pattern::ALL {
                read.push(executor.threads(), pattern.id(), probe.read_again(*executor, pattern, 1 << 20));
            }
        }
    });
    let threads = setup.candidates.threads();
    let mut limits = read.limits(LimitKind::Read, phase, beyond.unwrap_or(bytes as u64), &threads);
    limits.extend(resident::limits(&mut devices, phase, &threads));
    *setup.devices = devices;
    found.notes.append(&mut notes);
    set_floors(&mut figures, &limits);
    found.figures.append(&mut figures);
    found.limits.extend(limits);
}

/// In detail: each shape of the model by itself, from f16 and bf16 as well, back to f32, and into the backend's packing.
pub(crate) fn profile(setup: &mut Setup<'_>, budget: Duration) -> Found {
    let mut found = Found::default();
    let shapes = setup.material.shapes();
    let share = budget / shapes.len().max(1) as u32;
    for shape in shapes {
        if let Some(values) = setup.material.values_of(shape) {
            quantize_set(setup, std::slice::from_ref(&values), &shape.to_string(), share / 3, &mut found);
            halves(setup, &values, share / 3, &mut found);
            back(setup, &values, share / 3, &mut found);
        }
    }
    found
}

/// From the 16-bit types that model files hold, to i2_s.
fn halves(setup: &mut Setup<'_>, tensor: &Values, budget: Duration, found: &mut Found) {
    let shape = tensor.shape;
    let as_f16: Vec<f16> = tensor.values.iter().map(|v| f16::from_f32(*v)).collect();
    let as_bf16: Vec<bf16> = tensor.values.iter().map(|v| bf16::from_f32(*v)).collect();
    let sources = [("f16", Floats::F16(&as_f16)), ("bf16", Floats::BF16(&as_bf16))];
    let wanted = sources.map(|(_, w)| codec::quantize(w, shape, Format::I2S).map_err(|e| e.to_string()));
    let mut cases = Vec::new();
    for ((name, w), wanted) in sources.into_iter().zip(&wanted) {
        for (i, candidate) in setup.candidates.all.iter().enumerate() {
            let mut figure = candidate.figure(Measure::Quantize, "i2_s", format!("{shape} from {name}"));
            let n = shape.len() as f64;
            let bytes = if candidate.is_device() { 4.25 } else { 2.25 } * n;
            figure.work = Work { units: n, bytes, macs: 0.0 };
            figure.working_set = 2 * shape.len() as u64;
            let run = move |figure: &mut crate::report::Figure| {
                let wanted = wanted.as_ref().map_err(Clone::clone)?;
                let mut codes = vec![POISON_BYTE; wanted.codes().len()];
                let mut ran = None;
                let sample = candidate
                    .time(1, || {
                        ran = Some(candidate.backend.quantize(w, shape, Format::I2S, &mut codes, &mut [])?);
                        Ok(())
                    })
                    .map_err(|e: tersor_core::Error| e.to_string())?;
                note(figure, ran.map(|r| r.kernel), "every byte equals the reference codec's");
                let equal = codes == wanted.codes();
                if equal { Ok(sample) } else { Err("WRONG RESULT: bytes differ from the reference codec's".to_owned()) }
            };
            cases.push(Timed { figure, group: i, run: Box::new(run) });
        }
    }
    measure_with_reads(setup, cases, 2 * shape.len(), &format!("quantize {shape} from 16 bits"), budget, found);
}

/// From every format back to f32, and into the backend's packing.
fn back(setup: &mut Setup<'_>, tensor: &Values, budget: Duration, found: &mut Found) {
    let shape = tensor.shape;
    let formats = Format::TERNARY;
    let weights: Vec<_> = formats
        .iter()
        .map(|f| codec::quantize(Floats::F32(&tensor.values), shape, *f).map_err(|e| e.to_string()))
        .collect();
    let values: Vec<_> = weights.iter().map(|w| w.as_ref().ok().and_then(|w| codec::dequantize(w).ok())).collect();
    let y = RefCell::new(vec![POISON; shape.len()]);
    let mut cases = Vec::new();
    for ((format, weight), values) in formats.iter().zip(&weights).zip(&values) {
        for (i, candidate) in setup.candidates.all.iter().enumerate() {
            let n = shape.len() as f64;
            let bytes = weight.as_ref().map_or(0.0, |w| w.bytes() as f64);
            let mut figure = candidate.figure(Measure::Dequantize, format.id(), shape.to_string());
            figure.work = Work { units: n, bytes: bytes + 4.0 * n, macs: 0.0 };
            figure.working_set = 4 * shape.len() as u64;
            let y = &y;
            let run = move |figure: &mut crate::report::Figure| {
                let weight = weight.as_ref().map_err(Clone::clone)?;
                let y = &mut *y.borrow_mut();
                y.fill(POISON);
                let mut ran = None;
                let sample = candidate
                    .time(1, || {
                        ran = Some(candidate.backend.dequantize(weight, FloatsMut::F32(y))?);
                        Ok(())
                    })
                    .map_err(|e: tersor_core::Error| e.to_string())?;
                note(figure, ran.map(|r| r.kernel), "every value equals the reference codec's");
                match values.as_ref().map(|want| first_difference(y, want)) {
                    Some(None) => Ok(sample),
                    Some(Some(d)) => Err(format!("WRONG RESULT: {d}")),
                    None => Err("the reference codec does not dequantize this".to_owned()),
                }
            };
            cases.push(Timed { figure, group: 2 * i, run: Box::new(run) });
            let mut figure = candidate.figure(Measure::Pack, format.id(), shape.to_string());
            figure.work = Work { units: n, bytes, macs: 0.0 };
            figure.working_set = bytes as u64;
            let run = move |figure: &mut crate::report::Figure| {
                let weight = weight.as_ref().map_err(Clone::clone)?;
                let mut packed = None;
                let sample = candidate
                    .time(1, || {
                        packed = Some(candidate.backend.pack(weight)?);
                        Ok(())
                    })
                    .map_err(|e: tersor_core::Error| e.to_string())?;
                let how = packed.map(|p| if p.borrowed() { "in place" } else { "copied" });
                figure.checked = how.map(|how| format!("{how}; the products of packed weights are checked elsewhere"));
                Ok(sample)
            };
            cases.push(Timed { figure, group: 2 * i + 1, run: Box::new(run) });
        }
    }
    measure_with_reads(setup, cases, 4 * shape.len(), &format!("dequantize and pack {shape}"), budget, found);
}
