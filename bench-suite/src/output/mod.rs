//! Reports as files: `report.json`, `report.md`, and the pictures that it shows.

mod charts;
mod markdown;
mod terminal;

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::report::{Report, SCHEMA};

pub use markdown::markdown;
pub use terminal::terminal;

/// Name of the data file.
pub const JSON: &str = "report.json";
/// Name of the document.
pub const MARKDOWN: &str = "report.md";

/// Writes the data, the pictures and the document into `directory`, which is made if it is not there. A file is complete or
/// it is not there: each is written beside its name and then renamed. Returns the paths.
///
/// # Errors
/// [`Error::Io`], [`Error::Drawing`].
pub fn write(report: &Report, directory: &Path) -> Result<Vec<PathBuf>> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    std::fs::create_dir_all(directory).map_err(io("create", directory))?;
    let mut files = vec![(JSON.to_owned(), to_json(report))];
    let pictures = charts::draw(report, directory)?;
    let names: Vec<(String, String)> = pictures.iter().map(|p| (p.title.clone(), p.file.clone())).collect();
    files.extend(pictures.into_iter().map(|p| (p.file, p.svg)));
    files.push((MARKDOWN.to_owned(), markdown(report, &names)));
    let mut written = Vec::new();
    for (name, text) in files {
        let path = directory.join(name);
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(io("create a file in", directory))?;
        file.write_all(text.as_bytes()).map_err(io("write", &path))?;
        file.as_file().sync_all().map_err(io("write", &path))?;
        readable(&file).map_err(io("write", &path))?;
        file.persist(&path).map_err(|e| io("rename to", &path)(e.error))?;
        written.push(path);
    }
    Ok(written)
}

/// A temporary file is its owner's alone; a report is for everybody whom the directory lets in.
fn readable(file: &tempfile::NamedTempFile) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    let _ = file;
    Ok(())
}

/// The data as text.
pub fn to_json(report: &Report) -> String {
    // A report holds strings, numbers and lists; numbers that are not finite become null. Serialising them cannot fail.
    serde_json::to_string(report).unwrap_or_default() + "\n"
}

/// Reads a `report.json`.
///
/// # Errors
/// [`Error::Io`], or [`Error::NotAReport`] for another schema or another kind of file.
pub fn read(path: &Path) -> Result<Report> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
    let not = |problem: String| Error::NotAReport { path: path.to_owned(), problem };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| not(e.to_string()))?;
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(schema) => return Err(not(format!("its schema is {schema}, this version reads {SCHEMA}"))),
        None => return Err(not("it has no schema number".to_owned())),
    }
    serde_json::from_value(value).map_err(|e| not(e.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::floor::floor;
    use crate::gpu::{Gpu, GpuPhase, GpuUse};
    use crate::machine::{Build, Machine};
    use crate::report::*;
    use crate::stats::Summary;

    /// A small report with every kind of figure.
    pub(crate) fn example() -> Report {
        let figure = |measure: Measure, isa: &str, shape: &str, threads: usize, seconds: f64| {
            let work = Work { units: 1e6, bytes: 2e6, macs: 1e6 };
            let samples = vec![seconds, 1.1 * seconds, 1.2 * seconds];
            Figure {
                measure,
                format: "i2_s".into(),
                backend: "cpu-avx2".into(),
                isa: isa.into(),
                device: "cpu".into(),
                shape: shape.into(),
                threads,
                kernels: vec![format!("{}.i2_s-i8.avx2.4x1", measure.id())],
                work,
                working_set: 1 << 28,
                time: Summary::of(&samples),
                samples,
                floor: floor(&work, Some(20e9), Some(100e9)),
                utilisation: Some(0.93),
                checked: Some("every result equals the reference's".into()),
                absent: None,
                sequences: None,
            }
        };
        let mut figures = vec![
            figure(Measure::Gemv, "avx2", "1x2560x2560", 1, 2e-4),
            figure(Measure::Gemv, "avx-vnni", "1x2560x2560", 2, 1.3e-4),
            figure(Measure::Gemm, "avx2", "128x2560x2560", 2, 5e-3),
            figure(Measure::Quantize, "avx2", "4096x4096", 2, 3e-2),
            figure(Measure::QuantizeRows, "", "1x2560", 1, 1e-6),
            figure(Measure::Prefill, "avx2", "128 tokens", 2, 0.5),
            figure(Measure::Decode, "avx2", "64 tokens", 2, 0.4),
            Figure {
                sequences: Some(8),
                ..figure(Measure::DecodeBatch, "avx2", "8 sequences, 64 tokens after 128", 2, 0.8)
            },
            figure(Measure::Dequantize, "avx2", "512x512", 1, 1e-4),
            figure(Measure::Pack, "avx2", "512x512", 1, 1e-4),
        ];
        let mut cut = figure(Measure::Gemm, "", "128x13824x2560", 1, 1.0);
        (cut.time, cut.samples, cut.absent) = (None, vec![], Some("cut by the time budget".into()));
        figures.push(cut);
        Report {
            schema: SCHEMA,
            unix_time: 1_700_000_000,
            wall_s: 42.0,
            machine: Machine::detect(),
            build: Build { profile: "release".into(), ..Build::this() },
            settings: Settings {
                model: "fable-26m".into(),
                head_format: "bf16".into(),
                threads: vec![1, 2],
                tokens: 64,
                warmup: 1,
                iterations: 3,
                budget_s: 100.0,
                quantize_elements: 1 << 24,
                cold_bytes: 1 << 28,
            },
            backends: vec![BackendSeen {
                id: "cuda".into(),
                version: "0.1.0".into(),
                kernel_revision: 0,
                unusable: Some("no driver".into()),
                devices: vec![],
                isas: vec![],
            }],
            limits: vec![Limit {
                kind: LimitKind::Read,
                phase: "gemv 2560x2560".into(),
                device: "cpu".into(),
                threads: 2,
                by: "4 streams".into(),
                working_set: 1 << 28,
                best: 3e10,
                median: 2.9e10,
                samples: vec![2.8e10, 2.9e10, 3e10],
            }],
            figures,
            phases: vec![PhaseUse { phase: "quantize".into(), wall_s: 10.0, cpu_s: Some(15.0) }],
            memory: MemoryUse {
                peak_rss: Some(123 << 20),
                model_weights: vec![("cpu-avx2.avx2".into(), 10 << 20)],
                session: Some(1 << 20),
                gpu: "not measured".into(),
            },
            gpu: GpuUse {
                absent: None,
                devices: vec![Gpu {
                    name: "Example GPU".into(),
                    memory: 80 << 30,
                    memory_most: 2 << 30,
                    phases: vec![GpuPhase {
                        phase: "inference".into(),
                        looks: 7,
                        busy: 0.62,
                        busy_most: 0.9,
                        memory_busy: 0.4,
                    }],
                    ..Gpu::default()
                }],
            },
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn a_report_survives_the_way_through_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let report = example();
        let files = write(&report, &dir.path().join("a/b")).unwrap();
        assert_eq!(read(&files[0]).unwrap(), report);
        let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!((names[0], *names.last().unwrap()), (JSON, MARKDOWN));
        // Nothing temporary stays.
        assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), files.len());
        let text = std::fs::read_to_string(files.last().unwrap()).unwrap();
        for svg in names.iter().filter(|n| n.ends_with(".svg")) {
            assert!(text.contains(&format!("]({svg})")), "{svg}");
        }
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        for (text, says) in [
            ("{", "EOF"),
            ("{}", "no schema number"),
            ("{\"schema\": 99}", "is 99"),
            ("{\"schema\": 1}", "missing field"),
        ] {
            std::fs::write(&path, text).unwrap();
            let e = read(&path).unwrap_err().to_string();
            assert!(e.contains(says), "{text}: {e}");
        }
        assert!(matches!(read(&dir.path().join("none")), Err(Error::Io { .. })));
    }
}
