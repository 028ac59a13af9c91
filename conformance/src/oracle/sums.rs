//! The order of every float sum.

/// "Element i is added to lane i mod 64, in ascending order; lanes start at +0. Then the lanes are folded."
pub fn sum(terms: impl IntoIterator<Item = f32>) -> f32 {
    let mut lane = [0.0f32; 64];
    for (i, term) in terms.into_iter().enumerate() {
        lane[i % 64] += term;
    }
    for h in [32, 16, 8, 4, 2, 1] {
        for j in 0..h {
            lane[j] += lane[j + h];
        }
    }
    lane[0]
}

/// "A product that is summed is rounded before it is added."
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a.iter().zip(b).map(|(a, b)| a * b))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_order_shows_in_the_result() {
        // Lane 0 gets 1e8 and 1: the 1 is lost there. Lane 32 is folded onto lane 0 and takes the 1e8 away again.
        let mut terms = [0.0f32; 128];
        (terms[0], terms[64], terms[32]) = (1e8, 1.0, -1e8);
        assert_eq!(super::sum(terms), 0.0);
        (terms[64], terms[65]) = (0.0, 1.0);
        assert_eq!(super::sum(terms), 1.0);
    }
}
