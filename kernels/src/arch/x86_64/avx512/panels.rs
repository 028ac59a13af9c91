//! 512-bit registers: what panel kernels need of them.
//!
//! A panel has sixteen rows. What meets a register of codes is
//!
//! * AVX-512 BW: `vpmaddubsw` (codes unsigned, activations signed, pairs to i16: magnitude at most 2 * 2 * 128 = 512) and
//!   `vpaddw`. 64 such sums reach -32,768, the end of i16, with activations of -128, and 32,512 on the other side: after 64
//!   a lane is widened (`vpmaddwd` with ones).
//! * VNNI: `vpdpbusd`, one operation for 64 products straight into i32. Codes may stay where they lie in their byte: a product
//!   is at most 192 * 128 in magnitude, and four of them for each of 1,728 steps (K = 27,648) are below 2^28.
//!
//! For 256 weights and one row of activations VNNI needs four `vpandd`, four `vpdpbusd` with activations broadcast from
//! memory, and one load of weights; on Zen 5, one core, that is 82 GB/s of weights from the L2 cache, 41 of 43 from memory.
//!
//! VBMI adds the density of 1.6 bits: a byte 0..243 is looked up in two tables of 256, for four codes in two bits each and for
//! the fifth, two `vpermi2b` and a blend by the byte's top bit each. That is fourteen operations and five broadcasts for 320
//! weights: 38 GB/s from L2 and 33 from memory with one core, 48.6 of 53 with two: 20.7 and 30.4 Gweights/s against 18.2
//! (20.4 with the prefetch) and 25.1 at 2 bits.

use std::arch::x86_64::*;

use crate::arch::panels::{self, PanelTile, Registers, ScaledTile, Unpack, entry};
use crate::isa::{Avx512, Avx512Vbmi, Avx512Vnni};

/// Rows of a panel.
pub const ROWS: usize = 16;

/// Defines [`Registers`] for a way to add products.
macro_rules! registers {
    ($name:ident, $adds:expr, $loose:expr, |$acc:ident, $codes:ident, $x:ident| $dot:expr, |$wide:ident| $widen:expr) => {
        pub(crate) struct $name;

        // SAFETY (all blocks): AVX-512 F and BW, and what `dot` uses, are enabled by the trait's contract.
        impl Registers for $name {
            type V = __m512i;
            type F = __m512;
            const ROWS: usize = ROWS;
            const TILE: usize = 8;
            const ADDS: usize = $adds;
            const LOOSE: bool = $loose;

            #[inline(always)]
            unsafe fn zero() -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_setzero_si512() }
            }
            #[inline(always)]
            unsafe fn load(from: *const u8) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_loadu_si512(from.cast()) }
            }
            #[inline(always)]
            unsafe fn quad(from: *const i8) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn dot($acc: __m512i, $codes: __m512i, $x: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { $dot }
            }
            #[inline(always)]
            unsafe fn widen($wide: __m512i) -> __m512i {
                // SAFETY: as above.
                #[allow(unused_unsafe, reason = "i32 lanes are wide already")]
                unsafe {
                    $widen
                }
            }
            #[inline(always)]
            unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_add_epi32(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_sub_epi32(a, b) }
            }
            #[inline(always)]
            unsafe fn splat(value: i32) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_set1_epi32(value) }
            }
            #[inline(always)]
            unsafe fn shift(v: __m512i, by: i32) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_sra_epi32(v, _mm_cvtsi32_si128(by)) }
            }
            #[inline(always)]
            unsafe fn bits<const Q: i32>(v: __m512i) -> __m512i {
                // SAFETY: as above. Shifts are of 16-bit lanes; the mask cuts what the neighbouring byte shifted in.
                unsafe {
                    let v = match Q {
                        0 => v,
                        1 => _mm512_srli_epi16::<2>(v),
                        2 => _mm512_srli_epi16::<4>(v),
                        _ => _mm512_srli_epi16::<6>(v),
                    };
                    _mm512_and_si512(v, _mm512_set1_epi8(3))
                }
            }
            #[inline(always)]
            unsafe fn masked<const Q: i32>(v: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_and_si512(v, _mm512_set1_epi8((3u8 << (2 * Q)) as i8)) }
            }
            #[inline(always)]
            unsafe fn store(v: __m512i, to: *mut i32) {
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(to.cast(), v) }
            }
            #[inline(always)]
            unsafe fn prefetch(at: *const u8) {
                // SAFETY: as above; a prefetch reads no memory that the program could miss.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }
            #[inline(always)]
            unsafe fn to_f32(v: __m512i) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_cvtepi32_ps(v) }
            }
            #[inline(always)]
            unsafe fn load_f32(from: *const f32) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_loadu_ps(from) }
            }
            #[inline(always)]
            unsafe fn store_f32(v: __m512, to: *mut f32) {
                // SAFETY: as above.
                unsafe { _mm512_storeu_ps(to, v) }
            }
            #[inline(always)]
            unsafe fn zero_f32() -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn add_f32(a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_add_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn mul_f32(a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_mul_ps(a, b) }
            }
        }
    };
}

registers!(Madd, 64, false, |acc, codes, x| _mm512_add_epi16(acc, _mm512_maddubs_epi16(codes, x)), |acc| {
    _mm512_madd_epi16(acc, _mm512_set1_epi16(1))
});
registers!(Vnni, usize::MAX, true, |acc, codes, x| _mm512_dpbusd_epi32(acc, codes, x), |acc| acc);

/// Five base-3 digits a byte, through tables.
#[derive(Clone, Copy)]
struct Trits {
    /// Byte to its four low digits, two bits each.
    four: [__m512i; 4],
    /// Byte to its highest digit.
    fifth: [__m512i; 4],
}

/// What [`Trits`] looks up. Bytes from 243 on do not occur.
static TABLES: [[u8; 256]; 2] = {
    let mut tables = [[0; 256]; 2];
    let mut byte = 0;
    while byte < 243 {
        tables[0][byte] = ((byte % 3) | ((byte / 3 % 3) << 2) | ((byte / 9 % 3) << 4) | ((byte / 27 % 3) << 6)) as u8;
        tables[1][byte] = (byte / 81) as u8;
        byte += 1;
    }
    tables
};

impl Trits {
    /// Looks every byte up.
    ///
    /// # Safety
    /// AVX-512 VBMI must be enabled in the caller.
    #[inline(always)]
    unsafe fn look_up(table: [__m512i; 4], v: __m512i) -> __m512i {
        // SAFETY: the caller's contract.
        unsafe {
            let low = _mm512_permutex2var_epi8(table[0], v, table[1]);
            _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, _mm512_permutex2var_epi8(table[2], v, table[3]))
        }
    }
}

impl Unpack<Vnni, 5> for Trits {
    const SHIFTS: [i32; 5] = [0, 2, 4, 6, 0];

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: AVX-512 is enabled by the trait's contract.
        let mut tables = [[unsafe { _mm512_setzero_si512() }; 4]; 2];
        for (registers, table) in tables.iter_mut().zip(&TABLES) {
            for (i, register) in registers.iter_mut().enumerate() {
                // SAFETY: AVX-512 is enabled by the trait's contract; a table has four times 64 bytes.
                *register = unsafe { _mm512_loadu_si512(table.as_ptr().add(64 * i).cast()) };
            }
        }
        Trits { four: tables[0], fifth: tables[1] }
    }

    #[inline(always)]
    unsafe fn exact(self, v: __m512i) -> [__m512i; 5] {
        // SAFETY: VBMI is enabled by the trait's contract.
        unsafe {
            let [a, b, c, d] = <panels::Bits2 as Unpack<Vnni, 4>>::exact(panels::Bits2, Self::look_up(self.four, v));
            [a, b, c, d, Self::look_up(self.fifth, v)]
        }
    }

    #[inline(always)]
    unsafe fn loose(self, v: __m512i) -> [__m512i; 5] {
        // SAFETY: VBMI is enabled by the trait's contract.
        unsafe {
            let [a, b, c, d] = <panels::Bits2 as Unpack<Vnni, 4>>::loose(panels::Bits2, Self::look_up(self.four, v));
            [a, b, c, d, Self::look_up(self.fifth, v)]
        }
    }
}

entry!(
    /// Sums of 2-bit panels with AVX-512 BW.
    sums_avx512, Avx512, "avx512f,avx512bw,avx512dq,avx512vl", PanelTile, i32, panels::sums::<Madd, panels::Bits2, 4, 1>);
entry!(
    /// Scaled sums of 2-bit panels with AVX-512 BW.
    scaled_avx512, Avx512, "avx512f,avx512bw,avx512dq,avx512vl", ScaledTile, f32, panels::scaled::<Madd>);
entry!(
    /// Sums of 2-bit panels with AVX-512 VNNI.
    sums_avx512_vnni, Avx512Vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", PanelTile, i32, panels::sums::<Vnni, panels::Bits2, 4, 2>);
entry!(
    /// Scaled sums of 2-bit panels with AVX-512 VNNI.
    scaled_avx512_vnni, Avx512Vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", ScaledTile, f32, panels::scaled::<Vnni>);
entry!(
    /// Sums of 2-bit panels with AVX-512 VNNI.
    sums_avx512_vbmi, Avx512Vbmi, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi", PanelTile, i32, panels::sums::<Vnni, panels::Bits2, 4, 2>);
entry!(
    /// Scaled sums of 2-bit panels with AVX-512 VNNI.
    scaled_avx512_vbmi, Avx512Vbmi, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi", ScaledTile, f32, panels::scaled::<Vnni>);
entry!(
    /// Sums of 1.6-bit panels with AVX-512 VNNI and VBMI.
    trit_sums_avx512_vbmi, Avx512Vbmi, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi", PanelTile, i32, panels::sums::<Vnni, Trits, 5, 2>);
