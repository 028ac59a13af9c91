//! `q8_0` and `q6_k` as `docs/formats.md` has them, one value at a time.

use tersor_core::{Format, Shape};

use super::float::f16_value;
use super::{matmul, sums};

/// A weight in canonical bytes.
#[derive(Debug, Clone)]
pub struct Table {
    /// `q8_0` or `q6_k`.
    pub format: Format,
    /// Rows and columns.
    pub shape: Shape,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Values and bytes of what has one f16 scale, and where in it that scale is.
pub fn unit(format: Format) -> (usize, usize, usize) {
    if format == Format::Q8_0 { (32, 34, 0) } else { (256, 210, 208) }
}

/// Values that share a scale.
pub fn block(format: Format) -> usize {
    if format == Format::Q8_0 { 32 } else { 16 }
}

impl Table {
    /// The code of element `i` of the flattened tensor, and its scale.
    fn element(&self, i: usize) -> (i8, f32) {
        let (values, bytes, d) = unit(self.format);
        let (unit, e) = (&self.bytes[i / values * bytes..][..bytes], i % values);
        let d = f16_value(u16::from_le_bytes([unit[d], unit[d + 1]]));
        if self.format == Format::Q8_0 {
            return (unit[2 + e] as i8, d);
        }
        let (h, t) = (e / 128, e % 128 / 32);
        let low = unit[64 * h + 32 * (t % 2) + e % 32] >> (4 * (t / 2)) & 15;
        let high = unit[128 + 32 * h + e % 32] >> (2 * t) & 3;
        let scale = f64::from(d) * f64::from(unit[192 + e / 16] as i8);
        ((low + 16 * high) as i8 - 32, scale as f32)
    }

    /// The real values.
    pub fn values(&self) -> Vec<f32> {
        (0..self.shape.len()).map(|i| self.element(i)).map(|(code, scale)| f32::from(code) * scale).collect()
    }

    /// `m x n` results of `m x k` activations.
    pub fn product(&self, x: &[i8], x_scales: &[f32]) -> Vec<f32> {
        let (k, block) = (self.shape.cols(), block(self.format));
        let (codes, scales): (Vec<i8>, Vec<f32>) = (0..self.shape.len()).map(|i| self.element(i)).unzip();
        let one = |r: usize, x: &[i8], x_scale: f32| {
            let codes = codes[r * k..(r + 1) * k].chunks(block);
            let scales = scales[r * k..].iter().step_by(block);
            let parts = codes.zip(x.chunks(block)).zip(scales);
            sums::sum(parts.map(|((c, x), s)| matmul::exact(c, x) as f32 * s)) / x_scale
        };
        let rows = x.chunks(k).zip(x_scales);
        rows.flat_map(|(x, s)| (0..self.shape.rows()).map(move |r| (r, x, *s))).map(|(r, x, s)| one(r, x, s)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_worked_by_hand_in_the_format_document() {
        let mut bytes = vec![0x00, 0x38, 0x01, 0xff, 0x7f];
        bytes.resize(34, 0);
        let q8 = Table { format: Format::Q8_0, shape: Shape::new(1, 32).unwrap(), bytes };
        assert_eq!(q8.values()[..4], [0.5, -0.5, 63.5, 0.0]);
        let mut bytes = vec![0; 210];
        (bytes[72], bytes[168], bytes[204], bytes[209]) = (0x50, 0x10, 0xfe, 0x38);
        let q6 = Table { format: Format::Q6K, shape: Shape::new(1, 256).unwrap(), bytes };
        let values = q6.values();
        assert_eq!((values[200], values[199], values[208]), (11.0, 32.0, 0.0));
    }
}
