//! Downloads that are collected later, and which of them tells what failed.

use tersor_core::{Buffer, Download, Error, Op, QuantBackend, Result, SampleParams, Stream};

use crate::{ask, driver, log, logged};

const COLS: usize = 64;
const GREEDY: SampleParams = SampleParams { temperature: 0.0, top_k: None, seed: 0 };

struct Work<'b> {
    backend: &'b dyn QuantBackend,
    stream: Box<dyn Stream>,
    good: Buffer<f32>,
    bad: Buffer<f32>,
    q: Buffer<i8>,
    scales: Buffer<f32>,
    scratch: Buffer<f32>,
    /// What is downloaded.
    ids: Buffer<u32>,
    at: Buffer<u32>,
    /// What a step ends with.
    last: Last,
}

/// The last op of a step, which may fail.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Quantize,
    /// Draws the id that is downloaded.
    Draw,
}

impl<'b> Work<'b> {
    fn new(backend: &'b dyn QuantBackend) -> Result<Self> {
        let mut stream = backend.open_stream()?;
        let (mut good, mut bad) = (Buffer::alloc(backend, COLS)?, Buffer::alloc(backend, COLS)?);
        good.write(&mut *stream, &[1.0; COLS])?;
        bad.write(&mut *stream, &[f32::NAN; COLS])?;
        let (q, scales) = (Buffer::alloc(backend, COLS)?, Buffer::alloc(backend, 1)?);
        let scratch = Buffer::alloc(backend, COLS)?;
        let mut ids = Buffer::alloc(backend, 2000)?;
        ids.write(&mut *stream, &(0..2000).collect::<Vec<u32>>())?;
        let mut at = Buffer::alloc(backend, 2)?;
        at.write(&mut *stream, &[0, 0])?;
        Ok(Work { backend, stream, good, bad, q, scales, scratch, ids, at, last: Last::Quantize })
    }

    /// Whether something failed, and that it is what did.
    fn failed(&self, done: Result<()>) -> Result<bool> {
        let named = if self.last == Last::Draw { "logits" } else { "x" };
        match done {
            Ok(()) => Ok(false),
            Err(Error::NotFinite { what, index: 0, .. }) if what == named => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Draws ids from `at` on, of so many rows. The driver draws nothing: they stay what they are.
    fn draw(&mut self, fails: bool, at: usize, rows: usize) -> Result<()> {
        let logits = if fails { &self.bad } else { &self.good }.input();
        let (steps, ids) = (self.at.input_range(0..rows), self.ids.output_range(at..at + rows));
        self.stream.submit(Op::Sample { logits, params: GREEDY, steps, ids }.check()?)?;
        Ok(())
    }

    /// Some ops of which the second fails or does not, and a download of the id `at`. The first is another op, so that a fault
    /// that is taken for one of another step has another name.
    fn step(&mut self, fails: bool, at: usize) -> Result<Download> {
        let (x, w) = (self.good.input(), self.good.input());
        let (q, scales) = (self.q.output(), self.scales.output());
        if !fails {
            self.stream.submit(Op::RmsNormQuantize { x, w, eps: 1e-5, q, scales }.check()?)?;
        }
        if self.last == Last::Draw {
            self.draw(fails, at, 1)?;
        } else {
            let x = if fails { self.bad.input() } else { self.good.input() };
            let op = Op::QuantizeRows { x, cols: COLS, q: self.q.output(), scales: self.scales.output() };
            self.stream.submit(op.check()?)?;
        }
        self.ids.begin_read(&mut *self.stream, at, 1)
    }

    /// Whether something failed before a download, which is of the right id in any case.
    fn finish(&mut self, copy: Download, at: usize) -> Result<bool> {
        let mut id = [u32::MAX];
        let done = Buffer::finish_read(&mut *self.stream, copy, &mut id);
        let failed = self.failed(done)?;
        right("id", id[0], at as u32)?;
        Ok(failed)
    }

    fn synchronize(&mut self) -> Result<bool> {
        let done = self.stream.synchronize();
        self.failed(done)
    }
}

fn right<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::Device { backend: "test".into(), message: format!("{what}: {got:?} instead of {want:?}") })
}

/// Two steps with and without a fault, and every order in which they are told.
fn told(w: &mut Work<'_>) -> Result<()> {
    for fails in [[false, false], [true, false], [false, true], [true, true]] {
        let (first, second) = (w.step(fails[0], 5)?, w.step(fails[1], 6)?);
        let got = [w.finish(first, 5)?, w.finish(second, 6)?];
        right("each tells its own", got, fails)?;
        right("and once", w.synchronize()?, false)?;
        let (first, second) = (w.step(fails[0], 5)?, w.step(fails[1], 6)?);
        let got = [w.finish(second, 6)?, w.finish(first, 5)?];
        right("the other way round", got, [fails[1], fails[0]])?;
        let (first, second) = (w.step(fails[0], 5)?, w.step(fails[1], 6)?);
        right("synchronize tells the first", w.synchronize()?, fails != [false, false])?;
        let got = [w.finish(first, 5)?, w.finish(second, 6)?, w.synchronize()?];
        right("and the downloads come without it", got, [false; 3])?;
        drop(w.step(fails[0], 5)?);
        let second = w.step(fails[1], 6)?;
        right("dropped, told by the next", w.finish(second, 6)?, fails != [false, false])?;
        right("two are told apart", w.synchronize()?, fails == [true, true])?;
        drop((w.step(fails[0], 5)?, w.step(fails[1], 6)?));
        right("dropped, told by synchronize", w.synchronize()?, fails != [false, false])?;
        let (first, second) = (w.step(fails[0], 5)?, w.step(fails[1], 6)?);
        w.stream.discard_download(second)?;
        right("one too many is forgotten", [w.finish(first, 5)?, w.synchronize()?], [fails[0], false])?;
        let (first, mut ids) = (w.step(fails[0], 5)?, [0; 3]);
        let read = w.ids.read(&mut *w.stream, 7, &mut ids);
        right("a download that waits tells it", (w.failed(read)?, w.finish(first, 5)?), (fails[0], false))?;
        right("and has its bytes", ids, [7, 8, 9])?;
    }
    Ok(())
}

/// Steps that end with a draw, each a line in the log before it, and the kernel that publishes: the one that draws where that is
/// one id, the one that is asked for, the last launch, and of the stream that asks.
const PUBLISHERS: [(&str, &str); 8] = [
    ("drawn", "4 by sample"),
    ("more than drawn", "8 by publish"),
    ("another", "4 by publish"),
    ("two of two", "8 by publish"),
    ("one of two", "4 by publish"),
    ("not last", "4 by publish"),
    ("sent", "4 by publish"),
    ("of another stream", "4 by publish"),
];

fn publishers(w: &mut Work<'_>) -> Result<()> {
    let mut other = w.backend.open_stream()?;
    for fails in [false, true] {
        for (name, _) in PUBLISHERS {
            let (at, rows, asked, count) = match name {
                "another" => (7, 1, 8, 1),
                "more than drawn" => (7, 1, 7, 2),
                "two of two" => (7, 2, 7, 2),
                "one of two" => (7, 2, 7, 1),
                _ => (7, 1, 7, 1),
            };
            w.draw(fails, at, rows)?;
            match name {
                "not last" => {
                    let op = Op::Add { x: w.good.input(), y: w.scratch.output() };
                    w.stream.submit(op.check()?)?;
                }
                // Memory that is given back sends off what is held.
                "sent" => drop(Buffer::<f32>::alloc(w.backend, 1)?),
                _ => {}
            }
            log(&format!("case {name}"));
            let mut ids = [0; 2];
            let stream = if name == "of another stream" { &mut other } else { &mut w.stream };
            let copy = w.ids.begin_read(&mut **stream, asked, count)?;
            let done = Buffer::finish_read(&mut **stream, copy, &mut ids[..count]);
            right(name, ids[..count].iter().zip(asked as u32..).all(|(id, at)| *id == at), true)?;
            // The other stream knows nothing of it.
            let here = name != "of another stream";
            right(name, (w.failed(done)?, w.synchronize()?), (fails && here, fails && !here))?;
        }
    }
    log("end");
    Ok(())
}

pub(crate) fn work(backend: &dyn QuantBackend) -> Result<()> {
    let mut w = Work::new(backend)?;
    for last in [Last::Draw, Last::Quantize] {
        w.last = last;
        told(&mut w)?;
    }
    w.last = Last::Draw;
    publishers(&mut w)?;
    w.last = Last::Quantize;
    // More than there are slots for, and more than a slot holds.
    let many: Vec<Download> = (0..9).map(|at| w.step(false, at)).collect::<Result<_>>()?;
    for (at, copy) in many.into_iter().enumerate().rev() {
        right("many", w.finish(copy, at)?, false)?;
    }
    // Slots of what was dropped come back, and what failed is kept.
    for fails in [false, true, false, false, false, false, false, false] {
        drop(w.step(fails, 0)?);
    }
    right("of many that were dropped", [w.synchronize()?, w.synchronize()?], [true, false])?;
    let long = w.ids.begin_read(&mut *w.stream, 0, 2000)?;
    let mut all = vec![0; 2000];
    Buffer::finish_read(&mut *w.stream, long, &mut all)?;
    right("a long one", all.iter().zip(0..).all(|(id, at)| *id == at), true)?;
    // What is no download of this stream, or not as long.
    let mut other = w.backend.open_stream()?;
    let copy = w.step(false, 0)?;
    let foreign = Buffer::finish_read(&mut *other, copy, &mut [0u32]);
    right("foreign", matches!(foreign, Err(Error::Parameter { what: "download", .. })), true)?;
    let copy = w.step(false, 0)?;
    let short = Buffer::finish_read(&mut *w.stream, copy, &mut [0u32; 2]);
    right("too short", matches!(short, Err(Error::Length { need: 4, got: 8, .. })), true)?;
    let beyond = w.ids.begin_read(&mut *w.stream, 1999, 2).is_err();
    right("beyond the end", beyond, true)
}

#[test]
fn what_fails_is_told_by_the_download_after_it_and_once() {
    let text = ask(&driver(false), &[("FAKE_WORK", "ahead")]);
    assert!(text.contains("outcome: ok"), "{text}");
}

#[test]
fn the_kernel_that_draws_publishes_what_it_drew_and_nothing_else() {
    let calls = logged("ahead", &[]);
    for (name, want) in PUBLISHERS {
        let begins = format!("case {name}");
        let said = calls.iter().enumerate().filter(|(_, line)| **line == begins).map(|(i, _)| {
            let after = calls[i + 1..].iter().take_while(|line| !line.starts_with("case ") && *line != "end");
            after.filter_map(|line| line.strip_prefix("published ")).collect::<Vec<_>>()
        });
        let said: Vec<_> = said.collect();
        assert_eq!(said, [[want], [want]], "{name}");
    }
}
