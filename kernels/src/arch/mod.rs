//! Kernels in intrinsics, a folder an architecture, the same file names and function names in each.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

/// Covers a [`crate::Tile`] with register tiles: 4 weight rows x 1 activation row where there is one row of activations,
/// `$rows x 4` otherwise, single rows at the edges.
macro_rules! cover {
    ($block_rows:ident, $rows:literal) => {
        /// Covers a tile with register tiles.
        ///
        /// # Safety
        /// The ISA of `D` must be enabled in the caller.
        #[inline(always)]
        unsafe fn cover<D: Dot>(tile: Tile<'_>, out: &mut [i32]) {
            let Tile { w, row_bytes, rows, x, stride, m } = tile;
            let fits = w.len() >= rows * row_bytes && x.len() >= m * stride && out.len() >= rows * m;
            assert!(
                fits && stride == 4 * row_bytes && row_bytes.is_multiple_of(BLOCK_BYTES),
                "a tile within its slices"
            );
            macro_rules! steps {
                        ($r:literal, $c:literal, $r0:ident, $c0:ident) => {
                            while m - $c0 >= $c {
                                // SAFETY: the assertion covers rows `r0..r0 + R` and columns `c0..c0 + C`; the ISA is the caller's.
                                let sums: [[i32; $c]; $r] = unsafe {
                                    let (w, x) = (w.as_ptr().add($r0 * row_bytes), x.as_ptr().add($c0 * stride));
                                    $block_rows::<D, $r, $c>(w, row_bytes, x)
                                };
                                for (i, row) in sums.iter().enumerate() {
                                    out[($r0 + i) * m + $c0..][..$c].copy_from_slice(row);
                                }
                                $c0 += $c;
                            }
                        };
                    }
            let mut r = 0;
            while m == 1 && r + 4 <= rows {
                let mut c = 0;
                steps!(4, 1, r, c);
                r += 4;
            }
            while m > 1 && r + $rows <= rows {
                let mut c = 0;
                steps!($rows, 4, r, c);
                steps!($rows, 1, r, c);
                r += $rows;
            }
            while r < rows {
                let mut c = 0;
                steps!(1, 4, r, c);
                steps!(1, 1, r, c);
                r += 1;
            }
        }
    };
}

/// A safe function of a token that runs `cover` with the token's features.
macro_rules! entry {
    ($(#[$doc:meta])* $name:ident, $token:ty, $dot:ty, $features:literal) => {
        $(#[$doc])*
        pub fn $name(_token: $token, tile: Tile<'_>, out: &mut [i32]) {
            #[target_feature(enable = $features)]
            unsafe fn inner(tile: Tile<'_>, out: &mut [i32]) {
                // SAFETY: the features are enabled here.
                unsafe { cover::<$dot>(tile, out) }
            }
            // SAFETY: the token is proof of the features.
            unsafe { inner(tile, out) }
        }
    };
}

pub(crate) use {cover, entry};
