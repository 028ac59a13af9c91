//! The GGUF container: what is written is what is read, and no input makes the reader panic or reserve absurd memory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::path::PathBuf;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tersor_model::Error;
use tersor_model::gguf::{Array, Dialect, GgmlType, Gguf, GgufWriter, Metadata, TensorPlan, Value, write_vec};

fn golden_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/i2_s.gguf")
}

/// A valid file of some 700 bytes with every kind of field.
fn small_file() -> Vec<u8> {
    let mut m = Metadata::new();
    m.set("general.architecture", Value::String("bitnet-b1.58".into()));
    m.set("u8", Value::U8(7));
    m.set("i16", Value::I16(-7));
    m.set("f64", Value::F64(0.25));
    m.set("bool", Value::Bool(true));
    m.set("strings", Value::Array(Array::String(vec!["a".into(), "Grüße".into(), String::new()])));
    m.set("nested", Value::Array(Array::Array(vec![Array::U16(vec![1, 2]), Array::Bool(vec![true, false])])));
    m.set("empty", Value::Array(Array::F32(vec![])));
    let plan = |name: &str, dims: &[u64], ty, len| TensorPlan { name: name.into(), dims: dims.to_vec(), ty, len };
    let codes = [0x55u8; 64];
    write_vec(
        &m,
        &[
            (plan("norm", &[3], GgmlType::F32, 12), &[1; 12]),
            (plan("codes", &[128], GgmlType::I2_S, 64), &codes),
            (plan("tl", &[4, 5], GgmlType::TL1, 37), &codes[..37]),
            (plan("half", &[2, 2, 2], GgmlType::F16, 16), &[2; 16]),
        ],
    )
    .unwrap()
}

#[test]
fn a_file_of_bitnet_cpp_reads_as_its_quantizer_wrote_it() {
    let file = Gguf::open(&golden_path()).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.dialect(), Dialect::BitnetCpp);
    assert_eq!(file.metadata().str("general.architecture").unwrap(), Some("bitnet"));
    assert_eq!(file.metadata().u64("bitnet.embedding_length").unwrap(), Some(256));
    assert_eq!(file.tensors().len(), 13);
    let q = file.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!((q.ty, q.rows(), q.cols(), q.len), (GgmlType::I2_S, 256, 256, 16384 + 32));
    let data = file.tensor_data("blk.0.attn_q.weight").unwrap();
    let scale = f32::from_le_bytes(data[16384..16388].try_into().unwrap());
    assert!(scale > 0.0 && scale < 1.0, "{scale}");
    assert!(data[..16384].iter().all(|b| (0..4).all(|i| (b >> (2 * i)) & 3 != 3)));
    // The norm's bytes are f32 numbers near one.
    assert_eq!(file.tensor_data("output_norm.weight").unwrap().len(), 1024);
    assert!(file.tensor_data("output.weight").is_none());
}

#[test]
fn every_kind_of_value_survives() {
    let bytes = small_file();
    let file = Gguf::from_bytes(Bytes::from(bytes)).unwrap();
    let m = file.metadata();
    assert_eq!(m.get("i16"), Some(&Value::I16(-7)));
    assert_eq!(m.f32("f64").unwrap(), Some(0.25));
    assert_eq!(
        m.array("nested").unwrap(),
        Some(&Array::Array(vec![Array::U16(vec![1, 2]), Array::Bool(vec![true, false])]))
    );
    assert_eq!(m.len(), 8);
    assert_eq!(&file.tensor_data("norm").unwrap()[..], &[1; 12]);
    // tl1 has no size of its own: the bytes up to the next tensor are offered, padding included.
    assert_eq!(file.tensor("tl").unwrap().len, 64);
    assert_eq!(file.tensor("half").unwrap().rows(), 4);
}

#[test]
fn version_2_reads_like_version_3() {
    let mut bytes = small_file();
    bytes[4] = 2;
    assert_eq!(Gguf::from_bytes(Bytes::from(bytes)).unwrap().version(), 2);
}

#[test]
fn other_versions_and_big_endian_are_named() {
    for (version, hint) in [(1u32, "obsolete"), (4, "version 4"), (3u32.swap_bytes(), "big endian")] {
        let mut bytes = small_file();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        let error = Gguf::from_bytes(Bytes::from(bytes)).unwrap_err();
        assert!(matches!(error, Error::GgufVersion { found, .. } if found == version));
        assert!(error.to_string().contains(hint), "{error}");
    }
}

#[test]
fn every_truncation_of_a_valid_file_is_an_error() {
    let bytes = Bytes::from(small_file());
    for len in 0..bytes.len() {
        // The last tensor's 16 bytes end in 16 bytes of padding, which nothing needs.
        let expect_ok = len >= bytes.len() - 16;
        assert_eq!(Gguf::from_bytes(bytes.slice(..len)).is_ok(), expect_ok, "prefix of {len} bytes");
    }
}

#[test]
fn truncations_of_a_real_file_are_errors_with_an_offset() {
    let bytes = Bytes::from(std::fs::read(golden_path()).unwrap());
    for len in (0..13_000).step_by(7).chain([100_000, bytes.len() - 1]) {
        let error = Gguf::from_bytes(bytes.slice(..len)).unwrap_err();
        let expected = matches!(error, Error::Truncated { at, .. } if at <= bytes.len() as u64);
        assert!(expected || len < 4, "{len}: {error}");
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused_before_any_allocation() {
    let mut bytes = small_file();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = Gguf::from_bytes(Bytes::from(bytes)).unwrap_err();
    assert!(error.to_string().contains("tensor count"), "{error}");

    let mut m = Metadata::new();
    m.set("key", Value::Array(Array::U64(vec![1])));
    let mut bytes = write_vec(&m, &[]).unwrap();
    let count_at = bytes.windows(4).position(|w| w == [10, 0, 0, 0]).unwrap() + 4;
    bytes[count_at..count_at + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    let error = Gguf::from_bytes(Bytes::from(bytes)).unwrap_err();
    assert!(error.to_string().contains("\"key\""), "{error}");
}

#[test]
fn overlapping_tensors_are_refused() {
    let mut bytes = small_file();
    // The table entry of "codes" ends in its type (36) and its offset (32).
    let at = bytes.windows(12).position(|w| w == [36, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    bytes[at + 4] = 64;
    let error = Gguf::from_bytes(Bytes::from(bytes)).unwrap_err();
    assert!(error.to_string().contains("run into the next tensor"), "{error}");
}

#[test]
fn the_writer_holds_callers_to_their_plan() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let plan = TensorPlan { name: "a".into(), dims: vec![8], ty: GgmlType::F32, len: 32 };
    let mut writer = GgufWriter::create(&path, &Metadata::new(), vec![plan.clone()]).unwrap();
    assert!(matches!(writer.write_tensor("b", &[0; 32]), Err(Error::Writer { .. })));
    assert!(matches!(writer.write_tensor("a", &[0; 31]), Err(Error::Writer { .. })));
    assert!(matches!(writer.finish(), Err(Error::Writer { .. })));
    assert!(!path.exists());

    let wrong_size = TensorPlan { len: 31, ..plan.clone() };
    assert!(GgufWriter::create(&path, &Metadata::new(), vec![wrong_size]).is_err());
    assert!(GgufWriter::create(&path, &Metadata::new(), vec![plan.clone(), plan.clone()]).is_err());

    let mut writer = GgufWriter::create(&path, &Metadata::new(), vec![plan]).unwrap();
    writer.write_tensor("a", &[9; 32]).unwrap();
    assert_eq!(writer.finish().unwrap(), path);
    assert_eq!(&Gguf::open(&path).unwrap().tensor_data("a").unwrap()[..], &[9; 32]);
}

fn value() -> impl Strategy<Value = Value> {
    let array = prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(-1e9f32..1e9, 0..9).prop_map(Array::F32),
        vec(".{0,8}", 0..9).prop_map(Array::String),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
    ];
    let nested = vec(array.clone(), 0..4).prop_map(Array::Array);
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i64>().prop_map(Value::I64),
        any::<u64>().prop_map(Value::U64),
        (-1e30f64..1e30).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,40}".prop_map(Value::String),
        array.prop_map(Value::Array),
        nested.prop_map(Value::Array),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        entries in vec(("[a-z.]{1,20}", value()), 0..12),
        tensors in vec(vec(any::<u8>(), 1..100), 0..6),
    ) {
        let mut metadata = Metadata::new();
        for (key, value) in entries {
            metadata.set(key, value);
        }
        let planned: Vec<(TensorPlan, &[u8])> = tensors.iter().enumerate().map(|(i, data)| {
            let plan = TensorPlan {
                name: format!("t{i}"),
                dims: vec![data.len() as u64],
                ty: GgmlType::I8,
                len: data.len() as u64,
            };
            (plan, data.as_slice())
        }).collect();
        let file = Gguf::from_bytes(Bytes::from(write_vec(&metadata, &planned).unwrap())).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        for (plan, data) in planned {
            prop_assert_eq!(&file.tensor(&plan.name).unwrap().dims, &plan.dims);
            prop_assert_eq!(&file.tensor_data(&plan.name).unwrap()[..], data);
        }
    }

    #[test]
    fn flipped_bytes_never_panic(flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = small_file();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(file) = Gguf::from_bytes(Bytes::from(bytes)) {
            for info in file.tensors() {
                let data = file.tensor_data(&info.name);
                prop_assert_eq!(data.map(|d| d.len() as u64), Some(info.len));
            }
        }
    }

    #[test]
    fn noise_after_a_good_magic_never_panics(noise in vec(any::<u8>(), 0..400)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(noise);
        let _ = Gguf::from_bytes(Bytes::from(bytes));
    }
}
