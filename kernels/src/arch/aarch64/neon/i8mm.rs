//! Products of panels with `smmla`: two rows of eight weights times two rows of eight activations, 32 products an instruction.
//!
//! Two registers of quads (four rows x four columns each) become, by `zip1` and `zip2` of 32-bit lanes, two registers of two
//! rows x eight columns; two activation rows likewise. A step of 64 weights then takes 7 shifts and masks and 4 zips for all
//! columns, and for two activation rows 4 loads of 8 bytes, 4 zips and 4 `smmla`, where DotProd needs 8 broadcasts and 8
//! `sdot`. One activation row, and the last of an odd number, use `sdot`. `smmla` is in inline assembly because its
//! intrinsic is not stable in Rust.

use std::arch::aarch64::*;

use super::panels::{ROWS, Sdot};
use crate::arch::panels::{self, Bits2, COLUMNS, PanelTile, Registers, ScaledTile, Unpack, entry};
use crate::isa::NeonI8mm;

/// `acc += a * b` transposed: lanes are (row 0, column 0), (0, 1), (1, 0), (1, 1).
///
/// # Safety
/// NEON and I8MM must be enabled in the caller.
#[inline(always)]
unsafe fn smmla(acc: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: the int8 matrix instructions are enabled by the caller's contract; registers only.
    unsafe {
        std::arch::asm!(
            ".arch_extension i8mm",
            "smmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// The sums of P panels and the `2 * C` columns from `x` on, of a group of `m`: by panel, halves of its rows, and pairs of
/// columns.
///
/// # Safety
/// NEON, DotProd and I8MM must be enabled in the caller; `w` has P panels, `panel_bytes` apart, of `steps` steps; `x` points to
/// the first of the columns in a group of as many columns.
#[inline(always)]
unsafe fn pairs<const P: usize, const C: usize>(
    (w, panel_bytes): (*const u8, usize),
    steps: usize,
    (x, m): (*const i8, usize),
) -> [[[int32x4_t; C]; 2]; P] {
    // SAFETY: steps stay below `steps`, and quads of a column pair within the group.
    unsafe {
        let mut acc = [[[vdupq_n_s32(0); C]; 2]; P];
        for s in 0..steps {
            let mut halves = [[[vdupq_n_s32(0); 2]; 2]; P];
            for p in 0..P {
                let codes = <Bits2 as Unpack<Sdot, 4>>::exact(Bits2, Sdot::load(w.add(p * panel_bytes + s * 4 * ROWS)));
                for k in 0..2 {
                    let (a, b) = (codes[2 * k], codes[2 * k + 1]);
                    halves[p][k] = [vzip1q_s32(a, b), vzip2q_s32(a, b)];
                }
            }
            for k in 0..2 {
                let first = x.add((4 * s + 2 * k) * 4 * m);
                for c in 0..C {
                    let low = vreinterpret_s32_s8(vld1_s8(first.add(8 * c)));
                    let high = vreinterpret_s32_s8(vld1_s8(first.add(4 * m + 8 * c)));
                    let columns = vcombine_s32(vzip1_s32(low, high), vzip2_s32(low, high));
                    for p in 0..P {
                        for half in 0..2 {
                            acc[p][half][c] = smmla(acc[p][half][c], halves[p][k][half], columns);
                        }
                    }
                }
            }
        }
        acc
    }
}

/// [`panels::sums`] with pairs of columns.
///
/// # Safety
/// NEON, DotProd and I8MM must be enabled in the caller. Lengths are checked here.
#[inline(always)]
unsafe fn sums(t: PanelTile<'_>, out: &mut [i32]) {
    let PanelTile { w, panels, steps, x, m } = t;
    if m == 1 {
        // SAFETY: the caller's contract.
        return unsafe { panels::sums::<Sdot, Bits2, 4, 2>(t, out) };
    }
    let panel_bytes = steps * 4 * ROWS;
    let fits = w.len() >= panels * panel_bytes && x.len() >= m * steps * 16 && out.len() >= panels * m * ROWS;
    assert!(fits && m <= COLUMNS, "a tile within its slices");
    let mut p = 0;
    macro_rules! columns {
        ($p:literal, $c:literal) => {{
            let first = w[p * panel_bytes..].as_ptr();
            // SAFETY: the assertion covers panels `p..p + P` and all `m >= 2 * C` columns.
            let acc = unsafe { pairs::<$p, $c>((first, panel_bytes), steps, (x.as_ptr(), m)) };
            for (i, halves) in acc.into_iter().enumerate() {
                for (half, row) in halves.into_iter().enumerate() {
                    for (c, sums) in row.into_iter().enumerate() {
                        let mut lanes = [0; 4];
                        // SAFETY: four lanes are stored to four elements.
                        unsafe { vst1q_s32(lanes.as_mut_ptr(), sums) };
                        for (j, sum) in lanes.into_iter().enumerate() {
                            let (row, column) = (2 * half + j / 2, 2 * c + j % 2);
                            out[((p + i) * m + column) * ROWS + row] = sum;
                        }
                    }
                }
            }
            if m % 2 == 1 {
                for i in 0..$p {
                    // SAFETY: as above, and the last column begins at quad `m - 1`.
                    unsafe {
                        let w = w.as_ptr().add((p + i) * panel_bytes);
                        let last = x.as_ptr().add(4 * (m - 1));
                        let [[sums]] = panels::block::<Sdot, Bits2, 4, 1, 1>(Bits2, (w, 0), steps, (last, m));
                        Sdot::store(sums, out[((p + i) * m + m - 1) * ROWS..][..ROWS].as_mut_ptr());
                    }
                }
            }
        }};
    }
    macro_rules! panels {
        ($p:literal) => {
            match m / 2 {
                1 => columns!($p, 1),
                2 => columns!($p, 2),
                3 => columns!($p, 3),
                _ => columns!($p, 4),
            }
        };
    }
    while p + 2 <= panels {
        panels!(2);
        p += 2;
    }
    if p < panels {
        panels!(1);
    }
}

entry!(
    /// Sums of 2-bit panels with the int8 matrix instructions.
    sums_neon_i8mm,
    NeonI8mm,
    "neon,dotprod,i8mm",
    PanelTile,
    i32,
    sums
);
entry!(
    /// Scaled sums of 2-bit panels with the dot product instructions.
    scaled_neon_i8mm,
    NeonI8mm,
    "neon,dotprod,i8mm",
    ScaledTile,
    f32,
    panels::scaled::<Sdot>
);
