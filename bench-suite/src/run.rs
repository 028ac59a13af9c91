//! The whole run: which phases, in which order, with how much time.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tersor::model::{ModelFile, OpenOptions, Role, embedded};
use tersor_core::Shape;
use tersor_registry::Registry;

use crate::candidates::Candidates;
use crate::error::Result;
use crate::gpu::Monitor;
use crate::limits::DeviceProbe;
use crate::machine::{Build, Machine, cpu_time, peak_rss};
use crate::material::Material;
use crate::phase::{self, Cold, Found, Inference, Large, Loaded, Products, Setup, Which};
use crate::report::{Figure, MemoryUse, PhaseUse, Report, SCHEMA, Settings};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// The model; `None`: the embedded one.
    pub model: Option<PathBuf>,
    /// Its tokenizer, where it is not with the model.
    pub tokenizer: Option<PathBuf>,
    /// Whether to measure quantization in detail.
    pub profile_quantization: bool,
    /// Tokens of a decode sample.
    pub tokens: usize,
    /// Tokens of a prompt; `None`: 128, and 16 before those of a decode sample.
    pub prompt: Option<usize>,
    /// Decode so many sequences at a time, and measure nothing but inference.
    pub batch: Option<usize>,
    /// Samples thrown away.
    pub warmup: usize,
    /// Samples wanted of each case; the budget may give fewer, and says so.
    pub iterations: usize,
    /// Time for everything.
    pub budget: Duration,
    /// Elements of the large quantization case.
    pub quantize_elements: usize,
    /// Shapes of products besides the model's own.
    pub shapes: Vec<Shape>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            model: None,
            tokenizer: None,
            profile_quantization: false,
            tokens: 64,
            prompt: None,
            batch: None,
            warmup: 1,
            iterations: 10,
            budget: Duration::from_secs(100),
            quantize_elements: 16 << 20,
            shapes: phase::shapes_2b_4t(),
        }
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// The phase.
    pub phase: &'a str,
    /// The case or step in it.
    pub step: &'a str,
    /// Share of the time budget that is used, 0 to 1.
    pub done: f64,
}

/// Runs everything and returns the report. `progress` is told each phase and case.
///
/// # Errors
/// Where there is nothing to measure with: no backend, no model. What fails in a single case is in the report.
pub fn run(registry: &Registry, options: &Options, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Report> {
    let start = Instant::now();
    progress(Progress { phase: "prepare", step: "machine, backends, model", done: 0.0 });
    let machine = Machine::detect();
    let candidates = Candidates::open(registry)?;
    let file = open_model(options)?;
    let material = Material::of(&file)?;
    let (cold_bytes, cold_note) = Cold::size(&machine);
    let head = if file.config().tied_head { Role::TokenEmbedding } else { Role::Output };
    let settings = Settings {
        model: file.config().name.clone().unwrap_or_else(|| model_name(options)),
        head_format: file.entry(head).map_or_else(String::new, |e| e.stored.clone()),
        threads: candidates.threads(),
        tokens: options.tokens,
        warmup: options.warmup,
        iterations: options.iterations,
        budget_s: options.budget.as_secs_f64(),
        quantize_elements: options.quantize_elements,
        cold_bytes,
    };
    let (devices, device_notes) = phase::probes(&candidates);
    let gpu = candidates.all.iter().any(|c| c.is_device());
    let monitor = if gpu { Monitor::start() } else { Monitor::absent("no GPU backend ran".to_owned()) };
    let mut run = Run {
        start,
        options,
        candidates: &candidates,
        material: &material,
        machine: &machine,
        progress,
        figures: Vec::new(),
        limits: Vec::new(),
        phases: Vec::new(),
        notes: cold_note.into_iter().chain(device_notes).collect(),
        devices,
        monitor,
    };
    let mut memory = run.phases(&file, &machine, Cold::new(cold_bytes));
    let Run { figures, limits, phases, mut notes, monitor, .. } = run;
    let gpu = monitor.finish();
    memory.gpu = match &gpu.absent {
        Some(reason) => format!("not measured: {reason}"),
        None => format!("{} seen; see below", gpu.devices.len()),
    };
    notes.extend(remarks(&figures, options));
    Ok(Report {
        schema: SCHEMA,
        unix_time: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.saturating_sub(start.elapsed()).as_secs()),
        wall_s: start.elapsed().as_secs_f64(),
        machine,
        build: Build::this(),
        settings,
        backends: candidates.seen,
        limits,
        figures,
        phases,
        memory,
        gpu,
        notes,
    })
}

fn open_model(options: &Options) -> Result<ModelFile> {
    let open = OpenOptions { tokenizer: options.tokenizer.clone(), ..OpenOptions::default() };
    match &options.model {
        Some(path) => Ok(ModelFile::open_with(path, &open)?),
        None => {
            let file = embedded::fable_26m()?;
            match &options.tokenizer {
                None => Ok(file),
                Some(path) => {
                    let read = |source| crate::Error::Io { action: "read", path: path.clone(), source };
                    Ok(file.with_tokenizer(std::fs::read_to_string(path).map_err(read)?))
                }
            }
        }
    }
}

fn model_name(options: &Options) -> String {
    let stem = options.model.as_ref().and_then(|p| p.file_stem());
    stem.map_or_else(|| embedded::NAME.to_owned(), |s| s.to_string_lossy().into_owned())
}

struct Run<'a> {
    start: Instant,
    options: &'a Options,
    candidates: &'a Candidates,
    material: &'a Material,
    machine: &'a Machine,
    progress: &'a mut dyn FnMut(Progress<'_>),
    figures: Vec<Figure>,
    limits: Vec<crate::report::Limit>,
    phases: Vec<PhaseUse>,
    notes: Vec<String>,
    devices: Vec<DeviceProbe>,
    monitor: Monitor,
}

/// Shares of the time budget. What a phase leaves goes to the later ones.
const QUANTIZE: f64 = 22.0;
const PROFILE: f64 = 20.0;
const ROWS: f64 = 5.0;
const PRODUCTS: f64 = 55.0;
const INFERENCE: f64 = 18.0;

impl Run<'_> {
    /// All phases. Inference, whose figures matter most, comes before the products, which take all that is left.
    fn phases(&mut self, file: &ModelFile, machine: &Machine, mut cold: Cold) -> MemoryUse {
        if self.options.batch.is_some() {
            return self.inference(file, machine, 1.0);
        }
        let profile = if self.options.profile_quantization { PROFILE } else { 0.0 };
        let mut left = QUANTIZE + profile + ROWS + INFERENCE + PRODUCTS;
        let large = Large { elements: self.options.quantize_elements };
        self.phase("quantize", QUANTIZE / left, |setup, budget| phase::quantize(setup, &large, budget));
        left -= QUANTIZE;
        if self.options.profile_quantization {
            self.phase("quantize in detail", PROFILE / left, phase::profile_quantization);
            left -= PROFILE;
        }
        self.phase("quantize activations", ROWS / left, phase::rows);
        left -= ROWS;
        let memory = self.inference(file, machine, INFERENCE / left);
        self.products(&mut cold);
        memory
    }

    /// Runs a phase with a share of the time that is left.
    fn phase(&mut self, name: &str, share: f64, work: impl FnOnce(&mut Setup<'_>, Duration) -> Found) {
        let budget = self.options.budget.saturating_sub(self.start.elapsed()).mul_f64(share.clamp(0.0, 1.0));
        let (start, total, before) = (self.start, self.options.budget.as_secs_f64(), cpu_time());
        let begun = Instant::now();
        let progress = &mut *self.progress;
        let mut told = |step: &str| {
            let done = (start.elapsed().as_secs_f64() / total).min(1.0);
            progress(Progress { phase: name, step, done });
        };
        told("");
        let mut setup = Setup {
            candidates: self.candidates,
            material: self.material,
            machine: self.machine,
            warmup: self.options.warmup,
            iterations: self.options.iterations.max(1),
            devices: &mut self.devices,
            progress: &mut told,
        };
        self.monitor.phase(name);
        let found = work(&mut setup, budget);
        self.monitor.phase("");
        self.figures.extend(found.figures);
        self.limits.extend(found.limits);
        self.notes.extend(found.notes);
        let cpu_s = cpu_time().zip(before).map(|(a, b)| a.saturating_sub(b).as_secs_f64());
        self.phases.push(PhaseUse { phase: name.to_owned(), wall_s: begun.elapsed().as_secs_f64(), cpu_s });
    }

    fn inference(&mut self, file: &ModelFile, machine: &Machine, share: f64) -> MemoryUse {
        let (what, note) = Inference::new(file, self.options);
        self.notes.extend(note);
        let mut memory = MemoryUse::default();
        let format = linear_format(file);
        let most = machine.memory_available / 3;
        self.phase("inference", share, |setup, budget| {
            let start = Instant::now();
            let loaded = Loaded::new(setup, file, &what, start + budget / 2, most);
            memory.model_weights = loaded.weights.clone();
            memory.session = loaded.session;
            loaded.measure(setup, &what, &format, budget.saturating_sub(start.elapsed()))
        });
        memory.peak_rss = peak_rss();
        memory
    }

    fn products(&mut self, cold: &mut Cold) {
        let mut shapes = self.options.shapes.clone();
        let own = self.material.shapes().into_iter().filter(|s| !shapes.contains(s)).collect::<Vec<_>>();
        shapes.extend(own);
        // A shape's part grows with its size, because its samples do; small ones need some time all the same.
        let weight = |s: &Shape| (s.len() as f64).sqrt().max(1000.0);
        let mut total: f64 = shapes.iter().map(weight).sum();
        for shape in shapes {
            let share = weight(&shape) / total;
            total -= weight(&shape);
            self.phase(&format!("products {shape}"), share, |setup, budget| {
                let start = Instant::now();
                (setup.progress)("packing");
                let products = Products::new(setup, shape, start + budget.mul_f64(0.4));
                let left = budget.saturating_sub(start.elapsed());
                let mut found = products.measure(setup, Which::Gemv, cold, left.mul_f64(0.4));
                let left = budget.saturating_sub(start.elapsed());
                let gemm = products.measure(setup, Which::Gemm, cold, left);
                found.figures.extend(gemm.figures);
                found.limits.extend(gemm.limits);
                found
            });
        }
    }
}

/// The format in which the model's linear layers are multiplied: the file's own, else i2_s.
fn linear_format(file: &ModelFile) -> String {
    let stored = file.tensors().find(|t| t.role.is_linear()).map(|t| t.stored.clone()).unwrap_or_default();
    let known = tersor_core::Format::TERNARY.into_iter().find(|f| f.id().eq_ignore_ascii_case(&stored));
    known.map_or("i2_s", tersor_core::Format::id).to_owned()
}

/// A case with one thread that does not get its processor is a case that shares it. The median, because one may have bad luck.
fn busy(figures: &[Figure]) -> Option<String> {
    let shares = figures.iter().filter(|f| f.threads == 1 && f.time.is_some()).filter_map(|f| f.utilisation);
    let share = crate::stats::Summary::of(&shares.collect::<Vec<_>>())?.median;
    (share < 0.9).then(|| {
        format!(
            "THE MACHINE WAS BUSY: cases with one thread got {:.0} % of a processor (median); times are those of a shared \
             machine, and figures of all threads are worth nothing",
            100.0 * share
        )
    })
}

/// What a reader has to know before the tables.
fn remarks(figures: &[Figure], options: &Options) -> Vec<String> {
    let mut notes = Vec::new();
    if cfg!(debug_assertions) {
        notes.push("debug assertions are on: these are not the figures of a release build".to_owned());
    }
    let wrong = figures.iter().filter(|f| f.absent.as_ref().is_some_and(|a| a.contains("WRONG RESULT"))).count();
    if wrong > 0 {
        notes.push(format!("{wrong} cases gave WRONG RESULTS; they have no figure"));
    }
    let cut = figures
        .iter()
        .filter(|f| f.time.is_none() && f.absent.as_ref().is_some_and(|a| a.contains("time budget")))
        .count();
    if cut > 0 {
        notes.push(format!(
            "the time budget of {:.0} s cut {cut} of {} cases; they are listed at the end, and a larger budget brings them \
             back",
            options.budget.as_secs_f64(),
            figures.len()
        ));
    }
    let few = figures.iter().filter(|f| f.time.is_some_and(|t| t.count < options.iterations)).count();
    if few > 0 {
        notes.push(format!(
            "{few} cases have fewer than the {} samples asked for, for want of time",
            options.iterations
        ));
    }
    notes.extend(busy(figures));
    let below = figures.iter().filter(|f| f.ratio().is_some_and(|r| r < 0.95)).count();
    if below > 0 {
        notes.push(format!(
            "{below} cases are more than 5 % below their floor: the limit was then measured in a slower moment than the case, \
             or the read loop is not the fastest way to read there"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::example;

    #[test]
    fn a_busy_machine_is_told_and_an_idle_one_is_not() {
        let mut figures = example().figures;
        figures.iter_mut().for_each(|f| f.utilisation = Some(0.99));
        assert_eq!(busy(&figures), None);
        figures.iter_mut().for_each(|f| f.utilisation = Some(0.6));
        assert!(busy(&figures).unwrap().contains("60 %"));
        figures.iter_mut().for_each(|f| f.utilisation = None);
        assert_eq!(busy(&figures), None, "what the system does not tell is not guessed");
    }
}
