//! Many operations in a row, for comparing backends with each other.
//!
//! The case list judges operations one at a time. Here a small transformer runs: what one operation writes the next one
//! reads, in the backend's memory, through prefill and decoding. Every stage is recorded, so that two backends that part
//! do it at a named stage. There is no oracle; two traces are equal or they are not.

use tersor_core::{
    Activations, Epilogue, Format, GroupSize, Op, Output, PackedWeight, QuantBackend, SampleParams, Shape, Weight,
};

use crate::ledger::Ledger;
use crate::reals::Reals;
use crate::report::Outcome;
use crate::rig::{Operand, Rig, Stop};
use crate::rng::Rng;

/// The bits of each stage, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    stages: Vec<(String, Vec<u32>)>,
}

impl Trace {
    /// Names of the stages.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().map(|(name, _)| name.as_str())
    }

    /// Where the other trace first differs: stage and element.
    pub fn first_difference(&self, other: &Trace) -> Option<String> {
        for ((name, a), (other_name, b)) in self.stages.iter().zip(&other.stages) {
            if name != other_name || a.len() != b.len() {
                return Some(format!("stage {name} ({}) against stage {other_name} ({})", a.len(), b.len()));
            }
            if let Some(i) = (0..a.len()).find(|i| a[*i] != b[*i]) {
                return Some(format!("stage {name}, element {i}: {:#010x} against {:#010x}", a[i], b[i]));
            }
        }
        (self.stages.len() != other.stages.len())
            .then(|| format!("{} stages against {}", self.stages.len(), other.stages.len()))
    }
}

const HIDDEN: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const FFN: usize = 768;
const VOCAB: usize = 301;
const CAPACITY: usize = 80;
/// Long enough for a second chunk of 64 positions.
const PROMPT: usize = 67;

struct Layer {
    norm: Operand<f32>,
    /// q, k, v, o, gate, up, down: each in another format.
    weights: [PackedWeight; 7],
    k_cache: Operand<f32>,
    v_cache: Operand<f32>,
}

struct Machine<'r, 'b> {
    rig: &'r mut Rig<'b>,
    trace: Trace,
}

/// Runs the transformer. `Err` tells what the backend does not support, or what failed.
pub fn transformer(backend: &dyn QuantBackend, seed: u64) -> Result<Trace, Outcome> {
    let mut ledger = Ledger::default();
    let mut run = || {
        let mut rig = Rig::new(backend, &mut ledger, Rng::new(seed, "pipeline"))?;
        let mut machine = Machine { rig: &mut rig, trace: Trace::default() };
        machine.run()?;
        Ok(machine.trace)
    };
    run().map_err(|stop| match stop {
        Stop::Failed(message) => Outcome::Failed { message },
        Stop::NotSupported(reason) => Outcome::NotSupported { reason },
    })
}

impl Machine<'_, '_> {
    fn record(&mut self, name: &str, operand: &Operand<f32>) -> Result<(), Stop> {
        let bits = self.rig.read(operand)?.into_iter().map(f32::to_bits).collect();
        self.trace.stages.push((name.to_owned(), bits));
        Ok(())
    }

    /// Quantizes and packs a random weight, all on the backend.
    fn weight(&mut self, format: Format, n: usize, k: usize) -> Result<PackedWeight, Stop> {
        let shape = Shape::new(n, k)?;
        let len = format.encoded_len(shape)?;
        let w: Vec<f32> = self.rig.rng.gaussians(shape.len()).into_iter().map(|v| v * 0.03).collect();
        let w = self.rig.hold(&w)?;
        let (mut codes, mut scales) = (self.rig.blank(len.bytes)?, self.rig.blank(len.scales)?);
        let w = tersor_core::FloatIn::F32(w.input());
        self.rig.submit(Op::Quantize { w, shape, format, codes: codes.output(), scales: scales.output() })?;
        let (codes, scales) = (self.rig.read(&codes)?, self.rig.read(&scales)?);
        let bits = codes.iter().map(|c| u32::from(*c)).chain(scales.iter().map(|s| s.to_bits())).collect();
        self.trace.stages.push((format!("quantize {format} {shape}"), bits));
        self.rig.pack(Weight::new(format, shape, codes, scales)?)
    }

    fn layer(&mut self) -> Result<Layer, Stop> {
        let kv = KV_HEADS * DIM;
        let weights = [
            self.weight(Format::I2S, HIDDEN, HIDDEN)?,
            self.weight(Format::TL1, kv, HIDDEN)?,
            self.weight(Format::TL2, kv, HIDDEN)?,
            self.weight(Format::TQ1_0, HIDDEN, HIDDEN)?,
            self.weight(Format::TQ2_0, FFN, HIDDEN)?,
            self.weight(Format::I2SGroup(GroupSize::G64), FFN, HIDDEN)?,
            self.weight(Format::I2SGroup(GroupSize::G256), HIDDEN, FFN)?,
        ];
        let norm: Vec<f32> = (0..HIDDEN).map(|_| 0.5 + self.rig.rng.unit()).collect();
        let cache = vec![0.0; CAPACITY * kv];
        Ok(Layer {
            norm: self.rig.hold(&norm)?,
            weights,
            k_cache: self.rig.hold(&cache)?,
            v_cache: self.rig.hold(&cache)?,
        })
    }

    /// `y = x * w^T`, or added to `y`, with x quantized to int8 first.
    fn product(
        &mut self,
        w: &PackedWeight,
        x: (&Operand<i8>, &Operand<f32>),
        y: &mut Operand<f32>,
        epilogue: Epilogue,
    ) -> Result<(), Stop> {
        let x = Activations::Int8 { q: x.0.input(), scales: x.1.input() };
        self.rig.enqueue(Op::MatMul { w, x, y: Output::F32(y.output()), epilogue }).map(drop)
    }

    fn normalized(
        &mut self,
        x: &Operand<f32>,
        w: &Operand<f32>,
        rows: usize,
    ) -> Result<(Operand<i8>, Operand<f32>), Stop> {
        let (mut q, mut scales) = (self.rig.blank(rows * HIDDEN)?, self.rig.blank(rows)?);
        let op = Op::RmsNormQuantize { x: x.input(), w: w.input(), eps: 1e-5, q: q.output(), scales: scales.output() };
        self.rig.enqueue(op)?;
        Ok((q, scales))
    }

    fn quantized(&mut self, x: &Operand<f32>, rows: usize, cols: usize) -> Result<(Operand<i8>, Operand<f32>), Stop> {
        let (mut q, mut scales) = (self.rig.blank(rows * cols)?, self.rig.blank(rows)?);
        self.rig.enqueue(Op::QuantizeRows { x: x.input(), cols, q: q.output(), scales: scales.output() })?;
        Ok((q, scales))
    }

    fn run(&mut self) -> Result<(), Stop> {
        let mut layers = [self.layer()?, self.layer()?];
        let table: Vec<f32> = self.rig.rng.gaussians(VOCAB * HIDDEN);
        let table = Weight::dense(
            Format::BF16,
            Shape::new(VOCAB, HIDDEN)?,
            Reals::new(tersor_core::DType::BF16, &table).bytes(),
        )?;
        let table = self.rig.pack(table)?;
        let (cos, sin) = tersor_core::reference::math::rope_tables(10_000.0, DIM, CAPACITY);
        let (cos, sin) = (self.rig.hold(&cos)?, self.rig.hold(&sin)?);
        let mut ids: Vec<u32> = (0..PROMPT).map(|_| self.rig.rng.below(VOCAB) as u32).collect();
        let mut start = 0;
        for step in 0..6 {
            let rows = ids.len();
            let positions: Vec<u32> = (start..start + rows).map(|p| p as u32).collect();
            let positions = self.rig.hold(&positions)?;
            let held_ids = self.rig.hold(&ids)?;
            let mut x = self.rig.blank(rows * HIDDEN)?;
            self.rig.enqueue(Op::GatherRows { table: &table, ids: held_ids.input(), y: x.output() })?;
            for (l, layer) in layers.iter_mut().enumerate() {
                self.attention(layer, &mut x, rows, (&positions, &cos, &sin))?;
                self.record(&format!("step {step}, layer {l}, attention"), &x)?;
                self.feed_forward(layer, &mut x, rows)?;
                self.record(&format!("step {step}, layer {l}, feed-forward"), &x)?;
            }
            ids = self.next(&table, &x, &layers[0].norm, (rows, start, step))?;
            start += rows;
        }
        Ok(())
    }

    fn attention(
        &mut self,
        layer: &mut Layer,
        x: &mut Operand<f32>,
        rows: usize,
        (positions, cos, sin): (&Operand<u32>, &Operand<f32>, &Operand<f32>),
    ) -> Result<(), Stop> {
        let kv = KV_HEADS * DIM;
        let (n, scales) = self.normalized(x, &layer.norm, rows)?;
        let mut qkv = [HIDDEN, kv, kv].map(|width| self.rig.blank::<f32>(rows * width));
        let [Ok(q), Ok(k), Ok(v)] = &mut qkv else { return Err(Stop::Failed("no memory for q, k and v".into())) };
        for (w, y) in layer.weights.iter().zip([&mut *q, &mut *k, &mut *v]) {
            self.product(w, (&n, &scales), y, Epilogue::Store)?;
        }
        for x in [&mut *q, &mut *k] {
            let (positions, cos, sin) = (positions.input(), cos.input(), sin.input());
            self.rig.enqueue(Op::Rope { x: x.output(), head_dim: DIM, positions, cos, sin })?;
        }
        self.rig.enqueue(Op::KvWrite {
            k: k.input(),
            v: v.input(),
            width: kv,
            positions: positions.input(),
            k_cache: layer.k_cache.output(),
            v_cache: layer.v_cache.output(),
        })?;
        let mut y = self.rig.blank(rows * HIDDEN)?;
        self.rig.enqueue(Op::Attention {
            q: q.input(),
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: DIM,
            positions: positions.input(),
            span: None,
            k_cache: layer.k_cache.input(),
            v_cache: layer.v_cache.input(),
            y: y.output(),
        })?;
        let (n, scales) = self.normalized(&y, &layer.norm, rows)?;
        self.product(&layer.weights[3], (&n, &scales), x, Epilogue::Add)
    }

    fn feed_forward(&mut self, layer: &Layer, x: &mut Operand<f32>, rows: usize) -> Result<(), Stop> {
        let (n, scales) = self.normalized(x, &layer.norm, rows)?;
        let (mut gate, mut up) = (self.rig.blank(rows * FFN)?, self.rig.blank(rows * FFN)?);
        self.product(&layer.weights[4], (&n, &scales), &mut gate, Epilogue::Store)?;
        self.product(&layer.weights[5], (&n, &scales), &mut up, Epilogue::Store)?;
        let mut y = self.rig.blank(rows * FFN)?;
        self.rig.enqueue(Op::ReluSquaredMul { gate: gate.input(), up: up.input(), y: y.output() })?;
        let (n, scales) = self.quantized(&y, rows, FFN)?;
        let mut down = self.rig.blank(rows * HIDDEN)?;
        self.product(&layer.weights[6], (&n, &scales), &mut down, Epilogue::Store)?;
        self.rig.enqueue(Op::Add { x: down.input(), y: x.output() }).map(drop)
    }

    /// Logits of every row, and the token drawn from the last.
    fn next(
        &mut self,
        head: &PackedWeight,
        x: &Operand<f32>,
        norm: &Operand<f32>,
        (rows, start, step): (usize, usize, usize),
    ) -> Result<Vec<u32>, Stop> {
        let mut n = self.rig.blank(rows * HIDDEN)?;
        self.rig.enqueue(Op::RmsNorm { x: x.input(), w: norm.input(), eps: 1e-5, y: n.output() })?;
        let mut logits = self.rig.blank(rows * VOCAB)?;
        let y = Output::F32(logits.output());
        self.rig.enqueue(Op::MatMul { w: head, x: Activations::F32(n.input()), y, epilogue: Epilogue::Store })?;
        self.record(&format!("step {step}, logits"), &logits)?;
        let steps: Vec<u32> = (start..start + rows).map(|p| p as u32).collect();
        let steps = self.rig.hold(&steps)?;
        let mut drawn = self.rig.blank(rows)?;
        let params = SampleParams { temperature: 0.8, top_k: Some(40), seed: 5 };
        self.rig.submit(Op::Sample { logits: logits.input(), params, steps: steps.input(), ids: drawn.output() })?;
        let drawn = self.rig.read(&drawn)?;
        self.trace.stages.push((format!("step {step}, tokens"), drawn.clone()));
        Ok(drawn[rows - 1..].to_vec())
    }
}
