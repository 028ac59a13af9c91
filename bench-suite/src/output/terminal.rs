//! The short form for a terminal: the best of each case, with its ratio to the floor.

use std::fmt::Write;

use super::markdown::{SECTIONS, number, seconds};
use crate::gpu::GpuPhase;
use crate::report::{Figure, LimitKind, Measure, Report};

/// A table that fits a screen: inference whole, otherwise for each shape, format and thread count the fastest candidate, the
/// formats of products other than `i2_s` left to the report.
pub fn terminal(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = whole(&mut out, report);
    out
}

fn whole(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "{}, {} threads, {}", r.machine.cpu, r.machine.threads, r.machine.os)?;
    for b in &r.backends {
        let what = match (&b.unusable, b.isas.is_empty()) {
            (Some(reason), _) => format!("not measured: {reason}"),
            (None, true) => "measured".to_owned(),
            (None, false) => format!("measured: {}", b.isas.join(", ")),
        };
        writeln!(out, "  {:<12} {what}", b.id)?;
    }
    for (title, measures, _) in SECTIONS {
        let figures: Vec<&Figure> =
            r.figures.iter().filter(|f| f.time.is_some() && measures.contains(&f.measure)).collect();
        let Some(first) = figures.first() else { continue };
        let inference = first.measure.is_inference();
        let unit = first.measure.unit().0;
        let rows = if inference { figures } else { fastest(&figures) };
        let labels: Vec<(String, String)> = rows.iter().map(|f| (label(f), f.candidate())).collect();
        let wide = |of: fn(&(String, String)) -> usize| labels.iter().map(of).max().unwrap_or(0);
        let (a, b) = (wide(|l| l.0.len()), wide(|l| l.1.len()));
        writeln!(
            out,
            "\n{title:<a$}  {:<b$}  thr  {unit:>8}  {:>6}  {:>9}  x floor  of R   CPU",
            "backend", "GB/s", "time"
        )?;
        for (f, (label, candidate)) in rows.iter().zip(&labels) {
            let Some(time) = f.time else { continue };
            let dash = || "-".to_owned();
            writeln!(
                out,
                "{label:<a$}  {candidate:<b$}  {:>3}  {:>8}  {:>6}  {:>9}  {:>7}  {:>4}  {:>4}{}",
                f.threads,
                f.rate().map_or_else(dash, number),
                f.gigabytes().map_or_else(dash, number),
                seconds(time.median),
                f.ratio().map_or_else(dash, |v| format!("{v:.2}")),
                f.of_limit().map_or_else(dash, |v| format!("{:.0} %", 100.0 * v)),
                f.utilisation.map_or_else(dash, |u| format!("{:.0} %", 100.0 * u)),
                f.each().map_or_else(String::new, |each| format!("  {} {unit} each", number(each))),
            )?;
        }
    }
    let peak = r.memory.peak_rss.map_or_else(|| "not told by the system".to_owned(), |b| format!("{} MB", b >> 20));
    writeln!(out, "\npeak memory {peak}; GPU {}", r.memory.gpu)?;
    for gpu in &r.gpu.devices {
        let (most, all) = (gpu.memory_most >> 20, gpu.memory >> 20);
        writeln!(out, "{}, driver {}: {most} of {all} MB in use at most", gpu.name, gpu.driver)?;
        let share = |p: &GpuPhase| format!("{} {:.0} %", p.phase, 100.0 * p.busy);
        let shares: Vec<String> = gpu.phases.iter().map(share).collect();
        writeln!(out, "  a kernel ran: {}", shares.join(", "))?;
    }
    device_limits(out, r)?;
    r.notes.iter().try_for_each(|n| writeln!(out, "note: {n}"))
}

/// The fastest that the memory of a device and its link were seen to be.
fn device_limits(out: &mut String, r: &Report) -> std::fmt::Result {
    let cold = r.limits.iter().filter(|l| l.device == "gpu").map(|l| l.working_set).max();
    let best = |kind| {
        let of_kind = r.limits.iter().filter(|l| l.device == "gpu" && l.kind == kind);
        // A model that fits in a cache was read from there.
        let large = of_kind.filter(|l| matches!(kind, LimitKind::Up | LimitKind::Down) || Some(l.working_set) == cold);
        large.map(|l| l.best).max_by(f64::total_cmp).map(|rate| number(rate / 1e9))
    };
    let all = [LimitKind::Read, LimitKind::Copy, LimitKind::Up, LimitKind::Down].map(best);
    match all {
        [Some(read), Some(copy), Some(up), Some(down)] => writeln!(
            out,
            "GPU memory: {read} GB/s read, {copy} copied (read and written); link {up} GB/s to it, {down} from it"
        ),
        _ => Ok(()),
    }
}

fn label(f: &Figure) -> String {
    match f.measure {
        Measure::QuantizeRows => f.shape.clone(),
        Measure::Quantize | Measure::Gemv | Measure::Gemm => format!("{} {}", f.shape, f.format),
        Measure::Dequantize | Measure::Pack | Measure::Prefill | Measure::Decode | Measure::DecodeBatch => {
            format!("{} {} {}", f.measure.id(), f.shape, f.format)
        }
    }
}

/// The fastest candidate of each case, in the order of the cases.
fn fastest<'a>(figures: &[&'a Figure]) -> Vec<&'a Figure> {
    let mut best: Vec<&Figure> = Vec::new();
    let products = |m| matches!(m, Measure::Gemv | Measure::Gemm);
    for f in figures.iter().filter(|f| !products(f.measure) || f.format == "i2_s") {
        let same = |b: &&mut &Figure| {
            (b.measure, &b.shape, &b.format, b.threads) == (f.measure, &f.shape, &f.format, f.threads)
        };
        let median = |f: &Figure| f.time.map_or(f64::INFINITY, |t| t.median);
        match best.iter_mut().find(same) {
            Some(b) if median(f) < median(b) => *b = f,
            Some(_) => {}
            None => best.push(f),
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::example;

    #[test]
    fn the_fastest_candidate_stands_for_the_case() {
        let mut r = example();
        let mut slower = r.figures[0].clone();
        slower.backend = "scalar".into();
        slower.isa.clear();
        slower.samples.iter_mut().for_each(|s| *s *= 9.0);
        slower.time = crate::stats::Summary::of(&slower.samples);
        r.figures.insert(0, slower);
        let text = terminal(&r);
        assert!(text.contains("1x2560x2560 i2_s") && text.contains("cpu-avx2.avx2"), "{text}");
        assert!(!text.lines().any(|l| l.starts_with("1x2560x2560") && l.contains("scalar")), "{text}");
        assert!(text.contains("not measured: no driver") && text.contains("note: a note"), "{text}");
    }
}
