//! Models of random weights: made, looked at, run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "cpu")]

mod support;

use support::{tersor, tersor_at, usable};

#[test]
fn every_head_and_format_makes_a_model_that_runs_the_same_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    for (head, format) in [("f32", "i2_s"), ("f16", "tl1"), ("bf16", "tl2"), ("q8_0", "tq1_0"), ("q6_k", "tq2_0")] {
        let file = dir.path().join(format!("{head}.gguf"));
        let line = format!("synth --shape tiny --head {head} --format {format} --seed 3 -o {{}} --json");
        let report = tersor_at(&line, &[&file]).json(0);
        assert_eq!((&report["head"], &report["format"]), (&head.into(), &format.into()));
        let seen = tersor_at("inspect {} --json", &[&file]).json(0);
        assert_eq!(seen["suspicious"].as_array().unwrap().len(), 0, "{seen}");
        assert_eq!(seen["tensor_bytes"], report["bytes"]);
        assert_eq!(seen["types"][format]["tensors"], 14);
        let embedding = seen["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "token_embd.weight").unwrap();
        assert_eq!(embedding["type"], head);
        let mut texts = Vec::new();
        for backend in usable() {
            let line = format!("run --model {{}} --json --tokens 12 --ignore-eos --backend {backend}");
            let ran = tersor_at(&line, &[&file]).json(0);
            assert_eq!(ran["token_ids"].as_array().unwrap().len(), 12);
            let kernels = ran["kernels"].to_string();
            let act = if head.starts_with('q') { "i8" } else { "f32" };
            assert!(kernels.contains(&format!("gemv.{head}-{act}.")), "{kernels}");
            texts.push(ran["token_ids"].clone());
        }
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "{head}: {texts:?}");
    }
}

#[test]
fn the_same_options_make_the_same_file_and_another_seed_another() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, seed: u32| {
        let file = dir.path().join(name);
        tersor_at(&format!("synth --shape tiny --head q8_0 --seed {seed} -o {{}}"), &[&file]).ended(0);
        std::fs::read(file).unwrap()
    };
    let first = make("a.gguf", 5);
    assert!(first == make("b.gguf", 5) && first != make("c.gguf", 6));
    let (a, b) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    tersor_at("verify {} {}", &[&a, &b]).ended(0);
}

#[test]
fn what_cannot_be_made_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("no").join("such.gguf");
    tersor_at("synth --shape tiny -o {}", &[&file]).failed(1);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    for (shape, head, format, wrong) in
        [("7b", "f16", "i2_s", "7b"), ("tiny", "q4_k", "i2_s", "q4_k"), ("tiny", "f16", "bf16", "bf16")]
    {
        let args = ["synth", "-o", "x.gguf", "--shape", shape, "--head", head, "--format", format];
        let error = tersor(args).failed(2);
        assert!(error.contains(wrong) && error.contains("possible values"), "{error}");
    }
}

#[test]
fn quantize_takes_a_head_format_and_text_stays_the_model_s() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("q6.gguf");
    tersor_at("quantize fable-26m -o {} --format i2_s --head q6_k", &[&file]).ended(0);
    let report = tersor_at("verify fable-26m {} --json", &[&file]).json(5);
    assert_eq!(report["differences"].as_array().unwrap().len(), 1, "{report}");
    let text = tersor_at("run --model {} --json --greedy --tokens 24", &[&file]).json(0)["text"].to_string();
    let own = tersor(["run", "--json", "--greedy", "--tokens", "24"]).json(0)["text"].to_string();
    assert_eq!(text[..12], own[..12], "{text}\n{own}");
}
