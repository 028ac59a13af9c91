//! Every tier of this machine against the definition.

use tersor_core::codec::{self, blocks};
use tersor_core::reference::matmul::{scaled_blocks, ternary};
use tersor_core::{Epilogue, Format, Inline, Shape, Weight};

use super::{Product, gather, packed_size};
use crate::arena::Arena;
use crate::isa::{Portable, Simd};
use crate::pack::Packer;

const ID: &str = "test";

struct Noise(u64);

impl Noise {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as u8
    }
}

/// Random bytes with scales that are finite; or every code, scale and activation at its extreme.
fn case(format: Format, shape: Shape, m: usize, extreme: Option<(u8, i8)>) -> (Weight, Vec<i8>) {
    let mut noise = Noise(shape.len() as u64);
    let len = format.encoded_len(shape).unwrap().bytes;
    let mut bytes: Vec<u8> = (0..len).map(|_| extreme.map_or_else(|| noise.byte(), |(code, _)| code)).collect();
    let (size, at) = if format == Format::Q8_0 { (34, 1) } else { (210, 209) };
    // An exponent below the largest, of either sign.
    bytes.chunks_exact_mut(size).for_each(|b| b[at] &= 0xb7);
    let x = (0..m * shape.cols()).map(|_| extreme.map_or_else(|| noise.byte() as i8, |(_, x)| x)).collect();
    (Weight::dense(format, shape, bytes).unwrap(), x)
}

fn packer<S: Simd>(isa: S, arena: &Arena) -> Packer<'_, S> {
    Packer { backend: ID, isa, layouts: &[], executor: &Inline, arena, zero_copy: true }
}

fn check<S: Simd>(simd: S) {
    let arena = Arena::default();
    for format in Format::BLOCK {
        let (unit, block) = (format.unit(), format.scale_block().unwrap());
        // Rows of one block, of odd numbers of groups, of one group more than a step of the lanes, of models.
        for k in [unit, 3 * unit, 512, 1024, 1280, 2560, 6912] {
            for (n, m) in [(1, 1), (5, 1), (17, 3), (3, 66)] {
                for extreme in [None, Some((0x00, -128)), Some((0xff, -128)), Some((0x80, -128)), Some((0x7f, 127))] {
                    let shape = Shape::new(n, k).unwrap();
                    let (w, q) = case(format, shape, m, extreme);
                    let packed = packer(simd, &arena).pack(&w).unwrap();
                    assert_eq!(packed.bytes(), packed_size(format, shape).unwrap());
                    let scales: Vec<f32> = (0..m).map(|i| 3.0 + i as f32).collect();
                    let mut y = vec![0.25; m * n];
                    let product = Product { w: &packed, q: &q, scales: &scales, y: &mut y, epilogue: Epilogue::Add };
                    product.run(ID, simd, &Inline, (&mut vec![1; 3], &mut vec![1; 3])).unwrap();
                    let (mut codes, mut block_scales) = (vec![0; k], vec![0.0; k / block]);
                    for (r, row) in w.codes().chunks(codec::rows_of(format, shape).bytes).enumerate() {
                        blocks::decode_row(format, row, &mut codes, &mut block_scales);
                        for (c, q) in q.chunks(k).enumerate() {
                            let sums = codes.chunks(block).zip(q.chunks(block)).map(|(c, q)| ternary(c, q));
                            let want = 0.25 + scaled_blocks(sums.zip(block_scales.iter().copied()), scales[c]);
                            let got = y[c * n + r];
                            let at = format!("{format} {n} x {k}, row {r}, column {c} of {m}, {extreme:?}, {simd:?}");
                            assert_eq!(got.to_bits(), want.to_bits(), "{got} {want}: {at}");
                        }
                    }
                    let (last, values) = (n as u32 - 1, codec::dequantize(&w).unwrap());
                    let mut rows = vec![f32::NAN; 2 * k];
                    gather(ID, simd, &packed, &[last, 0], &mut rows).unwrap().unwrap();
                    let want = [&values[(n - 1) * k..], &values[..k]].concat();
                    assert!(rows.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{format} {k} {simd:?}");
                }
            }
        }
    }
}

#[test]
fn products_and_rows_of_every_tier_are_those_of_the_definition() {
    check(Portable);
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::{Avx2, Avx512, Avx512Vbmi, Avx512Vnni, AvxVnni};
        // Which of these ran is the conformance suite's to say; here each that the machine has must be right.
        Avx2::detect().into_iter().for_each(check);
        AvxVnni::detect().into_iter().for_each(check);
        Avx512::detect().into_iter().for_each(check);
        Avx512Vnni::detect().into_iter().for_each(check);
        Avx512Vbmi::detect().into_iter().for_each(check);
    }
    #[cfg(target_arch = "aarch64")]
    crate::isa::Neon::detect().into_iter().for_each(check);
}

#[test]
fn packed_rows_are_as_long_as_the_module_says() {
    let bytes = |format| packed_size(format, Shape::new(1, 2560).unwrap()).unwrap();
    assert_eq!((bytes(Format::Q8_0), bytes(Format::Q6K)), (2752, 2112));
}
