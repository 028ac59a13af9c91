//! Products of bit planes: no multiplication, no table, only `and`, `xor` and counting bits.
//!
//! A ternary weight is two bits, one plane that says "+1" and one that says "-1"; an int8 activation is eight bits, of which
//! the last counts -128. So, with `x = sum 2^b x_b - 128 x_7`,
//!
//! ```text
//! sum w x = sum_b 2^b (|plus & x_b| - |minus & x_b|) - 128 (|plus & x_7| - |minus & x_7|)
//! ```
//!
//! Sixty-four weights are two words, and the eight words of their activations are made once for all rows. Where there is a
//! `popcnt` instruction that is 16 of them for 64 products, whatever the activations are.

/// Weights of a word.
pub const WORD: usize = 64;

/// Weights as planes: for each row and word, the word of +1 and the word of -1.
#[derive(Debug)]
pub struct Planes {
    words: Vec<[u64; 2]>,
    row: usize,
}

impl Planes {
    /// From codes -1, 0, +1 in rows of `cols`.
    pub fn new(codes: &[i8], cols: usize) -> Self {
        let word = |codes: &[i8]| {
            let plane = |sign: i8| codes.iter().rev().fold(0, |bits, c| bits << 1 | u64::from(*c == sign));
            [plane(1), plane(-1)]
        };
        let words = codes.chunks(cols).flat_map(|row| row.chunks(WORD).map(word)).collect();
        Planes { words, row: cols.div_ceil(WORD) }
    }

    /// Bytes of `rows` rows of `cols` weights.
    pub const fn bytes(rows: usize, cols: usize) -> usize {
        rows * cols.div_ceil(WORD) * 16
    }

    /// Row `r` times activations that were sliced.
    #[inline]
    pub fn dot(&self, r: usize, x: &Sliced) -> i32 {
        let row = &self.words[r * self.row..][..self.row];
        let mut sum = 0i32;
        for ([plus, minus], planes) in row.iter().zip(&x.0) {
            for (b, plane) in planes.iter().enumerate() {
                let count = (plus & plane).count_ones() as i32 - (minus & plane).count_ones() as i32;
                sum += if b == 7 { -(count << 7) } else { count << b };
            }
        }
        sum
    }
}

/// A row of activations as planes of bits.
#[derive(Debug)]
pub struct Sliced(Vec<[u64; 8]>);

impl Sliced {
    /// From int8.
    pub fn new(x: &[i8]) -> Self {
        let word = |x: &[i8]| {
            let mut planes = [0u64; 8];
            for (i, v) in x.iter().enumerate() {
                for (b, plane) in planes.iter_mut().enumerate() {
                    *plane |= u64::from(*v as u8 >> b & 1) << i;
                }
            }
            planes
        };
        Sliced(x.chunks(WORD).map(word).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_sum_as_products_do_at_every_length_and_at_the_ends_of_int8() {
        for cols in [1, 63, 64, 65, 200] {
            let codes: Vec<i8> = (0..2 * cols).map(|i| (i * 7 % 3) as i8 - 1).collect();
            let x: Vec<i8> = (0..cols).map(|i| [-128, 127, -1, 0, 1, 77][i % 6]).collect();
            let (w, sliced) = (Planes::new(&codes, cols), Sliced::new(&x));
            for r in 0..2 {
                let row = &codes[r * cols..][..cols];
                let want: i32 = row.iter().zip(&x).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum();
                assert_eq!(w.dot(r, &sliced), want, "row {r} of {cols}");
            }
        }
    }
}
