//! Quantizing activations.

use std::time::Duration;

use tersor_core::{Buffer, Op};

use super::{Found, POISON, Setup, Timed, first_difference, set_floors};
use crate::limits::read_limit;
use crate::material::{activations, int8_activations};
use crate::report::{Figure, Measure, Work};

/// Values that one sample goes through at least, so that the clock does not show.
const AT_LEAST: usize = 1 << 17;

/// Activations of one row and of 128, as wide as the model's layers and those of 2B-4T. They come from the caches, as in a
/// model, where the operation before has just written them.
pub(crate) fn rows(setup: &mut Setup<'_>, budget: Duration) -> Found {
    let mut found = Found::default();
    let mut widths: Vec<usize> = setup.material.shapes().iter().map(|s| s.cols()).chain([2560, 6912]).collect();
    widths.sort_unstable();
    widths.dedup();
    let shapes: Vec<(usize, usize)> = widths.iter().flat_map(|cols| [(1, *cols), (128, *cols)]).collect();
    let share = budget / shapes.len() as u32;
    for (rows, cols) in shapes {
        let start = std::time::Instant::now();
        let n = rows * cols;
        let limits = read_limit(&setup.candidates.executors(), &format!("quantize_rows {rows}x{cols}"), 4 * n);
        let x = activations(rows, cols);
        let (want, want_scales) = int8_activations(rows, cols);
        let mut cases = Vec::new();
        for (i, candidate) in setup.candidates.all.iter().enumerate() {
            let mut figure = candidate.figure(Measure::QuantizeRows, "i8", format!("{rows}x{cols}"));
            figure.work = Work { units: n as f64, bytes: (5 * n + 4 * rows) as f64, macs: 0.0 };
            figure.working_set = 4 * n as u64;
            let backend = &*candidate.backend;
            let (x, want, want_scales) = (&x, &want, &want_scales);
            let mut io = None;
            let run = move |figure: &mut Figure| {
                let mut attempt = || {
                    let (stream, xs, q, scales) = match &mut io {
                        Some(io) => io,
                        None => {
                            let mut stream = backend.open_stream()?;
                            let mut xs = Buffer::<f32>::alloc(backend, n)?;
                            xs.write(&mut *stream, x)?;
                            let (q, s) = (Buffer::<i8>::alloc(backend, n)?, Buffer::<f32>::alloc(backend, rows)?);
                            io.insert((stream, xs, q, s))
                        }
                    };
                    q.write(&mut **stream, &vec![0x55; n])?;
                    scales.write(&mut **stream, &vec![POISON; rows])?;
                    stream.synchronize()?;
                    let times = AT_LEAST.div_ceil(n);
                    let mut ran = "";
                    let sample = candidate.time(times, || {
                        for _ in 0..times {
                            let op = Op::QuantizeRows { x: xs.input(), cols, q: q.output(), scales: scales.output() };
                            ran = stream.submit(op.check()?)?.kernel;
                        }
                        stream.synchronize()
                    })?;
                    let (mut got, mut got_scales) = (vec![0; n], vec![POISON; rows]);
                    q.read(&mut **stream, 0, &mut got)?;
                    scales.read(&mut **stream, 0, &mut got_scales)?;
                    Ok::<_, tersor_core::Error>((sample, ran, got, got_scales))
                };
                let (sample, ran, got, got_scales) = attempt().map_err(|e| e.to_string())?;
                figure.kernels = vec![ran.to_owned()];
                figure.checked = Some("every code and scale equals the reference's".to_owned());
                if let Some(at) = got.iter().zip(want).position(|(g, w)| g != w) {
                    return Err(format!("WRONG RESULT: code {at} is {} but should be {}", got[at], want[at]));
                }
                match first_difference(&got_scales, want_scales) {
                    Some(d) => Err(format!("WRONG RESULT: scales: {d}")),
                    None => Ok(sample),
                }
            };
            cases.push(Timed { figure, group: i, run: Box::new(run) });
        }
        let mut figures = setup.measure(cases, share.saturating_sub(start.elapsed()), || {});
        set_floors(&mut figures, &limits);
        found.figures.append(&mut figures);
        found.limits.extend(limits);
    }
    found
}
