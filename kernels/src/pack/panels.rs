//! The packing of SIMD kernels: panels of rows, quads of columns.
//!
//! A panel is as many weight rows as a register has i32 lanes (16, 8 or 4). A *quad* is four consecutive weights of one row;
//! a register of quads, one for each row of the panel, meets four activations that are broadcast to all lanes, and an
//! int8 dot instruction adds the products of a quad into the lane of its row. So no sum is ever folded across lanes, one
//! row of activations and many use the same bytes, and a core reads one stream from the first byte of its panels to
//! the last.
//!
//! A *step* is one register of bytes. At 2 bits ([`Density::Bits2`]) byte j of a row's lane holds weight j of four quads, the
//! first in the low bits: 16 columns. At 1.6 bits ([`Density::Trits`]) it holds five quads as `t0 + 3 t1 + 9 t2 + 27 t3 +
//! 81 t4`: 20 columns. Codes are 0, 1, 2 for -1, 0, +1. Rows are padded to whole steps and the last panel to whole rows,
//! with code 0: padded activations are zero, and sums of padded rows are dropped.

use tersor_core::codec::{self, Rows, rows_of};
use tersor_core::{Executor, Shape, Weight};

use super::flat_row;
use crate::isa::{Body, Simd};
use crate::split;

/// How many weights share a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Density {
    /// Four, in two bits each.
    Bits2,
    /// Five, as digits of base 3.
    Trits,
}

impl Density {
    /// Quads in a step, which are weights in a byte.
    pub const fn quads(self) -> usize {
        match self {
            Density::Bits2 => 4,
            Density::Trits => 5,
        }
    }
}

/// A packing in panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows of a panel.
    pub rows: usize,
    /// Weights in a byte.
    pub density: Density,
}

impl Layout {
    /// Columns of a step.
    pub const fn step_cols(self) -> usize {
        4 * self.density.quads()
    }

    /// Bytes of a step.
    pub const fn step_bytes(self) -> usize {
        4 * self.rows
    }

    /// Steps of a row of `cols` columns.
    pub const fn steps(self, cols: usize) -> usize {
        cols.div_ceil(self.step_cols())
    }

    /// Columns of a row after padding.
    pub const fn padded_cols(self, cols: usize) -> usize {
        self.steps(cols) * self.step_cols()
    }

    /// Bytes of a panel of rows of `cols` columns.
    pub const fn panel_bytes(self, cols: usize) -> usize {
        self.steps(cols) * self.step_bytes()
    }

    /// Panels of `rows` rows.
    pub const fn panels(self, rows: usize) -> usize {
        rows.div_ceil(self.rows)
    }

    /// Bytes of all codes.
    pub const fn bytes(self, shape: Shape) -> usize {
        self.panels(shape.rows()) * self.panel_bytes(shape.cols())
    }

    /// The packing's name, for tags.
    pub const fn name(self) -> &'static str {
        match (self.density, self.rows) {
            (Density::Bits2, 16) => "2bit-panels-of-16",
            (Density::Bits2, 8) => "2bit-panels-of-8",
            (Density::Bits2, _) => "2bit-panels-of-4",
            (Density::Trits, _) => "1.6bit-panels-of-16",
        }
    }
}

/// Packs all rows of `w` into `out`, which has [`Layout::bytes`] bytes.
pub(super) fn pack<S: Simd>(isa: S, executor: &dyn Executor, w: &Weight, layout: Layout, out: &mut [u8]) {
    let panel_bytes = layout.panel_bytes(w.shape().cols());
    let tasks = split::task_count(executor, w.shape().len(), 1 << 17);
    let rows = rows_of(w.format(), w.shape());
    split::chunks_mut(executor, out, panel_bytes, tasks, |start, out| {
        isa.run(Panels { w, rows, layout, first: start / panel_bytes, out });
    });
}

/// Consecutive panels.
struct Panels<'a> {
    w: &'a Weight,
    rows: Rows,
    layout: Layout,
    first: usize,
    out: &'a mut [u8],
}

impl Body for Panels<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (shape, layout) = (self.w.shape(), self.layout);
        let (cols, padded) = (shape.cols(), layout.padded_cols(shape.cols()));
        // Rows of codes 0, 1, 2, four to a word; arithmetic on words is arithmetic on their bytes, which never carry.
        let mut quads = vec![0u32; layout.rows * padded / 4];
        let mut row = vec![0i8; cols];
        for (i, out) in self.out.chunks_exact_mut(layout.panel_bytes(cols)).enumerate() {
            let first = (self.first + i) * layout.rows;
            for (r, quads) in quads.chunks_exact_mut(padded / 4).enumerate() {
                if first + r >= shape.rows() {
                    quads.fill(0);
                    continue;
                }
                if self.rows.cols == cols {
                    let bytes = &self.w.codes()[(first + r) * self.rows.bytes..][..self.rows.bytes];
                    codec::decode_row(self.w.format(), bytes, &mut row);
                } else {
                    flat_row(self.w.codes(), (first + r) * cols, &mut row);
                }
                let codes: &mut [u8] = bytemuck::cast_slice_mut(quads);
                codes.iter_mut().zip(&row).for_each(|(c, &t)| *c = t.wrapping_add(1) as u8);
            }
            let words = |r: usize| &quads[r * padded / 4..][..padded / 4];
            match layout.density {
                Density::Bits2 => {
                    let word = |q: &[u32; 4]| q[0] | q[1] << 2 | q[2] << 4 | q[3] << 6;
                    for r in 0..layout.rows {
                        let (steps, _) = words(r).as_chunks();
                        interleave(steps.iter().map(word), r, layout.rows, out);
                    }
                }
                Density::Trits => {
                    let word = |q: &[u32; 5]| q[0] + 3 * q[1] + 9 * q[2] + 27 * q[3] + 81 * q[4];
                    for r in 0..layout.rows {
                        let (steps, _) = words(r).as_chunks();
                        interleave(steps.iter().map(word), r, layout.rows, out);
                    }
                }
            }
        }
    }
}

/// Writes a row's words to its lane of each step.
#[inline(always)]
fn interleave(words: impl Iterator<Item = u32>, lane: usize, lanes: usize, out: &mut [u8]) {
    for (step, word) in out.chunks_exact_mut(4 * lanes).zip(words) {
        step[4 * lane..][..4].copy_from_slice(&word.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Portable;
    use tersor_core::{Format, Inline, Ternary};

    #[test]
    fn every_code_is_where_the_module_says() {
        let shape = Shape::new(19, 44).expect("a shape");
        let codes: Vec<i8> = (0..shape.len()).map(|i| (i * 7 % 3) as i8 - 1).collect();
        let ternary = Ternary { shape, codes: codes.clone(), block: shape.len(), scales: vec![1.0] };
        let w = codec::encode(&ternary, Format::TL1).expect("an encoding");
        for density in [Density::Bits2, Density::Trits] {
            for rows in [4, 8, 16] {
                let layout = Layout { rows, density };
                let mut out = vec![0xee; layout.bytes(shape)];
                pack(Portable, &Inline, &w, layout, &mut out);
                for r in 0..shape.rows() {
                    for c in 0..shape.cols() {
                        let (step, quad, j) = (c / layout.step_cols(), c % layout.step_cols() / 4, c % 4);
                        let at = r / rows * layout.panel_bytes(shape.cols())
                            + step * layout.step_bytes()
                            + 4 * (r % rows)
                            + j;
                        let code = match density {
                            Density::Bits2 => out[at] >> (2 * quad) & 3,
                            Density::Trits => out[at] / 3u8.pow(quad as u32) % 3,
                        };
                        assert_eq!(code as i8 - 1, codes[r * shape.cols() + c], "{layout:?} row {r} column {c}");
                    }
                }
            }
        }
    }
}
