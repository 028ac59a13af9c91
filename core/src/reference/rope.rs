//! Rotary position embedding, half-split: element i of a head is rotated with element `i + head_dim/2`.

/// Rotates the heads of one row. `cos` and `sin` are the `head_dim/2` entries of the row's position, see
/// [`super::math::rope_tables`].
#[inline(always)]
pub fn rotate(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in row.chunks_exact_mut(2 * half) {
        let (low, high) = head.split_at_mut(half);
        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        let mut row = [1.0, 2.0, 3.0, 4.0];
        super::rotate(&mut row, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(row, [-3.0, 2.0, 1.0, 4.0]);
    }
}
