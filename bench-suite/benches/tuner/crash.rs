//! Processes that tune at the same time, and processes that are killed while they write.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use tersor::registry::tune::cache::Contents;
use tersor::registry::tune::{Cache, Identity, Measured, Record};

use crate::child::{self, Answer};
use crate::{Outcome, Promises, work};

/// Cold starts at once, each on one thread, one after another: processes that crowd each other out measure nothing.
const TOGETHER: usize = 2;
const TIMES: usize = 10;
/// Processes that are killed.
const KILLED: usize = 50;

/// Cold starts at once over one cache, again and again with nothing known.
pub(crate) fn together(promises: &mut Promises, directory: &Path) -> Outcome<()> {
    let (mut keys, mut lost) = (0, 0);
    for time in 0..TIMES {
        let directory = directory.join(time.to_string());
        let children =
            (0..TOGETHER).map(|_| Ok(child::command("alone", &directory)?.spawn()?)).collect::<Outcome<Vec<_>>>()?;
        let mut measured: Vec<String> = Vec::new();
        for child in children {
            let output = child.wait_with_output()?;
            if !output.status.success() {
                return Err(format!("a child ended with {}", output.status).into());
            }
            let answer: Answer = serde_json::from_slice(&output.stdout)?;
            measured.extend(answer.routes.into_iter().filter(|r| r.measured).map(|r| r.key));
        }
        measured.sort_unstable();
        measured.dedup();
        let held = contents(&directory)?;
        keys += measured.len();
        lost += measured.iter().filter(|key| !held.keys.contains_key(*key)).count();
    }
    let figure = format!("{TOGETHER} at once, {TIMES} times: {keys} keys measured, {lost} lost, each file is whole");
    promises.hold("processes that tune at once corrupt nothing", figure, lost == 0 && keys > 0);
    Ok(())
}

/// Writers that are killed at moments spread over their work: what they said to have written is there.
pub(crate) fn killed(promises: &mut Promises, directory: &Path) -> Outcome<()> {
    let (mut said, mut lost, mut first) = (0, 0, 0);
    for i in 0..KILLED {
        let mut child = child::command("write", directory)?.spawn()?;
        let out = child.stdout.take().ok_or("the child has a standard output")?;
        let mut lines = BufReader::new(out).lines();
        first = lines.next().ok_or("the child begins")??.parse()?;
        std::thread::sleep(Duration::from_micros(400 * i as u64));
        child.kill()?;
        child.wait()?;
        let mut last = first;
        for line in lines {
            // The line that the kill cut off is no promise.
            last = line?.parse().unwrap_or(last);
        }
        said += last - first;
        let held = contents(directory)?;
        lost += (0..last).filter(|n| !held.keys.contains_key(&name(*n))).count();
    }
    let figure =
        format!("{KILLED} killed after {said} writes, {first} records kept; {lost} lost, the file whole each time");
    promises.hold("a process killed while it writes loses that run at most", figure, lost == 0 && said > KILLED);
    Ok(())
}

fn contents(directory: &Path) -> Outcome<Contents> {
    let registry = work::registry(directory)?;
    let cache = registry.tuner().cache().ok_or("a directory was given")?;
    let read = Contents::read(&cache.path(), registry.tuner().fingerprint())?;
    // Killed before its first record, a process leaves none.
    Ok(read.unwrap_or_else(|| Contents::empty(registry.tuner().fingerprint().clone())))
}

fn name(n: usize) -> String {
    format!("test {n}")
}

/// The child: writes record after record, and says so after each, until it is killed. First it says how many there are.
pub(crate) fn write(directory: &Path) -> Outcome<()> {
    let registry = work::registry(directory)?;
    let cache: &Cache = registry.tuner().cache().ok_or("a directory was given")?;
    let mut n = cache.load().len();
    println!("{n}");
    loop {
        cache.merge(&[(name(n), Some(record()))])?;
        n += 1;
        println!("{n}");
    }
}

fn record() -> Record {
    let who = |backend: &str| Identity {
        backend: backend.into(),
        isa: None,
        threads: None,
        kernel: "test".into(),
        revision: 1,
        build: "test".into(),
    };
    Record { winner: who("test"), rows: 1, cold_bytes: 0, measured: Vec::<Measured>::new() }
}
