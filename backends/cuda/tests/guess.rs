//! The bound that `kernels/fused_norm.cuh` rests on, in the same arithmetic without a GPU: of a row that is quantized without
//! its norm's factor, every value that rounds the same when it is moved up and down is the definition's, and the largest
//! value of the definition is among those near the largest of the guess. `selftest kernels` asks the kernels themselves.

use tersor_core::reference::rows;

/// As there.
const DOUBT: f32 = 1.0 / (1u32 << 20) as f32;
const ROUND: f32 = 12_582_912.0;

/// A generator of no particular quality.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }
    /// Of a bell's shape, about -3 to 3.
    fn value(&mut self) -> f32 {
        (0..12).map(|_| (self.bits() as f32) / 2_147_483_648.0).sum::<f32>() - 6.0
    }
    /// Between 2^-range and 2^range.
    fn power(&mut self, range: i32) -> f32 {
        ((self.bits() % (2 * range as u32 + 1)) as f32 - range as f32).exp2()
    }
}

/// The guess of a row: its int8, and which of them are in doubt. The reciprocal is off by `ulps`.
fn guess(x: &[f32], w: &[f32], ulps: i32) -> (Vec<i8>, Vec<bool>) {
    let products: Vec<f32> = x.iter().zip(w).map(|(x, w)| x * w).collect();
    let most = products.iter().fold(0.0f32, |m, p| m.max(p.abs()));
    let reciprocal = f32::from_bits((1.0 / most).to_bits().wrapping_add_signed(ulps));
    let (inverse, limit) = (127.0 * reciprocal, most * (1.0 - DOUBT));
    let (down, up) = (inverse * (1.0 - DOUBT), inverse * (1.0 + DOUBT));
    let rounded = |by: f32| products.iter().map(move |p| p.mul_add(by, ROUND).to_bits()).collect::<Vec<_>>();
    let (low, high) = (rounded(down), rounded(up));
    let doubtful = low.iter().zip(&high).zip(&products).map(|((a, b), p)| a != b || p.abs() >= limit).collect();
    (low.iter().map(|bits| *bits as i8).collect(), doubtful)
}

/// What a row came to: values in doubt, and those of them that the guess had wrong.
fn check(name: &str, x: &[f32], w: &[f32]) -> (usize, usize) {
    let (mut y, mut q) = (vec![0.0; x.len()], vec![0; x.len()]);
    rows::rms_norm(x, w, 1e-5, &mut y);
    assert!(rows::quantize(&y, &mut q).is_some(), "{name}: not finite");
    let largest = y.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    // Rows outside these begin again: see `keep`.
    assert!(largest > 2e-5 && largest < 1e12, "{name}: {largest:e} is no row for a guess");
    let mut found = (0, 0);
    for ulps in [-1, 0, 1] {
        let (guessed, doubtful) = guess(x, w, ulps);
        let mut seen = 0.0f32;
        for i in 0..x.len() {
            if doubtful[i] {
                seen = seen.max(y[i].abs());
                found.0 += 1;
                found.1 += usize::from(guessed[i] != q[i]);
            } else {
                assert_eq!(guessed[i], q[i], "{name}, value {i}: {:e} times {:e}", x[i], w[i]);
            }
        }
        assert_eq!(seen, largest, "{name}: the largest value is not among those that are looked at");
    }
    found
}

#[test]
fn what_is_not_in_doubt_is_the_definitions() {
    let mut noise = Noise(1);
    let (mut doubtful, mut wrong) = (0, 0);
    for row in 0..300 {
        let x: Vec<f32> = (0..640).map(|_| noise.value()).collect();
        let w: Vec<f32> = (0..640).map(|_| 1.0 + 0.2 * noise.value()).collect();
        let found = check(&format!("ordinary row {row}"), &x, &w);
        doubtful += found.0;
        wrong += found.1;
    }
    // The largest is always among them, three times for each row; of the others about one in 30,000 values. Some of
    // those are wrong, or nobody would have to look.
    assert!((900..1300).contains(&doubtful), "{doubtful} values in doubt");
    assert!(wrong > 0, "no value in doubt was wrong: the bound is not reached by anything that was tried");
}

#[test]
fn neither_halves_nor_magnitudes_far_apart_escape() {
    let mut noise = Noise(2);
    for row in 0..200 {
        // On and just beside the halves of the int8 grid, at some scale; the largest first.
        let scale = noise.power(30);
        let mut halves: Vec<f32> = (0..512)
            .map(|_| {
                let half = (1 + noise.bits() % 253) as f32 / 2.0;
                f32::from_bits((half * scale).to_bits().wrapping_add_signed((noise.bits() % 9) as i32 - 4))
            })
            .collect();
        halves[0] = 127.0 * scale;
        check(&format!("halves {row}"), &halves, &vec![1.0; 512]);
        // Rows and weights that differ by powers of two up to the bounds.
        let x: Vec<f32> = (0..512).map(|_| noise.value() * noise.power(35)).collect();
        let w: Vec<f32> = (0..512).map(|_| noise.value() * noise.power(20)).collect();
        check(&format!("far apart {row}"), &x, &w);
    }
}
