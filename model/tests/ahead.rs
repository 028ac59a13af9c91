//! Running ahead: where a stream works on by itself, generation begins a step before it has seen the token that the step feeds.
//! Nothing else may be different.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use support::{GREEDY, backends, fable, golden, load};
use tersor_core::{
    BackendInfo, Checked, Download, Format, OpSpec, PackedWeight, QuantBackend, Ran, RawBuffer, SampleParams, Shape,
    Stream, Support, Weight,
};
use tersor_model::generate::{Continuation, Options, Stop, continue_ids};
use tersor_model::names::Role;
use tersor_model::{Error, Model, ModelConfig, ModelFile, Result, Session, SessionOptions, TensorSource};

const DRAWN: SampleParams = SampleParams { temperature: 0.8, top_k: Some(40), seed: 7 };

/// What was asked of a stream, by the number of the download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Begin(usize),
    Finish(usize),
    Discard(usize),
}
use Asked::{Begin, Discard, Finish};

/// What streams are to do, and what they did.
#[derive(Debug, Default)]
struct Log {
    asked: Vec<Asked>,
    begun: usize,
    submitted: usize,
    /// The download that finds that something failed before it.
    fails: Option<usize>,
    /// The op from which on none is taken.
    refuses_from: Option<usize>,
}

/// A backend whose streams say that they run ahead, and hold downloads back until they are finished.
#[derive(Debug)]
struct Eager(Arc<dyn QuantBackend>, Arc<Mutex<Log>>);

impl QuantBackend for Eager {
    fn info(&self) -> &BackendInfo {
        self.0.info()
    }
    fn supports(&self, spec: &OpSpec) -> Support {
        self.0.supports(spec)
    }
    fn packed_size(&self, format: Format, shape: Shape) -> tersor_core::Result<usize> {
        self.0.packed_size(format, shape)
    }
    fn pack(&self, weight: &Weight) -> tersor_core::Result<PackedWeight> {
        self.0.pack(weight)
    }
    fn alloc(&self, bytes: usize) -> tersor_core::Result<RawBuffer> {
        self.0.alloc(bytes)
    }
    fn open_stream(&self) -> tersor_core::Result<Box<dyn Stream>> {
        Ok(Box::new(EagerStream { inner: self.0.open_stream()?, log: self.1.clone() }))
    }
}

struct EagerStream {
    inner: Box<dyn Stream>,
    log: Arc<Mutex<Log>>,
}

#[derive(Debug)]
struct Ticket {
    number: usize,
    bytes: Vec<u8>,
}

fn ticket(download: Download) -> Arc<Ticket> {
    download.into_bytes().unwrap_err().downcast().unwrap()
}

impl Stream for EagerStream {
    fn submit(&mut self, op: Checked<'_>) -> tersor_core::Result<Ran> {
        let mut log = self.log.lock().unwrap();
        log.submitted += 1;
        if log.refuses_from.is_some_and(|first| log.submitted >= first) {
            return Err(tersor_core::Error::Cancelled);
        }
        self.inner.submit(op)
    }
    fn synchronize(&mut self) -> tersor_core::Result<()> {
        self.inner.synchronize()
    }
    fn runs_ahead(&self) -> bool {
        true
    }
    fn begin_download(&mut self, src: &RawBuffer, offset: usize, len: usize) -> tersor_core::Result<Download> {
        let bytes = src.as_host().unwrap()[offset..offset + len].to_vec();
        let mut log = self.log.lock().unwrap();
        let number = log.begun;
        log.begun += 1;
        log.asked.push(Begin(number));
        Ok(Download::on_its_way(Arc::new(Ticket { number, bytes })))
    }
    fn finish_download(&mut self, download: Download, dst: &mut [u8]) -> tersor_core::Result<()> {
        let ticket = ticket(download);
        let mut log = self.log.lock().unwrap();
        log.asked.push(Finish(ticket.number));
        if log.fails == Some(ticket.number) {
            return Err(tersor_core::Error::NotFinite { what: "logits", index: 0, value: f32::NAN });
        }
        dst.copy_from_slice(&ticket.bytes);
        Ok(())
    }
    fn discard_download(&mut self, download: Download) -> tersor_core::Result<()> {
        self.log.lock().unwrap().asked.push(Discard(ticket(download).number));
        Ok(())
    }
}

/// The embedded model with other ends of text.
struct Ends(ModelFile, ModelConfig);

impl TensorSource for Ends {
    fn config(&self) -> &ModelConfig {
        &self.1
    }
    fn matrix(&self, role: Role, backend: &dyn QuantBackend) -> Result<Weight> {
        self.0.matrix(role, backend)
    }
    fn norm(&self, role: Role) -> Result<Vec<f32>> {
        TensorSource::norm(&self.0, role)
    }
}

/// A session of the embedded model, on a backend that runs ahead if there is a log for it.
fn session(log: Option<&Arc<Mutex<Log>>>, eos: Option<u32>, capacity: usize) -> Session {
    let backend = backends(1)[0].1.clone();
    let backend = match log {
        Some(log) => Arc::new(Eager(backend, log.clone())) as Arc<dyn QuantBackend>,
        None => backend,
    };
    let mut config = fable().config().clone();
    config.eos_ids = eos.into_iter().collect();
    let model = Model::load(backend, &Ends(fable(), config), |_| {}).unwrap();
    let options = SessionOptions { capacity: Some(capacity), ..SessionOptions::default() };
    let session = Session::new(&model, options).unwrap();
    assert_eq!(session.runs_ahead(), log.is_some());
    session
}

/// How a generation is made to end.
#[derive(Debug, Clone, Copy)]
struct Case {
    stop: Stop,
    options: Options,
    eos: Option<u32>,
    capacity: usize,
    breaks_at: usize,
}

/// What a generation gave, and what the session does next: its logits, another draw and step, another prompt.
#[derive(Debug, PartialEq)]
struct Outcome {
    ids: Vec<u32>,
    seen: Vec<u32>,
    stop: Stop,
    tokens: (usize, usize),
    kernels: Vec<&'static str>,
    position: usize,
    logits: Vec<u32>,
    next: Option<u32>,
    again: Vec<u32>,
}

fn outcome(session: &mut Session, case: Case) -> Outcome {
    let mut seen = Vec::new();
    let run = continue_ids(session, &golden()[0].ids, &case.options, |id| {
        seen.push(id);
        if seen.len() == case.breaks_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let Continuation { ids, stop, prefill, decode, kernels, .. } = run.unwrap();
    let position = session.position();
    let logits = session.logits().unwrap().iter().map(|v| v.to_bits()).collect();
    // The token that was drawn last has not been fed yet.
    let next = session.step(case.options.sampling).ok();
    let mut again = Vec::new();
    if session.room() > 8 {
        session.prefill(&[5, 6, 7]).unwrap();
        again.push(session.sample(case.options.sampling).unwrap());
        (0..4).for_each(|_| again.push(session.step(case.options.sampling).unwrap()));
    }
    Outcome { ids, seen, stop, tokens: (prefill.tokens, decode.tokens), kernels, position, logits, next, again }
}

#[test]
fn every_end_is_the_one_of_a_session_that_does_not_run_ahead() {
    for sampling in [GREEDY, DRAWN] {
        let plain = Options { tokens: 9, sampling, ..Options::default() };
        let free = Case { stop: Stop::Tokens, options: plain, eos: None, capacity: 60, breaks_at: 0 };
        let all = outcome(&mut session(None, None, 60), free).ids;
        // An id that comes late for the first time, as end of text.
        let late = (1..all.len()).rev().find(|at| !all[..*at].contains(&all[*at])).unwrap();
        for case in [
            free,
            Case { stop: Stop::Tokens, options: Options { tokens: 1, ..plain }, ..free },
            Case { stop: Stop::Tokens, options: Options { tokens: 2, ..plain }, ..free },
            Case { stop: Stop::Caller, breaks_at: 1, ..free },
            Case { stop: Stop::Caller, breaks_at: 4, ..free },
            Case { stop: Stop::EndOfText, eos: Some(all[0]), ..free },
            Case { stop: Stop::EndOfText, eos: Some(all[late]), ..free },
            // The prompt has ten tokens.
            Case { stop: Stop::Context, capacity: 10, ..free },
            Case { stop: Stop::Context, capacity: 13, ..free },
            Case { stop: Stop::EndOfText, eos: Some(all[late]), capacity: 10 + late, ..free },
        ] {
            let log = Arc::new(Mutex::new(Log::default()));
            let want = outcome(&mut session(None, case.eos, case.capacity), case);
            let mut ahead = session(Some(&log), case.eos, case.capacity);
            let got = outcome(&mut ahead, case);
            assert_eq!(want.stop, case.stop, "{case:?}");
            assert_eq!(got, want, "{case:?}");
            check_order(&log.lock().unwrap().asked, &want, case);
        }
    }
}

/// Every step but the first is begun before the token ahead of it is asked for, and none that is known not to be needed.
fn check_order(asked: &[Asked], run: &Outcome, case: Case) {
    let steps = run.tokens.1;
    // The session was used further.
    let first = asked.iter().position(|a| *a == Begin(steps + 1)).unwrap_or(asked.len());
    let of_run = |n: usize| (n < steps).then_some(Finish(n));
    let mut want = Vec::new();
    for n in 0..steps {
        want.extend([Begin(n)].into_iter().filter(|_| n == 0));
        let full = case.capacity == 10 + n + 1;
        want.extend((n + 2 < case.options.tokens && !full).then_some(Begin(n + 1)));
        want.extend(of_run(n));
    }
    let too_many = want.iter().filter(|a| matches!(a, Begin(_))).count() - steps;
    want.extend((too_many == 1).then_some(Discard(steps)));
    assert!(too_many <= 1 && asked.len() >= want.len(), "{asked:?}");
    assert_eq!(&asked[..want.len()], &want[..], "{case:?}: {asked:?}, up to {first}");
    let ends_early = matches!(case.stop, Stop::EndOfText | Stop::Caller) && steps > 0;
    assert!(too_many == 0 || ends_early, "{case:?}: {asked:?}");
}

#[test]
fn what_fails_in_a_step_is_told_after_the_tokens_before_it() {
    let (prompt, options) = (&golden()[0].ids, Options { tokens: 9, ..Options::default() });
    let want = outcome(
        &mut session(None, None, 60),
        Case { stop: Stop::Tokens, options, eos: None, capacity: 60, breaks_at: 0 },
    );
    for fails in [0, 1, 4, 7] {
        let log = Arc::new(Mutex::new(Log { fails: Some(fails), ..Log::default() }));
        let mut session = session(Some(&log), None, 60);
        let mut seen = Vec::new();
        let run = continue_ids(&mut session, prompt, &options, |id| {
            seen.push(id);
            ControlFlow::Continue(())
        });
        let e = run.unwrap_err();
        assert!(matches!(e, Error::Core(tersor_core::Error::NotFinite { what: "logits", .. })), "{e}");
        assert_eq!(seen, want.seen[..=fails]);
        // The step is in the cache, its logits are there to be looked at, and none is under way.
        assert_eq!((session.position(), session.steps_begun()), (prompt.len() + fails + 1, 0));
        session.logits().unwrap();
        assert!(matches!(session.step(GREEDY), Err(Error::Order { .. })));
        assert_eq!(session.sample(GREEDY).unwrap(), want.seen[fails + 1]);
        assert_eq!(session.step(GREEDY).ok(), want.seen.get(fails + 2).copied().or(want.next));
    }
}

#[test]
fn a_backend_that_takes_no_more_is_told_after_the_same_tokens() {
    let (prompt, options) = (&golden()[0].ids, Options { tokens: 9, ..Options::default() });
    let run = |eager: bool, refuses_from: usize| {
        let log = Arc::new(Mutex::new(Log { refuses_from: Some(refuses_from), ..Log::default() }));
        let mut session = session(Some(&log), None, 60);
        let mut seen = Vec::new();
        let e = if eager {
            let run = continue_ids(&mut session, prompt, &options, |id| {
                seen.push(id);
                ControlFlow::Continue(())
            });
            run.map(|run| run.ids.len())
        } else {
            session.prefill(prompt).and_then(|()| {
                seen.push(session.sample(GREEDY)?);
                while seen.len() < options.tokens {
                    seen.push(session.step(GREEDY)?);
                }
                Ok(seen.len())
            })
        };
        (e.map_err(|e| e.to_string()), seen, session.steps_begun(), log.lock().unwrap().submitted)
    };
    let (whole, _, _, ops) = run(false, usize::MAX);
    assert_eq!(whole, Ok(9));
    for refuses_from in (ops / 3..ops).step_by(41) {
        let (want, got) = (run(false, refuses_from), run(true, refuses_from));
        assert!(want.0.is_err(), "{want:?}");
        assert_eq!((&got.0, &got.1, got.2), (&want.0, &want.1, 0), "from op {refuses_from} of {ops}");
    }
}

#[test]
fn halves_of_steps_in_the_wrong_order_are_errors() {
    let model = load(&backends(1)[0].1);
    let mut session = Session::new(&model, SessionOptions { capacity: Some(9), ..SessionOptions::default() }).unwrap();
    let order = |e: Error, call: &str| match e {
        Error::Order { call: c, .. } => assert_eq!(c, call),
        other => panic!("{call}: {other}"),
    };
    order(session.begin_step(GREEDY).unwrap_err(), "begin_step");
    order(session.finish_step().unwrap_err(), "finish_step");
    order(session.take_back().unwrap_err(), "take_back");
    session.prefill(&[0, 3773, 648]).unwrap();
    let first = session.sample(GREEDY).unwrap();
    let logits = session.logits().unwrap();
    session.begin_step(DRAWN).unwrap();
    session.begin_step(GREEDY).unwrap();
    order(session.begin_step(GREEDY).unwrap_err(), "begin_step");
    order(session.step(GREEDY).unwrap_err(), "step");
    order(session.sample(GREEDY).unwrap_err(), "sample");
    order(session.logits().unwrap_err(), "logits");
    order(session.prefill(&[1]).unwrap_err(), "prefill");
    order(session.prefill_logits(&[1], |_, _| {}).unwrap_err(), "prefill_logits");
    assert_eq!((session.position(), session.steps_begun()), (5, 2));
    session.take_back().unwrap();
    session.take_back().unwrap();
    assert_eq!((session.position(), session.steps_begun()), (3, 0));
    assert_eq!((session.logits().unwrap(), session.sample(GREEDY).unwrap()), (logits, first));
    // What was begun is forgotten with the rest.
    session.begin_step(GREEDY).unwrap();
    session.reset();
    order(session.finish_step().unwrap_err(), "finish_step");
    session.prefill(&[0; 8]).unwrap();
    session.sample(GREEDY).unwrap();
    session.begin_step(GREEDY).unwrap();
    assert!(matches!(session.begin_step(GREEDY), Err(Error::ContextFull { used: 9, wanted: 1, .. })));
    session.finish_step().unwrap();
}

#[test]
fn two_halves_are_a_step() {
    let model = load(&backends(1)[0].1);
    let start = || {
        let mut session =
            Session::new(&model, SessionOptions { capacity: Some(40), ..SessionOptions::default() }).unwrap();
        session.prefill(&golden()[1].ids[..3]).unwrap();
        session.sample(DRAWN).unwrap();
        session
    };
    let (mut whole, mut halves) = (start(), start());
    let want: Vec<u32> = (0..12).map(|_| whole.step(DRAWN).unwrap()).collect();
    let mut got = Vec::new();
    halves.begin_step(DRAWN).unwrap();
    for _ in 0..11 {
        halves.begin_step(DRAWN).unwrap();
        got.push(halves.finish_step().unwrap());
    }
    got.push(halves.finish_step().unwrap());
    assert_eq!(got, want);
    assert_eq!(halves.logits().unwrap(), whole.logits().unwrap());
}
