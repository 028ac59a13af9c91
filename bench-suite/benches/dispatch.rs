//! What a call through the trait object costs over a direct one: `cargo bench -p tersor-bench --bench dispatch`.
//!
//! The stream is one of this file, so that the compiler may see through the direct call; it multiplies a few rows, so that
//! there is something to call. What is promised is at most 20 ns a call and nothing for each row: after Criterion's figures
//! the program checks both, on medians of interleaved rounds, and fails where they do not hold.

use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, criterion_group};
use tersor_core::reference::matmul::ternary;
use tersor_core::{Checked, Error, In, Op, Out, Ran, Result, Stream};

/// Most that a call may cost, in nanoseconds.
const LIMIT: f64 = 20.0;
/// Columns of a row: few, so that the call is a visible part.
const COLS: usize = 16;
const ROWS: [usize; 3] = [1, 8, 64];

/// Copies rows, and multiplies each with fixed codes on the way.
#[derive(Debug, Default)]
struct Tiny {
    codes: Vec<i8>,
    sum: i32,
}

impl Stream for Tiny {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        match op.op() {
            Op::QuantizeRows { x: In::Host(x), cols, q: Out::Host(q), .. } => {
                for (x, q) in x.chunks_exact(cols).zip(q.chunks_exact_mut(cols)) {
                    q.iter_mut().zip(x).for_each(|(q, x)| *q = *x as i8);
                    self.sum = self.sum.wrapping_add(ternary(&self.codes, q));
                }
                Ok(Ran { kernel: "tiny" })
            }
            other => {
                Err(Error::Unsupported { backend: "tiny".into(), op: format!("{other:?}"), reason: "tiny".into() })
            }
        }
    }
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Rows {
    x: Vec<f32>,
    q: Vec<i8>,
    scales: Vec<f32>,
}

impl Rows {
    fn new(rows: usize) -> Self {
        let x = (0..rows * COLS).map(|i| (i % 100) as f32).collect();
        Rows { x, q: vec![0; rows * COLS], scales: vec![0.0; rows] }
    }

    /// One call on the stream as it is: a type for a direct call, a trait object for dispatch.
    #[inline(always)]
    fn call<S: Stream + ?Sized>(&mut self, stream: &mut S) {
        let (q, scales) = (Out::Host(&mut self.q[..]), Out::Host(&mut self.scales[..]));
        let op = Op::QuantizeRows { x: In::Host(&self.x), cols: COLS, q, scales };
        let ran = op.check().and_then(|op| stream.submit(op));
        assert!(black_box(ran).is_ok());
    }
}

fn tiny() -> Tiny {
    Tiny { codes: (0..COLS).map(|i| i as i8 % 3 - 1).collect(), sum: 0 }
}

/// The compiler must not know what is behind it.
fn boxed() -> Box<dyn Stream> {
    black_box(Box::new(tiny()))
}

fn calls(c: &mut Criterion) {
    let mut group = c.benchmark_group("dispatch");
    for rows in ROWS {
        let (mut work, mut direct, mut object) = (Rows::new(rows), tiny(), boxed());
        group.bench_function(BenchmarkId::new("direct", rows), |b| b.iter(|| work.call(&mut direct)));
        group.bench_function(BenchmarkId::new("trait object", rows), |b| b.iter(|| work.call(&mut *object)));
    }
    group.finish();
}

/// Nanoseconds of a call through the object beyond those of a direct one: the median over rounds of both in turn.
fn over(rows: usize) -> f64 {
    const CALLS: u32 = 20_000;
    let (mut work, mut direct, mut object) = (Rows::new(rows), tiny(), boxed());
    let mut round = || {
        let begun = Instant::now();
        (0..CALLS).for_each(|_| work.call(&mut direct));
        let direct = begun.elapsed();
        let begun = Instant::now();
        (0..CALLS).for_each(|_| work.call(&mut *object));
        (begun.elapsed().as_nanos() as f64 - direct.as_nanos() as f64) / f64::from(CALLS)
    };
    let mut differences: Vec<f64> = (0..51).map(|_| round()).collect();
    differences.sort_by(f64::total_cmp);
    differences[differences.len() / 2]
}

criterion_group! { name = benches; config = Criterion::default().configure_from_args(); targets = calls }

fn main() -> std::result::Result<(), String> {
    benches();
    Criterion::default().configure_from_args().final_summary();
    let costs = ROWS.map(over);
    let list: Vec<_> = ROWS.iter().zip(costs).map(|(rows, cost)| format!("{cost:.1} ns with {rows} rows")).collect();
    println!("a call through the trait object costs, over a direct one: {}", list.join(", "));
    match costs.iter().copied().fold(f64::NEG_INFINITY, f64::max) {
        most if most <= LIMIT => Ok(()),
        most => Err(format!("{most:.1} ns are more than the {LIMIT} that are promised")),
    }
}
