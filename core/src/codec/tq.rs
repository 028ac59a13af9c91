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

/// Writes the digits of `N` bytes: digit n of byte m is value `n * N + m`.
#[inline(always)]
fn encode_digits<const N: usize>(values: &[i8], digits: usize, out: &mut [u8]) {
    let mut q = [0u16; N];
    for n in 0..5 {
        for m in 0..N {
            let digit = if n < digits { (values[n * N + m] + 1) as u16 } else { 0 };
            q[m] = 3 * q[m] + digit;
        }
    }
    out.iter_mut().zip(q).for_each(|(byte, q)| *byte = (q * 256).div_ceil(243) as u8);
}

/// Reads them.
#[inline(always)]
fn decode_digits<const N: usize>(bytes: &[u8; N], digits: usize, out: &mut [i8]) {
    let mut fraction = *bytes;
    for values in out[..digits * N].as_chunks_mut::<N>().0 {
        for m in 0..N {
            let tripled = u16::from(fraction[m]) * 3;
            values[m] = (tripled >> 8) as i8 - 1;
            fraction[m] = tripled as u8;
        }
    }
}

#[inline(always)]
pub(super) fn encode_tq1(codes: &[i8], scales: &[f32], out: &mut [u8]) {
    for ((values, block), s) in codes.chunks_exact(VALUES).zip(out.chunks_exact_mut(TQ1_BYTES)).zip(scales) {
        encode_digits::<32>(&values[..160], 5, &mut block[..32]);
        encode_digits::<16>(&values[160..240], 5, &mut block[32..48]);
        encode_digits::<4>(&values[240..], 4, &mut block[48..52]);
        block[52..].copy_from_slice(&f16::from_f32(*s).to_le_bytes());
    }
}

#[inline(always)]
pub(super) fn decode_tq1(bytes: &[u8], out: &mut [i8]) {
    for (values, block) in out.chunks_exact_mut(VALUES).zip(bytes.as_chunks::<TQ1_BYTES>().0) {
        let (first, rest) = block.split_at(32);
        let (second, last) = rest.split_at(16);
        if let (Some(first), Some(second), Some(last)) = (first.as_array(), second.as_array(), last.first_chunk()) {
            decode_digits::<32>(first, 5, &mut values[..160]);
            decode_digits::<16>(second, 5, &mut values[160..240]);
            decode_digits::<4>(last, 4, &mut values[240..]);
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
