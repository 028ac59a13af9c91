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

#[inline(always)]
pub(super) fn decode_pairs(bytes: &[u8], out: &mut [i8]) {
    for (quad, byte) in out.chunks_mut(4).zip(bytes) {
        for (pair, index) in quad.chunks_mut(2).zip([byte >> 4, byte & 15]) {
            (pair[0], pair[1]) = ((index / 3) as i8 - 1, (index % 3) as i8 - 1);
        }
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

#[inline(always)]
pub(super) fn decode_tl2(bytes: &[u8], out: &mut [i8]) {
    let (triples, nibbles, signs) = sections(out.len());
    for (i, t) in out[..3 * triples].chunks_exact_mut(3).enumerate() {
        let magnitude = bytes[i / 2] >> (4 * (1 - i % 2)) & 15;
        let sign = 1 - 2 * (bytes[nibbles + i / 8] >> (i % 8) & 1) as i8;
        // 13 + 9a + 3b + c = 9(a+1) + 3(b+1) + (c+1): the digits in base three.
        let v = (13 + sign * magnitude as i8) as u8;
        (t[0], t[1], t[2]) = ((v / 9) as i8 - 1, (v / 3 % 3) as i8 - 1, (v % 3) as i8 - 1);
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
