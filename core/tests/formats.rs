//! The byte layouts, held against bytes that this code did not write: files made by the `gguf` package, and examples worked
//! out by hand in `docs/formats.md`. (Bytes of bitnet.cpp, whose tl1 and tl2 are permuted, are read in `tersor-model`.)
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use safetensors::SafeTensors;
use tersor_core::format::TAIL;
use tersor_core::{Error, Floats, Format, GroupSize, Shape, Ternary, Weight, codec, f16};

fn f32s(t: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    t.tensor(name).unwrap().data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn tq_bytes_of_the_gguf_package_decode_and_encode_to_the_same_bits() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gguf/tq.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let cases = ["ternary", "ternary_f32", "ternary_blocks", "patterns", "edges", "gauss"];
    for case in cases {
        for format in [Format::TQ1_0, Format::TQ2_0] {
            let name = format!("{case}.{format}");
            let shape = file.tensor(&format!("{case}.f32")).unwrap().shape().to_vec();
            let shape = Shape::new(shape[0], shape[1]).unwrap();
            let encoded = file.tensor(&name).unwrap().data().to_vec();
            let weight = Weight::new(format, shape, encoded.clone(), Vec::new()).unwrap();
            let expected = f32s(&file, &format!("{name}.f32"));
            let got = codec::dequantize(&weight).unwrap();
            // A zero block of scale 0 may come back as -0 where gguf has +0: compare values.
            assert!(got.iter().zip(&expected).all(|(a, b)| a == b), "{name}: dequantized values differ");
            let again = codec::encode(&codec::decode(&weight).unwrap(), format).unwrap();
            assert_eq!(again.codes(), encoded, "{name}: encoding what was decoded");
            if ["ternary", "ternary_f32", "patterns"].contains(&case) {
                let input = f32s(&file, &format!("{case}.f32"));
                let quantized = codec::quantize(Floats::F32(&input), shape, format).unwrap();
                assert_eq!(quantized.codes(), encoded, "{name}: quantizing the input");
            }
        }
    }
}

/// A row of `n` zeros with some values set.
fn row(n: usize, set: &[(usize, i8)]) -> Vec<i8> {
    let mut row = vec![0; n];
    set.iter().for_each(|&(i, v)| row[i] = v);
    row
}

fn encode(codes: Vec<i8>, scale: f32, format: Format) -> Vec<u8> {
    let shape = Shape::new(1, codes.len()).unwrap();
    let t = Ternary { shape, block: codes.len(), codes, scales: vec![scale] };
    let w = codec::encode(&t, format).unwrap();
    assert_eq!(codec::decode(&w).unwrap().codes, t.codes, "{format} decodes to what went in");
    w.codes().to_vec()
}

fn repeated(parts: &[(u8, usize)]) -> Vec<u8> {
    parts.iter().flat_map(|&(byte, n)| std::iter::repeat_n(byte, n)).collect()
}

#[test]
fn i2_s_hand_worked() {
    let codes = row(128, &[(0, 1), (32, -1), (64, 0), (96, 1)]);
    let mut expected = repeated(&[(0x86, 1), (0x55, 31)]);
    expected.extend([0x00, 0x00, 0x98, 0x3d]); // 0.07421875 = 1.1875 * 2^-4
    expected.resize(32 + TAIL, 0);
    assert_eq!(encode(codes, 0.074_218_75, Format::I2S), expected);
}

#[test]
fn i2_s_groups_pad_the_last_block_with_zeros() {
    let t = Ternary { shape: Shape::new(1, 2).unwrap(), codes: vec![1, -1], block: 2, scales: vec![0.5] };
    let w = codec::encode(&t, Format::I2SGroup(GroupSize::G64)).unwrap();
    // 2 * 64 + 21 = 0x95, 0 * 64 + 21 = 0x15, then codes 1 four times a byte.
    assert_eq!(w.codes(), repeated(&[(0x95, 1), (0x15, 1), (0x55, 30)]));
    assert_eq!(w.scales(), [0.5]);
}

#[test]
fn tl1_hand_worked() {
    let bytes = encode(vec![1, -1, 0, 1, -1, 0], 1.0, Format::TL1);
    assert_eq!(bytes[..2], [0x65, 0x10]);
    assert_eq!((bytes.len(), &bytes[2..6]), (2 + TAIL, &1.0f32.to_le_bytes()[..]));
}

#[test]
fn tl2_hand_worked() {
    let bytes = encode(vec![1, 0, -1, -1, -1, 1, 0, 0, 0, 0, -1, -1, 1, 1, 0, -1], 1.0, Format::TL2);
    assert_eq!(bytes[..4], [0x8b, 0x04, 0x0a, 0x83]);
    assert_eq!(bytes.len(), 4 + TAIL);
}

#[test]
fn tq1_0_hand_worked() {
    let set = [(0, 1), (32, 0), (64, -1), (96, 1), (128, 0), (240, -1), (244, 1), (248, 0), (252, -1)];
    let expected = repeated(&[(0xcf, 1), (0x80, 47), (0x43, 1), (0x7f, 3), (0xc0, 1), (0x2c, 1)]);
    assert_eq!(encode(row(256, &set), 0.074_218_75, Format::TQ1_0), expected);
}

#[test]
fn tq2_0_hand_worked() {
    let set = [(0, 1), (32, -1), (64, 0), (96, 1), (128, 1)];
    let expected = repeated(&[(0x92, 1), (0x55, 31), (0x56, 1), (0x55, 31), (0xc0, 1), (0x2c, 1)]);
    assert_eq!(encode(row(256, &set), 0.074_218_75, Format::TQ2_0), expected);
}

#[test]
fn invalid_codes_are_named_by_place() {
    let shape = Shape::new(2, 256).unwrap();
    let at = |format: Format, byte: usize, value: u8| {
        let len = format.encoded_len(shape).unwrap();
        // All-zero codes of each format, made by its own encoder.
        let t = Ternary { shape, codes: vec![0; 512], block: 512, scales: vec![1.0] };
        let mut codes = codec::encode(&t, format).unwrap().codes().to_vec();
        codes[byte] = value;
        match Weight::new(format, shape, codes, vec![1.0; len.scales]).unwrap_err() {
            Error::InvalidCode { code, byte, row, col, .. } => (code, byte, row, col),
            other => panic!("{other}"),
        }
    };
    // i2_s: block 2 starts at byte 64 and value 256, which is row 1; 0x5d holds 3 in bits 3-2, the third quarter.
    assert_eq!(at(Format::I2S, 65, 0x5d), (3, 65, 1, 65));
    // tl1: 64 bytes a row; byte 70 holds pairs 12 and 13 of row 1.
    assert_eq!(at(Format::TL1, 70, 0x4a), (10, 70, 1, 26));
    // tl2: T = 84 triples: 42 + 11 + 1 bytes a row; the last byte holds the two pairs left.
    assert_eq!(at(Format::TL2, 0, 0xe0), (14, 0, 0, 0));
    assert_eq!(at(Format::TL2, 107, 0x49), (9, 107, 1, 254));
    // tq2_0: 66 bytes a block; byte 33 is byte 1 of the second half, bits 5-4 its third quarter.
    assert_eq!(at(Format::TQ2_0, 66 + 33, 0x75), (3, 99, 1, 128 + 1 + 64));
}

#[test]
fn scales_that_f16_cannot_hold_are_errors_or_rounded() {
    let quantize = |s: f32, format| codec::quantize(Floats::F32(&[s; 256]), Shape::new(1, 256).unwrap(), format);
    assert!(matches!(quantize(1e6, Format::TQ1_0).unwrap_err(), Error::Scale { .. }));
    assert!(matches!(quantize(1e-9, Format::TQ2_0).unwrap_err(), Error::Scale { .. }));
    assert_eq!(quantize(1e6, Format::TL2).unwrap().uniform_scale(), Some(1e6));
    let rounded = quantize(0.074_356_26, Format::TQ2_0).unwrap().uniform_scale().unwrap();
    assert_eq!(rounded, f16::from_f32(0.074_356_26).to_f32());
}

#[test]
fn zero_blocks_have_no_say_in_the_scale() {
    // What the gguf package writes for a tensor with a block of zeros: scale 0 there.
    let shape = Shape::new(2, 256).unwrap();
    let mut t = Ternary { shape, codes: vec![1; 512], block: 256, scales: vec![0.0, 0.5] };
    t.codes[..256].fill(0);
    let w = codec::encode(&t, Format::TQ2_0).unwrap();
    assert_eq!((w.block_scales().0, w.uniform_scale()), (vec![0.0, 0.5], Some(0.5)));
    let single = codec::encode(&codec::decode(&w).unwrap(), Format::I2S).unwrap();
    assert_eq!(single.uniform_scale(), Some(0.5));
    t.codes[3] = -1;
    assert!(matches!(codec::encode(&t, Format::I2S).unwrap_err(), Error::ManyScales { distinct: 2, .. }));
}

proptest::proptest! {
    #[test]
    fn every_chain_of_formats_keeps_codes_and_scales(
        seed in proptest::prelude::any::<u64>(), rows in 1usize..5, blocks in 1usize..4, scale_bits in 0x2c00u16..0x5000,
    ) {
        let shape = Shape::new(rows, blocks * 256).unwrap();
        let mut state = seed;
        let codes: Vec<i8> = (0..shape.len())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % 3) as i8 - 1
            })
            .collect();
        let scale = f16::from_bits(scale_bits).to_f32();
        let t = Ternary { shape, codes, block: shape.len(), scales: vec![scale] };
        for a in Format::TERNARY.into_iter().chain(Format::GROUPED) {
            for b in Format::TERNARY {
                let there = codec::decode(&codec::encode(&t, a).unwrap()).unwrap();
                let back = codec::decode(&codec::encode(&there, b).unwrap()).unwrap();
                proptest::prop_assert_eq!(&back.codes, &t.codes, "{} -> {}", a, b);
                proptest::prop_assert_eq!(back.uniform_scale(), t.uniform_scale(), "{} -> {}", a, b);
            }
        }
    }

    #[test]
    fn random_bytes_are_an_error_or_a_weight_but_never_a_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400), rows in 1usize..4, cols in 1usize..300,
    ) {
        let shape = Shape::new(rows, cols).unwrap();
        for format in Format::all() {
            let Ok(len) = format.encoded_len(shape) else { continue };
            let mut exact = bytes.clone();
            for candidate in [bytes.clone(), { exact.resize(len.bytes, 0x5a); exact }] {
                if let Ok(w) = Weight::new(format, shape, candidate, vec![1.0; len.scales]) {
                    codec::dequantize(&w).unwrap();
                }
            }
        }
    }
}

#[test]
fn q8_0_and_q6_k_bytes_of_the_gguf_package_read_to_the_same_bits_and_q8_0_is_written_so_too() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gguf/blocks.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (case, format) in [("q8_edges", Format::Q8_0), ("q8_gauss", Format::Q8_0), ("q6_random", Format::Q6K)] {
        let name = format!("{case}.{format}");
        let decoded = format!("{name}.f32");
        let shape = file.tensor(&decoded).unwrap().shape().to_vec();
        let shape = Shape::new(shape[0], shape[1]).unwrap();
        let encoded = file.tensor(&name).unwrap().data().to_vec();
        let weight = Weight::dense(format, shape, encoded.clone()).unwrap();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&codec::dequantize(&weight).unwrap()), bits(&f32s(&file, &decoded)), "{name}");
        // Codes and scales apart are the same weights.
        let block = format.scale_block().unwrap();
        let (mut codes, mut scales) = (vec![0; shape.cols()], vec![0.0; shape.cols() / block]);
        let expected = f32s(&file, &decoded);
        for (row, expected) in
            encoded.chunks(format.row_bytes(shape.cols()).unwrap()).zip(expected.chunks(shape.cols()))
        {
            codec::blocks::decode_row(format, row, &mut codes, &mut scales);
            let apart: Vec<f32> = codes.iter().enumerate().map(|(i, c)| f32::from(*c) * scales[i / block]).collect();
            assert_eq!(bits(&apart), bits(expected), "{name}");
        }
        if format == Format::Q8_0 {
            let input = f32s(&file, &format!("{case}.f32"));
            let quantized = codec::blocks::quantize(Floats::F32(&input), shape, format).unwrap();
            assert_eq!(quantized.codes(), encoded, "{name}: quantizing the input");
        }
    }
}

#[test]
fn q8_0_and_q6_k_hand_worked() {
    // d = 0.5 (f16 0x3800); codes 1, -1, 127.
    let mut bytes = repeated(&[(0x00, 1), (0x38, 1), (1, 1), (0xff, 1), (127, 1), (0, 29)]);
    let read = |format, cols, bytes: &[u8]| {
        codec::dequantize(&Weight::dense(format, Shape::new(1, cols).unwrap(), bytes.to_vec()).unwrap()).unwrap()
    };
    assert_eq!(read(Format::Q8_0, 32, &bytes)[..4], [0.5, -0.5, 63.5, 0.0]);
    // q6_k: value 200 = 128 + 64 + 8 lies in half 1, quarter 2: the high nibble of ql[64 + 8], bits 5-4 of qh[32 + 8], and
    // block 12 has its scale. Code 0b01_0101 = 21 - 32 = -11; scale -2 * 0.5.
    bytes = vec![0; 210];
    bytes[64 + 8] = 5 << 4;
    bytes[128 + 32 + 8] = 1 << 4;
    bytes[192 + 12] = 0xfe;
    bytes[209] = 0x38;
    let values = read(Format::Q6K, 256, &bytes);
    assert_eq!((values[200], values[199], values[0]), (11.0, 32.0, 0.0));
}

#[test]
fn block_formats_name_what_is_wrong_and_where() {
    let shape = Shape::new(2, 256).unwrap();
    for (format, at, step) in [(Format::Q8_0, 0, 34), (Format::Q6K, 208, 210)] {
        let len = format.encoded_len(shape).unwrap().bytes;
        let short = Weight::dense(format, shape, vec![0; len - 1]).unwrap_err();
        assert!(matches!(short, Error::Length { need, got, .. } if (need, got) == (len, len - 1)), "{short}");
        for bad in [0x7c00u16, 0xfc00, 0x7e01] {
            let mut bytes = vec![0; len];
            bytes[step + at..][..2].copy_from_slice(&bad.to_le_bytes());
            let e = Weight::dense(format, shape, bytes).unwrap_err();
            assert!(matches!(e, Error::NotFinite { what: "f16 scales", index: 1, .. }), "{e}");
        }
        let mut values = vec![1.0; 512];
        values[300] = f32::NAN;
        let e = codec::blocks::quantize(Floats::F32(&values), shape, format).unwrap_err();
        assert!(matches!(e, Error::NotFinite { index: 300, .. }), "{e}");
        let e = codec::quantize(Floats::F32(&values), shape, format).unwrap_err();
        assert!(e.to_string().contains("ternary format"), "{e}");
    }
    let e = codec::blocks::quantize(Floats::F32(&[0.0; 512]), shape, Format::I2S).unwrap_err();
    assert!(e.to_string().contains("q8_0, q6_k"), "{e}");
}
