//! Heads and embeddings in `q8_0` and `q6_k`: their packing, and their products with int8 activations.
//!
//! Both formats have integer codes and a scale for each block of 32 or 16 of them, and a row is the sum of `f32(block's
//! sum) * scale` by 64 lanes, block b in lane `b mod 64`. So the packing turns a row round: sixteen blocks make a *group*,
//! whose codes lie in vectors of 64 bytes, and bytes `4 j .. 4 j + 4` of vector v are values `4 v .. 4 v + 4` of block j.
//! A dot product of bytes that adds four neighbours (`vpdpbusd`) then leaves block j's sum in lane j when it has been
//! through the group's vectors, with no sum across lanes, and four groups are one step of the 64 lanes.
//!
//! Codes are unsigned in the packing, with 128 or 32 added: the first operand of `vpdpbusd` is. What that adds to a sum is
//! taken off by starting it at `-128` or `-32` times the sum of the block's activations, which are made once for all rows.
//!
//! A row is one stream that is read upwards: its scales as the format has them, padded to a cache line, then its codes (8
//! or 6 bits each). At 2,560 columns that is 2,752 and 2,112 bytes, 1.2 and 0.6 % more than the file's.
//!
//! x86 has bodies of its own ([`crate::arch`]); NEON runs [`add_group`] as the compiler vectorises it. Its speed is argued from
//! instructions (disassembled, Rust 1.95, release profile), one row of activations, for 64 weights:
//!
//! | | NEON | AVX2 |
//! |---|---|---|
//! | `q8_0` | 2 `ld4`, 16 `uxtl`/`sxtl`, 16 `smlal` and 3 to loop: 37 | 4 `vpmovzxbw`, 4 `vpmovsxbw`, 4 `vpmaddwd`, 4 `vpaddd`, 1 prefetch: 17 |
//! | `q6_k` | 165, of which 62 are vector instructions (traced: 662 and 250 a group) | 26, of which 21 are vector instructions |
//! | f16 | 16 `fcvtl`, 16 `fmul`, 16 `fadd`, and loads of 24 registers: 48 beside the loads | 8 `vcvtph2ps`, 8 `vmulps`, 8 `vaddps`: 24, loads among them |
//! | bf16 | 16 `shll`, 16 `fmul`, 16 `fadd`, and the same loads: 48 | 8 `vpmovzxwd`, 8 `vpslld`, 8 `vmulps`, 8 `vaddps`: 32 |
//!
//! Registers are half as wide, so twice as many instructions is the same work: `q8_0`, f16 and bf16 have that, and loads that x86 folds
//! into operands on top of it. `q6_k` has six times as many: its codes go through memory once they are unpacked, and most
//! instructions beside the products arrange that. A body in intrinsics, with 13 shifts, selections and masks for 64 codes twice over
//! and `sdot` where there is DotProd, would have what AVX2 has twice; it is not written.

mod pack;
mod product;
#[cfg(test)]
mod tests;

use tersor_core::reference::lanes::LANES;
use tersor_core::{Format, f16};

pub(crate) use pack::{gather, pack, packed_size};
pub(crate) use product::Product;

/// Blocks of a group.
pub const GROUP: usize = 16;
/// Bytes of a vector of codes or activations.
pub const VECTOR: usize = 64;
/// Groups that are one step of the lanes of a float sum.
pub const STEP: usize = 4;

/// Where things lie in a packed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    format: Format,
    blocks: usize,
}

impl Layout {
    /// The layout of rows of `cols` weights; `None` for other formats than `q8_0` and `q6_k`.
    pub fn of(format: Format, cols: usize) -> Option<Self> {
        let block = format.scale_block().filter(|_| format.is_block())?;
        Some(Layout { format, blocks: cols / block })
    }

    fn is_q6(self) -> bool {
        self.format == Format::Q6K
    }

    /// Weights of a block.
    fn block(self) -> usize {
        if self.is_q6() { 16 } else { 32 }
    }

    /// What is added to codes.
    fn bias(self) -> i32 {
        if self.is_q6() { 32 } else { 128 }
    }

    fn groups(self) -> usize {
        self.blocks.div_ceil(GROUP)
    }

    /// Activations of a group.
    fn group_values(self) -> usize {
        GROUP * self.block()
    }

    /// Bytes of a group's codes.
    fn code_bytes(self) -> usize {
        if self.is_q6() { Q6_CODES } else { Q8_CODES }
    }

    /// Bytes of a packed row's scales, with what follows up to the codes.
    fn scale_bytes(self) -> usize {
        (self.groups() * if self.is_q6() { GROUP + 2 } else { 2 * GROUP }).next_multiple_of(VECTOR)
    }

    /// Bytes of a packed row.
    fn row_bytes(self) -> usize {
        self.scale_bytes() + self.groups() * self.code_bytes()
    }

    /// A packed row's codes; its scales: f16 of `q8_0`, int8 of `q6_k`; the f16 scales of `q6_k`, one a group.
    #[inline(always)]
    fn parts(self, row: &[u8]) -> (&[u8], &[u8], &[u8]) {
        let groups = self.groups();
        let (rest, codes) = row.split_at(self.scale_bytes());
        if self.is_q6() {
            let (scales, rest) = rest.split_at(groups * GROUP);
            (codes, scales, &rest[..2 * groups])
        } else {
            (codes, &rest[..groups * 2 * GROUP], &[])
        }
    }
}

/// Bytes of the codes of a group of `q8_0`: eight vectors.
pub const Q8_CODES: usize = 8 * VECTOR;
/// Bytes of the codes of a group of `q6_k`: the low four bits of vectors 0 and 1 in the nibbles of one, those of 2 and 3 in
/// another; a third has two high bits of each, those of vector 0 lowest.
pub const Q6_CODES: usize = 3 * VECTOR;

/// A group of a packed row.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// [`Q8_CODES`] or [`Q6_CODES`] bytes.
    pub codes: &'a [u8],
    /// 16 f16 scales of `q8_0`, or 16 int8 ones of `q6_k`.
    pub scales: &'a [u8],
    /// The f16 scale of `q6_k`; for `q8_0` it is not used.
    pub d: &'a [u8; 2],
}

/// The same group of several rows of activations: where the first row has it, and how far on the next one does.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// 512 or 256 activations, in the order of the codes.
    pub x: *const i8,
    /// Activations of a row.
    pub x_row: usize,
    /// What each of the 16 blocks' sums starts at.
    pub start: *const i32,
    /// Such numbers of a row.
    pub start_row: usize,
    /// Where the 16 blocks are added in the 64 lanes of the first row's sum; the next row's are 64 further.
    pub lanes: *mut f32,
}

/// The `i`th f16 of some.
#[inline(always)]
fn half_at(bytes: &[u8], i: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
}

/// The 256 unsigned codes of a group of `q6_k`, in the order of its vectors.
#[inline(always)]
fn q6_codes(bytes: &[u8], codes: &mut [u8; 4 * VECTOR]) {
    let (low, high) = bytes.split_at(2 * VECTOR);
    for (v, codes) in codes.chunks_exact_mut(VECTOR).enumerate() {
        let low = &low[v / 2 * VECTOR..][..VECTOR];
        for ((c, l), h) in codes.iter_mut().zip(low).zip(high) {
            *c = (l >> (v % 2 * 4) & 15) | (h >> (2 * v) & 3) << 4;
        }
    }
}

/// Adds `f32(sum) * scale` of each block of a group to the lanes of `C` rows of activations, in code that any compiler can
/// vectorise.
///
/// # Safety
/// What `columns` points to must be there, for `C` rows, and the lanes be nobody else's.
#[inline(always)]
pub unsafe fn add_group<const Q6: bool, const C: usize>(group: Group<'_>, columns: Columns) {
    let mut unpacked = [0; 4 * VECTOR];
    let codes = if Q6 {
        q6_codes(group.codes, &mut unpacked);
        &unpacked[..]
    } else {
        group.codes
    };
    let mut scales = [0.0; GROUP];
    for (j, scale) in scales.iter_mut().enumerate() {
        *scale = if Q6 { half_at(group.d, 0) * f32::from(group.scales[j] as i8) } else { half_at(group.scales, j) };
    }
    for c in 0..C {
        // SAFETY: the caller's contract.
        let (x, mut sums, lanes) = unsafe {
            let x = std::slice::from_raw_parts(columns.x.add(c * columns.x_row), codes.len());
            let sums = *columns.start.add(c * columns.start_row).cast::<[i32; GROUP]>();
            (x, sums, &mut *columns.lanes.add(c * LANES).cast::<[f32; GROUP]>())
        };
        for (codes, x) in codes.chunks_exact(VECTOR).zip(x.chunks_exact(VECTOR)) {
            for (sum, (codes, x)) in sums.iter_mut().zip(codes.as_chunks::<4>().0.iter().zip(x.as_chunks::<4>().0)) {
                for i in 0..4 {
                    *sum += i32::from(codes[i]) * i32::from(x[i]);
                }
            }
        }
        for j in 0..GROUP {
            lanes[j] += sums[j] as f32 * scales[j];
        }
    }
}
