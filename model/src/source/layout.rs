//! Layouts of bitnet.cpp that depend on the machine or the build that wrote the file.
//!
//! None of them leaves a mark in the file, so none is ever guessed: the caller names the layout, or gives the kernel
//! configuration (`kernel_config.ini`) of the build. They are import layouts; nothing here writes them.

use tersor_core::{Format, Shape};

use crate::error::{Error, Result};

/// Which layout `i2_s` tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum I2sLayout {
    /// Blocks of 128 values in 32 bytes: x86 builds with ACT_PARALLEL, and everything this program writes.
    #[default]
    Canonical,
    /// Blocks of 64 values in 16 bytes: bitnet.cpp on ARM.
    Arm64Block,
    /// Four rows a byte: x86 builds without ACT_PARALLEL.
    Rows4,
}

impl I2sLayout {
    /// The names that commands use.
    pub const NAMES: [(&'static str, Self); 3] =
        [("canonical", Self::Canonical), ("arm64-block", Self::Arm64Block), ("rows4", Self::Rows4)];
}

impl std::str::FromStr for I2sLayout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, layout)| *layout).ok_or_else(|| Error::Config {
            key: "i2_s layout".to_owned(),
            value: text.to_owned(),
            problem: "known are canonical, arm64-block and rows4".to_owned(),
        })
    }
}

/// The tile sizes with which bitnet.cpp stored weights of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Rows of the weight (`m`).
    pub rows: usize,
    /// Columns of the weight (`k`).
    pub cols: usize,
    /// Rows of a tile (`bm`).
    pub bm: usize,
    /// Columns of a block (`bk`).
    pub bk: usize,
    /// Rows of a group (`bmm`); used by `tl1` only.
    pub bmm: usize,
}

/// bitnet.cpp's `kernel_config.ini`: a tile per weight shape.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelConfig {
    /// The tiles, one for each shape.
    pub tiles: Vec<Tile>,
}

impl KernelConfig {
    /// Reads the text of a `kernel_config.ini`: sections with the keys `m`, `k`, `bm`, `bk` and `bmm`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the line that is not understood, or the section that lacks a key.
    pub fn parse(text: &str) -> Result<Self> {
        let mut sections: Vec<(&str, [Option<usize>; 5])> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let bad = |problem: &str| Error::Config {
                key: format!("kernel_config.ini line {}", number + 1),
                value: line.to_owned(),
                problem: problem.to_owned(),
            };
            if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                sections.push((section, [None; 5]));
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| bad("expected key = number or [section]"))?;
            let (_, values) = sections.last_mut().ok_or_else(|| bad("expected a [section] first"))?;
            let slot = ["m", "k", "bm", "bk", "bmm"].iter().position(|k| *k == key.trim());
            let slot = slot.ok_or_else(|| bad("known keys are m, k, bm, bk and bmm"))?;
            values[slot] = Some(value.trim().parse().map_err(|_| bad("not a number"))?);
        }
        let tiles = sections.into_iter().map(|(section, values)| match values {
            [Some(rows), Some(cols), Some(bm), Some(bk), Some(bmm)] => Ok(Tile { rows, cols, bm, bk, bmm }),
            _ => Err(Error::Config {
                key: format!("kernel_config.ini [{section}]"),
                value: format!("{values:?}"),
                problem: "m, k, bm, bk and bmm are all needed".to_owned(),
            }),
        });
        Ok(Self { tiles: tiles.collect::<Result<_>>()? })
    }

    /// The tile for weights of this shape.
    ///
    /// # Errors
    /// [`Error::Config`] listing the shapes that the configuration has.
    pub fn tile(&self, shape: Shape) -> Result<Tile> {
        self.tiles.iter().find(|t| (t.rows, t.cols) == (shape.rows(), shape.cols())).copied().ok_or_else(|| {
            let known: Vec<String> = self.tiles.iter().map(|t| format!("{} x {}", t.rows, t.cols)).collect();
            Error::Config {
                key: "kernel_config.ini".to_owned(),
                value: known.join(", "),
                problem: format!("has no kernel for {shape}"),
            }
        })
    }
}

/// Decodes the code bytes of a foreign `i2_s` layout.
pub(super) fn decode_i2_s(bytes: &[u8], shape: Shape, layout: I2sLayout) -> Result<Vec<i8>> {
    let cols = shape.cols();
    // Where value n of byte b lies: the four values of a byte are `stride` apart, and `span` bytes make one run of them.
    let (span, fits, need) = match layout {
        I2sLayout::Canonical => (32, cols.is_multiple_of(128), "128 columns"),
        I2sLayout::Arm64Block => (16, cols.is_multiple_of(64), "64 columns"),
        I2sLayout::Rows4 => (cols, shape.rows().is_multiple_of(4), "4 rows"),
    };
    if !fits {
        let problem = format!("this layout holds multiples of {need}, not {shape}");
        return Err(Error::Layout { format: Format::I2S, problem });
    }
    let mut codes = vec![0; shape.len()];
    for (run, out) in bytes.chunks_exact(span).zip(codes.chunks_exact_mut(4 * span)) {
        for (n, quarter) in out.chunks_exact_mut(span).enumerate() {
            for (code, byte) in quarter.iter_mut().zip(run) {
                *code = (byte >> (6 - 2 * n) & 3) as i8 - 1;
            }
        }
    }
    check(Format::I2S, shape, codes)
}

/// Decodes bitnet.cpp's `tl1`. Second: the bytes of codes, behind which the scale stands.
pub(super) fn decode_tl1(bytes: &[u8], shape: Shape, tile: Tile) -> Result<(Vec<i8>, usize)> {
    let (rows, cols) = (shape.rows(), shape.cols());
    let Tile { bm, bk, bmm, .. } = tile;
    let width = 256usize.checked_div(bmm).unwrap_or(0);
    let nested = divides(bm, rows) && divides(bk, cols) && divides(bmm, bm) && divides(width, bk);
    if !(nested && divides(16, bmm) && divides(4, width)) {
        return Err(bad_tile(
            Format::TL1,
            tile,
            "need bm | rows, bk | columns, bmm | bm, 16 | bmm, 256/bmm | bk, 4 | 256/bmm",
        ));
    }
    let len = shape.len() / 4;
    let mut bytes = take(Format::TL1, bytes, 0, len)?.chunks_exact(16);
    let mut codes = vec![0; shape.len()];
    for (row, col) in tiles(rows, cols, &[(bm, bk), (bmm, width), (16, 4)]) {
        for (r, byte) in bytes.next().unwrap_or_default().iter().enumerate() {
            let at = (row + r) * cols + col;
            pair(byte >> 4, &mut codes[at..at + 2]);
            pair(byte & 15, &mut codes[at + 2..at + 4]);
        }
    }
    Ok((check(Format::TL1, shape, codes)?, len))
}

/// Decodes bitnet.cpp's `tl2`. Second: the offset of the scale, behind the codes and their padding.
pub(super) fn decode_tl2(bytes: &[u8], shape: Shape, tile: Tile) -> Result<(Vec<i8>, usize)> {
    let (rows, cols) = (shape.rows(), shape.cols());
    let Tile { bm, bk, .. } = tile;
    if !(divides(bm, rows) && divides(32, bm) && divides(24, bk) && bk <= cols && divides(32, cols % bk)) {
        return Err(bad_tile(
            Format::TL2,
            tile,
            "need bm | rows, 32 | bm, 24 | bk, bk <= columns, 32 | columns mod bk",
        ));
    }
    // Columns before `main` are triples; the rest, less than a block, are pairs in column blocks of 32, whatever bk is.
    let main = cols / bk * bk;
    let nibbles = rows * main / 6;
    let signs = rows * main / 24;
    let rest = rows * (cols - main) / 4;
    let mut magnitude = take(Format::TL2, bytes, 0, nibbles)?.chunks_exact(32);
    let mut sign = take(Format::TL2, bytes, nibbles, signs)?.chunks_exact(32);
    let mut remainder = take(Format::TL2, bytes, nibbles + signs, rest)?.chunks_exact(32);
    let mut codes = vec![0; shape.len()];
    for (row, col) in tiles(rows, main, &[(bm, bk), (32, 6)]) {
        for (i, byte) in magnitude.next().unwrap_or_default().iter().enumerate() {
            let at = (row + interleaved(i)) * cols + col;
            triple(byte >> 4, &mut codes[at..at + 3]);
            triple(byte & 15, &mut codes[at + 3..at + 6]);
        }
    }
    for (row, col) in tiles(rows, main, &[(bm, bk), (32, 24)]) {
        for (l, word) in sign.next().unwrap_or_default().chunks_exact(2).enumerate() {
            let word = u16::from_le_bytes([word[0], word[1]]);
            for c in 0..8 {
                for (r, bit) in [(l, 15 - 2 * c), (l + 16, 14 - 2 * c)] {
                    if word >> bit & 1 == 1 {
                        let at = (row + r) * cols + col + 3 * c;
                        codes[at..at + 3].iter_mut().filter(|v| **v != INVALID).for_each(|v| *v = -*v);
                    }
                }
            }
        }
    }
    for (row, col) in tiles(rows, cols - main, &[(bm, 32), (32, 4)]) {
        for (i, byte) in remainder.next().unwrap_or_default().iter().enumerate() {
            let at = (row + interleaved(i)) * cols + main + col;
            pair(byte >> 4, &mut codes[at..at + 2]);
            pair(byte & 15, &mut codes[at + 2..at + 4]);
        }
    }
    // bitnet.cpp's formula takes 256 columns for the remainder, whatever it is; narrower weights than that it cannot hold.
    let allocated = cols.saturating_sub(256) * rows / 3 * 5 / 8 + 256 * rows / 2 * 4 / 8;
    let used = allocated.max(nibbles + signs + rest).next_multiple_of(32);
    Ok((check(Format::TL2, shape, codes)?, used))
}

/// Marks a value whose code was not one that the format defines.
const INVALID: i8 = i8::MAX;

/// The index `3a + b + 4` of a pair.
fn pair(index: u8, out: &mut [i8]) {
    let i = index as i8;
    out.copy_from_slice(&if i > 8 { [INVALID; 2] } else { [i / 3 - 1, i % 3 - 1] });
}

/// The magnitude `|9a + 3b + c|` of a triple, taken as positive: balanced ternary digits of it.
fn triple(magnitude: u8, out: &mut [i8]) {
    let m = magnitude as i8 + 13;
    out.copy_from_slice(&if m > 26 { [INVALID; 3] } else { [m / 9 - 1, m / 3 % 3 - 1, m % 3 - 1] });
}

/// The row behind byte `i` of 32: 0-7, 16-23, 8-15, 24-31.
fn interleaved(i: usize) -> usize {
    match i / 8 {
        1 => i + 8,
        2 => i - 8,
        _ => i,
    }
}

/// First row and column of the innermost tiles, in the order of nested tiles, each level row-major in the one before.
fn tiles(rows: usize, cols: usize, levels: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let Some((&(h, w), inner)) = levels.split_first() else { return vec![(0, 0)] };
    let inside = tiles(h, w, inner);
    let mut out = Vec::with_capacity(rows / h * (cols / w) * inside.len());
    for row in (0..rows).step_by(h) {
        for col in (0..cols).step_by(w) {
            out.extend(inside.iter().map(|(r, c)| (row + r, col + c)));
        }
    }
    out
}

fn divides(part: usize, whole: usize) -> bool {
    part != 0 && whole.is_multiple_of(part)
}

fn take(format: Format, bytes: &[u8], at: usize, len: usize) -> Result<&[u8]> {
    bytes.get(at..at + len).ok_or_else(|| Error::Layout {
        format,
        problem: format!("{} bytes, at least {} needed", bytes.len(), at + len),
    })
}

fn bad_tile(format: Format, tile: Tile, need: &str) -> Error {
    Error::Layout { format, problem: format!("{tile:?} is not a possible kernel configuration: {need}") }
}

fn check(format: Format, shape: Shape, codes: Vec<i8>) -> Result<Vec<i8>> {
    match codes.iter().position(|c| !(-1..=1).contains(c)) {
        None => Ok(codes),
        Some(at) => Err(Error::Layout {
            format,
            problem: format!(
                "row {}, column {} has a code that the format does not define: the layout or the kernel configuration is \
                 probably not the file's",
                at / shape.cols(),
                at % shape.cols()
            ),
        }),
    }
}
