//! Downloads that are collected later, and which of them tells what failed.

use tersor_core::{Buffer, Download, Error, Op, QuantBackend, Result, Stream};

use crate::{ask, driver};

const COLS: usize = 64;

struct Work<'b> {
    backend: &'b dyn QuantBackend,
    stream: Box<dyn Stream>,
    good: Buffer<f32>,
    bad: Buffer<f32>,
    q: Buffer<i8>,
    scales: Buffer<f32>,
    /// What is downloaded.
    ids: Buffer<u32>,
}

/// Whether something failed, and that it is what did.
fn failed(done: Result<()>) -> Result<bool> {
    match done {
        Ok(()) => Ok(false),
        Err(Error::NotFinite { what: "x", index: 0, .. }) => Ok(true),
        Err(e) => Err(e),
    }
}

impl<'b> Work<'b> {
    fn new(backend: &'b dyn QuantBackend) -> Result<Self> {
        let mut stream = backend.open_stream()?;
        let (mut good, mut bad) = (Buffer::alloc(backend, COLS)?, Buffer::alloc(backend, COLS)?);
        good.write(&mut *stream, &[1.0; COLS])?;
        bad.write(&mut *stream, &[f32::NAN; COLS])?;
        let (q, scales) = (Buffer::alloc(backend, COLS)?, Buffer::alloc(backend, 1)?);
        let mut ids = Buffer::alloc(backend, 2000)?;
        ids.write(&mut *stream, &(0..2000).collect::<Vec<u32>>())?;
        Ok(Work { backend, stream, good, bad, q, scales, ids })
    }

    /// Some ops of which the second fails or does not, and a download of the id `at`. The first is another op, so that a fault
    /// that is taken for one of another step has another name.
    fn step(&mut self, fails: bool, at: usize) -> Result<Download> {
        let (x, w) = (self.good.input(), self.good.input());
        let (q, scales) = (self.q.output(), self.scales.output());
        if !fails {
            self.stream.submit(Op::RmsNormQuantize { x, w, eps: 1e-5, q, scales }.check()?)?;
        }
        let x = if fails { self.bad.input() } else { self.good.input() };
        let op = Op::QuantizeRows { x, cols: COLS, q: self.q.output(), scales: self.scales.output() };
        self.stream.submit(op.check()?)?;
        self.ids.begin_read(&mut *self.stream, at, 1)
    }

    /// Whether something failed before a download, which is of the right id in any case.
    fn finish(&mut self, copy: Download, at: usize) -> Result<bool> {
        let mut id = [u32::MAX];
        let failed = failed(Buffer::finish_read(&mut *self.stream, copy, &mut id))?;
        right("id", id[0], at as u32)?;
        Ok(failed)
    }

    fn synchronize(&mut self) -> Result<bool> {
        failed(self.stream.synchronize())
    }
}

fn right<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::Device { backend: "test".into(), message: format!("{what}: {got:?} instead of {want:?}") })
}

pub(crate) fn work(backend: &dyn QuantBackend) -> Result<()> {
    let mut w = Work::new(backend)?;
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
        let read = failed(w.ids.read(&mut *w.stream, 7, &mut ids))?;
        right("a download that waits tells it", (read, w.finish(first, 5)?), (fails[0], false))?;
        right("and has its bytes", ids, [7, 8, 9])?;
    }
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
