//! The byte layouts of `docs/formats.md`: where each value of a matrix is stored, one value at a time.

use tersor_core::{Format, Shape};

use super::float::{f16_bits, f16_value};

/// Bytes of a row and number of bytes in all. The group forms have no rows: their blocks run over the flattened tensor.
fn extent(format: Format, shape: Shape) -> (usize, usize) {
    let (n, k) = (shape.rows(), shape.cols());
    let row = match format {
        Format::I2S => k / 128 * 32,
        Format::TL1 => k.div_ceil(4),
        Format::TL2 => {
            let t = triples(k);
            t / 2 + t.div_ceil(8) + (k - 3 * t).div_ceil(4)
        }
        Format::TQ1_0 => k / 256 * 54,
        Format::TQ2_0 => k / 256 * 66,
        _ => return (0, shape.len().div_ceil(128) * 32),
    };
    let tail = if matches!(format, Format::I2S | Format::TL1 | Format::TL2) { 32 } else { 0 };
    (row, n * row + tail)
}

/// The largest even count of triples in a row of `k`.
fn triples(k: usize) -> usize {
    let most = k / 3;
    most - most % 2
}

/// Values that share a scale.
pub fn block(format: Format, shape: Shape) -> usize {
    match format {
        Format::TQ1_0 | Format::TQ2_0 => 256,
        Format::I2SGroup(g) => g.values(),
        _ => shape.len(),
    }
}

/// Encodes codes and one scale for each block. Second: the scales that live in a slice of their own.
pub fn encode(format: Format, shape: Shape, codes: &[i8], scales: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (row_bytes, bytes) = extent(format, shape);
    let mut out = vec![0u8; bytes];
    if let Format::I2SGroup(_) = format {
        for (b, part) in codes.chunks(128).enumerate() {
            for i in 0..128 {
                let code = part.get(i).copied().unwrap_or(0);
                out[32 * b + i % 32] |= ((code + 1) as u8) << (6 - 2 * (i / 32));
            }
        }
        return (out, scales.to_vec());
    }
    for (r, row) in codes.chunks(shape.cols()).enumerate() {
        let out = &mut out[r * row_bytes..(r + 1) * row_bytes];
        let scales = &scales[(r * shape.cols() / 256).min(scales.len())..];
        match format {
            Format::I2S => {
                for (i, &t) in row.iter().enumerate() {
                    out[i / 128 * 32 + i % 32] |= ((t + 1) as u8) << (6 - 2 * (i % 128 / 32));
                }
            }
            Format::TL1 => pairs(row, out),
            Format::TL2 => tl2(row, out),
            Format::TQ1_0 => tq1(row, scales, out),
            Format::TQ2_0 => {
                for (e, &t) in row.iter().enumerate() {
                    let in_block = e % 256;
                    let byte = e / 256 * 66 + 32 * (in_block / 128) + in_block % 32;
                    out[byte] |= ((t + 1) as u8) << (2 * (in_block % 128 / 32));
                }
                for (b, s) in scales.iter().take(row.len() / 256).enumerate() {
                    out[b * 66 + 64..b * 66 + 66].copy_from_slice(&f16_bits(*s).to_le_bytes());
                }
            }
            _ => {}
        }
    }
    if matches!(format, Format::I2S | Format::TL1 | Format::TL2) {
        out[bytes - 32..bytes - 28].copy_from_slice(&scales[0].to_le_bytes());
    }
    (out, Vec::new())
}

/// The shift of nibble `i`: two a byte, the first in the high one.
fn high_first(i: usize) -> usize {
    4 * (1 - i % 2)
}

fn pairs(values: &[i8], out: &mut [u8]) {
    for (i, pair) in values.chunks(2).enumerate() {
        let index = (3 * pair[0] + pair[1] + 4) as u8;
        out[i / 2] |= index << high_first(i);
    }
}

fn tl2(row: &[i8], out: &mut [u8]) {
    let t = triples(row.len());
    for i in 0..t {
        let v = 9 * i32::from(row[3 * i]) + 3 * i32::from(row[3 * i + 1]) + i32::from(row[3 * i + 2]);
        out[i / 2] |= (v.unsigned_abs() as u8) << high_first(i);
        if v < 0 {
            out[t / 2 + i / 8] |= 1 << (i % 8);
        }
    }
    pairs(&row[3 * t..], &mut out[t / 2 + t.div_ceil(8)..]);
}

/// The byte of a `tq1_0` block that holds value `e`, and which of its digits it is.
fn tq1_place(e: usize) -> (usize, usize) {
    match e {
        0..160 => (e % 32, e / 32),
        160..240 => (32 + (e - 160) % 16, (e - 160) / 16),
        _ => (48 + (e - 240) % 4, (e - 240) / 4),
    }
}

fn tq1(row: &[i8], scales: &[f32], out: &mut [u8]) {
    for (b, values) in row.chunks(256).enumerate() {
        let mut q = [0u32; 52];
        for (e, &t) in values.iter().enumerate() {
            let (byte, digit) = tq1_place(e);
            q[byte] += (t + 1) as u32 * 3u32.pow(4 - digit as u32);
        }
        for (byte, q) in q.iter().enumerate() {
            out[b * 54 + byte] = (f64::from(q * 256) / 243.0).ceil() as u8;
        }
        out[b * 54 + 52..b * 54 + 54].copy_from_slice(&f16_bits(scales[b]).to_le_bytes());
    }
}

/// Decodes codes, for saying which value a wrong byte belongs to. Bytes that the format does not define give codes that
/// are not ternary; bytes that are missing give 0.
pub fn decode(format: Format, shape: Shape, bytes: &[u8]) -> Vec<i8> {
    let (row_bytes, _) = extent(format, shape);
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0x55);
    let pair = |base: usize, i: usize| {
        let nibble = at(base + i / 4) >> high_first(i / 2) & 15;
        [(nibble / 3) as i8, (nibble % 3) as i8][i % 2] - 1
    };
    let value = |r: usize, c: usize| {
        let base = r * row_bytes;
        let flat = r * shape.cols() + c;
        match format {
            Format::I2S => (at(base + c / 128 * 32 + c % 32) >> (6 - 2 * (c % 128 / 32)) & 3) as i8 - 1,
            Format::I2SGroup(_) => (at(flat / 128 * 32 + flat % 32) >> (6 - 2 * (flat % 128 / 32)) & 3) as i8 - 1,
            Format::TL1 => pair(base, c),
            Format::TL2 => {
                let t = triples(shape.cols());
                if c >= 3 * t {
                    return pair(base + t / 2 + t.div_ceil(8), c - 3 * t);
                }
                let i = c / 3;
                let magnitude = i32::from(at(base + i / 2) >> high_first(i) & 15);
                let negative = at(base + t / 2 + i / 8) >> (i % 8) & 1 == 1;
                let v = 13 + if negative { -magnitude } else { magnitude };
                (v / 3i32.pow(2 - (c % 3) as u32) % 3) as i8 - 1
            }
            Format::TQ1_0 => {
                let (byte, digit) = tq1_place(c % 256);
                let mut fraction = u32::from(at(base + c / 256 * 54 + byte));
                (0..digit).for_each(|_| fraction = fraction * 3 % 256);
                (fraction * 3 / 256) as i8 - 1
            }
            Format::TQ2_0 => {
                let e = c % 256;
                (at(base + c / 256 * 66 + 32 * (e / 128) + e % 32) >> (2 * (e % 128 / 32)) & 3) as i8 - 1
            }
            _ => 0,
        }
    };
    (0..shape.len()).map(|i| value(i / shape.cols(), i % shape.cols())).collect()
}

/// What a scale becomes in a format: f16 in the tq formats.
pub fn stored_scale(format: Format, s: f32) -> f32 {
    match format {
        Format::TQ1_0 | Format::TQ2_0 => f16_value(f16_bits(s)),
        _ => s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: f32 = 0.074_218_75;

    fn row(format: Format, codes: &[i8]) -> Vec<u8> {
        let shape = Shape::new(1, codes.len()).unwrap();
        let (bytes, _) = encode(format, shape, codes, &[S]);
        assert_eq!(decode(format, shape, &bytes), codes, "{format}");
        bytes
    }

    fn with(len: usize, values: &[(usize, i8)]) -> Vec<i8> {
        let mut codes = vec![0; len];
        values.iter().for_each(|(i, t)| codes[*i] = *t);
        codes
    }

    #[test]
    fn the_examples_worked_by_hand_in_the_format_document() {
        let tail = [[0x00, 0x00, 0x98, 0x3d].as_slice(), &[0; 28]].concat();
        let i2_s = row(Format::I2S, &with(128, &[(0, 1), (32, -1), (96, 1)]));
        assert_eq!(i2_s, [[0x86].as_slice(), &[0x55; 31], &tail].concat());
        assert_eq!(row(Format::TL1, &[1, -1, 0, 1, -1, 0]), [[0x65, 0x10].as_slice(), &tail].concat());
        let tl2 = row(Format::TL2, &[1, 0, -1, -1, -1, 1, 0, 0, 0, 0, -1, -1, 1, 1, 0, -1]);
        assert_eq!(tl2, [[0x8b, 0x04, 0x0a, 0x83].as_slice(), &tail].concat());
        let tq1 = row(Format::TQ1_0, &with(256, &[(0, 1), (64, -1), (96, 1), (240, -1), (244, 1), (252, -1)]));
        assert_eq!(tq1, [[0xcf].as_slice(), &[0x80; 47], &[0x43, 0x7f, 0x7f, 0x7f, 0xc0, 0x2c]].concat());
        let tq2 = row(Format::TQ2_0, &with(256, &[(0, 1), (32, -1), (96, 1), (128, 1)]));
        assert_eq!(tq2, [[0x92].as_slice(), &[0x55; 31], &[0x56], &[0x55; 31], &[0xc0, 0x2c]].concat());
    }

    #[test]
    fn lengths_are_those_of_the_document() {
        for (k, bytes) in [(512, 108), (1536, 320), (2560, 534), (6912, 1440)] {
            assert_eq!(extent(Format::TL2, Shape::new(2, k).unwrap()), (bytes, 2 * bytes + 32));
        }
    }
}
