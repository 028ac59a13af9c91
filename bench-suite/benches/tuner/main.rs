//! What the autotuner promises, measured: `cargo bench -p tersor-bench --bench tuner`. Prints a figure for each promise and
//! fails where one is broken. Nothing else should run on the machine; it takes about three minutes.
//!
//! Processes are real ones: this program starts itself as `child KIND ...` with caches in a directory of its own.

mod altered;
mod child;
mod crash;
mod operands;
mod truth;
mod work;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use child::{Answer, Decided};
use truth::Truth;

/// Fresh processes for each promise that is about processes.
const PROCESSES: usize = 50;
/// The budget of a cold start, the default of `tune.budget_ms`.
const BUDGET: Duration = Duration::from_millis(300);

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Whatever else is said (`--bench`, Criterion's flags for other benches) is not for this one.
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["child", kind, rest @ ..] => child::run(kind, rest),
        _ => prove(),
    }
}

/// Promises, kept or broken.
#[derive(Default)]
struct Promises {
    broken: Vec<&'static str>,
}

impl Promises {
    fn hold(&mut self, promise: &'static str, figure: String, kept: bool) {
        println!("{} {promise}: {figure}", if kept { "kept  " } else { "BROKEN" });
        if !kept {
            self.broken.push(promise);
        }
    }
}

fn prove() -> Outcome<()> {
    let place = tempfile::tempdir()?;
    let mut promises = Promises::default();
    let cold =
        (0..PROCESSES).map(|i| child::select(&place.path().join(format!("cold-{i}")))).collect::<Outcome<Vec<_>>>()?;
    starts(&mut promises, &cold, &place.path().join("cold-0"))?;
    let truth = Truth::measure()?;
    truth.print();
    choices(&mut promises, &cold, &truth)?;
    planted(&mut promises, place.path())?;
    crash::together(&mut promises, &place.path().join("together"))?;
    crash::killed(&mut promises, &place.path().join("killed"))?;
    match promises.broken.as_slice() {
        [] => Ok(()),
        broken => Err(format!("{} broken: {}", broken.len(), broken.join("; ")).into()),
    }
}

/// What tuning costs at start, without and with a cache.
fn starts(promises: &mut Promises, cold: &[Answer], warm: &Path) -> Outcome<()> {
    let most = cold.iter().map(|a| a.select).max().unwrap_or_default();
    let measured: usize = cold.iter().map(|a| a.routes.iter().filter(|r| r.measured).count()).sum();
    let all: usize = cold.iter().map(|a| a.routes.len()).sum();
    let figure = format!("{most:.0?} at most in {PROCESSES} cold starts; {measured} of {all} ops measured within it");
    promises.hold("the budget of 300 ms is overrun by 10 % at most", figure, most <= BUDGET.mul_f64(1.1));
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for route in cold.iter().flat_map(|a| &a.routes).filter(|r| !r.measured) {
        // Numbers differ from start to start; the kind of reason does not.
        *reasons.entry(route.reason.replace(|c: char| c.is_ascii_digit(), "")).or_default() += 1;
    }
    reasons.iter().for_each(|(reason, times)| println!("       {times} times not measured: {reason}"));
    // Whatever this one lacks is measured now, so that the next ones find all of it.
    child::full(warm)?;
    let mut cached = (0..PROCESSES).map(|_| child::select(warm)).collect::<Outcome<Vec<_>>>()?;
    cached.sort_by_key(|a| a.build + a.select);
    let all_known = cached.iter().all(|a| a.routes.iter().all(|r| r.measured));
    let (middle, last) = (&cached[PROCESSES / 2], &cached[PROCESSES - 1]);
    let figure = format!(
        "{:.1?} in the median, of which {:.1?} are choosing; {:.1?} at most; all known: {all_known}",
        middle.build + middle.select,
        middle.select,
        last.build + last.select,
    );
    let kept = all_known && middle.build + middle.select <= Duration::from_millis(5);
    promises.hold("a cached start takes 5 ms at most, probing and threads included", figure, kept);
    Ok(())
}

/// How good the choices of cold starts are, and whether processes agree.
fn choices(promises: &mut Promises, cold: &[Answer], truth: &Truth) -> Outcome<()> {
    let regrets: Vec<f64> = cold.iter().map(|answer| truth.regret(&answer.routes)).collect();
    let mean = regrets.iter().sum::<f64>() / regrets.len() as f64;
    let most = regrets.iter().copied().fold(0.0, f64::max);
    let figure = format!("{:.2} % in the mean of {PROCESSES} cold starts, {:.2} % at most", 100.0 * mean, 100.0 * most);
    promises.hold("regret against exhaustive search is 3 % at most", figure, mean <= 0.03);
    let mut by_key: BTreeMap<&str, Vec<&Decided>> = BTreeMap::new();
    for route in cold.iter().flat_map(|a| &a.routes).filter(|r| r.measured) {
        by_key.entry(&route.key).or_default().push(route);
    }
    let (mut flips, mut total) = (0, 0);
    for (key, decided) in &by_key {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        decided.iter().for_each(|d| *votes.entry(&d.winner).or_default() += 1);
        let Some((usual, _)) = votes.iter().max_by_key(|(_, n)| **n) else { continue };
        total += decided.len();
        for (other, count) in votes.iter().filter(|(name, _)| *name != usual) {
            let apart = truth.apart(key, usual, other)?;
            println!("       {key}: {usual} wins, but {count} times {other}, {:.1} % apart", 100.0 * apart);
            flips += if apart > tersor::registry::tune::stats::TIE { *count } else { 0 };
        }
    }
    let rate = flips as f64 / total.max(1) as f64;
    let figure = format!("{flips} of {total} verdicts, {:.2} %", 100.0 * rate);
    promises.hold(
        "winners outside the tie band flip in 2 % of fresh processes at most",
        figure,
        total > 0 && rate <= 0.02,
    );
    Ok(())
}

/// Candidates whose faults are known.
fn planted(promises: &mut Promises, place: &Path) -> Outcome<()> {
    let (mut slow, mut undecided, mut wrong) = (0, 0, 0);
    for i in 0..PROCESSES {
        let decided = child::planted("slow", &place.join(format!("slow-{i}")), i % 2 == 0)?;
        slow += usize::from(decided.measured && decided.winner.starts_with("altered"));
        undecided += usize::from(!decided.measured);
        let decided = child::planted("wrong", &place.join(format!("wrong-{i}")), i % 2 == 0)?;
        wrong += usize::from(!decided.measured || decided.winner.starts_with("altered"));
    }
    let figure = format!("{slow} of {PROCESSES}; {undecided} left to static priority");
    promises.hold("a kernel made slower by 10 % never wins", figure, slow == 0 && undecided < PROCESSES / 10);
    promises.hold("a kernel made wrong never wins", format!("{wrong} of {PROCESSES}"), wrong == 0);
    Ok(())
}
