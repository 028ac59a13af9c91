//! Layouts written by bitnet.cpp, decoded to the ternary values that went in.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::path::PathBuf;

use bytes::Bytes;
use tersor_core::{Format, Shape, codec};
use tersor_model::gguf::{Dialect, GgmlType, Gguf, Metadata, TensorPlan, Value, write_vec};
use tersor_model::source::{I2sLayout, KernelConfig};
use tersor_model::{Checkpoint, Error, LayerPart, Linear, ModelConfig, ModelFile, OpenOptions, Role};

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../core/tests/data/golden-formats").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn bitnet_cpp_file() -> Gguf {
    Gguf::from_bytes(Bytes::from_static(include_bytes!("data/i2_s.gguf"))).unwrap()
}

/// The golden file with one tensor replaced.
fn with_tensor(role: Role, ty: GgmlType, data: &[u8]) -> Gguf {
    with_tensors(role, ty, data, &[])
}

/// The same, with one-element f32 tensors added.
fn with_tensors(role: Role, ty: GgmlType, data: &[u8], scales: &[(&str, f32)]) -> Gguf {
    let scales: Vec<(&str, [u8; 4])> = scales.iter().map(|(name, v)| (*name, v.to_le_bytes())).collect();
    let added = scales.iter().map(|(name, bytes)| {
        (TensorPlan { name: (*name).into(), dims: vec![1], ty: GgmlType::F32, len: 4 }, &bytes[..])
    });
    let file = bitnet_cpp_file();
    let name = role.gguf_name();
    let bytes: Vec<Bytes> = file.tensors().iter().map(|t| file.tensor_data(&t.name).unwrap()).collect();
    let tensors: Vec<(TensorPlan, &[u8])> = file
        .tensors()
        .iter()
        .zip(&bytes)
        .map(|(t, b)| {
            let (ty, b) = if t.name == name { (ty, data) } else { (t.ty, &b[..]) };
            (TensorPlan { name: t.name.clone(), dims: t.dims.clone(), ty, len: b.len() as u64 }, b)
        })
        .chain(added)
        .collect();
    Gguf::from_bytes(Bytes::from(write_vec(file.metadata(), &tensors).unwrap())).unwrap()
}

const GATE: Role = Role::Layer(0, LayerPart::FfnGate);
const QUERY: Role = Role::Layer(0, LayerPart::AttnQ);

#[test]
fn i2_s_of_bitnet_cpp_gives_the_values_and_scales_that_went_in() {
    let model = ModelFile::from_gguf(bitnet_cpp_file(), &OpenOptions::default()).unwrap();
    let expected = Checkpoint::from_bytes(Bytes::from(golden("i2_s.expected.safetensors"))).unwrap();
    for part in LayerPart::all().filter(|p| p.is_linear()) {
        let role = Role::Layer(0, part);
        let linear = model.linear(role).unwrap();
        assert!(matches!(&linear, Linear::Packed(w) if w.format() == Format::I2S));
        let ternary = linear.ternary().unwrap().unwrap();
        let values = expected.tensor(&role.gguf_name()).unwrap();
        let scale = expected.tensor(&format!("{}.scale", role.gguf_name())).unwrap();
        assert_eq!([ternary.shape.rows(), ternary.shape.cols()], values.shape[..], "{role}");
        assert!(ternary.codes.iter().map(|&c| c as u8).eq(values.data.iter().copied()), "{role}");
        assert_eq!(ternary.uniform_scale().unwrap().to_le_bytes(), scale.data[..], "{role}");
    }
    assert_eq!(model.dense(Role::TokenEmbedding).unwrap().ty, GgmlType::F16);
    assert!(model.ignored().is_empty(), "{:?}", model.ignored());
}

/// The model of the golden file, its gate (512 x 256) in another `i2_s` layout, must give the canonical file's values.
#[test]
fn the_other_i2_s_layouts_are_read_when_named() {
    let canonical = ModelFile::from_gguf(bitnet_cpp_file(), &OpenOptions::default()).unwrap();
    let expected = canonical.linear(GATE).unwrap().ternary().unwrap().unwrap();
    let (rows, cols) = (expected.shape.rows(), expected.shape.cols());
    let code = |r: usize, c: usize| (expected.codes[r * cols + c] + 1) as u8;
    // Written from bitnet.cpp's quantizer: 64-value blocks of 16 bytes; four rows a byte, the first in the top bits.
    let arm = (0..rows * cols / 4).map(|b| {
        let (block, p) = (b / 16, b % 16);
        (0..4).fold(0u8, |byte, n| {
            let at = block * 64 + 16 * n + p;
            byte << 2 | code(at / cols, at % cols)
        })
    });
    let rows4 = (0..rows * cols / 4).map(|b| (0..4).fold(0u8, |byte, n| byte << 2 | code(b / cols * 4 + n, b % cols)));
    let mut tail = expected.scales[0].to_le_bytes().to_vec();
    tail.resize(32, 0);
    for (layout, bytes) in [(I2sLayout::Arm64Block, arm.collect::<Vec<_>>()), (I2sLayout::Rows4, rows4.collect())] {
        let file = with_tensor(GATE, GgmlType::I2_S, &[bytes, tail.clone()].concat());
        let options = OpenOptions { i2_s_layout: layout, ..OpenOptions::default() };
        let model = ModelFile::from_gguf(file.clone(), &options).unwrap();
        let got = model.linear(GATE).unwrap().ternary().unwrap().unwrap();
        assert_eq!(got, expected, "{layout:?}");
        // Read as canonical, the same bytes are valid codes with other values: why the layout is never guessed.
        let wrong = ModelFile::from_gguf(file, &OpenOptions::default()).unwrap();
        assert_ne!(wrong.linear(GATE).unwrap().ternary().unwrap().unwrap(), expected);
    }
}

/// A model of one layer whose query projection has the golden matrix's shape; everything else is zeros of the right size.
fn model_around(role: Role, shape: (usize, usize), ty: GgmlType, data: &[u8], options: &OpenOptions) -> ModelFile {
    let (hidden, ffn) = match role {
        Role::Layer(_, LayerPart::FfnGate) => (shape.1, shape.0),
        _ => panic!("the gate has both dimensions free"),
    };
    let json = format!(
        r#"{{"model_type": "bitnet", "vocab_size": 16, "hidden_size": {hidden}, "intermediate_size": {ffn},
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8, "rope_theta": 1e4,
            "rms_norm_eps": 1e-5, "hidden_act": "relu2", "tie_word_embeddings": true}}"#
    );
    let config = ModelConfig::from_hf_json(&json, false).unwrap();
    let mut metadata = Metadata::new();
    config.write_metadata(&mut metadata);
    let zeros = vec![0u8; 4 * hidden.max(ffn).max(16) * hidden.max(ffn)];
    let tensors: Vec<(TensorPlan, &[u8])> = Role::all(&config)
        .map(|r| {
            let (rows, cols) = r.shape(&config);
            let dims = if r.is_norm() { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
            let (ty, data) = if r == role { (ty, data) } else { (GgmlType::F32, &zeros[..4 * rows * cols]) };
            (TensorPlan { name: r.gguf_name(), dims, ty, len: data.len() as u64 }, data)
        })
        .collect();
    let file = Gguf::from_bytes(Bytes::from(write_vec(&metadata, &tensors).unwrap())).unwrap();
    assert_eq!(file.dialect(), Dialect::BitnetCpp);
    ModelFile::from_gguf(file, options).unwrap()
}

#[test]
fn tl1_and_tl2_tiles_decode_to_the_matrices_that_went_in() {
    let listing: serde_json::Value = serde_json::from_slice(&golden("tl.json")).unwrap();
    for name in ["tl1-a", "tl1-b", "tl2-a", "tl2-b"] {
        let number = |key: &str| listing[name][key].as_u64().unwrap() as usize;
        let (rows, cols) = (number("rows"), number("cols"));
        let config = format!(
            "[Kernels_0]\nm = {rows}\nk = {cols}\nbm = {}\nbk = {}\nbmm = {}\n",
            number("BM"),
            number("BK"),
            number("bmm")
        );
        let options = OpenOptions { kernels: Some(KernelConfig::parse(&config).unwrap()), ..OpenOptions::default() };
        let mut data = golden(&format!("{name}.codes.bin"));
        data.resize(data.len().next_multiple_of(32), 0);
        data.extend_from_slice(&0.375f32.to_le_bytes());
        data.resize(data.len().next_multiple_of(32), 0);
        let ty = if name.starts_with("tl1") { GgmlType::TL1 } else { GgmlType::TL2 };

        let model = model_around(GATE, (rows, cols), ty, &data, &options);
        let ternary = model.linear(GATE).unwrap().ternary().unwrap().unwrap();
        let expected = golden(&format!("{name}.ternary.i8"));
        assert!(ternary.codes.iter().map(|&c| c as u8).eq(expected.iter().copied()), "{name}");
        assert_eq!(ternary.scales, [0.375], "{name}");
        assert_eq!(ternary.shape, Shape::new(rows, cols).unwrap());

        // Without the configuration the tiles cannot be undone, and the error says what to give.
        let model = model_around(GATE, (rows, cols), ty, &data, &OpenOptions::default());
        let error = model.linear(GATE).unwrap_err().to_string();
        assert!(error.contains("kernel_config.ini") && error.contains("blk.0.ffn_gate.weight"), "{error}");

        // A configuration of another build must not pass for a decoder of this file.
        let other = config.replace(&format!("bm = {}", number("BM")), "bm = 7");
        let options = OpenOptions { kernels: Some(KernelConfig::parse(&other).unwrap()), ..OpenOptions::default() };
        let model = model_around(GATE, (rows, cols), ty, &data, &options);
        assert!(matches!(model.linear(GATE), Err(Error::InTensor { .. })), "{name}");
    }
}

#[test]
fn the_scale_tensor_beside_tl1_codes_is_used_where_there_is_no_tail() {
    let kernels = KernelConfig::parse("[k]\nm = 256\nk = 256\nbm = 128\nbk = 64\nbmm = 32").unwrap();
    let options = OpenOptions { kernels: Some(kernels), ..OpenOptions::default() };
    let codes = golden("tl1-a.codes.bin");
    let model = ModelFile::from_gguf(with_tensor(QUERY, GgmlType::TL1, &codes), &options).unwrap();
    let error = model.linear(QUERY).unwrap_err().to_string();
    assert!(error.contains("no scale"), "{error}");

    let file = with_tensors(QUERY, GgmlType::TL1, &codes, &[("blk.0.attn_q.weight_scale", 0.5)]);
    let model = ModelFile::from_gguf(file, &options).unwrap();
    assert_eq!(model.linear(QUERY).unwrap().ternary().unwrap().unwrap().scales, [0.5]);
    assert!(model.ignored().is_empty());
}

#[test]
fn a_scale_tensor_of_llama_cpp_multiplies() {
    let data = bitnet_cpp_file().tensor_data(&QUERY.gguf_name()).unwrap();
    let plain = ModelFile::from_gguf(bitnet_cpp_file(), &OpenOptions::default()).unwrap();
    let scale = plain.linear(QUERY).unwrap().ternary().unwrap().unwrap().scales[0];
    let file = with_tensors(QUERY, GgmlType::I2_S, &data, &[("blk.0.attn_q.scale", 2.0), ("blk.0.unrelated", 9.0)]);
    let model = ModelFile::from_gguf(file, &OpenOptions::default()).unwrap();
    assert_eq!(model.linear(QUERY).unwrap().ternary().unwrap().unwrap().scales, [2.0 * scale]);
    assert_eq!(model.ignored(), ["blk.0.unrelated"]);
    let file = with_tensors(QUERY, GgmlType::I2_S, &data, &[("blk.0.attn_q.bias", 0.0)]);
    assert!(ModelFile::from_gguf(file, &OpenOptions::default()).unwrap_err().to_string().contains("bias"));
}

#[test]
fn row_major_tl2_needs_its_key_and_then_no_configuration() {
    let canonical = ModelFile::from_gguf(bitnet_cpp_file(), &OpenOptions::default()).unwrap();
    let expected = canonical.linear(QUERY).unwrap().ternary().unwrap().unwrap();
    let ours = codec::encode(&expected, Format::TL2).unwrap();
    let file = with_tensor(QUERY, GgmlType::TL2, ours.codes());
    assert!(ModelFile::from_gguf(file.clone(), &OpenOptions::default()).unwrap().linear(QUERY).is_err());

    let mut metadata = file.metadata().clone();
    metadata.set("tersor.layout", Value::String("row-major".into()));
    metadata.set("tersor.layout.version", Value::U32(1));
    let data: Vec<Bytes> = file.tensors().iter().map(|t| file.tensor_data(&t.name).unwrap()).collect();
    let tensors: Vec<(TensorPlan, &[u8])> = file
        .tensors()
        .iter()
        .zip(&data)
        .map(|(t, d)| (TensorPlan { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty, len: t.len }, &d[..]))
        .collect();
    let file = Gguf::from_bytes(Bytes::from(write_vec(&metadata, &tensors).unwrap())).unwrap();
    let model = ModelFile::from_gguf(file, &OpenOptions::default()).unwrap();
    assert_eq!(model.linear(QUERY).unwrap().ternary().unwrap().unwrap(), expected);

    metadata.set("tersor.layout.version", Value::U32(2));
    let file = Gguf::from_bytes(Bytes::from(write_vec(&metadata, &tensors).unwrap())).unwrap();
    let model = ModelFile::from_gguf(file, &OpenOptions::default()).unwrap();
    assert!(model.linear(QUERY).unwrap_err().to_string().contains("newer"));
}

#[test]
fn mxfp4_is_not_taken_for_tl2() {
    let mut metadata = bitnet_cpp_file().metadata().clone();
    metadata.set("general.architecture", Value::String("gpt-oss".into()));
    let plan = TensorPlan { name: "blk.0.attn_q.weight".into(), dims: vec![64], ty: GgmlType::MXFP4, len: 34 };
    let file = Gguf::from_bytes(Bytes::from(write_vec(&metadata, &[(plan, &[0; 34])]).unwrap())).unwrap();
    assert_eq!(file.tensors()[0].ty, GgmlType::MXFP4);
    let error = ModelFile::from_gguf(file, &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("gpt-oss") && error.contains("bitnet-25"), "{error}");
}

#[test]
fn an_invalid_code_is_named_by_position() {
    let file = bitnet_cpp_file();
    let mut data = file.tensor_data(&QUERY.gguf_name()).unwrap().to_vec();
    data[33] |= 0b11_00_00_00;
    let model = ModelFile::from_gguf(with_tensor(QUERY, GgmlType::I2_S, &data), &OpenOptions::default()).unwrap();
    let error = model.linear(QUERY).unwrap_err().to_string();
    assert!(error.contains("attn_q") && error.contains("column 129"), "{error}");
}
