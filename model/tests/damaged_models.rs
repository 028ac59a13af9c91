//! Damaged model files give errors or wrong numbers, never a panic: everything a loader would read is read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::sync::OnceLock;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tersor_core::Format;
use tersor_model::{Checkpoint, Gguf, LayerPart, ModelFile, OpenOptions, Role, convert};

/// bitnet.cpp's golden model in each format, converted by us.
fn originals() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let golden = Bytes::from_static(include_bytes!("data/i2_s.gguf"));
        let model = ModelFile::from_gguf(Gguf::from_bytes(golden.clone()).unwrap(), &OpenOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let converted = Format::TERNARY.map(|format| {
            let path = dir.path().join(format.id());
            let options = tersor_model::ConvertOptions::new(format);
            convert(&model, &path, &options, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
            std::fs::read(path).unwrap()
        });
        [golden.to_vec()].into_iter().chain(converted).collect()
    })
}

/// Reads everything there is; errors are fine.
fn read_all(model: &ModelFile) {
    for role in Role::all(model.config()) {
        if role.is_linear() {
            if let Ok(linear) = model.linear(role) {
                let _ = linear.ternary();
            }
        } else if let Ok(dense) = model.dense(role) {
            let _ = dense.to_f32();
        }
    }
}

fn damaged(bytes: &[u8], damage: &[(prop::sample::Index, u8)], within: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let within = within.min(bytes.len());
    for (at, value) in damage {
        bytes[at.index(within)] = *value;
    }
    bytes
}

#[test]
fn undamaged_they_all_read() {
    for bytes in originals() {
        let model = Gguf::from_bytes(Bytes::copy_from_slice(bytes)).unwrap();
        let model = ModelFile::from_gguf(model, &OpenOptions::default()).unwrap();
        assert!(Role::all(model.config()).filter(|r| r.is_linear()).all(|r| model.linear(r).is_ok()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The last 1,300 bytes of the 12 KB header describe the tensors; damage is spread over header and data.
    #[test]
    fn gguf(
        which in 0usize..6,
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        within in prop_oneof![Just(700), Just(13_000), Just(usize::MAX)],
    ) {
        let bytes = damaged(&originals()[which], &damage, within);
        if let Ok(model) = Gguf::from_bytes(Bytes::from(bytes)).and_then(|g| ModelFile::from_gguf(g, &OpenOptions::default())) {
            read_all(&model);
        }
    }

    #[test]
    fn truncated_gguf(which in 0usize..6, keep in any::<prop::sample::Index>()) {
        let bytes = &originals()[which];
        let bytes = Bytes::copy_from_slice(&bytes[..keep.index(bytes.len())]);
        if let Ok(model) = Gguf::from_bytes(bytes).and_then(|g| ModelFile::from_gguf(g, &OpenOptions::default())) {
            read_all(&model);
        }
    }

    #[test]
    fn config_json(damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        static CONFIG: &[u8] = include_bytes!("../assets/fable-26m/packed/config.json");
        static MODEL: &[u8] = include_bytes!("../assets/fable-26m/packed/model.safetensors");
        let text = damaged(CONFIG, &damage, usize::MAX);
        let checkpoint = Checkpoint::from_bytes(Bytes::from_static(MODEL)).unwrap();
        if let Ok(text) = String::from_utf8(text) {
            let _ = ModelFile::from_checkpoint(checkpoint, &text, &OpenOptions::default());
        }
    }

    #[test]
    fn safetensors(damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        static CONFIG: &str = include_str!("../assets/fable-26m/packed/config.json");
        static MODEL: &[u8] = include_bytes!("../assets/fable-26m/packed/model.safetensors");
        let header = 8 + u64::from_le_bytes(MODEL[..8].try_into().unwrap()) as usize;
        let bytes = damaged(MODEL, &damage, header);
        let checkpoint = Checkpoint::from_bytes(Bytes::from(bytes));
        if let Ok(model) = checkpoint.and_then(|c| ModelFile::from_checkpoint(c, CONFIG, &OpenOptions::default())) {
            for part in LayerPart::all().filter(|p| p.is_linear()) {
                let _ = model.linear(Role::Layer(0, part));
            }
        }
    }
}
