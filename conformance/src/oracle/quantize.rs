//! Quantizing weights and activations.

use tersor_core::{Format, Shape};

use super::float::half_even;
use super::{layout, sums};

/// Why a tensor cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The first element that is NaN or infinite.
    NotFinite(usize),
    /// The sum of magnitudes overflows.
    Overflow,
    /// The format cannot store the scale.
    Scale,
}

/// A quantized tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// Canonical bytes.
    pub bytes: Vec<u8>,
    /// Scales in a slice of their own.
    pub scales: Vec<f32>,
}

/// "The sum of |w|: 64 lanes inside each chunk of 4,096 elements, chunk sums as f64 in a binary tree."
fn mean_magnitude(w: &[f32]) -> f64 {
    let mut level: Vec<f64> = w.chunks(4096).map(|c| f64::from(sums::sum(c.iter().map(|v| v.abs())))).collect();
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| pair.iter().sum()).collect();
    }
    level[0] / w.len() as f64
}

/// The scale of a tensor or group.
pub fn scale(w: &[f32]) -> Result<f32, Refusal> {
    if let Some(i) = w.iter().position(|v| !v.is_finite()) {
        return Err(Refusal::NotFinite(i));
    }
    let mut magnitudes = w.iter().map(|v| v.abs()).filter(|a| *a != 0.0);
    let Some(first) = magnitudes.next() else { return Ok(1e-5) };
    if magnitudes.all(|a| a == first) {
        return Ok(first);
    }
    let mean = mean_magnitude(w) as f32;
    if mean.is_finite() { Ok(mean.max(1e-5)) } else { Err(Refusal::Overflow) }
}

fn ternarize(w: &[f32], s: f32) -> impl Iterator<Item = i8> {
    w.iter().map(move |v| half_even(f64::from(*v) / f64::from(s)).clamp(-1.0, 1.0) as i8)
}

/// Quantizes and encodes.
pub fn quantize(w: &[f32], shape: Shape, format: Format) -> Result<Quantized, Refusal> {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    let grouped = matches!(format, Format::I2SGroup(_));
    let part = if grouped { layout::block(format, shape) } else { shape.len() };
    for (i, part) in w.chunks(part).enumerate() {
        let s = scale(part).map_err(|r| match r {
            Refusal::NotFinite(at) => Refusal::NotFinite(i * layout::block(format, shape) + at),
            other => other,
        })?;
        codes.extend(ternarize(part, s));
        scales.push(s);
    }
    let stored = layout::stored_scale(format, scales[0]);
    if !stored.is_finite() || (stored == 0.0 && scales[0] != 0.0) {
        return Err(Refusal::Scale);
    }
    if !grouped {
        scales = vec![scales[0]; shape.len().div_ceil(layout::block(format, shape))];
    }
    let (bytes, scales) = layout::encode(format, shape, &codes, &scales);
    Ok(Quantized { bytes, scales })
}

/// One row of activations to int8, and its scale; `Err` with the index of a NaN or infinity.
pub fn row(x: &[f32]) -> Result<(Vec<i8>, f32), usize> {
    if let Some(i) = x.iter().position(|v| !v.is_finite()) {
        return Err(i);
    }
    let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let s = 127.0f32 / largest.max(1e-5);
    let code = |v: &f32| half_even(f64::from(*v * s)).clamp(-128.0, 127.0) as i8;
    Ok((x.iter().map(code).collect(), s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_at_half_the_scale_become_zero() {
        let w: Vec<f32> = (0..256).map(|i| [0.5, -1.5, -0.5, 1.5][i % 4]).collect();
        assert_eq!(scale(&w), Ok(1.0));
        assert_eq!(ternarize(&w[..4], 1.0).collect::<Vec<_>>(), [0, -1, 0, 1]);
        assert_eq!(ternarize(&[0.5f32.next_up()], 1.0).next(), Some(1));
    }

    #[test]
    fn special_tensors() {
        assert_eq!(scale(&[0.0, -0.0]), Ok(1e-5));
        assert_eq!(scale(&[0.0, -0.25, 0.25]), Ok(0.25));
        assert_eq!(scale(&[0.0, f32::NAN]), Err(Refusal::NotFinite(1)));
        assert_eq!(scale(&[1e38, -3e38, 3e38, 1.0]), Err(Refusal::Overflow));
        let tiny = quantize(&[1e-9; 256], Shape::new(1, 256).unwrap(), Format::TQ2_0);
        assert_eq!(tiny, Err(Refusal::Scale));
    }

    #[test]
    fn activations() {
        assert_eq!(row(&[127.0, 0.5, 1.5, -2.5, -127.0]), Ok((vec![127, 0, 2, -2, -127], 1.0)));
        assert_eq!(row(&[0.0, f32::INFINITY]), Err(1));
    }
}
