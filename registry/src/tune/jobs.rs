//! Ops that are no products, with operands like those of inference and conversion, and the oracle's answers.
//!
//! What is large and comes from memory (real weights that are quantized, what dequantization writes, the keys and values of
//! attention) rotates over slices that exceed the cache; what one op of a pass hands to the next stays where it is.

use std::time::Instant;

use tersor_core::reference::attention::{HeadRows, attend};
use tersor_core::reference::rows;
use tersor_core::{
    DType, FloatIn, FloatOut, Floats, FloatsMut, Format, In, Op, OpSpec, Out, Result, Shape, Stream, Weight, bf16,
    codec, f16,
};

use super::key::WeightClass;
use super::race::Cold;
use super::rounds::{Clock, too_dear};
use super::subject::{Noise, Subject, spread};

/// Elements of a large operand that one call works on. More would not change who is faster, only how long it takes to know.
const SLICE: usize = 1 << 20;
/// Random values that longer operands repeat.
const BAND: usize = 1 << 14;
/// Rows of attention that are compared with the oracle.
const SAMPLED_ROWS: usize = 3;
const EPS: f32 = 1e-5;

/// An op with its operands.
pub(super) trait Job {
    /// Runs it once, on the slice that this turn has.
    fn run(&mut self, stream: &mut dyn Stream, turn: usize) -> Result<()>;
    /// Makes sure that what an earlier run left behind is not taken for a result.
    fn spoil(&mut self);
    /// Compares the result of turn 0 with the oracle, bit for bit. Says what is wrong.
    fn check(&self) -> std::result::Result<(), String>;
}

/// A job ready to run.
pub(super) struct Prepared {
    pub(super) job: Box<dyn Job>,
    /// Rows that it works on: fewer than the key's where a part is enough.
    pub(super) rows: usize,
    /// Bytes that its turns rotate through.
    pub(super) cold_bytes: u64,
}

/// Makes the operands of an op.
pub(super) fn prepare(spec: &OpSpec, cold: Cold, clock: Clock) -> std::result::Result<Prepared, String> {
    let failed = |e: tersor_core::Error| format!("nothing to measure with: {e}");
    match *spec {
        OpSpec::Quantize { from, format, shape } => {
            let shape = part(format, shape).map_err(failed)?;
            let (turns, bytes) = Turns::of(shape.len(), from, cold);
            let w = fill(turns, clock, || Reals::random(from, shape.len(), turns.count))?;
            let right = codec::quantize(w.part(0, shape.len()), shape, format).map_err(failed)?;
            let (codes, scales) = (vec![0; right.codes().len()], vec![0.0; right.scales().len()]);
            let job = Box::new(Quantize { shape, format, w, turns, codes, scales, right });
            Ok(Prepared { job, rows: shape.rows(), cold_bytes: bytes })
        }
        OpSpec::Dequantize { format, to, shape } => {
            let shape = part(format, shape).map_err(failed)?;
            let (turns, bytes) = Turns::of(shape.len(), to, cold);
            let class = WeightClass { format, scale_block: format.scale_block(), n: shape.rows(), k: shape.cols() };
            let w = Subject::new(class, shape.rows()).map_err(failed)?.weight;
            let mut right = Reals::zeros(to, shape.len());
            codec::dequantize_into(&w, right.part_mut(0, shape.len())).map_err(failed)?;
            let y = fill(turns, clock, || Reals::random(to, shape.len(), turns.count))?;
            Ok(Prepared { job: Box::new(Dequantize { w, turns, y, right }), rows: shape.rows(), cold_bytes: bytes })
        }
        OpSpec::QuantizeRows { rows, cols } => Ok(warm(Rows::new(rows, cols, false)?, rows)),
        OpSpec::RmsNormQuantize { rows, cols } => Ok(warm(Rows::new(rows, cols, true)?, rows)),
        OpSpec::Attention { rows, heads, kv_heads, head_dim, capacity, .. } => {
            let (job, cold_bytes) = Attention::new((rows, capacity), (heads, kv_heads, head_dim), cold, clock)?;
            Ok(Prepared { job: Box::new(job), rows, cold_bytes })
        }
        _ => Err("this operation is not measured".into()),
    }
}

fn warm(job: impl Job + 'static, rows: usize) -> Prepared {
    Prepared { job: Box::new(job), rows, cold_bytes: 0 }
}

/// The first rows of a shape: as many as make a slice, where the format has such shapes.
fn part(format: Format, shape: Shape) -> Result<Shape> {
    let first = Shape::new(SLICE.div_ceil(shape.cols()).min(shape.rows()), shape.cols())?;
    Ok(if format.encoded_len(first).is_ok() { first } else { shape })
}

/// Slices of a large operand, which calls take in turn.
#[derive(Debug, Clone, Copy)]
struct Turns {
    len: usize,
    count: usize,
    bytes: u64,
}

impl Turns {
    /// As many as exceed the cache, and their bytes.
    fn of(len: usize, dtype: DType, cold: Cold) -> (Self, u64) {
        let bytes = (len * dtype.size()) as u64;
        let count = (cold.bytes.div_ceil(bytes.max(1)) as usize).max(2);
        (Turns { len, count, bytes }, bytes * count as u64)
    }

    fn start(&self, turn: usize) -> usize {
        turn % self.count * self.len
    }
}

/// Makes all slices, if what it takes to make a small part says that the time allows it.
fn fill<T>(turns: Turns, clock: Clock, make: impl FnOnce() -> T) -> std::result::Result<T, String> {
    const PART: usize = 1 << 20;
    let touch = |_| {
        let begun = Instant::now();
        let touched = std::hint::black_box(vec![1u8; PART]);
        begun.elapsed().as_secs_f64() * turns.bytes as f64 / touched.len() as f64
    };
    let each = (0..3).map(touch).fold(f64::INFINITY, f64::min);
    if !clock.fits(each * turns.count as f64) {
        return Err(too_dear(turns.count, turns.bytes, clock));
    }
    Ok(make())
}

/// Random values, `count` times the same `len`.
fn random(len: usize, count: usize) -> Vec<f32> {
    let mut noise = Noise(len as u64);
    let band: Vec<f32> = (0..len.min(BAND)).map(|_| noise.float()).collect();
    let slice = band.iter().copied().cycle().take(len);
    let mut all: Vec<f32> = Vec::with_capacity(len * count);
    all.extend(slice);
    for _ in 1..count {
        all.extend_from_within(..len);
    }
    all
}

fn differs(what: &str, at: usize) -> String {
    format!("it is wrong: {what} {at} differs from the oracle")
}

fn same<T: Copy>(what: &str, got: &[T], right: &[T], bits: impl Fn(T) -> u64) -> std::result::Result<(), String> {
    match got.iter().zip(right).position(|(g, r)| bits(*g) != bits(*r)) {
        Some(at) => Err(differs(what, at)),
        None => Ok(()),
    }
}

fn same_f32(what: &str, got: &[f32], right: &[f32]) -> std::result::Result<(), String> {
    same(what, got, right, |v| v.to_bits().into())
}

/// Real values of any float type.
enum Reals {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Reals {
    fn random(dtype: DType, len: usize, count: usize) -> Self {
        // Converted once and repeated: converting all would cost more than measuring.
        fn repeat<T: Copy>(values: Vec<f32>, count: usize, to: impl Fn(f32) -> T) -> Vec<T> {
            let len = values.len();
            let mut all = Vec::with_capacity(len * count);
            all.extend(values.into_iter().map(to));
            (1..count).for_each(|_| all.extend_from_within(..len));
            all
        }
        match dtype {
            DType::F16 => Reals::F16(repeat(random(len, 1), count, f16::from_f32)),
            DType::BF16 => Reals::BF16(repeat(random(len, 1), count, bf16::from_f32)),
            _ => Reals::F32(random(len, count)),
        }
    }

    fn zeros(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::F16 => Reals::F16(vec![f16::ZERO; len]),
            DType::BF16 => Reals::BF16(vec![bf16::ZERO; len]),
            _ => Reals::F32(vec![0.0; len]),
        }
    }

    fn part(&self, at: usize, len: usize) -> Floats<'_> {
        match self {
            Reals::F32(v) => Floats::F32(&v[at..at + len]),
            Reals::F16(v) => Floats::F16(&v[at..at + len]),
            Reals::BF16(v) => Floats::BF16(&v[at..at + len]),
        }
    }

    fn part_mut(&mut self, at: usize, len: usize) -> FloatsMut<'_> {
        match self {
            Reals::F32(v) => FloatsMut::F32(&mut v[at..at + len]),
            Reals::F16(v) => FloatsMut::F16(&mut v[at..at + len]),
            Reals::BF16(v) => FloatsMut::BF16(&mut v[at..at + len]),
        }
    }
}

struct Quantize {
    shape: Shape,
    format: Format,
    w: Reals,
    turns: Turns,
    codes: Vec<u8>,
    scales: Vec<f32>,
    right: Weight,
}

impl Job for Quantize {
    fn run(&mut self, stream: &mut dyn Stream, turn: usize) -> Result<()> {
        let w = FloatIn::from(self.w.part(self.turns.start(turn), self.turns.len));
        let (codes, scales) = (Out::Host(&mut self.codes[..]), Out::Host(&mut self.scales[..]));
        stream.submit(Op::Quantize { w, shape: self.shape, format: self.format, codes, scales }.check()?)?;
        stream.synchronize()
    }
    fn spoil(&mut self) {
        self.codes.fill(0xff);
        self.scales.fill(f32::NAN);
    }
    fn check(&self) -> std::result::Result<(), String> {
        same("byte", &self.codes, self.right.codes(), u64::from)?;
        same_f32("scale", &self.scales, self.right.scales())
    }
}

struct Dequantize {
    w: Weight,
    turns: Turns,
    y: Reals,
    right: Reals,
}

impl Job for Dequantize {
    fn run(&mut self, stream: &mut dyn Stream, turn: usize) -> Result<()> {
        let y = FloatOut::from(self.y.part_mut(self.turns.start(turn), self.turns.len));
        stream.submit(Op::Dequantize { w: &self.w, y }.check()?)?;
        stream.synchronize()
    }
    fn spoil(&mut self) {
        match self.y.part_mut(0, self.turns.len) {
            FloatsMut::F32(y) => y.fill(f32::NAN),
            FloatsMut::F16(y) => y.fill(f16::NAN),
            FloatsMut::BF16(y) => y.fill(bf16::NAN),
        }
    }
    fn check(&self) -> std::result::Result<(), String> {
        let len = self.turns.len;
        match (self.y.part(0, len), self.right.part(0, len)) {
            (Floats::F32(y), Floats::F32(right)) => same_f32("value", y, right),
            (Floats::F16(y), Floats::F16(right)) => same("value", y, right, |v| v.to_bits().into()),
            (Floats::BF16(y), Floats::BF16(right)) => same("value", y, right, |v| v.to_bits().into()),
            _ => Err("it is wrong: another type".into()),
        }
    }
}

/// Activation quantization, alone or behind a norm.
struct Rows {
    x: Vec<f32>,
    norm: Option<Vec<f32>>,
    cols: usize,
    q: Vec<i8>,
    scales: Vec<f32>,
    right: (Vec<i8>, Vec<f32>),
}

impl Rows {
    fn new(count: usize, cols: usize, normed: bool) -> std::result::Result<Self, String> {
        let x = random(count * cols, 1);
        let norm = normed.then(|| random(cols, 1));
        let mut right = (vec![0; x.len()], Vec::with_capacity(count));
        let mut y = vec![0.0; cols];
        for (x, q) in x.chunks_exact(cols).zip(right.0.chunks_exact_mut(cols)) {
            match &norm {
                Some(w) => rows::rms_norm(x, w, EPS, &mut y),
                None => y.copy_from_slice(x),
            }
            right.1.push(rows::quantize(&y, q).ok_or("nothing to measure with: values that are not finite")?);
        }
        let (q, scales) = (vec![0; x.len()], vec![0.0; count]);
        Ok(Rows { x, norm, cols, q, scales, right })
    }
}

impl Job for Rows {
    fn run(&mut self, stream: &mut dyn Stream, _: usize) -> Result<()> {
        let Rows { x, norm, cols, q, scales, .. } = self;
        let (x, q, scales) = (In::Host(&x[..]), Out::Host(&mut q[..]), Out::Host(&mut scales[..]));
        let op = match norm {
            Some(w) => Op::RmsNormQuantize { x, w: In::Host(w), eps: EPS, q, scales },
            None => Op::QuantizeRows { x, cols: *cols, q, scales },
        };
        stream.submit(op.check()?)?;
        stream.synchronize()
    }
    fn spoil(&mut self) {
        self.q.fill(i8::MIN);
        self.scales.fill(f32::NAN);
    }
    fn check(&self) -> std::result::Result<(), String> {
        same("code", &self.q, &self.right.0, |v| v as u8 as u64)?;
        same_f32("scale", &self.scales, &self.right.1)
    }
}

/// Attention over a cache that is half full, as it is on average while a context fills.
struct Attention {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    q: Vec<f32>,
    positions: Vec<u32>,
    /// Keys and values of as many layers as exceed the cores' caches.
    keys: Vec<f32>,
    values: Vec<f32>,
    turns: Turns,
    y: Vec<f32>,
    /// Sampled rows, the first and the last included, and what they are.
    right: Vec<(usize, Vec<f32>)>,
}

impl Attention {
    fn new(
        (rows, capacity): (usize, usize),
        (heads, kv_heads, head_dim): (usize, usize, usize),
        cold: Cold,
        clock: Clock,
    ) -> std::result::Result<(Self, u64), String> {
        let (width, filled) = (kv_heads * head_dim, (capacity / 2).max(rows));
        // Keys are half of what is read.
        let (turns, bytes) = Turns::of(filled * width, DType::F32, Cold { bytes: cold.bytes / 2 });
        let keys = fill(turns, clock, || random(turns.len, turns.count))?;
        let values = fill(turns, clock, || random(turns.len, turns.count))?;
        let q = random(rows * heads * head_dim, 1);
        let positions: Vec<u32> = (filled - rows..filled).map(|p| p as u32).collect();
        let width_of_row = heads * head_dim;
        let mut scores = vec![0.0; filled];
        let right = spread(rows, SAMPLED_ROWS).map(|row| {
            let (q, mut y) = (&q[row * width_of_row..][..width_of_row], vec![0.0; width_of_row]);
            let seen = &mut scores[..positions[row] as usize + 1];
            for (head, (q, y)) in q.chunks_exact(head_dim).zip(y.chunks_exact_mut(head_dim)).enumerate() {
                let of = |data| HeadRows { data, stride: width, offset: head / (heads / kv_heads) * head_dim };
                attend(q, of(&keys[..turns.len]), of(&values[..turns.len]), seen, y);
            }
            (row, y)
        });
        let right = right.collect();
        let y = vec![0.0; q.len()];
        Ok((Attention { heads, kv_heads, head_dim, q, positions, keys, values, turns, y, right }, 2 * bytes))
    }
}

impl Job for Attention {
    fn run(&mut self, stream: &mut dyn Stream, turn: usize) -> Result<()> {
        let at = self.turns.start(turn);
        let op = Op::Attention {
            q: In::Host(&self.q),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            positions: In::Host(&self.positions),
            span: None,
            k_cache: In::Host(&self.keys[at..at + self.turns.len]),
            v_cache: In::Host(&self.values[at..at + self.turns.len]),
            y: Out::Host(&mut self.y),
        };
        stream.submit(op.check()?)?;
        stream.synchronize()
    }
    fn spoil(&mut self) {
        self.y.fill(f32::NAN);
    }
    fn check(&self) -> std::result::Result<(), String> {
        let width = self.heads * self.head_dim;
        self.right.iter().try_for_each(|(row, right)| same_f32("value", &self.y[row * width..][..width], right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_core::HostContext;

    const FEW: Cold = Cold { bytes: 1 << 12 };

    fn specs() -> Vec<OpSpec> {
        let shape = Shape::new(6, 512).unwrap();
        let floats = [DType::F32, DType::F16, DType::BF16];
        let ternary = Format::TERNARY.into_iter().chain(Format::GROUPED);
        let mut all: Vec<OpSpec> = ternary
            .flat_map(|format| floats.map(|from| OpSpec::Quantize { from, format, shape }))
            .chain(Format::all().flat_map(|format| floats.map(|to| OpSpec::Dequantize { format, to, shape })))
            .collect();
        for rows in [1, 4] {
            all.push(OpSpec::QuantizeRows { rows, cols: 96 });
            all.push(OpSpec::RmsNormQuantize { rows, cols: 96 });
            all.push(OpSpec::Attention { rows, heads: 4, kv_heads: 2, head_dim: 16, capacity: 16, span: None });
        }
        all
    }

    #[test]
    fn every_op_that_is_measured_passes_the_gate_on_the_scalar_backend() {
        let scalar = tersor_core::entries().find(|e| e.id == "scalar").unwrap();
        let backend = (scalar.open)(&HostContext::inline()).unwrap();
        let mut stream = backend.open_stream().unwrap();
        for spec in specs() {
            let Prepared { mut job, .. } = prepare(&spec, FEW, Clock::unlimited()).unwrap();
            job.spoil();
            assert!(job.check().is_err(), "{spec}: what is spoilt is not right");
            for turn in 0..3 {
                job.run(&mut *stream, turn).unwrap();
            }
            job.check().unwrap_or_else(|why| panic!("{spec}: {why}"));
        }
    }

    #[test]
    fn large_operands_rotate_and_exceed_what_was_asked() {
        let shape = Shape::new(4096, 2560).unwrap();
        let spec = OpSpec::Quantize { from: DType::F32, format: Format::I2S, shape };
        let prepared = prepare(&spec, Cold { bytes: 9 << 20 }, Clock::unlimited()).unwrap();
        assert!(prepared.cold_bytes >= 9 << 20 && prepared.rows < 4096, "{}", prepared.rows);
        let over = Clock::until(Instant::now() + std::time::Duration::from_micros(1));
        let Err(reason) = prepare(&spec, Cold { bytes: 1 << 40 }, over) else {
            panic!("a terabyte within a microsecond")
        };
        assert!(reason.contains("do not pay for"), "{reason}");
    }
}
