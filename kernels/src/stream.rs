//! Reading memory as fast as it goes: what products that stream weights are held against.
//!
//! A range is summed in one pass, as one stream or as several parts side by side, with loads as wide as the CPU has, each
//! stream with sums of its own. Which is fastest depends on the machine: several streams keep several hardware prefetchers busy,
//! one stream can be asked for ahead. (In intrinsics, because compilers make gathers of loads that are equally far apart.)

use crate::arch::prefetch;

/// Words of a step of a stream: four cache lines.
const STEP: usize = 32;

/// The sum of all words, read as `N` streams, each word asked for `AHEAD` bytes before (not at all if 0).
pub fn sum<const N: usize, const AHEAD: usize>(data: &[u64]) -> u64 {
    const { assert!(N > 0) };
    let part = data.len() / N / STEP * STEP;
    let rest = data[N * part..].iter().fold(0, |a: u64, b| a.wrapping_add(*b));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU and the operating system have just said that they support it; N parts lie within the data.
        return rest.wrapping_add(unsafe { x86::wide::<N, AHEAD>(data.as_ptr(), part) });
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: as above.
        return rest.wrapping_add(unsafe { x86::narrow::<N, AHEAD>(data.as_ptr(), part) });
    }
    let mut sums = [0u64; STEP];
    for at in (0..part).step_by(STEP) {
        for stream in 0..N {
            let words = &data[stream * part + at..][..STEP];
            prefetch_if::<AHEAD>(words.as_ptr());
            sums.iter_mut().zip(words).for_each(|(s, v)| *s = s.wrapping_add(*v));
        }
    }
    sums.iter().fold(rest, |a, b| a.wrapping_add(*b))
}

/// Asks for a step's lines.
#[inline(always)]
fn prefetch_if<const AHEAD: usize>(step: *const u64) {
    if AHEAD > 0 {
        for line in 0..STEP / 8 {
            prefetch(step.cast::<u8>().wrapping_add(AHEAD + 64 * line));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{STEP, prefetch_if};

    /// Defines the loop for a width of registers.
    macro_rules! streams {
        ($name:ident, $features:literal, $v:ty, $words:literal, $zero:expr, $load:ident, $add:ident) => {
            /// The sum of `N` parts of `part` words each.
            ///
            /// # Safety
            /// The ISA must be there, and `N * part` words at `data`; `part` is whole steps.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const N: usize, const AHEAD: usize>(data: *const u64, part: usize) -> u64 {
                let mut sums: [[$v; 2]; N] = [[$zero; 2]; N];
                let mut at = 0;
                while at < part {
                    for stream in 0..N {
                        // SAFETY: the step lies within the stream's part.
                        let step = unsafe { data.add(stream * part + at) };
                        prefetch_if::<AHEAD>(step);
                        for i in 0..STEP / $words {
                            // SAFETY: as above.
                            let v = unsafe { $load(step.add(i * $words).cast()) };
                            sums[stream][i % 2] = $add(sums[stream][i % 2], v);
                        }
                    }
                    at += STEP;
                }
                let mut words = [0u64; $words];
                let mut total = 0u64;
                for sum in sums.as_flattened() {
                    // SAFETY: a register has as many words.
                    unsafe { std::ptr::write_unaligned(words.as_mut_ptr().cast(), *sum) };
                    total = words.iter().fold(total, |a, b| a.wrapping_add(*b));
                }
                total
            }
        };
    }

    streams!(wide, "avx512f", __m512i, 8, _mm512_setzero_si512(), _mm512_loadu_si512, _mm512_add_epi64);
    streams!(narrow, "avx2", __m256i, 4, _mm256_setzero_si256(), _mm256_loadu_si256, _mm256_add_epi64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        for words in [0, 1, 31, 32, 33, 255, 1000, 10_007] {
            let data: Vec<u64> = (0..words).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            let total = data.iter().fold(0u64, |a, b| a.wrapping_add(*b));
            let sums =
                [sum::<1, 0>(&data), sum::<1, 8192>(&data), sum::<2, 0>(&data), sum::<4, 0>(&data), sum::<8, 0>(&data)];
            assert_eq!(sums, [total; 5], "{words} words");
        }
    }
}
