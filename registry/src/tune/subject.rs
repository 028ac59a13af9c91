//! What a measurement runs on: a random weight, activations, and the oracle's answer.

use tersor_core::reference::matmul::{dense, scaled, scaled_blocks, ternary};
use tersor_core::{
    Activations, Bytes, DType, Epilogue, Floats, Format, In, Op, Out, Output, PackedWeight, Result, Shape, Stream,
    Ternary, Weight, bf16, codec, f16,
};

use super::key::{Product, WeightClass};

/// Rows of a weight that are made at random; longer weights repeat them. No kernel's speed depends on the values, and
/// making all of a large weight would cost more than measuring it.
const BAND: usize = 64;
/// Weight rows whose products are compared with the oracle.
const SAMPLED_ROWS: usize = 16;
/// Activation rows, likewise.
const SAMPLED_M: usize = 3;
/// What an output holds before a product is added to it.
const RESIDUAL: f32 = 1.25;

/// A weight of random values and what is known of it.
#[derive(Debug)]
pub(super) struct Subject {
    /// In canonical bytes.
    pub(super) weight: Weight,
    band: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    scale_block: usize,
    floats: Vec<f32>,
}

/// Numbers that look random and are the same in every process (SplitMix64).
pub(super) struct Noise(pub(super) u64);

impl Noise {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    pub(super) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

impl Subject {
    /// A weight of this class with `rows` rows.
    pub(super) fn new(class: WeightClass, rows: usize) -> Result<Self> {
        match class.format {
            f if f.is_ternary() => Self::ternary(class, rows),
            f if f.is_block() => Self::blocks(class, rows),
            _ => Self::dense(class, rows),
        }
    }

    fn ternary(class: WeightClass, rows: usize) -> Result<Self> {
        let WeightClass { format, scale_block, k, .. } = class;
        // Blocks of the group forms run over the flattened tensor, so that rows repeat only where they are whole blocks.
        let repeats = k.is_multiple_of(128) && format.scale_block().is_none_or(|b| k.is_multiple_of(b));
        let band = if repeats { rows.min(BAND) } else { rows };
        let mut noise = Noise(k as u64);
        let codes: Vec<i8> = (0..band * k).map(|_| (noise.next() % 3) as i8 - 1).collect();
        let block = format.scale_block().unwrap_or(band * k);
        // Powers of two, which every format stores exactly.
        let scale = |b: usize| if scale_block.is_some() && b % 2 == 1 { 0.25 } else { 0.5 };
        let scales: Vec<f32> = (0..(band * k).div_ceil(block)).map(scale).collect();
        let shape = Shape::new(band, k)?;
        let values = Ternary { shape, codes, block, scales };
        let encoded = codec::encode(&values, format)?;
        let weight = if band == rows { encoded } else { repeat(&encoded, rows)? };
        Ok(Subject { weight, band, codes: values.codes, scales: values.scales, scale_block: block, floats: Vec::new() })
    }

    fn blocks(class: WeightClass, rows: usize) -> Result<Self> {
        let WeightClass { format, k, .. } = class;
        let band = rows.min(BAND);
        let (shape, block) = (Shape::new(band, k)?, format.scale_block().unwrap_or(k));
        let mut noise = Noise(k as u64);
        let values: Vec<f32> = (0..shape.len()).map(|_| noise.float()).collect();
        let encoded = codec::blocks::quantize(Floats::F32(&values), shape, format)?;
        let (mut codes, mut scales) = (vec![0; shape.len()], vec![0.0; shape.len() / block]);
        let all = codes.chunks_exact_mut(k).zip(scales.chunks_exact_mut(k / block));
        for (row, (codes, scales)) in encoded.codes().chunks_exact(codec::rows_of(format, shape).bytes).zip(all) {
            codec::blocks::decode_row(format, row, codes, scales);
        }
        let weight = if band == rows { encoded } else { repeat(&encoded, rows)? };
        Ok(Subject { weight, band, codes, scales, scale_block: block, floats: Vec::new() })
    }

    fn dense(class: WeightClass, rows: usize) -> Result<Self> {
        let WeightClass { format, k, .. } = class;
        let band = rows.min(BAND);
        let mut noise = Noise(k as u64);
        let values: Vec<f32> = (0..band * k).map(|_| noise.float()).collect();
        let bytes: Vec<u8> = match format {
            Format::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Format::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let mut floats = vec![0.0; band * k];
        codec::dense_row(format, &bytes, &mut floats);
        let encoded = Weight::dense(format, Shape::new(band, k)?, bytes)?;
        let weight = if band == rows { encoded } else { repeat(&encoded, rows)? };
        Ok(Subject { weight, band, codes: Vec::new(), scales: Vec::new(), scale_block: 1, floats })
    }

    /// The same weight in memory of its own.
    pub(super) fn copy(&self) -> Result<Weight> {
        let w = &self.weight;
        Weight::new(w.format(), w.shape(), Bytes::copy_from_slice(w.codes()), w.scales())
    }

    fn k(&self) -> usize {
        self.weight.shape().cols()
    }

    /// What the definition says that row `r` times a row of activations is.
    fn expected(&self, r: usize, x: &Operands, i: usize) -> Expected {
        let (k, r) = (self.k(), r % self.band);
        if !self.floats.is_empty() {
            return Expected::F32(dense(&self.floats[r * k..][..k], &x.floats[i * k..][..k]));
        }
        let (codes, q) = (&self.codes[r * k..][..k], &x.q[i * k..][..k]);
        if x.key.output == DType::I32 {
            return Expected::I32(ternary(codes, q));
        }
        if x.key.weight.scale_block.is_none() {
            return Expected::F32(scaled(ternary(codes, q), self.scales[0], x.scales[i]));
        }
        let block = self.scale_block;
        let scales = &self.scales[r * k / block..];
        let blocks = codes.chunks(block).zip(q.chunks(block)).zip(scales).map(|((c, q), s)| (ternary(c, q), *s));
        Expected::F32(scaled_blocks(blocks, x.scales[i]))
    }
}

/// The band's bytes again and again, then the band's tail.
fn repeat(band: &Weight, rows: usize) -> Result<Weight> {
    let (format, shape) = (band.format(), Shape::new(rows, band.shape().cols())?);
    let len = format.encoded_len(shape)?;
    let tail = format.encoded_len(band.shape())?.bytes - codec::rows_of(format, band.shape()).bytes_of_all();
    let (body, tail) = band.codes().split_at(band.codes().len() - tail);
    let mut bytes: Vec<u8> = body.iter().copied().cycle().take(len.bytes - tail.len()).collect();
    bytes.extend_from_slice(tail);
    let scales: Vec<f32> = band.scales().iter().copied().cycle().take(len.scales).collect();
    Weight::new(format, shape, bytes, scales)
}

/// Bytes of the rows of a layout, without its tail.
trait AllRows {
    fn bytes_of_all(&self) -> usize;
}

impl AllRows for codec::Rows {
    fn bytes_of_all(&self) -> usize {
        self.count * self.bytes
    }
}

enum Expected {
    F32(f32),
    I32(i32),
}

/// Activations for a key, and a place for the results.
#[derive(Debug)]
pub(super) struct Operands {
    key: Product,
    n: usize,
    m: usize,
    q: Vec<i8>,
    scales: Vec<f32>,
    floats: Vec<f32>,
    y: Vec<f32>,
    sums: Vec<i32>,
}

impl Operands {
    /// For products of `key` with a weight of `n` rows.
    pub(super) fn new(key: Product, n: usize) -> Self {
        let (m, k) = (key.rows.upper(), key.weight.k);
        let mut noise = Noise(m as u64);
        let int8 = key.activations == DType::I8;
        let q = if int8 { (0..m * k).map(|_| (noise.next() % 255) as u8 as i8).collect() } else { Vec::new() };
        let scales = if int8 { (0..m).map(|i| 2.0 + i as f32).collect() } else { Vec::new() };
        let floats = if int8 { Vec::new() } else { (0..m * k).map(|_| noise.float()).collect() };
        let (y, sums) = if key.output == DType::I32 { (0, m * n) } else { (m * n, 0) };
        Operands { key, n, m, q, scales, floats, y: vec![0.0; y], sums: vec![0; sums] }
    }

    /// The product.
    pub(super) fn run(&mut self, stream: &mut dyn Stream, w: &PackedWeight) -> Result<()> {
        let x = match self.key.activations {
            DType::I8 => Activations::Int8 { q: In::Host(&self.q), scales: In::Host(&self.scales) },
            _ => Activations::F32(In::Host(&self.floats)),
        };
        let y = match self.key.output {
            DType::I32 => Output::I32(Out::Host(&mut self.sums)),
            _ => Output::F32(Out::Host(&mut self.y)),
        };
        stream.submit(Op::MatMul { w, x, y, epilogue: self.key.epilogue }.check()?)?;
        stream.synchronize()
    }

    /// The product, compared with the oracle bit for bit, on rows that include the first and the last of both operands.
    /// Says what is wrong.
    pub(super) fn gate(&mut self, stream: &mut dyn Stream, w: &PackedWeight, subject: &Subject) -> Result<(), String> {
        let adds = self.key.epilogue == Epilogue::Add;
        self.y.fill(if adds { RESIDUAL } else { f32::NAN });
        self.sums.fill(if adds { 1 } else { i32::MIN });
        self.run(stream, w).map_err(|e| format!("it failed: {e}"))?;
        for r in spread(self.n, SAMPLED_ROWS) {
            for i in spread(self.m, SAMPLED_M) {
                let at = i * self.n + r;
                let (got, right) = match subject.expected(r, self, i) {
                    Expected::I32(v) => (i64::from(self.sums[at]), i64::from(if adds { v + 1 } else { v })),
                    Expected::F32(v) => {
                        let right = if adds { RESIDUAL + v } else { v };
                        (i64::from(self.y[at].to_bits()), i64::from(right.to_bits()))
                    }
                };
                if got != right {
                    let at = format!("weight row {r}, activation row {i}");
                    return Err(format!("it is wrong: {at} differs from the oracle ({got:#x}, not {right:#x})"));
                }
            }
        }
        self.y.fill(0.0);
        Ok(())
    }
}

/// Up to `count` numbers below `len`, evenly spread, the first and the last included.
pub(super) fn spread(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len).max(1);
    (0..count).map(move |i| if count == 1 { 0 } else { i * (len - 1) / (count - 1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor_core::{HostContext, OpSpec};

    #[test]
    fn every_format_and_bucket_passes_the_gate_on_the_scalar_backend() {
        let scalar = tersor_core::entries().find(|e| e.id == "scalar").unwrap();
        let backend = (scalar.open)(&HostContext::inline()).unwrap();
        let mut stream = backend.open_stream().unwrap();
        let supported = |f: &Format| backend.supports(&OpSpec::matmul(*f, 1, 5, 512)).is_yes();
        for format in Format::all().filter(supported) {
            for (rows, blocks) in [(5, false), (200, false), (5, true), (130, true)] {
                let scale_block = format.scale_block().filter(|_| blocks || format.is_block());
                for m in [1, 5] {
                    let OpSpec::MatMul { activations, output, .. } = OpSpec::matmul(format, m, rows, 512) else {
                        unreachable!()
                    };
                    let weight = WeightClass { format, scale_block, n: rows, k: 512 };
                    let rows_of = super::super::key::RowBucket::of(m);
                    for epilogue in [Epilogue::Store, Epilogue::Add] {
                        let key = Product { weight, rows: rows_of, activations, output, epilogue, threads: 1 };
                        let subject = Subject::new(weight, rows).unwrap();
                        let packed = backend.pack(&subject.copy().unwrap()).unwrap();
                        assert_eq!(packed.scale_block(), scale_block, "{key}");
                        Operands::new(key, rows).gate(&mut *stream, &packed, &subject).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn sampled_rows_include_both_ends() {
        assert_eq!(spread(100, 3).collect::<Vec<_>>(), [0, 49, 99]);
        assert_eq!(spread(2, 16).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(spread(1, 16).collect::<Vec<_>>(), [0]);
    }
}
