//! ggml's ternary functions, each behind a safe one that checks lengths.
//!
//! A row is kept in `u16`, because ggml's blocks have the alignment of the f16 in them and canonical bytes have none.

use std::ffi::c_int;

use tersor_core::Format;

/// Weights, and activations, of a block.
pub const BLOCK: usize = 256;

/// 1.0 in f16.
const ONE: u16 = 0x3c00;

/// ggml's `block_q8_K`: 256 activations, their scale, and their sums by sixteen.
#[derive(Debug, Clone)]
#[repr(C)]
pub struct Q8K {
    d: f32,
    qs: [i8; BLOCK],
    bsums: [i16; BLOCK / 16],
}
const _: () = assert!(size_of::<Q8K>() == 4 + BLOCK + 2 * (BLOCK / 16) && align_of::<Q8K>() == 4);

type PackRow = unsafe extern "C" fn(x: *const f32, y: *mut u16, k: i64);
type UnpackRow = unsafe extern "C" fn(x: *const u16, y: *mut f32, k: i64);
type Dot = unsafe extern "C" fn(
    n: c_int,
    s: *mut f32,
    bs: usize,
    vx: *const u16,
    bx: usize,
    vy: *const Q8K,
    by: usize,
    nrc: c_int,
);

unsafe extern "C" {
    fn quantize_row_tq1_0_ref(x: *const f32, y: *mut u16, k: i64);
    fn quantize_row_tq2_0_ref(x: *const f32, y: *mut u16, k: i64);
    fn dequantize_row_tq1_0(x: *const u16, y: *mut f32, k: i64);
    fn dequantize_row_tq2_0(x: *const u16, y: *mut f32, k: i64);
    fn quantize_row_q8_K_ref(x: *const f32, y: *mut Q8K, k: i64);
    fn ggml_vec_dot_tq1_0_q8_K(
        n: c_int,
        s: *mut f32,
        bs: usize,
        vx: *const u16,
        bx: usize,
        vy: *const Q8K,
        by: usize,
        nrc: c_int,
    );
    fn ggml_vec_dot_tq2_0_q8_K(
        n: c_int,
        s: *mut f32,
        bs: usize,
        vx: *const u16,
        bx: usize,
        vy: *const Q8K,
        by: usize,
        nrc: c_int,
    );
}

/// What ggml's products read an f16 through on x86. Its own is filled by `ggml_cpu_init`, in a file of thousands of lines
/// that nothing else here needs.
// SAFETY: C declares `extern float ggml_table_f32_f16[1 << 16]` and no file that is linked defines it.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is ggml's")]
static ggml_table_f32_f16: [f32; 1 << 16] = {
    let mut table = [0.0; 1 << 16];
    let mut h = 0;
    while h < table.len() {
        table[h] = widen(h as u16);
        h += 1;
    }
    table
};

/// The value of an f16.
const fn widen(h: u16) -> f32 {
    let (sign, exponent, mantissa) = ((h as u32 & 0x8000) << 16, h as u32 >> 10 & 0x1f, h as u32 & 0x3ff);
    match exponent {
        // 2^-24 times the mantissa, exact.
        0 => f32::from_bits(sign | (mantissa as f32 / 16_777_216.0).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | mantissa << 13),
    }
}

/// ggml's functions of one format.
#[derive(Debug, Clone, Copy)]
pub struct Type {
    /// Bytes of a block, halved.
    pub words: usize,
    pack: PackRow,
    unpack: UnpackRow,
    dot: Dot,
}

const TQ1_0: Type =
    Type { words: 27, pack: quantize_row_tq1_0_ref, unpack: dequantize_row_tq1_0, dot: ggml_vec_dot_tq1_0_q8_K };
const TQ2_0: Type =
    Type { words: 33, pack: quantize_row_tq2_0_ref, unpack: dequantize_row_tq2_0, dot: ggml_vec_dot_tq2_0_q8_K };

impl Type {
    /// Of a format that ggml has.
    pub fn of(format: Format) -> Option<Type> {
        match format {
            Format::TQ1_0 => Some(TQ1_0),
            Format::TQ2_0 => Some(TQ2_0),
            _ => None,
        }
    }

    /// ggml's quantization of whole blocks: each by its own largest magnitude.
    pub fn quantize(self, x: &[f32], out: &mut [u16]) {
        let blocks = (x.len() / BLOCK).min(out.len() / self.words);
        // SAFETY: `blocks` whole blocks are read from `x` and written to `out`, which hold them; `u16` has the alignment of
        // ggml's blocks.
        unsafe { (self.pack)(x.as_ptr(), out.as_mut_ptr(), (blocks * BLOCK) as i64) };
    }

    /// ggml's values of whole blocks.
    pub fn dequantize(self, blocks: &[u16], y: &mut [f32]) {
        let count = (y.len() / BLOCK).min(blocks.len() / self.words);
        // SAFETY: as in `quantize`, the other way.
        unsafe { (self.unpack)(blocks.as_ptr(), y.as_mut_ptr(), (count * BLOCK) as i64) };
    }

    /// ggml's product of a row and activations.
    #[inline]
    pub fn dot(self, row: &[u16], x: &[Q8K]) -> f32 {
        let blocks = x.len().min(row.len() / self.words);
        let mut sum = 0.0;
        // SAFETY: `blocks` blocks are read of both; 0 strides with one row is what ggml's own callers pass.
        unsafe {
            (self.dot)((blocks * BLOCK) as c_int, &raw mut sum, 0, row.as_ptr(), 0, x.as_ptr(), 0, 1);
        }
        sum
    }

    /// Writes the scale of each block.
    pub fn set_scales(self, blocks: &mut [u16], scale: u16) {
        // The scale is the last word of both kinds of block.
        blocks.chunks_exact_mut(self.words).for_each(|block| block[self.words - 1] = scale);
    }

    /// Sets all scales to 1, so that products are sums of codes times activations.
    pub fn drop_scales(self, blocks: &mut [u16]) {
        self.set_scales(blocks, ONE);
    }
}

/// Our int8 activations as blocks of scale 1.
pub fn activations(q: &[i8], out: &mut Vec<Q8K>) {
    out.clear();
    out.extend(q.chunks_exact(BLOCK).map(|q| {
        let mut block = Q8K { d: 1.0, qs: [0; BLOCK], bsums: [0; BLOCK / 16] };
        block.qs.copy_from_slice(q);
        for (sum, part) in block.bsums.iter_mut().zip(q.chunks_exact(16)) {
            *sum = part.iter().map(|q| i16::from(*q)).sum();
        }
        block
    }));
}

/// ggml's own quantization of activations.
pub fn quantize_activations(x: &[f32]) -> Vec<Q8K> {
    let blocks = x.len() / BLOCK;
    let mut out = vec![Q8K { d: 0.0, qs: [0; BLOCK], bsums: [0; BLOCK / 16] }; blocks];
    // SAFETY: `blocks` blocks are read from `x` and written to `out`.
    unsafe { quantize_row_q8_K_ref(x.as_ptr(), out.as_mut_ptr(), (blocks * BLOCK) as i64) };
    out
}

/// Canonical bytes as words.
pub fn words(bytes: &[u8], out: &mut Vec<u16>) {
    out.clear();
    out.extend(bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])));
}

/// The other way.
pub fn bytes(words: &[u16], out: &mut [u8]) {
    out.chunks_exact_mut(2).zip(words).for_each(|(out, w)| out.copy_from_slice(&w.to_ne_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_what_f16_means() {
        for h in 0..=u16::MAX {
            let (got, want) = (ggml_table_f32_f16[usize::from(h)], tersor_core::f16::from_bits(h).to_f32());
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{h:#06x}: {got} and {want}");
        }
    }
}
