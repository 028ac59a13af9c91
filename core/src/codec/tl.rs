//! `tl1` and `tl2`, row-major: table indices for pairs and triples of values.
//!
//! `tl1` gives the pair (a, b) the index `3a + b + 4` (0..=8), two indices a byte, the first in the high nibble.
//! `tl2` gives the triple (a, b, c) the magnitude `|9a + 3b + c|` (0..=13) as a nibble and one sign bit. A row holds T
//! triples (the largest even count that fits): nibbles, then sign bits from bit 0 of the first byte, then the 0, 2 or 4
//! values left as `tl1` pairs; each section is padded with zero bits to a byte.

use super::Invalid;
use crate::format::tl2_triples;

#[inline(always)]
pub(super) fn encode_pairs(codes: &[i8], out: &mut [u8]) {
    let index = |pair: &[i8]| (3 * pair[0] + pair[1] + 4) as u8;
    for (quad, byte) in codes.chunks(4).zip(out) {
        *byte = index(&quad[..2]) << 4 | quad.get(2..4).map_or(0, index);
    }
}

/// A byte to its four values; indices above 8, which no valid byte has, give zeros.
static PAIRS: [[i8; 4]; 256] = {
    let mut table = [[0; 4]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (first, second) = (byte >> 4, byte & 15);
        if first <= 8 && second <= 8 {
            table[byte] = [first as i8 / 3 - 1, first as i8 % 3 - 1, second as i8 / 3 - 1, second as i8 % 3 - 1];
        }
        byte += 1;
    }
    table
};

#[inline(always)]
pub(super) fn decode_pairs(bytes: &[u8], out: &mut [i8]) {
    let (quads, rest) = out.as_chunks_mut::<4>();
    quads.iter_mut().zip(bytes).for_each(|(quad, &byte)| *quad = PAIRS[usize::from(byte)]);
    if let Some(&byte) = bytes.get(quads.len()) {
        rest.copy_from_slice(&PAIRS[usize::from(byte)][..rest.len()]);
    }
}

/// Where the sections of a `tl2` row of `cols` values end: nibbles and signs, in bytes.
fn sections(cols: usize) -> (usize, usize, usize) {
    let triples = tl2_triples(cols);
    (triples, triples / 2, triples / 2 + triples.div_ceil(8))
}

#[inline(always)]
pub(super) fn encode_tl2(codes: &[i8], out: &mut [u8]) {
    let (triples, nibbles, signs) = sections(codes.len());
    out.fill(0);
    for (i, t) in codes[..3 * triples].chunks_exact(3).enumerate() {
        let v = 9 * t[0] + 3 * t[1] + t[2];
        out[i / 2] |= v.unsigned_abs() << (4 * (1 - i % 2));
        out[nibbles + i / 8] |= u8::from(v < 0) << (i % 8);
    }
    encode_pairs(&codes[3 * triples..], &mut out[signs..]);
}

/// A byte of two magnitudes and, above it, their two sign bits, to six values.
///
/// 13 + 9a + 3b + c = 9(a+1) + 3(b+1) + (c+1): the digits in base three. Magnitudes above 13, which no valid byte has, give
/// zeros.
static TRIPLES: [[i8; 6]; 1024] = {
    let mut table = [[0; 6]; 1024];
    let mut entry = 0;
    while entry < 1024 {
        let magnitudes = [entry >> 4 & 15, entry & 15];
        let mut i = 0;
        while i < 2 && magnitudes[0] <= 13 && magnitudes[1] <= 13 {
            let negative = entry >> (8 + i) & 1 == 1;
            let v = if negative { 13 - magnitudes[i] } else { 13 + magnitudes[i] } as i8;
            (table[entry][3 * i], table[entry][3 * i + 1], table[entry][3 * i + 2]) =
                (v / 9 - 1, v / 3 % 3 - 1, v % 3 - 1);
            i += 1;
        }
        entry += 1;
    }
    table
};

#[inline(always)]
pub(super) fn decode_tl2(bytes: &[u8], out: &mut [i8]) {
    // The number of triples is even: bytes hold two, sign bits come in pairs.
    let (triples, nibbles, signs) = sections(out.len());
    for (i, six) in out[..3 * triples].as_chunks_mut::<6>().0.iter_mut().enumerate() {
        let sign_bits = bytes[nibbles + i / 4] >> (2 * (i % 4)) & 3;
        *six = TRIPLES[usize::from(bytes[i]) | usize::from(sign_bits) << 8];
    }
    decode_pairs(&bytes[signs..], &mut out[3 * triples..]);
}

fn first_nibble_above(bytes: &[u8], count: usize, max: u8) -> Option<(usize, u8)> {
    (0..count).map(|i| (i, bytes[i / 2] >> (4 * (1 - i % 2)) & 15)).find(|(_, n)| *n > max)
}

pub(super) fn find_invalid_pair(bytes: &[u8], cols: usize) -> Option<Invalid> {
    let (i, code) = first_nibble_above(bytes, cols / 2, 8)?;
    Some(Invalid { code, byte: i / 2, col: 2 * i, valid: "0..=8 (3a + b + 4 for a pair of values)" })
}

pub(super) fn find_invalid_tl2(bytes: &[u8], cols: usize) -> Option<Invalid> {
    let (triples, _, signs) = sections(cols);
    if let Some((i, code)) = first_nibble_above(bytes, triples, 13) {
        return Some(Invalid { code, byte: i / 2, col: 3 * i, valid: "0..=13 (|9a + 3b + c| for a triple of values)" });
    }
    let rest = find_invalid_pair(&bytes[signs..], cols - 3 * triples)?;
    Some(Invalid { byte: signs + rest.byte, col: 3 * triples + rest.col, ..rest })
}
