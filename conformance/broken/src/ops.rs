//! Every op but the product.

use tersor_core::codec::{self, absmean};
use tersor_core::reference::attention::{HeadRows, attend};
use tersor_core::reference::{lanes, rope, rows, sample};
use tersor_core::{Error, Floats, FloatsMut, Format, Op, Result, SampleParams, Shape, Weight};

use crate::backend::{Faults, ID};
use crate::fault::Fault;
use crate::product::{Packed, contracted_dot};

pub(crate) fn run(faults: Faults, op: Op<'_>) -> Result<()> {
    match op {
        Op::Quantize { w, shape, format, codes, scales } => {
            let (w, codes) = (w.host("weights", ID)?, codes.host("codes", ID)?);
            let scales = if scales.is_empty() { &mut [] } else { scales.host("scales", ID)? };
            quantize(faults, w, shape, format, codes, scales)
        }
        Op::Dequantize { w, y } => dequantize(w, y.host("y", ID)?),
        Op::QuantizeRows { x, cols, q, scales } => {
            let (x, q) = (x.host("x", ID)?, q.host("q", ID)?);
            quantize_rows(faults, x, cols, q, scales.host("scales", ID)?)
        }
        Op::GatherRows { table, ids, y } => {
            let (cols, y) = (table.shape().cols(), y.host("y", ID)?);
            let decoded;
            let values = match table.data::<Packed>(ID)? {
                Packed::Dense(values) => values,
                Packed::Ternary { ternary, .. } => {
                    decoded = ternary.values();
                    &decoded
                }
            };
            for (y, id) in y.chunks_mut(cols).zip(ids.host("ids", ID)?) {
                y.copy_from_slice(&values[*id as usize * cols..][..cols]);
            }
            Ok(())
        }
        Op::RmsNorm { x, w, eps, y } => {
            let (x, w, y) = (x.host("x", ID)?, w.host("w", ID)?, y.host("y", ID)?);
            x.chunks(w.len()).zip(y.chunks_mut(w.len())).for_each(|(x, y)| norm(faults, x, w, eps, y));
            Ok(())
        }
        Op::RmsNormQuantize { x, w, eps, q, scales } => {
            let (x, w) = (x.host("x", ID)?, w.host("w", ID)?);
            let mut normal = vec![0.0; x.len()];
            x.chunks(w.len()).zip(normal.chunks_mut(w.len())).for_each(|(x, y)| norm(faults, x, w, eps, y));
            quantize_rows(faults, &normal, w.len(), q.host("q", ID)?, scales.host("scales", ID)?)
        }
        Op::Rope { x, head_dim, positions, cos, sin } => {
            let (x, positions) = (x.host("x", ID)?, positions.host("positions", ID)?);
            let (cos, sin, half) = (cos.host("cos", ID)?, sin.host("sin", ID)?, head_dim / 2);
            let width = x.len() / positions.len();
            for (row, p) in x.chunks_mut(width).zip(positions) {
                let table = *p as usize * half..(*p as usize + 1) * half;
                rotate(faults, row, &cos[table.clone()], &sin[table]);
            }
            Ok(())
        }
        Op::KvWrite { k, v, width, positions, k_cache, v_cache } => {
            let positions = positions.host("positions", ID)?;
            let write = |rows: &[f32], cache: &mut [f32]| {
                for (row, p) in rows.chunks(width).zip(positions) {
                    cache[*p as usize * width..][..width].copy_from_slice(row);
                }
            };
            write(k.host("k", ID)?, k_cache.host("k_cache", ID)?);
            write(v.host("v", ID)?, v_cache.host("v_cache", ID)?);
            Ok(())
        }
        Op::Attention { q, heads, kv_heads, head_dim, positions, span, k_cache, v_cache, y } => {
            let (q, y, positions) = (q.host("q", ID)?, y.host("y", ID)?, positions.host("positions", ID)?);
            let (k_cache, v_cache) = (k_cache.host("k_cache", ID)?, v_cache.host("v_cache", ID)?);
            let first = span.map(|s| s.first.host("first rows", ID)).transpose()?;
            let first = first.filter(|_| !faults.has(Fault::SpansIgnored));
            let all = q.chunks(head_dim).zip(y.chunks_mut(head_dim)).enumerate();
            for (i, (q, y)) in all {
                let (p, head) = (positions[i / heads] as usize, i % heads);
                let kv = if faults.has(Fault::HeadsInterleaved) { head % kv_heads } else { head / (heads / kv_heads) };
                let (first, stride) = (first.map_or(0, |first| first[i / heads] as usize), kv_heads * head_dim);
                let rows = |data| HeadRows { data, stride, offset: kv * head_dim };
                let seen = p + 1 - first;
                let seen = if faults.has(Fault::AttentionOffByOne) { (seen - 1).max(1) } else { seen };
                let mut scores = vec![0.0; seen];
                let (keys, values) = (&k_cache[first * stride..], &v_cache[first * stride..]);
                attend(q, rows(keys), rows(values), &mut scores, y);
                if faults.has(Fault::AttentionWithoutChunks) {
                    // The scores are the e_j now.
                    let total = lanes::sum(&scores, |e| e);
                    for (i, y) in y.iter_mut().enumerate() {
                        let v = |j: usize| v_cache[((first + j) * kv_heads + kv) * head_dim + i];
                        *y = scores.iter().enumerate().map(|(j, e)| e * v(j)).sum::<f32>() / total;
                    }
                }
            }
            Ok(())
        }
        Op::ReluSquaredMul { gate, up, y } => {
            rows::relu_squared_mul(gate.host("gate", ID)?, up.host("up", ID)?, y.host("y", ID)?);
            Ok(())
        }
        Op::Add { x, y } => {
            let flush = |v: f32| if faults.has(Fault::FlushesDenormals) && !v.is_normal() { 0.0 } else { v };
            y.host("y", ID)?.iter_mut().zip(x.host("x", ID)?).for_each(|(y, x)| *y = flush(*y + x));
            Ok(())
        }
        Op::Copy { x, y } => {
            assert!(!faults.has(Fault::Panics), "planted");
            y.host("y", ID)?.copy_from_slice(x.host("x", ID)?);
            Ok(())
        }
        Op::Sample { logits, params, steps, ids } => {
            let (logits, ids, steps) = (logits.host("logits", ID)?, ids.host("ids", ID)?, steps.host("steps", ID)?);
            let vocab = logits.len() / ids.len();
            for (r, (id, step)) in ids.iter_mut().zip(steps).enumerate() {
                *id = draw(faults, &logits[r * vocab..(r + 1) * vocab], &params, *step).ok_or_else(|| {
                    let index = logits.iter().position(|l| l.is_nan()).unwrap_or(r * vocab);
                    Error::NotFinite { what: "logits", index, value: f32::NAN }
                })?;
            }
            Ok(())
        }
        other => Err(Error::Unsupported { backend: ID.into(), op: format!("{other:?}"), reason: "it is new".into() }),
    }
}

fn quantize(
    faults: Faults,
    w: Floats<'_>,
    shape: Shape,
    format: Format,
    codes: &mut [u8],
    scales: &mut [f32],
) -> Result<()> {
    let values = w.to_f32();
    if faults.has(Fault::WeightTiesAway) && scales.is_empty() {
        // A tie moved to the next number away from zero rounds away from it. The scale hardly ever notices.
        let half = 0.5 * absmean::scale_of(w)?;
        let away = |v: &f32| if v.abs() == half { f32::from_bits(v.to_bits() + 1) } else { *v };
        let moved: Vec<f32> = values.iter().map(away).collect();
        return codec::quantize_into(Floats::F32(&moved), shape, format, codes, scales);
    }
    codec::quantize_into(w, shape, format, codes, scales).map_err(|e| match e {
        Error::NotFinite { what, index, value } if faults.has(Fault::NanIndexInRow) => {
            Error::NotFinite { what, index: index % shape.cols(), value }
        }
        e => e,
    })?;
    let tail = matches!(format, Format::I2S | Format::TL1 | Format::TL2).then(|| codes.len() - 32);
    if let Some(tail) = tail {
        if faults.has(Fault::GarbageInTail) {
            codes[tail + 4..].fill(0xaa);
        }
        if faults.has(Fault::MeanWithoutChunks) {
            let mean = lanes::sum(&values, f32::abs) / values.len() as f32;
            codes[tail..tail + 4].copy_from_slice(&mean.max(1e-5).to_le_bytes());
        }
        if faults.has(Fault::I2sBlock64) && format == Format::I2S {
            let decoded = codec::decode(&Weight::new(format, shape, codes.to_vec(), Vec::new())?)?;
            for (block, out) in decoded.codes.chunks(64).zip(codes.chunks_mut(16)) {
                let bits = |i: usize| (block[i] + 1) as u8;
                for (p, byte) in out.iter_mut().enumerate() {
                    *byte = bits(p) << 6 | bits(p + 16) << 4 | bits(p + 32) << 2 | bits(p + 48);
                }
            }
        }
    }
    Ok(())
}

fn dequantize(w: &Weight, y: FloatsMut<'_>) -> Result<()> {
    codec::dequantize_into(w, y)
}

fn quantize_rows(faults: Faults, x: &[f32], cols: usize, q: &mut [i8], scales: &mut [f32]) -> Result<()> {
    for (r, ((x, q), s)) in x.chunks(cols).zip(q.chunks_mut(cols)).zip(scales).enumerate() {
        let zeroed: Vec<f32> = x.iter().map(|v| if v.is_finite() { *v } else { 0.0 }).collect();
        let x = if faults.has(Fault::NanBecomesZero) { &zeroed } else { x };
        *s = rows::quantize(x, q).ok_or_else(|| {
            let at = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
            Error::NotFinite { what: "activations", index: r * cols + at, value: x[at] }
        })?;
        if faults.has(Fault::AbsmaxWithoutLast) && cols > 1 {
            *s = rows::quantize(&x[..cols - 1], &mut q[..cols - 1]).unwrap_or(*s);
            q[cols - 1] = (x[cols - 1] * *s).round_ties_even() as i8;
        }
        if faults.has(Fault::ActivationsRoundAway) {
            q.iter_mut().zip(x).for_each(|(q, v)| *q = (v * *s).round() as i8);
        }
    }
    Ok(())
}

fn norm(faults: Faults, x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let squares = if faults.has(Fault::ContractedFma) {
        contracted_dot(x, x)
    } else if faults.has(Fault::HalfTheLanes) {
        let mut sums = [0.0f32; lanes::LANES];
        x.iter().enumerate().for_each(|(i, v)| sums[i % 32] += v * v);
        lanes::fold(&mut sums)
    } else if faults.has(Fault::SequentialSum) {
        x.iter().map(|v| v * v).sum()
    } else {
        return rows::rms_norm(x, w, eps, y);
    };
    let r = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    y.iter_mut().zip(x).zip(w).for_each(|((y, x), w)| *y = (x * r) * w);
}

fn rotate(faults: Faults, row: &mut [f32], cos: &[f32], sin: &[f32]) {
    if !faults.has(Fault::RopeInterleaved) {
        return rope::rotate(row, cos, sin);
    }
    for head in row.chunks_exact_mut(2 * cos.len()) {
        for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
        }
    }
}

fn draw(faults: Faults, logits: &[f32], params: &SampleParams, step: u32) -> Option<u32> {
    if faults.has(Fault::LastOfEquals) && params.temperature == 0.0 {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        return logits.iter().rposition(|l| *l == largest).map(|i| i as u32);
    }
    sample::sample(logits, params, u64::from(step))
}
