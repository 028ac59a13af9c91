//! ggml's `tq1_0` and `tq2_0`: blocks of 256 values with an f16 scale at the end (ggml-quants.c, `block_tq1_0` and
//! `block_tq2_0`).
//!
//! `tq2_0`: value `e` sits in byte `32 (e / 128) + e % 32` at bit `2 (e % 128 / 32)`, as code `value + 1`.
//!
//! `tq1_0` writes five base-three digits (trits) `value + 1` as the fraction `0.d0 d1 d2 d3 d4` of a byte, rounded up:
//! `ceil(256 q / 243)`. Digit n is read as the integer part of `3 * frac(byte * 3^n / 256)`. 48 bytes hold five trits: in
//! the first 32, byte m holds values m, m+32, .., m+128; in the next 16, byte m holds 160 + m, 176 + m, .., 224 + m. The
//! last four hold four: byte j has values 240 + j, 244 + j, 248 + j, 252 + j, and its fifth digit is 0.

use half::f16;

use super::Invalid;

/// Bytes of a `tq1_0` block.
pub(super) const TQ1_BYTES: usize = 54;
/// Bytes of a `tq2_0` block.
pub(super) const TQ2_BYTES: usize = 66;
const VALUES: usize = 256;

/// Byte, number of its digits, and the distance of their values, for each byte of a `tq1_0` block; with the first value.
fn trit_bytes() -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let first = (0..32).map(|m| (m, m, 32, 5));
    let second = (0..16).map(|m| (32 + m, 160 + m, 16, 5));
    let last = (0..4).map(|j| (48 + j, 240 + j, 4, 4));
    first.chain(second).chain(last)
}

#[inline(always)]
pub(super) fn encode_tq1(codes: &[i8], scales: &[f32], out: &mut [u8]) {
    for ((values, block), s) in codes.chunks_exact(VALUES).zip(out.chunks_exact_mut(TQ1_BYTES)).zip(scales) {
        for (byte, first, step, digits) in trit_bytes() {
            let q = (0..5).fold(0u16, |q, n| {
                let digit = if n < digits { (values[first + n * step] + 1) as u16 } else { 0 };
                3 * q + digit
            });
            block[byte] = (q * 256).div_ceil(243) as u8;
        }
        block[52..].copy_from_slice(&f16::from_f32(*s).to_le_bytes());
    }
}

#[inline(always)]
pub(super) fn decode_tq1(bytes: &[u8], out: &mut [i8]) {
    for (values, block) in out.chunks_exact_mut(VALUES).zip(bytes.chunks_exact(TQ1_BYTES)) {
        for (byte, first, step, digits) in trit_bytes() {
            let mut fraction = block[byte];
            for n in 0..digits {
                let tripled = u16::from(fraction) * 3;
                values[first + n * step] = (tripled >> 8) as i8 - 1;
                fraction = tripled as u8;
            }
        }
    }
}

#[inline(always)]
pub(super) fn encode_tq2(codes: &[i8], scales: &[f32], out: &mut [u8]) {
    for ((values, block), s) in codes.chunks_exact(VALUES).zip(out.chunks_exact_mut(TQ2_BYTES)).zip(scales) {
        for (half, bytes) in values.chunks_exact(128).zip(block.chunks_exact_mut(32)) {
            for (m, byte) in bytes.iter_mut().enumerate() {
                *byte = (0..4).fold(0, |b, q| b | ((half[m + 32 * q] + 1) as u8) << (2 * q));
            }
        }
        block[64..].copy_from_slice(&f16::from_f32(*s).to_le_bytes());
    }
}

#[inline(always)]
pub(super) fn decode_tq2(bytes: &[u8], out: &mut [i8]) {
    for (values, block) in out.chunks_exact_mut(VALUES).zip(bytes.chunks_exact(TQ2_BYTES)) {
        for (half, bytes) in values.chunks_exact_mut(128).zip(block.chunks_exact(32)) {
            for (m, byte) in bytes.iter().enumerate() {
                for q in 0..4 {
                    half[m + 32 * q] = (byte >> (2 * q) & 3) as i8 - 1;
                }
            }
        }
    }
}

pub(super) fn find_invalid_tq2(bytes: &[u8]) -> Option<Invalid> {
    for (b, block) in bytes.chunks_exact(TQ2_BYTES).enumerate() {
        if let Some(at) = first_code_3(&block[..64]) {
            let q = (0..4).find(|q| block[at] >> (2 * q) & 3 == 3)?;
            let col = b * VALUES + at / 32 * 128 + at % 32 + 32 * q;
            return Some(Invalid { code: 3, byte: b * TQ2_BYTES + at, col, valid: "0, 1, 2 (for -1, 0, +1)" });
        }
    }
    None
}

/// The first byte that holds a 2-bit code 3: a pair of bits that are both set.
pub(super) fn first_code_3(bytes: &[u8]) -> Option<usize> {
    let has = |b: u8| b & (b >> 1) & 0x55 != 0;
    // An OR over a line at a time vectorises; only a line that has one is searched.
    let line = bytes.chunks(64).position(|line| line.iter().fold(0, |or, &b| or | (b & (b >> 1))) & 0x55 != 0)?;
    (line * 64..bytes.len()).find(|&i| has(bytes[i]))
}

pub(super) fn scales(bytes: &[u8], block: usize) -> Vec<f32> {
    bytes.chunks_exact(block).map(|b| f16::from_le_bytes([b[block - 2], b[block - 1]]).to_f32()).collect()
}
