//! Rows of a cache, as attention reads them: those of one key/value head, position after position.

use std::marker::PhantomData;

use tersor_core::reference::lanes::LANES;

/// Scores that are made together: a multiple of the floats of every ISA's register.
pub const TILE: usize = 16;

/// The rows of one head, each of whole lanes. Their bounds are checked once, when they are made: checking each row would
/// cost as much as folding a dot product.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    first: *const f32,
    stride: usize,
    count: usize,
    chunks: usize,
    cache: PhantomData<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// `count` rows of `dim` elements, at least one row, the first at `offset` and each `stride` after the one before. What
    /// of `dim` is no whole 64 is left out.
    ///
    /// # Panics
    /// If they are not all in `cache`.
    #[inline(always)]
    pub fn new(cache: &'a [f32], offset: usize, stride: usize, count: usize, dim: usize) -> Self {
        assert!(count > 0 && offset + (count - 1) * stride + dim <= cache.len(), "rows within the cache");
        Rows { first: cache[offset..].as_ptr(), stride, count, chunks: dim / LANES, cache: PhantomData }
    }

    /// How many rows.
    #[inline(always)]
    pub fn count(self) -> usize {
        self.count
    }

    /// Whole 64 elements of a row.
    #[inline(always)]
    pub fn chunks(self) -> usize {
        self.chunks
    }

    /// At most `count` rows from row `from` on.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    #[must_use]
    pub fn part(self, from: usize, count: usize) -> Self {
        assert!(from < self.count && count > 0, "a row of the head");
        Rows { first: self.first.wrapping_add(from * self.stride), count: count.min(self.count - from), ..self }
    }

    /// Where a row begins.
    #[inline(always)]
    pub fn row(self, position: usize) -> *const f32 {
        self.first.wrapping_add(position * self.stride)
    }

    /// Where row `position` begins, or the last one if there is none.
    #[inline(always)]
    pub fn row_or_last(self, position: usize) -> *const f32 {
        self.row(position.min(self.count - 1))
    }

    /// `position`, of which compilers cannot tell how it changes from tile to tile. Otherwise they keep an address for each row of a
    /// tile, in memory, and move all of them on after each tile: half of the time that 256-bit scores take.
    #[inline(always)]
    pub fn opaque(position: usize) -> usize {
        std::hint::black_box(position)
    }

    /// The `i`th 64 elements of a row.
    ///
    /// # Safety
    /// Both must be there: `position < count()` and `i < chunks()`.
    #[inline(always)]
    pub unsafe fn chunk(self, position: usize, i: usize) -> &'a [f32; LANES] {
        // SAFETY: `new` saw to it that the rows are in the cache, which is borrowed as long as they are.
        unsafe { &*self.row(position).add(i * LANES).cast() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_those_of_the_head_and_parts_of_them_no_more() {
        let cache: Vec<f32> = (0..3 * 200).map(|i| i as f32).collect();
        let rows = Rows::new(&cache, 72, 200, 3, 128);
        // SAFETY: three rows of two chunks.
        let at = |position, i| unsafe { rows.chunk(position, i)[0] };
        assert_eq!([at(0, 0), at(0, 1), at(2, 1)], [72.0, 136.0, 536.0]);
        let last = rows.part(2, 64);
        assert_eq!((last.count(), last.chunks(), last.row(0)), (1, 2, rows.row(2)));
        for past in [(73, 3, 128), (72, 4, 128), (72, 3, 129), (0, 0, 64)] {
            let (offset, count, dim) = past;
            let made = std::panic::catch_unwind(|| Rows::new(&cache, offset, 200, count, dim).count());
            assert!(made.is_err(), "{past:?} of {} are not rows", cache.len());
        }
    }
}
