//! `i2_s`: byte `p` of a 32-byte block holds values `p`, `p+32`, `p+64`, `p+96` in bits 7-6, 5-4, 3-2, 1-0, as code
//! `value + 1`.

use super::Invalid;

const VALUES: usize = 128;
const BYTES: usize = 32;

/// Values past the end of a last, short block are zeros (code 1).
#[inline(always)]
pub(super) fn encode(codes: &[i8], out: &mut [u8]) {
    for (values, bytes) in codes.chunks(VALUES).zip(out.chunks_exact_mut(BYTES)) {
        let mut block = [0i8; VALUES];
        block[..values.len()].copy_from_slice(values);
        let two_bits = |i: usize| (block[i] + 1) as u8;
        for (p, byte) in bytes.iter_mut().enumerate() {
            *byte = two_bits(p) << 6 | two_bits(p + 32) << 4 | two_bits(p + 64) << 2 | two_bits(p + 96);
        }
    }
}

#[inline(always)]
pub(super) fn decode(bytes: &[u8], out: &mut [i8]) {
    for (values, bytes) in out.chunks_mut(VALUES).zip(bytes.chunks_exact(BYTES)) {
        let mut block = [0i8; VALUES];
        for (p, byte) in bytes.iter().enumerate() {
            for quarter in 0..4 {
                block[p + 32 * quarter] = (byte >> (6 - 2 * quarter) & 3) as i8 - 1;
            }
        }
        values.copy_from_slice(&block[..values.len()]);
    }
}

/// Finds the first code 3.
pub(super) fn find_invalid(bytes: &[u8]) -> Option<Invalid> {
    let byte = super::tq::first_code_3(bytes)?;
    let quarter = (0..4).find(|q| bytes[byte] >> (6 - 2 * q) & 3 == 3)?;
    let col = byte / BYTES * VALUES + byte % BYTES + 32 * quarter;
    Some(Invalid { code: 3, byte, col, valid: "0, 1, 2 (for -1, 0, +1)" })
}
