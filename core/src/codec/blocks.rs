//! ggml's `q8_0` and `q6_k` (ggml-common.h, `block_q8_0` and `block_q6_K`), the formats of embeddings and heads: integer
//! codes, and a scale for each block of 32 or 16 of them.
//!
//! `q8_0`, 34 bytes for 32 values: the f16 scale d, then 32 int8 codes.
//!
//! `q6_k`, 210 bytes for 256 values: `ql[128]`, `qh[64]`, 16 int8 scales, the f16 d. Value e lies in the half `h = e / 128`
//! and its quarter `t = e % 128 / 32`. The low four bits of its code are the nibble `t / 2` of byte `64 h + 32 (t % 2) + e % 32`
//! of `ql`; the high two are bits `2 t`, `2 t + 1` of byte `32 h + e % 32` of `qh`. The code is stored with 32 added.

use half::f16;

use super::{check_lengths, non_finite, rows_of};
use crate::{Error, Floats, Format, Result, Shape, Weight};

/// Values of a `q8_0` block.
pub const Q8_VALUES: usize = 32;
/// Bytes of a `q8_0` block.
pub const Q8_BYTES: usize = 34;
/// Values of a `q6_k` superblock.
pub const Q6_VALUES: usize = 256;
/// Bytes of a `q6_k` superblock.
pub const Q6_BYTES: usize = 210;
/// Values of a `q6_k` block, which share a scale.
pub const Q6_BLOCK: usize = 16;

/// Where a superblock's int8 scales begin.
const Q6_SCALES: usize = 192;
/// Where its f16 scale is.
const Q6_D: usize = 208;

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Reads a row of `format`: its codes, and the scale of each block of [`Format::scale_block`] codes. A weight is
/// `f32(code) * scale`. Does nothing for formats other than `q8_0` and `q6_k`.
#[inline(always)]
pub fn decode_row(format: Format, row: &[u8], codes: &mut [i8], scales: &mut [f32]) {
    match format {
        Format::Q8_0 => {
            for ((codes, scale), block) in codes.chunks_exact_mut(Q8_VALUES).zip(scales).zip(row.chunks_exact(Q8_BYTES))
            {
                *scale = half_at(block, 0);
                codes.iter_mut().zip(&block[2..]).for_each(|(c, b)| *c = *b as i8);
            }
        }
        Format::Q6K => {
            let blocks = codes.chunks_exact_mut(Q6_VALUES).zip(scales.chunks_exact_mut(Q6_VALUES / Q6_BLOCK));
            for ((codes, scales), block) in blocks.zip(row.chunks_exact(Q6_BYTES)) {
                q6_codes(block, codes);
                q6_scales(block, scales);
            }
        }
        _ => {}
    }
}

/// The 256 codes of a superblock.
#[inline(always)]
fn q6_codes(block: &[u8], codes: &mut [i8]) {
    for (h, codes) in codes.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&block[64 * h..][..64], &block[128 + 32 * h..][..32]);
        for (t, codes) in codes.chunks_exact_mut(32).enumerate() {
            let low = &low[t % 2 * 32..][..32];
            for ((c, l), h) in codes.iter_mut().zip(low).zip(high) {
                *c = ((l >> (t / 2 * 4) & 15) | (h >> (2 * t) & 3) << 4) as i8 - 32;
            }
        }
    }
}

/// The scales of the 16 blocks of a superblock. The product has at most 19 significant bits, so it is exact.
#[inline(always)]
fn q6_scales(block: &[u8], scales: &mut [f32]) {
    let d = half_at(block, Q6_D);
    scales.iter_mut().zip(&block[Q6_SCALES..Q6_D]).for_each(|(s, b)| *s = d * f32::from(*b as i8));
}

#[inline(always)]
pub(super) fn dequantize_q8_0(bytes: &[u8], out: &mut [f32]) {
    for (out, block) in out.chunks_mut(Q8_VALUES).zip(bytes.chunks_exact(Q8_BYTES)) {
        let d = half_at(block, 0);
        out.iter_mut().zip(&block[2..]).for_each(|(o, b)| *o = f32::from(*b as i8) * d);
    }
}

#[inline(always)]
pub(super) fn dequantize_q6_k(bytes: &[u8], out: &mut [f32]) {
    let (mut codes, mut scales) = ([0; Q6_VALUES], [0.0; Q6_VALUES / Q6_BLOCK]);
    for (out, block) in out.chunks_mut(Q6_VALUES).zip(bytes.chunks_exact(Q6_BYTES)) {
        q6_codes(block, &mut codes);
        q6_scales(block, &mut scales);
        for ((out, codes), s) in out.chunks_mut(Q6_BLOCK).zip(codes.chunks_exact(Q6_BLOCK)).zip(scales) {
            out.iter_mut().zip(codes).for_each(|(o, c)| *o = f32::from(*c) * s);
        }
    }
}

/// The first f16 scale of a tensor that is NaN or infinite: its number among them, and its value.
pub(super) fn find_invalid_scale(format: Format, bytes: &[u8]) -> Option<(usize, f32)> {
    let (block, at) = match format {
        Format::Q8_0 => (Q8_BYTES, 0),
        Format::Q6K => (Q6_BYTES, Q6_D),
        _ => return None,
    };
    bytes.chunks_exact(block).map(|b| half_at(b, at)).enumerate().find(|(_, d)| !d.is_finite())
}

/// Quantizes real weights to `q8_0` or `q6_k`; see [`quantize_row`].
///
/// # Errors
/// Another format, a length that is not the shape's, a NaN or infinity (named by index), a row length that the format
/// cannot hold, a scale that overflows f16.
pub fn quantize(w: Floats<'_>, shape: Shape, format: Format) -> Result<Weight> {
    let len = format.encoded_len(shape)?;
    let mut bytes = vec![0; len.bytes];
    quantize_into(w, shape, format, &mut bytes)?;
    Ok(Weight::trusted(format, shape, bytes, Vec::new()))
}

/// [`quantize`] into a slice of the length that [`Format::encoded_len`] states.
pub fn quantize_into(w: Floats<'_>, shape: Shape, format: Format, bytes: &mut [u8]) -> Result<()> {
    if !format.is_block() {
        let valid = Format::BLOCK.map(Format::id).join(", ");
        return Err(Error::UnknownName { kind: "block format", given: format.id().into(), valid });
    }
    check_lengths(format, shape, bytes.len(), 0)?;
    Error::expect_len("weights", w.len(), shape.len(), || format!("shape {shape}"))?;
    let mut values = vec![0.0; shape.cols()];
    for (r, out) in bytes.chunks_exact_mut(rows_of(format, shape).bytes).enumerate() {
        w.read(r * values.len(), &mut values);
        if values.iter().any(|v| !v.is_finite()) {
            return Err(non_finite(w));
        }
        quantize_row(format, &values, out)?;
    }
    Ok(())
}

/// Quantizes one row of finite values; `docs/formats.md` has the rules. `q8_0` is ggml's, bit for bit.
///
/// # Errors
/// [`Error::Scale`] where a scale overflows f16.
pub fn quantize_row(format: Format, values: &[f32], out: &mut [u8]) -> Result<()> {
    if format == Format::Q8_0 {
        let mut blocks = values.chunks_exact(Q8_VALUES).zip(out.chunks_exact_mut(Q8_BYTES));
        return blocks.try_for_each(|(values, block)| quantize_q8_0(values, block));
    }
    let mut blocks = values.chunks_exact(Q6_VALUES).zip(out.chunks_exact_mut(Q6_BYTES));
    blocks.try_for_each(|(values, block)| quantize_q6_k(values, block))
}

/// The f16 nearest to a scale.
fn stored(format: Format, scale: f32) -> Result<f16> {
    let h = f16::from_f32(scale);
    if h.is_finite() {
        return Ok(h);
    }
    let reason = "its scales are f16, at most 65504; keep the tensor in f32 or bf16";
    Err(Error::Scale { format, scale, reason })
}

/// ggml's reference rule: `d = max|x| / 127`, each code `x * (1 / d)` rounded, halves away from zero, by the unrounded d.
fn quantize_q8_0(values: &[f32], block: &mut [u8]) -> Result<()> {
    let d = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    // 1 / d overflows for denormal d, which f16 stores as zero anyway.
    let inverse = if (1.0 / d).is_finite() { 1.0 / d } else { 0.0 };
    block[..2].copy_from_slice(&stored(Format::Q8_0, d)?.to_le_bytes());
    block[2..].iter_mut().zip(values).for_each(|(b, v)| *b = (v * inverse).round() as i8 as u8);
    Ok(())
}

/// Steps between zero and a block's extreme that are tried for its scale. The extreme itself lies at code -32, or near it.
const Q6_STEPS: [f32; 7] = [32.0, 31.5, 31.0, 30.5, 30.0, 29.0, 28.0];

/// Our rule: a scale by least squares for each block, int8 multiples of one f16 for all of them, codes by what is stored.
fn quantize_q6_k(values: &[f32], block: &mut [u8]) -> Result<()> {
    let mut wanted = [0.0f32; Q6_VALUES / Q6_BLOCK];
    wanted.iter_mut().zip(values.chunks_exact(Q6_BLOCK)).for_each(|(s, v)| *s = best_q6_scale(v));
    let largest = wanted.iter().fold(0.0f32, |m, s| m.max(s.abs()));
    let d = stored(Format::Q6K, largest / 127.0)?;
    block.fill(0);
    block[Q6_D..].copy_from_slice(&d.to_le_bytes());
    let d = d.to_f32();
    for (b, (values, wanted)) in values.chunks_exact(Q6_BLOCK).zip(wanted).enumerate() {
        let sc = if d > 0.0 { (wanted / d).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 };
        block[Q6_SCALES + b] = sc as u8;
        let scale = d * f32::from(sc);
        for (i, v) in values.iter().enumerate() {
            let e = b * Q6_BLOCK + i;
            let code = if scale == 0.0 { 32 } else { (q6_code(v / scale) + 32.0) as u8 };
            let (h, t, l) = (e / 128, e % 128 / 32, e % 32);
            block[64 * h + t % 2 * 32 + l] |= (code & 15) << (t / 2 * 4);
            block[128 + 32 * h + l] |= (code >> 4) << (2 * t);
        }
    }
    Ok(())
}

fn q6_code(v: f32) -> f32 {
    v.round_ties_even().clamp(-32.0, 31.0)
}

/// The scale of a block: of the candidates `-extreme / steps`, each followed by the least-squares scale for the codes that
/// it gives, the one that leaves the smallest squared error; the first of equals. Sums are f64, in ascending order.
fn best_q6_scale(values: &[f32]) -> f32 {
    let extreme = values.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let mut best = (f64::INFINITY, 0.0f32);
    for steps in Q6_STEPS {
        let first = -extreme / steps;
        // Zero, or too small to divide by: the block is stored as zeros.
        if !(1.0 / first).is_finite() {
            break;
        }
        let (mut xq, mut qq, mut xx) = (0.0f64, 0.0f64, 0.0f64);
        for &x in values {
            let (x, q) = (f64::from(x), f64::from(q6_code(x / first)));
            (xq, qq, xx) = (xq + x * q, qq + q * q, xx + x * x);
        }
        // qq > 0, because the extreme's code is not zero. What is left of the error is xx - xq^2 / qq.
        let error = xx - xq * xq / qq;
        if error < best.0 {
            best = (error, (xq / qq) as f32);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q6_k_rounds_to_the_nearest_step_and_survives_extremes() {
        let mut values = [0.0f32; 256];
        // One block with both signs at the ends, one with a lone spike, one of zeros, one tiny.
        (0..16).for_each(|i| values[i] = i as f32 / 7.5 - 1.0);
        values[16] = 0.25;
        (32..48).for_each(|i| values[i] = 1e-12);
        let w = quantize(Floats::F32(&values), Shape::new(1, 256).unwrap(), Format::Q6K).unwrap();
        let back = super::super::dequantize(&w).unwrap();
        for (i, (v, b)) in values.iter().zip(&back).enumerate() {
            assert!((v - b).abs() <= 1.0 / 60.0, "{i}: {v} became {b}");
        }
        assert!((back[16] - 0.25).abs() < 0.25 / 100.0, "{}", back[16]);
        assert!(back[17..].iter().all(|v| *v == 0.0));
        let e = quantize(Floats::F32(&[3e8; 256]), Shape::new(1, 256).unwrap(), Format::Q6K).unwrap_err();
        assert!(e.to_string().contains("65504"), "{e}");
    }
}
