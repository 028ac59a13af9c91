//! The model itself: prompts and decoding, apart.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tersor::model::{Batch, BatchOptions, Model, ModelFile, Session, SessionOptions, Tokenizer};
use tersor_core::{Format, OpSpec, SampleParams};

use super::{Found, Setup, Timed, resident, set_floors};
use crate::limits::{Collector, DeviceProbe, Int8Probe, Pattern, ReadProbe};
use crate::report::{Figure, LimitKind, Measure, Work};
use crate::run::Options;
use crate::schedule::Sample;

/// What is generated, and from what.
pub(crate) struct Inference {
    pub(crate) prompt: Vec<u32>,
    /// Tokens before those of a decode sample.
    before: usize,
    /// Tokens of a decode sample.
    pub(crate) tokens: usize,
    /// Prompts of several sequences, where they are asked for.
    several: Vec<Vec<u32>>,
}

/// Tokens of the prompt: one batch.
const PROMPT: usize = 128;
/// Tokens before those of a decode sample.
const BEFORE: usize = 16;

/// A text to begin with, in the public domain: Aesop, The Fox and the Grapes, translated by V. S. Vernon Jones (1912).
const TEXT: &str = "A hungry Fox saw some fine bunches of Grapes hanging from a vine that was trained along a high \
    trellis, and did his best to reach them by jumping as high as he could into the air. But it was all in vain, for \
    they were just out of reach: so he gave up trying, and walked away with an air of dignity and unconcern, remarking, \
    \"I thought those Grapes were ripe, but I see now they are quite sour.\" ";

/// A difference of two logits, of the larger one's magnitude, that an order of additions can turn round.
const TIE: f32 = 1e-5;
const GREEDY: SampleParams = SampleParams { temperature: 0.0, top_k: None, seed: 0 };

impl Inference {
    /// A prompt of 128 tokens or as many as are asked for, or what the context leaves; second: a note where there is no
    /// tokenizer.
    pub(crate) fn new(file: &ModelFile, options: &Options) -> (Self, Option<String>) {
        let context = file.config().context_length;
        let tokens = options.tokens.clamp(1, (context / 2).max(1));
        let len = options.prompt.unwrap_or(PROMPT).min(context.saturating_sub(tokens)).max(1);
        let before = options.prompt.map_or(BEFORE, |_| len).min(len);
        let text = TEXT.repeat(4);
        let (prompt, note) = match Tokenizer::of(file).and_then(|t| t.encode(&text)) {
            Ok(ids) => (ids, None),
            Err(e) => {
                let vocab = file.config().vocab_size.max(1) as u64;
                let mut rng = crate::material::Rng::new(1);
                let ids = (0..len).map(|_| (rng.bits() % vocab) as u32).collect();
                (ids, Some(format!("the prompt is random tokens, because the model has no tokenizer: {e}")))
            }
        };
        // Each sequence begins elsewhere in the text.
        let text = |from: usize| prompt.iter().copied().cycle().skip(from).take(len).collect::<Vec<u32>>();
        let several = (0..options.batch.unwrap_or(0)).map(|s| text(s * 7 % prompt.len().max(1))).collect();
        (Inference { prompt: text(0), before, tokens, several }, note)
    }
}

/// A candidate's session and what it does.
struct Running {
    session: Session,
    batch: Option<Batch>,
    linear: f64,
    bytes: f64,
}

/// The models, one for each candidate, loaded once.
pub(crate) struct Loaded {
    runs: Vec<Result<Rc<RefCell<Running>>, String>>,
    /// Candidate and bytes of its packed weights.
    pub(crate) weights: Vec<(String, u64)>,
    /// Bytes of a session.
    pub(crate) session: Option<u64>,
}

impl Loaded {
    /// Packs the model for each candidate. After `until`, or when packed weights would take more than `memory` bytes, the
    /// rest is left out, with the reason.
    pub(crate) fn new(setup: &mut Setup<'_>, file: &ModelFile, what: &Inference, until: Instant, memory: u64) -> Self {
        let mut loaded = Loaded { runs: Vec::new(), weights: Vec::new(), session: None };
        let mut total = 0;
        for c in &setup.candidates.all {
            let label = format!("load on {} with {} threads", c.name(), c.threads);
            (setup.progress)(&label);
            let largest = loaded.weights.iter().map(|(_, b)| *b).max().unwrap_or(0);
            let run = if Instant::now() > until {
                Err("cut by the time budget before it was loaded".to_owned())
            } else if total + largest > memory {
                Err(format!("not loaded: {} MB of packed weights are the most here", memory >> 20))
            } else {
                Self::load(c, file, what).map_err(|e| e.to_string())
            };
            if let Ok((running, bytes)) = &run {
                total += bytes;
                loaded.session.get_or_insert(running.session.bytes() as u64);
                let name = c.name();
                if !loaded.weights.iter().any(|(n, _)| *n == name) {
                    loaded.weights.push((name, *bytes));
                }
            }
            loaded.runs.push(run.map(|(running, _)| Rc::new(RefCell::new(running))));
        }
        loaded
    }

    fn load(
        candidate: &crate::candidates::Candidate,
        file: &ModelFile,
        what: &Inference,
    ) -> tersor::model::Result<(Running, u64)> {
        let model = Model::load(candidate.backend.clone(), file, |_| {})?;
        let capacity = what.prompt.len() + what.tokens;
        let session = Session::new(&model, SessionOptions { capacity: Some(capacity), ..Default::default() })?;
        let batch = match what.several.len() {
            0 => None,
            sequences => {
                let options = BatchOptions { sequences, capacity: Some(capacity), ..BatchOptions::default() };
                Some(Batch::new(&model, options)?)
            }
        };
        let (linear, bytes) = (model.config().linear_elements() as f64, model.bytes_per_token() as f64);
        Ok((Running { session, batch, linear, bytes }, model.weight_bytes() as u64))
    }

    /// Runs prompts and decodes, candidates in turn.
    pub(crate) fn measure(&self, setup: &mut Setup<'_>, what: &Inference, format: &str, budget: Duration) -> Found {
        let mut found = Found::default();
        let bytes = self.weights.iter().map(|(_, b)| *b as usize).max().unwrap_or(0).min(1 << 30);
        let several = what.several.len();
        let measures = [Measure::Prefill, Measure::Decode, Measure::DecodeBatch];
        for measure in measures.into_iter().take(if several > 0 { 3 } else { 2 }) {
            let first_ids: OnceCell<Result<Vec<u32>, String>> = OnceCell::new();
            let mut cases = Vec::new();
            for (i, (candidate, run)) in setup.candidates.all.iter().zip(&self.runs).enumerate() {
                let tokens = if measure == Measure::Prefill { what.prompt.len() } else { what.tokens };
                let batch = measure == Measure::DecodeBatch;
                let shape = match batch {
                    true => format!("{several} sequences, {tokens} tokens after {}", what.prompt.len()),
                    false => format!("{tokens} tokens"),
                };
                let mut figure = candidate.figure(measure, format, shape);
                figure.sequences = batch.then_some(several);
                figure.working_set = bytes as u64;
                if let Ok(run) = run {
                    let (run, n) = (run.borrow(), (tokens * if batch { several } else { 1 }) as f64);
                    // A prompt of one batch reads the weights once; decoding reads them for each token, or for a step of all
                    // sequences.
                    let passes = if measure == Measure::Prefill { 1.0 } else { tokens as f64 };
                    figure.work = Work { units: n, bytes: passes * run.bytes, macs: n * run.linear };
                }
                let first_ids = &first_ids;
                let run = move |figure: &mut Figure| {
                    let run = &mut *run.as_ref().map_err(Clone::clone)?.borrow_mut();
                    let (sample, ids) = match measure {
                        Measure::Prefill => run.prefill(&what.prompt),
                        Measure::DecodeBatch => run.decode_batch(&what.several, what.tokens),
                        _ => run.decode(&what.prompt[..what.before], what.tokens),
                    }
                    .map_err(|e| e.to_string())?;
                    let kernels =
                        if batch { run.batch.as_ref().map_or(&[][..], Batch::kernels) } else { run.session.kernels() };
                    figure.kernels = kernels.iter().map(|k| (*k).to_owned()).collect();
                    // Of several sequences, the last is also held against itself alone.
                    let check = || if batch { run.alone(what, &ids).map(|()| ids.clone()) } else { Ok(ids.clone()) };
                    let want = first_ids.get_or_init(check).as_ref().map_err(Clone::clone)?;
                    figure.checked = Some("every token equals the first candidate's".to_owned());
                    match ids.iter().zip(want).position(|(got, want)| got != want) {
                        Some(at) => Err(format!("WRONG RESULT: token {at} is {} but should be {}", ids[at], want[at])),
                        None => Ok(sample),
                    }
                };
                cases.push(Timed { figure, group: i, run: Box::new(run) });
            }
            let executors = setup.candidates.executors();
            let (mut probe, int8) = (ReadProbe::new(bytes), Int8Probe::new());
            let (mut read, mut rates) = (Collector::default(), Collector::default());
            let (mut devices, mut notes) = device_probes(setup, bytes);
            let mut figures = setup.measure(cases, budget / 2, || {
                for executor in &executors {
                    for pattern in Pattern::ALL {
                        let rate = probe.read_again(*executor, pattern, 8 << 20);
                        read.push(executor.threads(), pattern.id(), rate);
                    }
                    for (name, rate) in int8.rates(*executor, 0.002) {
                        rates.push(executor.threads(), name, rate);
                    }
                }
                resident::sample(&mut devices, &mut notes);
            });
            let threads = setup.candidates.threads();
            let mut limits = read.limits(LimitKind::Read, measure.id(), bytes as u64, &threads);
            limits.extend(rates.limits(LimitKind::Int8, measure.id(), 0, &threads));
            limits.extend(resident::limits(&mut devices, measure.id(), &threads));
            found.notes.append(&mut notes);
            set_floors(&mut figures, &limits);
            found.figures.append(&mut figures);
            found.limits.extend(limits);
        }
        found
    }
}

/// Probes that read as much as the model has, at most what is larger than every cache.
fn device_probes(setup: &Setup<'_>, bytes: usize) -> (Vec<DeviceProbe>, Vec<String>) {
    let made = setup.devices.iter().map(|d| DeviceProbe::new(d.shared_backend(), bytes.min(resident::COLD)));
    let (mut probes, mut notes) = (Vec::new(), Vec::new());
    for probe in made {
        match probe {
            Ok(probe) => probes.push(probe),
            Err(e) => notes.push(format!("the memory of a device is not measured at the model's size: {e}")),
        }
    }
    (probes, notes)
}

impl Running {
    fn prefill(&mut self, prompt: &[u32]) -> tersor::model::Result<(Sample, Vec<u32>)> {
        self.session.reset();
        let mut id = 0;
        let sample = Sample::time(1, || {
            self.session.prefill(prompt)?;
            id = self.session.sample(GREEDY)?;
            Ok::<_, tersor::model::Error>(())
        })?;
        Ok((sample, vec![id]))
    }

    /// Ids step by step, those of a step in the order of the prompts.
    fn decode_batch(&mut self, prompts: &[Vec<u32>], tokens: usize) -> tersor::model::Result<(Sample, Vec<u32>)> {
        let Some(batch) = &mut self.batch else {
            return Ok((Sample::time(1, || Ok::<_, tersor::model::Error>(()))?, Vec::new()));
        };
        (0..prompts.len()).for_each(|slot| batch.remove(slot));
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let mut ids: Vec<u32> = batch.add(&prompts, GREEDY)?.iter().map(|d| d.id).collect();
        let sample = Sample::time(1, || {
            for _ in 0..tokens {
                ids.extend(batch.step()?.iter().map(|d| d.id));
            }
            Ok::<_, tersor::model::Error>(())
        })?;
        Ok((sample, ids))
    }

    /// Whether the last of several sequences has the tokens that it has alone.
    fn alone(&mut self, what: &Inference, ids: &[u32]) -> Result<(), String> {
        let Some(prompt) = what.several.last() else { return Ok(()) };
        let (_, want) = self.decode(prompt, what.tokens).map_err(|e| e.to_string())?;
        let got = ids.iter().skip(what.several.len() - 1).step_by(what.several.len());
        match got.copied().zip(&want).enumerate().find(|(_, (got, want))| got != *want) {
            Some((at, (got, _))) if self.tied(prompt, what.several.len(), at, got).map_err(|e| e.to_string())? => {
                Ok(())
            }
            Some((at, _)) => {
                Err(format!("WRONG RESULT: token {at} of the last sequence is not the one that it has alone"))
            }
            None => Ok(()),
        }
    }

    /// Whether `got` is as likely after `at` tokens as the one that the sequence has alone, but for what sums in another order
    /// may differ by: where heads of several rows need not follow the order of `docs/numerics.md`, and nowhere else.
    fn tied(&mut self, prompt: &[u32], rows: usize, at: usize, got: u32) -> tersor::model::Result<bool> {
        let model = self.session.model();
        let (vocab, hidden) = (model.config().vocab_size, model.config().hidden_size);
        let head = |format| OpSpec::matmul(format, rows, vocab, hidden);
        if Format::DENSE.iter().all(|format| model.backend().follows_order(&head(*format))) {
            return Ok(false);
        }
        self.session.reset();
        self.session.prefill(prompt)?;
        let mut best = self.session.sample(GREEDY)?;
        for _ in 0..at {
            best = self.session.step(GREEDY)?;
        }
        let logits = self.session.logits()?;
        let of = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        Ok(of(best) - of(got) <= TIE * of(best).abs())
    }

    fn decode(&mut self, prompt: &[u32], tokens: usize) -> tersor::model::Result<(Sample, Vec<u32>)> {
        let (_, mut ids) = self.prefill(prompt)?;
        let sample = Sample::time(1, || {
            for at in 0..tokens {
                ids.push(next(&mut self.session, at + 1 == tokens)?);
            }
            Ok::<_, tersor::model::Error>(())
        })?;
        Ok((sample, ids))
    }
}

/// The next token, as a generation has it: with the step after it on its way, where the device works by itself.
fn next(session: &mut Session, last: bool) -> tersor::model::Result<u32> {
    if !session.runs_ahead() {
        return session.step(GREEDY);
    }
    if session.steps_begun() == 0 {
        session.begin_step(GREEDY)?;
    }
    if !last {
        session.begin_step(GREEDY)?;
    }
    session.finish_step()
}
