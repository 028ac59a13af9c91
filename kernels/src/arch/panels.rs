//! Products of panels ([`crate::pack::panels`]) and int8 activations, written once over what an ISA's registers can do.
//!
//! For each register of weights ("step"), the codes of four or five quads are unpacked once and meet the activations of
//! up to [`COLUMNS`] rows, four at a time, broadcast to all lanes. One dot instruction then does a lane's quad: no sum
//! crosses lanes until the end of the row. The tiles:
//!
//! * one row of activations: one panel, an accumulator for each quad of a step (twice that where the dot instruction adds
//!   straight to i32 and its latency would show). Codes stay where they lie in their byte, masked but not shifted, where
//!   the accumulator has room for it: four operations a step less, and one shift at the end of the row.
//! * more rows: two panels x [`COLUMNS`] rows (half of them where there are 16 registers) at most, all sums in registers from the row's first step to its last.
//!
//! Activations of more than one row come as groups of `m` rows, quad after quad: four bytes of row 0, four of row 1, ...

/// The most activation rows of a tile, and the rows of a full group of activations.
pub const COLUMNS: usize = 8;
/// The most sums that a kernel is asked for at once: a tile's `panels * m * rows`.
pub const SUMS: usize = 256;

/// How far ahead of its use a weight is asked for, in bytes: past the page that the hardware prefetcher stops at. Measured
/// on Zen 5 with 4 KiB pages, one core, cold weights: 36.9 GB/s without, 40.2 at 4 KiB, 40.9 at 8 KiB; reading alone 43.
const PREFETCH: usize = 8192;

/// Panels of weights and a group of activations.
#[derive(Debug, Clone, Copy)]
pub struct PanelTile<'a> {
    /// `panels` panels of `steps` steps.
    pub w: &'a [u8],
    /// How many panels.
    pub panels: usize,
    /// Steps of a panel.
    pub steps: usize,
    /// A group of `m` activation rows in quads.
    pub x: &'a [i8],
    /// Activation rows; at most [`COLUMNS`].
    pub m: usize,
}

/// One panel at 2 bits with scales for blocks of columns, and a group of activations.
#[derive(Debug, Clone, Copy)]
pub struct ScaledTile<'a> {
    /// The panel.
    pub w: &'a [u8],
    /// Blocks of a row.
    pub blocks: usize,
    /// Steps of a block.
    pub steps: usize,
    /// A group of `m` activation rows in quads.
    pub x: &'a [i8],
    /// Activation rows; at most [`COLUMNS`].
    pub m: usize,
    /// Block after block, the scales of the panel's rows.
    pub scales: &'a [f32],
    /// Row after row of activations, the sum of each block.
    pub x_sums: &'a [i32],
}

/// What an ISA's registers can do.
///
/// # Safety
/// Every function must be called where the ISA is enabled; pointers must be valid for what is read or written there.
#[allow(clippy::missing_safety_doc, reason = "one contract for all: the trait's")]
pub(crate) trait Registers {
    /// A register, of bytes or of i32 lanes.
    type V: Copy;
    /// A register of f32 lanes.
    type F: Copy;
    /// i32 lanes, which are rows of a panel.
    const ROWS: usize;
    /// Columns of a tile of two panels: as many as leave registers for codes and activations.
    const TILE: usize;
    /// How many results of `dot` may be added before `widen`.
    const ADDS: usize;
    /// Whether unpacking may leave codes unshifted: products of up to `192 * 128` then fit.
    const LOOSE: bool;

    unsafe fn zero() -> Self::V;
    unsafe fn load(from: *const u8) -> Self::V;
    /// Four activations in every lane.
    unsafe fn quad(from: *const i8) -> Self::V;
    /// `acc + codes * x` over quads, in the accumulator's own form.
    unsafe fn dot(acc: Self::V, codes: Self::V, x: Self::V) -> Self::V;
    /// The accumulator as i32 lanes.
    unsafe fn widen(acc: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `value` in every i32 lane.
    unsafe fn splat(value: i32) -> Self::V;
    /// i32 lanes shifted right.
    unsafe fn shift(v: Self::V, by: i32) -> Self::V;
    /// Bits `2 * Q` and `2 * Q + 1` of every byte, shifted down.
    unsafe fn bits<const Q: i32>(v: Self::V) -> Self::V;
    /// The same, left in place.
    unsafe fn masked<const Q: i32>(v: Self::V) -> Self::V;
    unsafe fn store(v: Self::V, to: *mut i32);
    unsafe fn prefetch(at: *const u8);

    unsafe fn to_f32(v: Self::V) -> Self::F;
    unsafe fn load_f32(from: *const f32) -> Self::F;
    unsafe fn store_f32(v: Self::F, to: *mut f32);
    unsafe fn zero_f32() -> Self::F;
    unsafe fn add_f32(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul_f32(a: Self::F, b: Self::F) -> Self::F;
}

/// How the codes of a step's `Q` quads are unpacked.
///
/// # Safety
/// As for [`Registers`].
#[allow(clippy::missing_safety_doc, reason = "one contract for all: the trait's")]
pub(crate) trait Unpack<R: Registers, const Q: usize>: Copy {
    /// Where in their bytes `loose` leaves the codes.
    const SHIFTS: [i32; Q];
    unsafe fn new() -> Self;
    /// The codes, in the low bits.
    unsafe fn exact(self, v: R::V) -> [R::V; Q];
    /// The codes, shifted left by `SHIFTS`.
    unsafe fn loose(self, v: R::V) -> [R::V; Q];
}

/// Two bits a code.
#[derive(Clone, Copy)]
pub(crate) struct Bits2;

impl<R: Registers> Unpack<R, 4> for Bits2 {
    const SHIFTS: [i32; 4] = if R::LOOSE { [0, 2, 4, 6] } else { [0; 4] };

    #[inline(always)]
    unsafe fn new() -> Self {
        Bits2
    }

    #[inline(always)]
    unsafe fn exact(self, v: R::V) -> [R::V; 4] {
        // SAFETY: the caller's contract.
        unsafe { [R::bits::<0>(v), R::bits::<1>(v), R::bits::<2>(v), R::bits::<3>(v)] }
    }

    #[inline(always)]
    unsafe fn loose(self, v: R::V) -> [R::V; 4] {
        // SAFETY: the caller's contract.
        unsafe {
            if R::LOOSE {
                [R::masked::<0>(v), R::masked::<1>(v), R::masked::<2>(v), R::masked::<3>(v)]
            } else {
                <Self as Unpack<R, 4>>::exact(self, v)
            }
        }
    }
}

/// The sums of an accumulator for each quad, as i32 lanes.
#[inline(always)]
unsafe fn settle<R: Registers, D: Unpack<R, Q>, const Q: usize>(acc: [R::V; Q]) -> R::V {
    // SAFETY: the caller's contract.
    unsafe {
        let mut total = R::zero();
        for q in 0..Q {
            let sum = R::widen(acc[q]);
            total = R::add(total, if D::SHIFTS[q] == 0 { sum } else { R::shift(sum, D::SHIFTS[q]) });
        }
        total
    }
}

/// The sums of one panel and one row of activations over `steps` steps.
///
/// # Safety
/// [`Registers`]; `w` has `steps` steps and `x` as many columns.
#[inline(always)]
unsafe fn column<R: Registers, D: Unpack<R, Q>, const Q: usize, const U: usize>(
    unpack: D,
    w: *const u8,
    steps: usize,
    x: *const i8,
) -> R::V {
    // SAFETY: steps stay below `steps`. A prefetch may be past the end: it is of an address, not of memory.
    unsafe {
        let mut total = R::zero();
        let mut s = 0;
        while s < steps {
            let end = steps.min(s.saturating_add(R::ADDS));
            let mut acc = [[R::zero(); Q]; U];
            macro_rules! step {
                ($u:expr) => {
                    let w = w.add((s + $u) * 4 * R::ROWS);
                    R::prefetch(w.wrapping_add(PREFETCH));
                    let codes = unpack.loose(R::load(w));
                    for q in 0..Q {
                        acc[$u][q] = R::dot(acc[$u][q], codes[q], R::quad(x.add(((s + $u) * Q + q) * 4)));
                    }
                };
            }
            while s + U <= end {
                for u in 0..U {
                    step!(u);
                }
                s += U;
            }
            while s < end {
                step!(0);
                s += 1;
            }
            for u in 0..U {
                total = R::add(total, settle::<R, D, Q>(acc[u]));
            }
        }
        total
    }
}

/// The sums of P panels and C columns of a group of `m`, over `steps` steps.
///
/// # Safety
/// [`Registers`]; `w` has P panels, `panel_bytes` apart, of `steps` steps; `x` points to the first of the C columns in a group of
/// as many columns.
#[inline(always)]
pub(crate) unsafe fn block<R: Registers, D: Unpack<R, Q>, const Q: usize, const P: usize, const C: usize>(
    unpack: D,
    (w, panel_bytes): (*const u8, usize),
    steps: usize,
    (x, m): (*const i8, usize),
) -> [[R::V; C]; P] {
    // SAFETY: steps stay below `steps`.
    unsafe {
        let mut total = [[R::zero(); C]; P];
        let narrow = R::ADDS < usize::MAX;
        let mut s = 0;
        while s < steps {
            let end = if narrow { steps.min(s + R::ADDS / Q) } else { steps };
            let mut acc = [[R::zero(); C]; P];
            while s < end {
                let mut codes = [[R::zero(); Q]; P];
                for p in 0..P {
                    codes[p] = unpack.exact(R::load(w.add(p * panel_bytes + s * 4 * R::ROWS)));
                }
                for q in 0..Q {
                    let x = x.add((s * Q + q) * 4 * m);
                    for c in 0..C {
                        let x = R::quad(x.add(4 * c));
                        for p in 0..P {
                            acc[p][c] = R::dot(acc[p][c], codes[p][q], x);
                        }
                    }
                }
                s += 1;
            }
            for p in 0..P {
                for c in 0..C {
                    total[p][c] = R::add(total[p][c], R::widen(acc[p][c]));
                }
            }
        }
        total
    }
}

/// Raw sums of code x activation: `out[(panel * m + column) * ROWS + row]`.
///
/// # Safety
/// [`Registers`]. Lengths are checked here.
#[inline(always)]
pub(crate) unsafe fn sums<R: Registers, D: Unpack<R, Q>, const Q: usize, const U: usize>(
    t: PanelTile<'_>,
    out: &mut [i32],
) {
    let PanelTile { w, panels, steps, x, m } = t;
    let panel_bytes = steps * 4 * R::ROWS;
    let fits = w.len() >= panels * panel_bytes && x.len() >= m * steps * Q * 4 && out.len() >= panels * m * R::ROWS;
    assert!(fits && m <= COLUMNS, "a tile within its slices");
    let (w, x, out) = (w.as_ptr(), x.as_ptr(), out.as_mut_ptr());
    // SAFETY: the assertion covers every panel, every column and every result.
    unsafe {
        let unpack = D::new();
        if m == 1 {
            for p in 0..panels {
                R::store(column::<R, D, Q, U>(unpack, w.add(p * panel_bytes), steps, x), out.add(p * R::ROWS));
            }
            return;
        }
        let mut p = 0;
        macro_rules! columns {
            ($p:literal, $c:literal, $first:ident) => {{
                let group = (x.add(4 * $first), m);
                let sums = block::<R, D, Q, $p, $c>(unpack, (w.add(p * panel_bytes), panel_bytes), steps, group);
                for (i, row) in sums.iter().enumerate() {
                    for (c, &v) in row.iter().enumerate() {
                        R::store(v, out.add(((p + i) * m + $first + c) * R::ROWS));
                    }
                }
            }};
        }
        macro_rules! panels {
            ($p:literal) => {
                let mut c = 0;
                while c < m {
                    // Widths above the ISA's tile are never compiled in.
                    match (m - c).min(R::TILE) {
                        1 => columns!($p, 1, c),
                        2 => columns!($p, 2, c),
                        3 => columns!($p, 3, c),
                        4 => columns!($p, 4, c),
                        5 if R::TILE > 4 => columns!($p, 5, c),
                        6 if R::TILE > 4 => columns!($p, 6, c),
                        7 if R::TILE > 4 => columns!($p, 7, c),
                        _ if R::TILE > 4 => columns!($p, 8, c),
                        _ => {}
                    }
                    c += R::TILE;
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
}

/// Sums of a panel whose rows have several scales, in the 64 lanes of the defined order and folded, but not yet divided by
/// the activations' scales: `out[column * ROWS + row]`.
///
/// # Safety
/// [`Registers`]. Lengths are checked here.
#[inline(always)]
pub(crate) unsafe fn scaled<R: Registers>(t: ScaledTile<'_>, out: &mut [f32]) {
    let ScaledTile { w, blocks, steps, x, m, scales, x_sums } = t;
    let fits = w.len() >= blocks * steps * 4 * R::ROWS
        && x.len() >= m * blocks * steps * 16
        && scales.len() >= blocks * R::ROWS
        && x_sums.len() >= m * blocks
        && out.len() >= m * R::ROWS;
    assert!(fits && m <= COLUMNS, "a tile within its slices");
    let mut c = 0;
    // SAFETY: the assertion covers every block, every column and every result.
    unsafe {
        while c + 4 <= m {
            scaled_columns::<R, 4>(t, c, out.as_mut_ptr());
            c += 4;
        }
        while c < m {
            scaled_columns::<R, 1>(t, c, out.as_mut_ptr());
            c += 1;
        }
    }
}

/// Columns `first..first + C` of [`scaled`].
///
/// # Safety
/// As for [`scaled`], whose checks have been made.
#[inline(always)]
unsafe fn scaled_columns<R: Registers, const C: usize>(t: ScaledTile<'_>, first: usize, out: *mut f32) {
    let ScaledTile { w, blocks, steps, x, m, scales, x_sums } = t;
    // SAFETY: the caller's contract.
    unsafe {
        let unpack = <Bits2 as Unpack<R, 4>>::new();
        // Block b goes to lane b mod 64; lanes begin at +0.
        let mut lanes = [[R::zero_f32(); C]; 64];
        for b in 0..blocks {
            let w = w.as_ptr().add(b * steps * 4 * R::ROWS);
            let x = x.as_ptr().add((b * steps * 16) * m + 4 * first);
            let sums: [R::V; C] = if m == 1 {
                [column::<R, Bits2, 4, 1>(unpack, w, steps, x); C]
            } else {
                block::<R, Bits2, 4, 1, C>(unpack, (w, 0), steps, (x, m))[0]
            };
            let scale = R::load_f32(scales.as_ptr().add(b * R::ROWS));
            for c in 0..C {
                let x_sum = R::splat(x_sums[(first + c) * blocks + b]);
                let value = R::mul_f32(R::to_f32(R::sub(sums[c], x_sum)), scale);
                lanes[b % 64][c] = R::add_f32(lanes[b % 64][c], value);
            }
        }
        // Missing lanes are +0, and a lane is never -0: what would add nothing is left out.
        let mut used = blocks.min(64);
        for h in [32, 16, 8, 4, 2, 1] {
            for j in h..used {
                for c in 0..C {
                    lanes[j - h][c] = R::add_f32(lanes[j - h][c], lanes[j][c]);
                }
            }
            used = used.min(h);
        }
        for c in 0..C {
            R::store_f32(lanes[0][c], out.add((first + c) * R::ROWS));
        }
    }
}

/// A safe function of a token that runs a kernel with the token's features.
macro_rules! entry {
    ($(#[$doc:meta])* $name:ident, $token:ty, $features:literal, $tile:ident, $sum:ty, $kernel:expr) => {
        $(#[$doc])*
        pub fn $name(_token: $token, tile: $tile<'_>, out: &mut [$sum]) {
            #[target_feature(enable = $features)]
            unsafe fn inner(tile: $tile<'_>, out: &mut [$sum]) {
                // SAFETY: the features are enabled here.
                unsafe { $kernel(tile, out) }
            }
            // SAFETY: the token is proof of the features.
            unsafe { inner(tile, out) }
        }
    };
}

pub(crate) use entry;
