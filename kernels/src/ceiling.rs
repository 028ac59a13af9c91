//! What the int8 dot instructions of this CPU can do at most: loops that touch registers only.
//!
//! A benchmark divides by these rates to say how far a product is from the arithmetic limit. They are measured where they
//! are used, never written down: clocks change with the instruction set, the load and the machine. No loop loads or
//! stores, so no product kernel can be faster than the best of them.

/// A loop of independent dot instructions.
#[derive(Debug, Clone, Copy)]
pub struct Ceiling {
    /// The instruction, with the width of its registers: `vpdpbusd-512`.
    pub name: &'static str,
    /// Runs the loop so many times and returns the multiply-accumulates done. The second argument seeds the operands, so
    /// that the compiler cannot know them.
    pub run: fn(u64, i8) -> u64,
}

/// Every loop that this CPU, and its operating system, can run. Empty where none is written for the architecture.
pub fn ceilings() -> Vec<Ceiling> {
    #[cfg(target_arch = "x86_64")]
    return x86::ceilings();
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::Ceiling;

    /// Independent accumulators: enough for a latency of five cycles on two ports.
    const CHAINS: usize = 12;

    /// Defines a loop over `CHAINS` accumulators, and the safe function that asks the CPU first.
    macro_rules! ceiling {
        ($name:ident, [$($detect:tt),*], $features:literal, $bytes:literal, $zero:expr, $set:expr, $acc:ident, $w:ident, $x:ident => $step:expr) => {
            fn $name(steps: u64, seed: i8) -> u64 {
                #[target_feature(enable = $features)]
                fn inner(steps: u64, seed: i8) -> u64 {
                    let ($w, $x) = (black_box($set(seed & 1)), black_box($set(seed)));
                    let mut sums = [$zero; CHAINS];
                    for _ in 0..steps {
                        for $acc in &mut sums {
                            *$acc = $step;
                        }
                    }
                    black_box(sums);
                    steps * CHAINS as u64 * $bytes
                }
                if !($(is_x86_feature_detected!($detect))&&*) {
                    return 0;
                }
                // SAFETY: the CPU and the operating system have just said that they support the features.
                unsafe { inner(steps, seed) }
            }
        };
    }

    ceiling!(maddubs_256, ["avx2"], "avx2", 32, _mm256_setzero_si256(), _mm256_set1_epi8,
        acc, w, x => _mm256_add_epi16(*acc, _mm256_maddubs_epi16(w, unknown(x))));
    ceiling!(dpbusd_256, ["avx2", "avxvnni"], "avx2,avxvnni", 32, _mm256_setzero_si256(), _mm256_set1_epi8,
        acc, w, x => _mm256_dpbusd_avx_epi32(*acc, w, x));
    ceiling!(dpbusd_512, ["avx512f", "avx512vnni"], "avx512f,avx512vnni", 64, _mm512_setzero_si512(), _mm512_set1_epi8,
        acc, w, x => _mm512_dpbusd_epi32(*acc, w, x));

    /// The same value, about which the compiler knows nothing: the product of two constants would be taken out of the loop.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn unknown(mut x: __m256i) -> __m256i {
        // SAFETY: no instruction, no memory, no flags.
        unsafe { asm!("/* {0} */", inout(ymm_reg) x, options(nomem, nostack, preserves_flags)) };
        x
    }

    pub(super) fn ceilings() -> Vec<Ceiling> {
        let all = [
            Ceiling { name: "vpmaddubsw-256", run: maddubs_256 },
            Ceiling { name: "vpdpbusd-256", run: dpbusd_256 },
            Ceiling { name: "vpdpbusd-512", run: dpbusd_512 },
        ];
        all.into_iter().filter(|c| (c.run)(1, 1) > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_counts_what_it_did() {
        for c in ceilings() {
            assert_eq!((c.run)(1000, 3), 1000 * (c.run)(1, 3), "{}", c.name);
        }
    }
}
