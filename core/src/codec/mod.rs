//! Reference codecs: the meaning of each format, in code that is written to be read.
//!
//! Quantizing has two steps. *Ternarizing* turns real weights into codes and scales by the BitNet b1.58 rule
//! ([`absmean`]); *encoding* writes codes and scales in a format's byte layout. Decoding undoes the second step exactly,
//! so that any chain of formats keeps every code, and every scale that the formats can store.
//!
//! Backends have faster ones, which must produce the same bytes.

pub mod absmean;
pub mod blocks;
mod i2_s;
mod tl;
mod tq;

use half::f16;

use crate::format::TAIL;
use crate::weight::uniform;
use crate::{Error, Floats, FloatsMut, Format, Result, Shape, Ternary, Weight};

/// Rows of a tensor as its layout sees them: the group forms run over the flattened tensor, every other format starts
/// each row on a byte of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows.
    pub count: usize,
    /// Values in a row.
    pub cols: usize,
    /// Bytes of an encoded row.
    pub bytes: usize,
}

/// How `format` lays a ternary tensor of `shape` out in rows. The formats' own constraint on row lengths is not checked.
pub fn rows_of(format: Format, shape: Shape) -> Rows {
    match format.row_bytes(shape.cols()) {
        Some(bytes) => Rows { count: shape.rows(), cols: shape.cols(), bytes },
        None => Rows { count: 1, cols: shape.len(), bytes: shape.len().div_ceil(128) * 32 },
    }
}

/// Writes one row of codes. `scales` holds the row's block scales for formats that store them among the codes, and is
/// ignored by others. Lengths are the row's of [`rows_of`]; codes must be ternary and scales fit f16 where stored so.
#[inline(always)]
pub fn encode_row(format: Format, codes: &[i8], scales: &[f32], out: &mut [u8]) {
    match format {
        Format::I2S | Format::I2SGroup(_) => i2_s::encode(codes, out),
        Format::TL1 => tl::encode_pairs(codes, out),
        Format::TL2 => tl::encode_tl2(codes, out),
        Format::TQ1_0 => tq::encode_tq1(codes, scales, out),
        Format::TQ2_0 => tq::encode_tq2(codes, scales, out),
        Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 | Format::Q6K => {}
    }
}

/// Reads one row of codes that [`validate`] accepted.
#[inline(always)]
pub fn decode_row(format: Format, row: &[u8], out: &mut [i8]) {
    match format {
        Format::I2S | Format::I2SGroup(_) => i2_s::decode(row, out),
        Format::TL1 => tl::decode_pairs(row, out),
        Format::TL2 => tl::decode_tl2(row, out),
        Format::TQ1_0 => tq::decode_tq1(row, out),
        Format::TQ2_0 => tq::decode_tq2(row, out),
        Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 | Format::Q6K => {}
    }
}

fn require_ternary(format: Format) -> Result<()> {
    if format.is_ternary() {
        return Ok(());
    }
    let valid = Format::TERNARY.into_iter().chain(Format::GROUPED).map(Format::id).collect::<Vec<_>>().join(", ");
    Err(Error::UnknownName { kind: "ternary format", given: format.id().into(), valid })
}

/// Checks the lengths that [`Format::encoded_len`] states. Say, for `i2_s_g128` and 1,000,000 values: 250,016 bytes and
/// 7,813 scales; shorter slices are errors that state these numbers.
pub fn check_lengths(format: Format, shape: Shape, codes: usize, scales: usize) -> Result<()> {
    let need = format.encoded_len(shape)?;
    let why = || format!("{format} of shape {shape}: {} bytes of codes and {} f32 scales", need.bytes, need.scales);
    Error::expect_len("codes", codes, need.bytes, why)?;
    Error::expect_len("scales", scales, need.scales, why)
}

/// Checks that bytes are what `format` defines: lengths, codes, finite scales.
pub fn validate(format: Format, shape: Shape, codes: &[u8], scales: &[f32]) -> Result<()> {
    check_lengths(format, shape, codes.len(), scales.len())?;
    let rows = rows_of(format, shape);
    if format.is_ternary() {
        for (r, row) in codes.chunks_exact(rows.bytes).take(rows.count).enumerate() {
            let bad = match format {
                Format::I2S | Format::I2SGroup(_) => i2_s::find_invalid(row),
                Format::TL1 => tl::find_invalid_pair(row, rows.cols),
                Format::TL2 => tl::find_invalid_tl2(row, rows.cols),
                Format::TQ2_0 => tq::find_invalid_tq2(row),
                // Every byte value decodes to five trits.
                _ => None,
            };
            if let Some(bad) = bad {
                let flat = r * rows.cols + bad.col;
                return Err(Error::InvalidCode {
                    format,
                    code: bad.code,
                    byte: r * rows.bytes + bad.byte,
                    row: flat / shape.cols(),
                    col: flat % shape.cols(),
                    valid: bad.valid,
                });
            }
        }
        let stored = stored_scales(format, shape, codes, scales);
        if let Some((index, value)) = stored.0.iter().copied().enumerate().find(|(_, s)| !s.is_finite()) {
            return Err(Error::NotFinite { what: "scales", index, value });
        }
    } else if let Some((index, value)) = blocks::find_invalid_scale(format, codes) {
        return Err(Error::NotFinite { what: "f16 scales", index, value });
    }
    Ok(())
}

/// Where in a row an invalid code is.
struct Invalid {
    code: u8,
    byte: usize,
    col: usize,
    valid: &'static str,
}

fn stored_scales(format: Format, shape: Shape, codes: &[u8], scales: &[f32]) -> (Vec<f32>, usize) {
    let tail = || {
        let at = codes.len().saturating_sub(TAIL);
        codes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(f32::NAN, f32::from_le_bytes)
    };
    match format {
        Format::I2S | Format::TL1 | Format::TL2 => (vec![tail()], shape.len()),
        Format::I2SGroup(g) => (scales.to_vec(), g.values()),
        Format::TQ1_0 => (tq::scales(codes, tq::TQ1_BYTES), 256),
        Format::TQ2_0 => (tq::scales(codes, tq::TQ2_BYTES), 256),
        // Those of q8_0 and q6_k are read row by row, with their codes.
        Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 | Format::Q6K => (Vec::new(), shape.len()),
    }
}

pub(crate) fn scales_of(w: &Weight) -> (Vec<f32>, usize) {
    stored_scales(w.format(), w.shape(), w.codes(), w.scales())
}

/// The scale of every block that has a code other than zero, if it is one and the same bit for bit. Where all codes are
/// zero a block's scale has no meaning: tools write 0 or anything there.
pub(crate) fn uniform_scale(w: &Weight) -> Option<f32> {
    let (scales, block) = scales_of(w);
    if let Some(scale) = uniform(&scales) {
        return Some(scale);
    }
    let rows = rows_of(w.format(), w.shape());
    let mut codes = vec![0; rows.cols];
    let mut found = None;
    for (r, bytes) in w.codes().chunks_exact(rows.bytes).take(rows.count).enumerate() {
        decode_row(w.format(), bytes, &mut codes);
        // Blocks divide rows here: only formats with several scales get this far.
        let row_scales = &scales[(r * rows.cols).div_ceil(block)..];
        if !agree(codes.chunks(block).zip(row_scales), &mut found) {
            return None;
        }
    }
    found.or(scales.first().copied())
}

/// Whether all blocks with a code other than zero have one scale, which `found` remembers.
pub(crate) fn agree<'a>(blocks: impl Iterator<Item = (&'a [i8], &'a f32)>, found: &mut Option<f32>) -> bool {
    for (codes, &scale) in blocks {
        let differs = found.is_none_or(|f| f.to_bits() != scale.to_bits());
        if differs && codes.iter().any(|t| *t != 0) && found.replace(scale).is_some() {
            return false;
        }
    }
    true
}

/// Rounds a scale to what `format` can store: f16 for the tq formats, itself otherwise.
///
/// # Errors
/// [`Error::Scale`] if the scale is not finite, or overflows f16 or vanishes in it.
pub fn storable_scale(format: Format, scale: f32) -> Result<f32> {
    let reason = match format {
        _ if !scale.is_finite() => "scales must be finite",
        Format::TQ1_0 | Format::TQ2_0 => {
            let h = f16::from_f32(scale);
            if !h.is_finite() {
                "its scales are f16, at most 65504; use i2_s, tl1 or tl2, whose scale is f32"
            } else if h.to_f32() == 0.0 && scale != 0.0 {
                "it rounds to zero in f16; use i2_s, tl1 or tl2, whose scale is f32"
            } else {
                return Ok(h.to_f32());
            }
        }
        _ => return Ok(scale),
    };
    Err(Error::Scale { format, scale, reason })
}

/// Encodes ternary codes and scales. The scales must suit the format's blocks: one for the tensor where it stores one;
/// for the tq formats they are rounded to f16.
pub fn encode(t: &Ternary, format: Format) -> Result<Weight> {
    require_ternary(format)?;
    let len = format.encoded_len(t.shape)?;
    Error::expect_len("codes", t.codes.len(), t.shape.len(), || format!("shape {}", t.shape))?;
    let blocks = if t.block == 0 { 0 } else { t.shape.len().div_ceil(t.block) };
    Error::expect_len("scales", t.scales.len(), blocks, || {
        format!("one for each {} of {} values", t.block, t.shape.len())
    })?;
    if let Some((index, &value)) = t.codes.iter().enumerate().find(|(_, c)| !(-1..=1).contains(*c)) {
        return Err(Error::NotTernary { index, value });
    }
    let scales = reblock(t, format)?;
    let mut codes = vec![0; len.bytes];
    let rows = rows_of(format, t.shape);
    for (r, out) in codes.chunks_exact_mut(rows.bytes).take(rows.count).enumerate() {
        let row_scales = row_part(format, &scales, r, rows);
        encode_row(format, &t.codes[r * rows.cols..(r + 1) * rows.cols], row_scales, out);
    }
    write_tail(format, scales[0], &mut codes);
    Ok(Weight::trusted(format, t.shape, codes, if len.scales > 0 { scales } else { Vec::new() }))
}

/// The scales that row `r` stores among its codes.
fn row_part(format: Format, scales: &[f32], r: usize, rows: Rows) -> &[f32] {
    match format {
        Format::TQ1_0 | Format::TQ2_0 => {
            let per_row = rows.cols / 256;
            &scales[r * per_row..(r + 1) * per_row]
        }
        _ => &[],
    }
}

/// Writes the tail of the formats that have one; does nothing for others.
pub fn write_tail(format: Format, scale: f32, codes: &mut [u8]) {
    if matches!(format, Format::I2S | Format::TL1 | Format::TL2) {
        let at = codes.len().saturating_sub(TAIL);
        codes[at..].fill(0);
        codes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
    }
}

/// The scales of `t` for the blocks of `format`.
fn reblock(t: &Ternary, format: Format) -> Result<Vec<f32>> {
    let n = t.shape.len();
    let block = format.scale_block().unwrap_or(n);
    (0..n.div_ceil(block))
        .map(|b| {
            let (start, end) = (b * block, ((b + 1) * block).min(n));
            let (first, last) = (start / t.block, (end - 1) / t.block);
            let part = &t.scales[first..=last];
            // The codes of each of our blocks inside this one; those without a code other than zero have no say.
            let pieces = (first..=last).map(|i| &t.codes[start.max(i * t.block)..end.min((i + 1) * t.block)]);
            let mut found = None;
            if agree(pieces.zip(part), &mut found) {
                return storable_scale(format, found.unwrap_or(part[0]));
            }
            let first = found.unwrap_or(part[0]);
            let other = part.iter().copied().find(|s| s.to_bits() != first.to_bits()).unwrap_or(first);
            let mut bits: Vec<_> = part.iter().map(|s| s.to_bits()).collect();
            bits.sort_unstable();
            bits.dedup();
            Err(Error::ManyScales { format, distinct: bits.len(), first, other })
        })
        .collect()
}

/// Decodes to codes and scales, exactly.
pub fn decode(w: &Weight) -> Result<Ternary> {
    require_ternary(w.format())?;
    let rows = rows_of(w.format(), w.shape());
    let mut codes = vec![0; w.shape().len()];
    for (row, out) in w.codes().chunks_exact(rows.bytes).zip(codes.chunks_exact_mut(rows.cols)) {
        decode_row(w.format(), row, out);
    }
    let (scales, block) = w.block_scales();
    Ok(Ternary { shape: w.shape(), codes, block, scales })
}

/// Quantizes real weights by the BitNet b1.58 rule; see [`absmean`].
///
/// # Errors
/// A length that is not the shape's, a NaN or infinity (named by index), a row length that the format cannot hold, a
/// scale that it cannot store.
pub fn quantize(w: Floats<'_>, shape: Shape, format: Format) -> Result<Weight> {
    let len = format.encoded_len(shape)?;
    let (mut codes, mut scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
    quantize_into(w, shape, format, &mut codes, &mut scales)?;
    Ok(Weight::trusted(format, shape, codes, scales))
}

/// [`quantize`] into caller slices of the lengths that [`Format::encoded_len`] states.
///
/// ```
/// use tersor_core::{codec, Error, Floats, Format, GroupSize, Shape};
///
/// let w = vec![0.25_f32; 8];
/// let format = Format::I2SGroup(GroupSize::G256);
/// // Eight values take one block of 32 bytes and one scale. Slices that are too short are an error that says so:
/// let e = codec::quantize_into(Floats::F32(&w), Shape::new(1, 8)?, format, &mut [0; 2], &mut [0.0; 1]).unwrap_err();
/// assert_eq!(
///     e.to_string(),
///     "codes: 2 elements given, 32 needed (i2_s_g256 of shape 1 x 8: 32 bytes of codes and 1 f32 scales)"
/// );
/// # Ok::<(), Error>(())
/// ```
pub fn quantize_into(w: Floats<'_>, shape: Shape, format: Format, codes: &mut [u8], scales: &mut [f32]) -> Result<()> {
    require_ternary(format)?;
    check_lengths(format, shape, codes.len(), scales.len())?;
    Error::expect_len("weights", w.len(), shape.len(), || format!("shape {shape}"))?;
    let rows = rows_of(format, shape);
    let mut values = vec![0.0; rows.cols];
    let mut ternary = vec![0; rows.cols];
    if let Format::I2SGroup(g) = format {
        w.read(0, &mut values);
        for ((v, t), s) in values.chunks(g.values()).zip(ternary.chunks_mut(g.values())).zip(&mut *scales) {
            *s = absmean::scale_of(Floats::F32(v)).map_err(|_| non_finite(w))?;
            absmean::ternarize(v, *s, t);
        }
        encode_row(format, &ternary, &[], codes);
        return Ok(());
    }
    let s = absmean::scale_of(w)?;
    let stored = storable_scale(format, s)?;
    let row_scales = vec![stored; rows.cols / 256];
    for (r, out) in codes.chunks_exact_mut(rows.bytes).take(rows.count).enumerate() {
        w.read(r * rows.cols, &mut values);
        absmean::ternarize(&values, s, &mut ternary);
        encode_row(format, &ternary, &row_scales, out);
    }
    write_tail(format, s, codes);
    Ok(())
}

/// The error that names the first element that is not finite.
pub fn non_finite(w: Floats<'_>) -> Error {
    let mut v = [0.0];
    for index in 0..w.len() {
        w.read(index, &mut v);
        if !v[0].is_finite() {
            return Error::NotFinite { what: "weights", index, value: v[0] };
        }
    }
    // The elements are finite but their sum overflowed.
    Error::NotFinite { what: "mean of the absolute weights", index: 0, value: f32::INFINITY }
}

/// The real values of a weight: code x scale, or the dense values.
pub fn dequantize(w: &Weight) -> Result<Vec<f32>> {
    let mut out = vec![0.0; w.shape().len()];
    dequantize_into(w, FloatsMut::F32(&mut out))?;
    Ok(out)
}

/// [`dequantize`] into a caller slice of `w.shape().len()` elements; f16 and bf16 round to nearest even.
pub fn dequantize_into(w: &Weight, mut y: FloatsMut<'_>) -> Result<()> {
    Error::expect_len("dequantized values", y.len(), w.shape().len(), || format!("shape {}", w.shape()))?;
    if w.format().is_ternary() {
        y.write(0, &decode(w)?.values());
    } else {
        let mut row = vec![0.0; w.shape().cols()];
        for r in 0..w.shape().rows() {
            dense_row(w.format(), &w.codes()[r * rows_of(w.format(), w.shape()).bytes..], &mut row);
            y.write(r * row.len(), &row);
        }
    }
    Ok(())
}

/// Reads the first `out.len()` values of a row that is not ternary as f32: exactly for floats and `q8_0`, rounded once for
/// `q6_k` (`docs/formats.md`).
#[inline(always)]
pub fn dense_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    match format {
        Format::F32 => out
            .iter_mut()
            .zip(bytes.chunks_exact(4))
            .for_each(|(o, b)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Format::F16 => {
            out.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(o, b)| *o = f16::from_le_bytes([b[0], b[1]]).to_f32())
        }
        Format::BF16 => out
            .iter_mut()
            .zip(bytes.chunks_exact(2))
            .for_each(|(o, b)| *o = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)),
        Format::Q8_0 => blocks::dequantize_q8_0(bytes, out),
        Format::Q6K => blocks::dequantize_q6_k(bytes, out),
        _ => out.fill(f32::NAN),
    }
}
