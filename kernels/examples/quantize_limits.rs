//! What bounds quantization on this CPU: the bytes that it moves, or its arithmetic.
//!
//! `cargo run --release -p tersor-kernels --example quantize_limits [MILLIONS OF VALUES]` (16, if none are given)
//!
//! One thread. *R* is the rate at which memory is read and nothing else done, by the best of five patterns, over a buffer of 256 MB on
//! the same pages as the weights. For each format the table has the bytes a value of the naive way (f32 twice for one scale a
//! tensor, once for groups, and the codes), the core's cycles a value when all of it lies in the second-level cache, the cycles that
//! memory leaves for a value at R, and the rate from memory: the larger of the two numbers of cycles is what bounds it. Cycles are
//! those of the core, whose clock is taken from a chain of multiplications in the same run.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use tersor_core::{Floats, Format, HostContext, QuantBackend, Shape, bf16, f16};
use tersor_kernels::{Simd, Tiers, stream};

/// Bytes that are read to tell R: several last-level caches.
const READ_BYTES: usize = 256 << 20;
/// Rows and columns of a tensor for the second-level cache: half a megabyte of f32.
const SMALL: (usize, usize) = (64, 2048);
/// Columns of the large one.
const COLS: usize = 4096;
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let millions = std::env::args().nth(1).map_or(Ok(16), |m| m.parse::<usize>())?;
    let large = Shape::new(((millions << 20) / COLS).max(1), COLS)?;
    let (small, memory) = (Shape::new(SMALL.0, SMALL.1)?, vec![0x5555_5555_5555_5555u64; READ_BYTES / 8]);
    let values = bell(large.len().max(small.len()));
    let as_f16: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    let as_bf16: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
    let mut backends = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        backends.extend(tersor_kernels::isa::Avx512::detect().map(open).transpose()?);
        backends.extend(tersor_kernels::isa::Avx2::detect().map(open).transpose()?);
    }
    #[cfg(target_arch = "aarch64")]
    backends.extend(tersor_kernels::isa::Neon::detect().map(open).transpose()?);
    if backends.is_empty() {
        println!("this CPU has none of the instruction sets that kernels are written for");
    }
    for (name, backend) in backends {
        let mut cases = Vec::new();
        for format in Format::TERNARY.into_iter().chain(Format::GROUPED) {
            cases.push(Case::new(&*backend, "f32", Floats::F32(&values), format, [small, large])?);
        }
        cases.push(Case::new(&*backend, "f16", Floats::F16(&as_f16), Format::I2S, [small, large])?);
        cases.push(Case::new(&*backend, "bf16", Floats::BF16(&as_bf16), Format::I2S, [small, large])?);
        let (mut clocks, mut reads) = (Vec::new(), vec![Vec::new(); PATTERNS.len()]);
        for _ in 0..ROUNDS {
            clocks.push(clock());
            for (read, samples) in PATTERNS.iter().zip(&mut reads) {
                samples.push(READ_BYTES as f64 / seconds(|| black_box(read(black_box(&memory)))));
            }
            for case in &mut cases {
                case.sample(&*backend)?;
            }
        }
        let (clock, r) = (median(&mut clocks), reads.iter_mut().map(|r| median(r)).fold(0.0, f64::max));
        println!("\n{name}, {large} values, core {:.2} GHz, R {:.1} GB/s\n", clock / 1e9, r / 1e9);
        println!("| from | to | B a value | cycles a value in L2 | at R | Gelem/s in L2 | from memory | of R |");
        println!("|---|---|---|---|---|---|---|---|");
        for case in &mut cases {
            let [small, large] = case.rates.each_mut().map(|r| median(r));
            println!(
                "| {} | {} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} % |",
                case.from,
                case.format,
                case.bytes,
                clock / small,
                clock * case.bytes / r,
                small / 1e9,
                large / 1e9,
                100.0 * large * case.bytes / r
            );
        }
    }
    Ok(())
}

/// A backend of this tier, with the shared bodies alone.
fn open<S: Simd>(token: S) -> tersor_core::Result<(&'static str, Arc<dyn QuantBackend>)> {
    let tiers = Tiers::new("limits", env!("CARGO_PKG_VERSION"), 0, token.name()).tier(Some(token), &[]);
    Ok((token.name(), tiers.open(&HostContext::inline())?))
}

/// One format from one type, small and large.
struct Case<'a> {
    from: &'static str,
    format: Format,
    w: Floats<'a>,
    shapes: [Shape; 2],
    /// Bytes a value of the large shape.
    bytes: f64,
    codes: Vec<u8>,
    scales: Vec<f32>,
    /// Values a second, of each shape.
    rates: [Vec<f64>; 2],
}

impl<'a> Case<'a> {
    fn new(
        backend: &dyn QuantBackend,
        from: &'static str,
        w: Floats<'a>,
        format: Format,
        shapes: [Shape; 2],
    ) -> tersor_core::Result<Self> {
        let len = format.encoded_len(shapes[1])?;
        let reads = if matches!(format, Format::I2SGroup(_)) { 1 } else { 2 };
        let width = if from == "f32" { 4 } else { 2 };
        let bytes = (reads * width) as f64 + (len.bytes + 4 * len.scales) as f64 / shapes[1].len() as f64;
        let (codes, scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
        let mut case = Case { from, format, w, shapes, bytes, codes, scales, rates: Default::default() };
        case.sample(backend)?;
        case.rates = Default::default();
        Ok(case)
    }

    fn sample(&mut self, backend: &dyn QuantBackend) -> tersor_core::Result<()> {
        for (shape, rates) in self.shapes.iter().zip(&mut self.rates) {
            let len = self.format.encoded_len(*shape)?;
            let (codes, scales) = (&mut self.codes[..len.bytes], &mut self.scales[..len.scales]);
            let w = match self.w {
                Floats::F32(w) => Floats::F32(&w[..shape.len()]),
                Floats::F16(w) => Floats::F16(&w[..shape.len()]),
                Floats::BF16(w) => Floats::BF16(&w[..shape.len()]),
            };
            // The small one fits the cache after its first time, and takes microseconds.
            let times = ((4 << 20) / shape.len()).max(1);
            if times > 1 {
                backend.quantize(w, *shape, self.format, codes, scales)?;
            }
            let mut done = Ok(());
            let taken = seconds(|| {
                for _ in 0..times {
                    if let Err(e) = backend.quantize(black_box(w), *shape, self.format, codes, scales) {
                        done = Err(e);
                    }
                }
            });
            done?;
            rates.push((times * shape.len()) as f64 / taken);
        }
        Ok(())
    }
}

/// Ways to read memory.
const PATTERNS: [fn(&[u64]) -> u64; 5] =
    [stream::sum::<1, 0>, stream::sum::<1, 8192>, stream::sum::<2, 0>, stream::sum::<4, 0>, stream::sum::<8, 0>];

/// Cycles of the core a second: a multiplication of 64 bits that waits for the one before takes three on every x86-64 and AArch64
/// core since 2011 that this program has kernels for.
fn clock() -> f64 {
    const MULTIPLICATIONS: u64 = 4_000_000;
    let mut x = black_box(3u64);
    let taken = seconds(|| {
        for _ in 0..MULTIPLICATIONS {
            x = x.wrapping_mul(black_box(0x9e37_79b9_7f4a_7c15));
        }
        black_box(x);
    });
    3.0 * MULTIPLICATIONS as f64 / taken
}

fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    let done = work();
    let taken = start.elapsed().as_secs_f64();
    black_box(done);
    taken
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Bell-shaped values, about as large as trained weights.
fn bell(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.02 * (uniform() + uniform() + uniform() + uniform())).collect()
}
