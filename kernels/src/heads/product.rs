//! Products of packed rows and int8 activations.
//!
//! A task has a range of weight rows and works through tiles of 16 of them, which stay in the first-level cache while up to
//! 64 rows of activations pass. With one row of activations, the case that matters, each weight is read once and in order.

use tersor_core::reference::lanes::LANES;
use tersor_core::{Epilogue, Executor, PackedWeight, Result};

use super::pack::Packed;
use super::{Columns, GROUP, Group, Layout, STEP, VECTOR};
use crate::arena::aligned;
use crate::isa::{Body, Simd};
use crate::lanes::Lanes;
use crate::split::{self, Parts};

const ROWS: usize = 16;
const COLS: usize = 64;

/// Multiply-adds that one task should have at least.
const TASK_MACS: usize = 1 << 17;

/// `y = x * w^T` for a weight in `q8_0` or `q6_k`.
pub(crate) struct Product<'a> {
    pub(crate) w: &'a PackedWeight,
    /// `m x k`.
    pub(crate) q: &'a [i8],
    /// `m`.
    pub(crate) scales: &'a [f32],
    /// `m x n`.
    pub(crate) y: &'a mut [f32],
    pub(crate) epilogue: Epilogue,
}

impl Product<'_> {
    /// Computes it. `x` and `start` are memory that is used again from call to call.
    pub(crate) fn run<S: Simd>(
        self,
        backend: &'static str,
        isa: S,
        executor: &dyn Executor,
        (x, start): (&mut Vec<i8>, &mut Vec<i32>),
    ) -> Result<()> {
        let (n, k, m) = (self.w.shape().rows(), self.w.shape().cols(), self.scales.len());
        let Some(layout) = Layout::of(self.w.format(), k) else { return Ok(()) };
        let bytes = self.w.data::<Packed>(backend)?.bytes();
        let (row_bytes, width, sums) = (layout.row_bytes(), padded(layout), layout.groups() * GROUP);
        let (x, start) = (aligned(x, m * width), aligned(start, m * sums));
        for ((q, x), start) in self.q.chunks_exact(k).zip(x.chunks_exact_mut(width)).zip(start.chunks_exact_mut(sums)) {
            isa.run(Turn { layout, q, x, start });
        }
        let (x, start, scales, y) = (&*x, &*start, self.scales, Parts::new(self.y));
        let adds = self.epilogue == Epilogue::Add;
        let tasks = split::task_count(executor, m * n * k, TASK_MACS);
        split::run(executor, tasks, |task| {
            let rows = split::part_of(n, ROWS, tasks, task);
            let mut out = [0.0; ROWS * COLS];
            for first in rows.clone().step_by(ROWS) {
                let count = ROWS.min(rows.end - first);
                let w = &bytes[first * row_bytes..][..count * row_bytes];
                for c0 in (0..m).step_by(COLS) {
                    let cols = COLS.min(m - c0);
                    let (x, start) = (&x[c0 * width..][..cols * width], &start[c0 * sums..][..cols * sums]);
                    let tile = Tile { layout, w, x, start, scales: &scales[c0..][..cols], out: &mut out };
                    if layout.is_q6() {
                        isa.run(TileRows::<true>(tile))
                    } else {
                        isa.run(TileRows::<false>(tile))
                    }
                    for (c, out) in out.chunks_exact(ROWS).take(cols).enumerate() {
                        let at = (c0 + c) * n + first;
                        // SAFETY: this task alone has these weight rows.
                        let y = unsafe { y.part(at..at + count) };
                        if adds {
                            y.iter_mut().zip(out).for_each(|(y, v)| *y += v);
                        } else {
                            y.copy_from_slice(&out[..count]);
                        }
                    }
                }
            }
        });
        Ok(())
    }
}

/// The lanes of the sums of `C` rows of activations.
#[repr(align(64))]
struct Sums<const C: usize>([[f32; LANES]; C]);

/// Activations of a row, padded to whole groups.
fn padded(layout: Layout) -> usize {
    layout.groups() * layout.group_values()
}

/// Brings a row of blocks into the order of vectors. `out` holds whole groups; what has no value is left alone.
#[inline(always)]
pub(super) fn turn(layout: Layout, row: &[i8], out: &mut [i8]) {
    let block = layout.block();
    for (row, out) in row.chunks(layout.group_values()).zip(out.chunks_exact_mut(layout.group_values())) {
        for (j, values) in row.chunks_exact(block).enumerate() {
            for (values, vector) in values.as_chunks::<4>().0.iter().zip(out.chunks_exact_mut(VECTOR)) {
                vector[4 * j..][..4].copy_from_slice(values);
            }
        }
    }
}

/// Prepares a row of activations.
struct Turn<'a> {
    layout: Layout,
    q: &'a [i8],
    x: &'a mut [i8],
    start: &'a mut [i32],
}

impl Body for Turn<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        turn(self.layout, self.q, self.x);
        for (block, start) in self.q.chunks_exact(self.layout.block()).zip(self.start) {
            *start = -self.layout.bias() * block.iter().map(|v| i32::from(*v)).sum::<i32>();
        }
    }
}

/// Weight rows and activation rows whose products go to `out[column * ROWS + row]`.
struct Tile<'a> {
    layout: Layout,
    w: &'a [u8],
    x: &'a [i8],
    start: &'a [i32],
    scales: &'a [f32],
    out: &'a mut [f32],
}

struct TileRows<'a, const Q6: bool>(Tile<'a>);

impl<const Q6: bool> Body for TileRows<'_, Q6> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut tile = self.0;
        let columns = tile.scales.len();
        let mut c = 0;
        // A group is unpacked once for eight rows of activations, which with 2,560 columns are in the first-level cache while
        // all rows of weights pass.
        while c + 8 <= columns {
            tile_columns::<S, Q6, 8>(simd, &mut tile, c);
            c += 8;
        }
        while c + 2 <= columns {
            tile_columns::<S, Q6, 2>(simd, &mut tile, c);
            c += 2;
        }
        if c < columns {
            tile_columns::<S, Q6, 1>(simd, &mut tile, c);
        }
    }
}

/// Columns `first..first + C` of a tile.
#[inline(always)]
fn tile_columns<S: Simd, const Q6: bool, const C: usize>(simd: S, tile: &mut Tile<'_>, first: usize) {
    let layout = tile.layout;
    let (groups, x_row, start_row) = (layout.groups(), padded(layout), layout.groups() * GROUP);
    let (x, start) = (&tile.x[first * x_row..][..C * x_row], &tile.start[first * start_row..][..C * start_row]);
    for (r, row) in tile.w.chunks_exact(layout.row_bytes()).enumerate() {
        let row = Row::new::<Q6>(layout, row);
        let mut lanes = Sums([[0.0; LANES]; C]);
        for g in 0..groups {
            // SAFETY: every group is below their number, which `x` and `start` have `C` times; lanes are four groups.
            unsafe {
                let columns = Columns {
                    x: x.as_ptr().add(g * layout.group_values()),
                    x_row,
                    start: start.as_ptr().add(g * GROUP),
                    start_row,
                    lanes: lanes.0.as_mut_ptr().cast::<f32>().add(g % STEP * GROUP),
                };
                simd.add_group::<Q6, C>(row.group::<Q6>(g), columns);
            }
        }
        let (fours, rest) = lanes.0.as_chunks::<4>();
        for (i, [a, b, c, d]) in fours.iter().enumerate() {
            let four = S::F32::fold4([
                S::F32::load(simd, a),
                S::F32::load(simd, b),
                S::F32::load(simd, c),
                S::F32::load(simd, d),
            ]);
            for (c, sum) in four.into_iter().enumerate() {
                let c = first + 4 * i + c;
                tile.out[c * ROWS + r] = sum / tile.scales[c];
            }
        }
        for (c, lanes) in rest.iter().enumerate().map(|(c, l)| (4 * fours.len() + c, l)) {
            tile.out[(first + c) * ROWS + r] = S::F32::load(simd, lanes).fold() / tile.scales[first + c];
        }
    }
}

/// One row of weights, of the lengths that [`Row::new`] saw to.
#[derive(Clone, Copy)]
struct Row<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    d: &'a [u8],
}

impl<'a> Row<'a> {
    #[inline(always)]
    fn new<const Q6: bool>(layout: Layout, row: &'a [u8]) -> Self {
        let ((codes, scales, d), groups) = (layout.parts(row), layout.groups());
        let (code_bytes, scale_bytes) = sizes::<Q6>();
        assert!(codes.len() == groups * code_bytes && scales.len() == groups * scale_bytes, "a row of the layout");
        assert!(!Q6 || d.len() == 2 * groups, "a row of the layout");
        Row { codes, scales, d }
    }

    /// Group `g`. (A function, because a closure need not be inlined.) Checking bounds here would cost more instructions
    /// than the products.
    ///
    /// # Safety
    /// The row must have been made with the same `Q6`, of a layout of more than `g` groups.
    #[inline(always)]
    unsafe fn group<const Q6: bool>(&self, g: usize) -> Group<'a> {
        let (codes, scales) = sizes::<Q6>();
        // SAFETY: `new` asserted the lengths of that many groups.
        unsafe {
            Group {
                codes: self.codes.get_unchecked(g * codes..(g + 1) * codes),
                scales: self.scales.get_unchecked(g * scales..(g + 1) * scales),
                d: if Q6 { self.d.as_chunks().0.get_unchecked(g) } else { &[0; 2] },
            }
        }
    }
}

/// Bytes of codes and bytes of scales of a group.
const fn sizes<const Q6: bool>() -> (usize, usize) {
    if Q6 { (super::Q6_CODES, GROUP) } else { (super::Q8_CODES, 2 * GROUP) }
}
