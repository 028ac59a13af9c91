//! What bounds quantization on this CPU: the bytes that it moves, or its arithmetic.
//!
//! `cargo run --release -p tersor-kernels --example quantize_limits`
//!
//! One thread. *R* is the rate at which memory is read and nothing else done, over 256 MB, the same that weights are taken from: tensors of
//! 16 M values, one after another, so that no cache has them. For each format the table has the bytes that are moved for a value, the
//! core's cycles a value when a small tensor lies in the second-level cache and one of 2 M values in the last-level cache, the
//! cycles that memory leaves for a value at R, and the rate from memory. The larger of the cycles in a cache and those at R is what bounds
//! it: those in the second-level cache where weights are encoded after they have been summed, those in the last-level
//! cache where 2 M values and more are summed and encoded in one read (`i2_s`, `tq2_0` and `tl1` from f32). Cycles are those of the core, whose
//! clock is taken from a chain of multiplications in the same run.
//!
//! A second table is of what happens to a token's activations, which are in the first-level cache.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use tersor_core::{Buffer, Floats, Format, HostContext, Op, QuantBackend, Result, Shape, bf16, f16};
use tersor_kernels::{Simd, Tiers, stream};

/// Values that tensors are taken from: 256 MB of f32, several last-level caches.
const VALUES: usize = 64 << 20;
/// Rows and columns of a tensor for the second-level cache (half a megabyte of f32), of one for the last-level cache, and of a large one.
const SHAPES: [(usize, usize); 3] = [(64, 2048), (512, 4096), (4096, 4096)];
const ROUNDS: usize = 25;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let values = bell(VALUES);
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
            cases.push(Case::new("f32", Floats::F32(&values), format)?);
        }
        cases.push(Case::new("f16", Floats::F16(&as_f16), Format::I2S)?);
        cases.push(Case::new("bf16", Floats::BF16(&as_bf16), Format::I2S)?);
        let (mut clocks, mut reads) = (Vec::new(), vec![Vec::new(); PATTERNS.len()]);
        for round in 0..ROUNDS {
            clocks.push(clock());
            for (read, samples) in PATTERNS.iter().zip(&mut reads) {
                let words = bytemuck::cast_slice(&values);
                samples.push(size_of_val(&values[..]) as f64 / seconds(|| black_box(read(black_box(words)))));
            }
            for case in &mut cases {
                case.sample(&*backend, round)?;
            }
        }
        let (clock, reads) = (median(&mut clocks), reads.iter_mut().map(|r| median(r)).collect::<Vec<_>>());
        let r = reads.iter().copied().fold(0.0, f64::max);
        println!(
            "\n{name}, core {:.2} GHz, R {:.1} GB/s (one stream, asked for 8 KiB ahead: {:.1})\n",
            clock / 1e9,
            r / 1e9,
            reads[1] / 1e9
        );
        println!("| from | to | B a value | cycles a value in L2 | in L3 | at R | Gelem/s from memory | of R |");
        println!("|---|---|---|---|---|---|---|---|");
        for case in &mut cases {
            let [small, middle, large] = case.rates.each_mut().map(|r| median(r));
            println!(
                "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.0} % |",
                case.from,
                case.format,
                case.bytes,
                clock / small,
                clock / middle,
                clock * case.bytes / r,
                large / 1e9,
                100.0 * large * case.bytes / r
            );
        }
        println!();
        activations(&*backend, clock)?;
    }
    Ok(())
}

/// Prints what the ops that make int8 activations take.
fn activations(backend: &dyn QuantBackend, clock: f64) -> Result<()> {
    let mut stream = backend.open_stream()?;
    println!("| activations | values | ns | cycles a value |");
    println!("|---|---|---|---|");
    for cols in [2560, 6912] {
        let mut floats = || -> Result<Buffer<f32>> {
            let mut buffer = Buffer::alloc(backend, cols)?;
            buffer.write(&mut *stream, &bell(cols))?;
            Ok(buffer)
        };
        let (x, w) = (floats()?, floats()?);
        let (mut q, mut scales) = (Buffer::<i8>::alloc(backend, cols)?, Buffer::<f32>::alloc(backend, 1)?);
        for name in ["quantize", "norm and quantize"] {
            let mut samples = Vec::new();
            for _ in 0..101 {
                const TIMES: usize = 200;
                let start = Instant::now();
                for _ in 0..TIMES {
                    let (q, scales) = (q.output(), scales.output());
                    let op = match name {
                        "quantize" => Op::QuantizeRows { x: x.input(), cols, q, scales },
                        _ => Op::RmsNormQuantize { x: x.input(), w: w.input(), eps: 1e-5, q, scales },
                    };
                    stream.submit(op.check()?)?;
                }
                samples.push(start.elapsed().as_secs_f64() / TIMES as f64);
            }
            let taken = median(&mut samples);
            println!("| {name} | {cols} | {:.0} | {:.2} |", taken * 1e9, taken * clock / cols as f64);
        }
    }
    Ok(())
}

/// A backend of this tier, with the shared bodies alone.
fn open<S: Simd>(token: S) -> Result<(&'static str, Arc<dyn QuantBackend>)> {
    let tiers = Tiers::new("limits", env!("CARGO_PKG_VERSION"), 0, token.name()).tier(Some(token), &[]);
    Ok((token.name(), tiers.open(&HostContext::inline())?))
}

/// One format from one type, in all shapes.
struct Case<'a> {
    from: &'static str,
    format: Format,
    w: Floats<'a>,
    shapes: [Shape; 3],
    /// Bytes that are moved for a value of the large shape.
    bytes: f64,
    codes: Vec<u8>,
    scales: Vec<f32>,
    /// Values a second, of each shape.
    rates: [Vec<f64>; 3],
}

impl<'a> Case<'a> {
    fn new(from: &'static str, w: Floats<'a>, format: Format) -> Result<Self> {
        let shape = |(rows, cols)| Shape::new(rows, cols);
        let shapes = [shape(SHAPES[0])?, shape(SHAPES[1])?, shape(SHAPES[2])?];
        let len = format.encoded_len(shapes[2])?;
        let width = if from == "f32" { 4 } else { 2 };
        let once = match format {
            Format::I2SGroup(_) => true,
            Format::I2S | Format::TQ2_0 | Format::TL1 => from == "f32",
            _ => false,
        };
        let reads = if once { 1 } else { 2 };
        let bytes = (reads * width) as f64 + (len.bytes + 4 * len.scales) as f64 / shapes[2].len() as f64;
        let (codes, scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
        Ok(Case { from, format, w, shapes, bytes, codes, scales, rates: Default::default() })
    }

    fn sample(&mut self, backend: &dyn QuantBackend, round: usize) -> Result<()> {
        for (shape, rates) in self.shapes.iter().zip(&mut self.rates) {
            let (n, len) = (shape.len(), self.format.encoded_len(*shape)?);
            let (codes, scales) = (&mut self.codes[..len.bytes], &mut self.scales[..len.scales]);
            // Another tensor each time where it is a large one. What fits a cache is there after its first time, and takes microseconds.
            let large = n > 4 << 20;
            let (start, times) = if large { (round % (VALUES / n) * n, 1) } else { (0, (4 << 20) / n) };
            let w = match self.w {
                Floats::F32(w) => Floats::F32(&w[start..start + n]),
                Floats::F16(w) => Floats::F16(&w[start..start + n]),
                Floats::BF16(w) => Floats::BF16(&w[start..start + n]),
            };
            if !large {
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
            rates.push((times * n) as f64 / taken);
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
