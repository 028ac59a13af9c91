//! The document: what was found, for a person.

use std::fmt::Write;

use crate::floor::Bound;
use crate::gpu::Gpu;
use crate::report::{Figure, Limit, LimitKind, Measure, Report};

/// The document. `pictures` are titles and file names beside it.
pub fn markdown(report: &Report, pictures: &[(String, String)]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = whole(&mut out, report, pictures);
    out
}

fn whole(out: &mut String, r: &Report, pictures: &[(String, String)]) -> std::fmt::Result {
    writeln!(out, "# Tersor benchmark\n")?;
    head(out, r)?;
    if !r.notes.is_empty() {
        writeln!(out, "\n## To know first\n")?;
        r.notes.iter().try_for_each(|n| writeln!(out, "- {n}"))?;
    }
    for (title, measures, text) in SECTIONS {
        let figures: Vec<&Figure> =
            r.figures.iter().filter(|f| f.time.is_some() && measures.contains(&f.measure)).collect();
        if figures.is_empty() {
            continue;
        }
        writeln!(out, "\n## {title}\n\n{text}\n")?;
        for (_, file) in pictures.iter().filter(|(t, _)| t.starts_with(title)) {
            writeln!(out, "![{title}]({file})\n")?;
        }
        table(out, &figures)?;
    }
    limits(out, r)?;
    usage(out, r)?;
    absent(out, r)?;
    writeln!(out, "\n## How to read this\n\n{HOW}")
}

/// Title, what belongs to it, explanation.
pub(super) const SECTIONS: [(&str, &[Measure], &str); 6] = [
    (
        "Inference",
        &[Measure::Prefill, Measure::Decode, Measure::DecodeBatch],
        "The model itself. Prefill and decode apart; the tokens of all candidates are equal, or the case has no figure.",
    ),
    (
        "Quantization",
        &[Measure::Quantize],
        "f32 weights to bytes. The floor reads the values twice where one scale serves the tensor (its mean comes first), once \
         for group scales, and moves the result once.",
    ),
    (
        "Dequantization and packing",
        &[Measure::Dequantize, Measure::Pack],
        "Bytes to f32, and bytes to the backend's layout.",
    ),
    ("Activations", &[Measure::QuantizeRows], "f32 activations to int8, from the caches, as in a model."),
    (
        "GEMV",
        &[Measure::Gemv],
        "One row of activations, M x N x K, weights cold. GB/s counts packed weights, activations and results.",
    ),
    ("GEMM", &[Measure::Gemm], "A batch of 128 rows, M x N x K."),
];

fn head(out: &mut String, r: &Report) -> std::fmt::Result {
    let (m, b, s) = (&r.machine, &r.build, &r.settings);
    let caches: Vec<String> =
        m.caches.iter().map(|c| format!("L{} {} {} KB", c.level, c.kind, c.bytes >> 10)).collect();
    let caches = if caches.is_empty() { "not told by the system".to_owned() } else { caches.join(", ") };
    writeln!(out, "| | |\n|---|---|")?;
    writeln!(out, "| processor | {} ({}), {} threads |", m.cpu, m.arch, m.threads)?;
    writeln!(out, "| caches | {caches} |")?;
    writeln!(out, "| memory | {:.1} GB, {:.1} available |", gb(m.memory), gb(m.memory_available))?;
    writeln!(out, "| system | {}, kernel {} |", m.os, m.kernel)?;
    let commit = b.commit.as_deref().unwrap_or("not known");
    writeln!(out, "| build | {}, {} -O{}, {}, commit {commit} |", b.rustc, b.profile, b.opt_level, b.target)?;
    if !b.rustflags.is_empty() {
        writeln!(out, "| flags | {} |", b.rustflags)?;
    }
    writeln!(out, "| model | {}, head {} |", s.model, s.head_format)?;
    let threads: Vec<String> = s.threads.iter().map(usize::to_string).collect();
    writeln!(
        out,
        "| run | threads {}; {} warm-up and up to {} samples a case; {:.0} s of {:.0} s; weights rotate through {} MB |",
        threads.join(" and "),
        s.warmup,
        s.iterations,
        r.wall_s,
        s.budget_s,
        s.cold_bytes >> 20
    )?;
    writeln!(out, "\n| backend | version | measured | devices |\n|---|---|---|---|")?;
    for b in &r.backends {
        let measured = match &b.unusable {
            Some(reason) => format!("no: {reason}"),
            None if b.isas.is_empty() => "yes".to_owned(),
            None => format!("yes: {}", b.isas.join(", ")),
        };
        writeln!(
            out,
            "| {} | {}, kernels {} | {measured} | {} |",
            b.id,
            b.version,
            b.kernel_revision,
            b.devices.join(", ")
        )?;
    }
    Ok(())
}

fn table(out: &mut String, figures: &[&Figure]) -> std::fmt::Result {
    let (unit, _) = figures[0].measure.unit();
    let inference = figures[0].measure.is_inference();
    let what = if inference { "phase" } else { "shape" };
    writeln!(
        out,
        "| {what} | format | backend | threads | {unit} | GB/s | time | spread | floor | x floor | of R | CPU | kernel |\n\
         |---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    )?;
    for f in figures {
        let Some(time) = f.time else { continue };
        let op = f.measure.id();
        let shape = match f.measure {
            Measure::DecodeBatch => {
                let each = f.each().map_or_else(String::new, |each| format!(" ({} {unit} each)", number(each)));
                format!("{op} {}{each}", f.shape)
            }
            Measure::Prefill | Measure::Decode | Measure::Dequantize | Measure::Pack => format!("{op} {}", f.shape),
            _ => f.shape.clone(),
        };
        let floor = f.floor.as_ref().map_or_else(dash, |l| {
            let by = if l.bound == Bound::Bytes { "bytes" } else { "arithmetic" };
            format!("{} ({by})", seconds(l.seconds))
        });
        writeln!(
            out,
            "| {shape} | {} | {} | {} | {} | {} | {} | {} | {floor} | {} | {} | {} | {} |",
            f.format,
            f.candidate(),
            f.threads,
            f.rate().map_or_else(dash, number),
            f.gigabytes().map_or_else(dash, number),
            seconds(time.median),
            if time.count > 1 { format!("±{:.0} %", 100.0 * time.spread()) } else { "1 sample".to_owned() },
            f.ratio().map_or_else(dash, |r| format!("{r:.2}")),
            f.of_limit().map_or_else(dash, |v| format!("{:.0} %", 100.0 * v)),
            f.utilisation.map_or_else(dash, |u| format!("{:.0} %", 100.0 * u)),
            kernels(f)
        )?;
    }
    Ok(())
}

/// A model runs about twenty kernels; the products say the most.
fn kernels(f: &Figure) -> String {
    let products: Vec<&str> =
        f.kernels.iter().map(String::as_str).filter(|k| k.starts_with("gem") || f.kernels.len() == 1).collect();
    products.join(" ")
}

fn limits(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "\n## Limits\n\nMeasured in this run, between the samples of their phase. Floors use the fastest sample.\n"
    )?;
    writeln!(
        out,
        "| phase | limit | of | threads | working set | fastest | median | by |\n|---|---|---|--:|--:|--:|--:|---|"
    )?;
    for l in &r.limits {
        let (kind, unit, set) = match l.kind {
            LimitKind::Read => ("read", "GB/s", size(l.working_set)),
            LimitKind::Copy => ("copy", "GB/s", size(l.working_set)),
            LimitKind::Up => ("to the device", "GB/s", size(l.working_set)),
            LimitKind::Down => ("from the device", "GB/s", size(l.working_set)),
            LimitKind::Int8 => ("int8", "GMAC/s", "registers".to_owned()),
        };
        let (best, median) = (number(l.best / 1e9), number(l.median / 1e9));
        let Limit { phase, device, threads, by, .. } = l;
        writeln!(out, "| {phase} | {kind} | {device} | {threads} | {set} | {best} {unit} | {median} {unit} | {by} |")?;
    }
    Ok(())
}

fn usage(out: &mut String, r: &Report) -> std::fmt::Result {
    let threads = r.settings.threads.iter().copied().max().unwrap_or(1) as f64;
    writeln!(out, "\n## Memory and devices\n")?;
    let peak = r.memory.peak_rss.map_or_else(|| "not told by the system".to_owned(), size);
    writeln!(out, "- peak resident memory after inference, with the benchmark's own data: {peak}")?;
    for (name, bytes) in &r.memory.model_weights {
        writeln!(out, "- packed weights of the model on {name}: {}", size(*bytes))?;
    }
    if let Some(bytes) = r.memory.session {
        writeln!(out, "- key/value cache and activations of a session: {}", size(bytes))?;
    }
    writeln!(out, "- GPU utilisation and memory: {}", r.memory.gpu)?;
    gpus(out, r)?;
    writeln!(
        out,
        "\nProcessor time over wall time and all threads, preparation and one-thread cases included; for each case it is in \
         the column CPU.\n\n| phase | wall | processor time | utilisation |\n|---|--:|--:|--:|"
    )?;
    for p in &r.phases {
        let cpu = p.cpu_s.map_or_else(dash, seconds);
        let share = p.cpu_s.map_or_else(dash, |c| format!("{:.0} %", 100.0 * c / p.wall_s / threads));
        writeln!(out, "| {} | {} | {cpu} | {share} |", p.phase, seconds(p.wall_s))?;
    }
    Ok(())
}

fn gpus(out: &mut String, r: &Report) -> std::fmt::Result {
    for gpu in &r.gpu.devices {
        let Gpu { name, uuid, driver, memory, memory_before, memory_most, phases } = gpu;
        let (before, most) = (size(*memory_before), size(*memory_most));
        writeln!(
            out,
            "\n{name} ({uuid}), driver {driver}: {most} of {} in use at most, {before} of it before this run began.\n",
            size(*memory)
        )?;
        writeln!(out, "| phase | a kernel ran | at most | memory was used | looks |\n|---|--:|--:|--:|--:|")?;
        for p in phases {
            let [busy, most, memory] = [p.busy, p.busy_most, p.memory_busy].map(|v| format!("{:.0} %", 100.0 * v));
            writeln!(out, "| {} | {busy} | {most} | {memory} | {} |", p.phase, p.looks)?;
        }
    }
    Ok(())
}

fn absent(out: &mut String, r: &Report) -> std::fmt::Result {
    let missing: Vec<&Figure> = r.figures.iter().filter(|f| f.time.is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n## Not measured\n\n| case | why |\n|---|---|")?;
    missing.iter().try_for_each(|f| writeln!(out, "| {} | {} |", f.case(), f.absent.as_deref().unwrap_or("not known")))
}

const HOW: &str = "\
Times are medians; the spread is half the distance from the tenth to the ninetieth percentile. The floor is the larger of the
bytes that have to move over the bandwidth, and the int8 multiply-accumulates over the rate of the best dot instruction, both
measured with the same threads in the same phase (for a GPU: the bytes alone, at what its memory gave to copies and products;
for values that come from the host, at what the link gave); \"x floor\" is how many times longer the case took than at their fastest
samples, \"of R\" the part of their medians that it used. Every output was compared
with the reference. All samples, and what each case was compared with, are in report.json.
";

fn dash() -> String {
    "-".to_owned()
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Three figures.
pub(super) fn number(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        _ => format!("{v:.2}"),
    }
}

/// Three figures with the unit that fits.
pub(super) fn seconds(s: f64) -> String {
    let (v, unit) = match s {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (1e3 * s, "ms"),
        s if s >= 1e-6 => (1e6 * s, "us"),
        s => (1e9 * s, "ns"),
    };
    format!("{} {unit}", number(v))
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 {
        format!("{:.1} MB", bytes as f64 / f64::from(1 << 20))
    } else {
        format!("{} KB", bytes.div_ceil(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::example;

    #[test]
    fn the_document_has_a_row_for_each_figure_and_a_reason_for_each_absent_one() {
        let r = example();
        let text = markdown(&r, &[]);
        let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| ")).collect();
        for f in &r.figures {
            let found = match &f.absent {
                Some(reason) => rows.iter().any(|l| l.contains(&f.case()) && l.contains(reason)),
                None => rows.iter().any(|l| {
                    l.contains(&f.shape)
                        && l.contains(&format!("| {} | {} |", f.candidate(), f.threads))
                        && l.contains('±')
                }),
            };
            assert!(found, "{}\n{text}", f.case());
        }
        for what in ["no driver", "a note", "GPU utilisation and memory: not measured", "fable-26m, head bf16"] {
            assert!(text.contains(what), "{what}");
        }
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_not_a_zero() {
        let mut r = example();
        for f in &mut r.figures {
            (f.floor, f.utilisation) = (None, None);
        }
        r.phases[0].cpu_s = None;
        r.memory.peak_rss = None;
        let text = markdown(&r, &[]);
        assert!(text.contains("| - | - | - | - |") && text.contains("not told by the system"), "{text}");
        assert!(!text.contains("| 0 % |"), "{text}");
    }

    #[test]
    fn numbers_have_three_figures() {
        assert_eq!([number(123.4), number(12.34), number(1.234)], ["123", "12.3", "1.23"]);
        assert_eq!(
            [seconds(2.0), seconds(0.0123), seconds(4.56e-5), seconds(7e-9)],
            ["2.00 s", "12.3 ms", "45.6 us", "7.00 ns"]
        );
    }
}
