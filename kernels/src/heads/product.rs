//! Products of packed rows and int8 activations.
//!
//! A task has a range of weight rows and works through tiles of 16 of them, which stay in the first-level cache while up to
//! 64 rows of activations pass. With one row of activations, the case that matters, each weight is read once and in order.

use tersor_core::{Epilogue, Executor, PackedWeight, Result};

use super::pack::Packed;
use super::{GROUP, Group, Layout, STEP, VECTOR};
use crate::isa::{Body, Simd};
use crate::lanes::Lanes;
use crate::split::{self, Parts};

const ROWS: usize = 16;
const COLS: usize = 64;

/// Multiply-adds that one task should have at least.
const TASK_MACS: usize = 1 << 18;

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
        x.clear();
        x.resize(m * width, 0);
        start.clear();
        start.resize(m * sums, 0);
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
        let Tile { layout, w, x, start, scales, out } = self.0;
        let activations = x.chunks_exact(padded(layout)).zip(start.chunks_exact(layout.groups() * GROUP)).zip(scales);
        for (((x, start), scale), out) in activations.zip(out.chunks_exact_mut(ROWS)) {
            for (row, out) in w.chunks_exact(layout.row_bytes()).zip(out) {
                *out = dot::<S, Q6>(simd, layout, row, x, start) / scale;
            }
        }
    }
}

/// One row of weights and one of activations, of the lengths that [`Pair::new`] saw to.
#[derive(Clone, Copy)]
struct Pair<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    d: &'a [u8],
    x: &'a [i8],
    start: &'a [[i32; GROUP]],
}

impl<'a> Pair<'a> {
    #[inline(always)]
    fn new<const Q6: bool>(layout: Layout, row: &'a [u8], x: &'a [i8], start: &'a [i32]) -> Self {
        let ((codes, scales, d), start, groups) = (layout.parts(row), start.as_chunks().0, layout.groups());
        let (values, code_bytes, scale_bytes) = sizes::<Q6>();
        assert!(codes.len() == groups * code_bytes && scales.len() == groups * scale_bytes, "a row of the layout");
        assert!(x.len() == groups * values && start.len() == groups && (!Q6 || d.len() == 2 * groups), "a whole row");
        Pair { codes, scales, d, x, start }
    }

    /// Group `g` of both. (A function, because a closure need not be inlined.) Checking bounds here would cost more
    /// instructions than the products.
    ///
    /// # Safety
    /// The pair must have been made with the same `Q6`, of a layout of more than `g` groups.
    #[inline(always)]
    unsafe fn group<const Q6: bool>(&self, g: usize) -> Group<'a> {
        let (values, codes, scales) = sizes::<Q6>();
        // SAFETY: `new` asserted the lengths of that many groups.
        unsafe {
            Group {
                codes: self.codes.get_unchecked(g * codes..(g + 1) * codes),
                scales: self.scales.get_unchecked(g * scales..(g + 1) * scales),
                d: if Q6 { self.d.as_chunks().0.get_unchecked(g) } else { &[0; 2] },
                x: self.x.get_unchecked(g * values..(g + 1) * values),
                start: self.start.get_unchecked(g),
            }
        }
    }
}

/// Activations, bytes of codes and bytes of scales of a group.
const fn sizes<const Q6: bool>() -> (usize, usize, usize) {
    if Q6 { (256, super::Q6_CODES, GROUP) } else { (512, super::Q8_CODES, 2 * GROUP) }
}

/// One row of weights times one of activations, before the activation scale.
#[inline(always)]
fn dot<S: Simd, const Q6: bool>(simd: S, layout: Layout, row: &[u8], x: &[i8], start: &[i32]) -> f32 {
    let pair = Pair::new::<Q6>(layout, row, x, start);
    let groups = layout.groups();
    let mut sum = S::F32::splat(simd, 0.0);
    let mut g = 0;
    while g + STEP <= groups {
        let mut products = [0.0; STEP * GROUP];
        let (lanes, _) = products.as_chunks_mut::<GROUP>();
        // SAFETY: a step's groups are there.
        unsafe {
            simd.group_products::<Q6>(pair.group::<Q6>(g), &mut lanes[0]);
            simd.group_products::<Q6>(pair.group::<Q6>(g + 1), &mut lanes[1]);
            simd.group_products::<Q6>(pair.group::<Q6>(g + 2), &mut lanes[2]);
            simd.group_products::<Q6>(pair.group::<Q6>(g + 3), &mut lanes[3]);
        }
        sum = sum.add(S::F32::load(simd, &products));
        g += STEP;
    }
    if g < groups {
        // Lanes without a block get +0, which changes none: a lane is never -0, as it began at +0.
        let mut products = [0.0; STEP * GROUP];
        let (lanes, _) = products.as_chunks_mut::<GROUP>();
        // SAFETY: every group is compared with their number.
        unsafe {
            simd.group_products::<Q6>(pair.group::<Q6>(g), &mut lanes[0]);
            if g + 1 < groups {
                simd.group_products::<Q6>(pair.group::<Q6>(g + 1), &mut lanes[1]);
            }
            if g + 2 < groups {
                simd.group_products::<Q6>(pair.group::<Q6>(g + 2), &mut lanes[2]);
            }
        }
        sum = sum.add(S::F32::load(simd, &products));
    }
    sum.fold()
}
