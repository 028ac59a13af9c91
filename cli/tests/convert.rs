//! Files from format to format, and the proof that nothing was lost on the way.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "cpu")]

mod support;

use std::path::PathBuf;

use serde_json::Value;
use support::{half_master, packed, tersor, tersor_at, usable};

/// The kinds of differences, each with the number of its appearances.
fn kinds(report: &Value) -> Vec<(String, usize)> {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for difference in report["differences"].as_array().unwrap() {
        let kind = difference["kind"].as_str().unwrap();
        match kinds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, n)) => *n += 1,
            None => kinds.push((kind.to_owned(), 1)),
        }
    }
    kinds
}

#[test]
fn a_chain_through_every_format_loses_no_code_and_no_scale() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = packed();
    for (step, format) in ["i2_s", "tl1", "tl2", "tq1_0", "tq2_0", "i2_s"].into_iter().enumerate() {
        let file = dir.path().join(format!("{step}-{format}.gguf"));
        tersor_at(&format!("quantize {{}} -o {{}} --format {format}"), &[&source, &file]).ended(0);
        let report = tersor_at("verify {} {} --json", &[&packed(), &file]).json(0);
        assert_eq!(report["verdict"], "identical", "{report}");
        assert_eq!(report["linear_tensors"], 56);
        assert_eq!(report["linear_weights"], 24_117_248);
        source = file;
    }
    let (first, last) = (dir.path().join("0-i2_s.gguf"), dir.path().join("5-i2_s.gguf"));
    assert!(std::fs::read(first).unwrap() == std::fs::read(last).unwrap(), "the chain ends where it began");
}

#[test]
fn the_embedded_model_is_the_packed_directory() {
    let report = tersor_at("verify fable-26m {} --json", &[&packed()]).json(0);
    assert_eq!(report["verdict"], "identical");
}

#[test]
fn master_weights_give_exactly_the_packed_codes_on_every_backend() {
    let dir = tempfile::tempdir().unwrap();
    half_master(dir.path(), |_| {});
    let mut files: Vec<PathBuf> = Vec::new();
    for backend in usable() {
        let file = dir.path().join(format!("{backend}.gguf"));
        let line = format!("quantize {{}} -o {{}} --format i2_s --backend {backend} --threads 2 --json");
        let report = tersor_at(&line, &[dir.path(), &file]).json(0);
        assert_eq!(report["backend"], backend);
        assert!(report["melem_s"].as_f64().unwrap() > 0.0);
        let tensors = report["tensors"].as_array().unwrap();
        let lossy: Vec<&Value> = tensors.iter().filter(|t| !t["ternary"]["fidelity"].is_null()).collect();
        assert_eq!(lossy.len(), 7, "layer 0 has seven projections");
        for tensor in lossy {
            let (cosine, snr) = (&tensor["ternary"]["fidelity"]["cosine"], &tensor["ternary"]["fidelity"]["snr_db"]);
            let (cosine, snr) = (cosine.as_f64().unwrap(), snr.as_f64().unwrap());
            assert!((0.75..0.95).contains(&cosine) && (3.0..10.0).contains(&snr), "{tensor}");
        }
        // Scales are the mean of |W| in f32 here and rounded to bf16 in the packed model; codes are the same.
        let report = tersor_at("verify {} {} --json", &[&packed(), &file]).json(5);
        assert_eq!(kinds(&report), [("scale".to_owned(), 7)], "{report}");
        files.push(file);
    }
    let bytes: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    assert!(bytes.windows(2).all(|pair| pair[0] == pair[1]), "every backend writes the same file");
}

#[test]
fn scales_that_f16_cannot_hold_are_listed_and_have_a_code_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    half_master(dir.path(), |_| {});
    let (exact, rounded) = (dir.path().join("exact.gguf"), dir.path().join("rounded.gguf"));
    tersor_at("quantize {} -o {} --format i2_s", &[dir.path(), &exact]).ended(0);
    let table = tersor_at("quantize {} -o {} --format tq1_0", &[dir.path(), &rounded]).ended(0);
    assert!(table.contains("7 scales rounded to f16"), "{table}");
    let report = tersor_at("verify {} {} --json", &[&exact, &rounded]).json(4);
    assert_eq!(kinds(&report), [("scale".to_owned(), 7)], "{report}");
    assert!(report["differences"].as_array().unwrap().iter().all(|d| d["f16_rounding"] == true), "{report}");
    let text = tersor_at("verify {} {}", &[&exact, &rounded]).ended(4);
    assert!(text.contains("blk.0.attn_q.weight: ") && text.contains("rounding to f16"), "{text}");
    // From tq1_0 on nothing more is lost.
    let next = dir.path().join("next.gguf");
    tersor_at("quantize {} -o {} --format tq2_0", &[&rounded, &next]).ended(0);
    tersor_at("verify {} {}", &[&rounded, &next]).ended(0);
    // Master weights against their own conversion: quantized by the rule, then compared.
    let report = tersor_at("verify {} {} --json", &[dir.path(), &exact]).json(0);
    assert_eq!(report["quantized"], 7);
}

#[test]
fn a_changed_code_is_found_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (file, broken) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    tersor_at("quantize fable-26m -o {} --format i2_s", &[&file]).ended(0);
    let mut bytes = std::fs::read(&file).unwrap();
    // The file ends with the scale of the last projection (32 bytes) and the final norm (512 f32).
    let at = bytes.len() - 4 * 512 - 32 - 1;
    bytes[at] = if bytes[at] == 0x55 { 0xaa } else { 0x55 };
    std::fs::write(&broken, bytes).unwrap();
    let report = tersor_at("verify {} {} --json", &[&file, &broken]).json(3);
    assert_eq!(kinds(&report), [("codes".to_owned(), 1)], "{report}");
    let found = &report["differences"][0];
    assert_eq!(
        (found["tensor"].as_str(), found["row"].as_u64()),
        (Some("blk.7.ffn_down.weight"), Some(511)),
        "{found}"
    );
    let text = tersor_at("verify {} {}", &[&file, &broken]).ended(3);
    assert!(text.contains("row 511, column "), "{text}");
}

#[test]
fn the_table_shows_shares_scale_and_loss_of_each_tensor() {
    let dir = tempfile::tempdir().unwrap();
    half_master(dir.path(), |_| {});
    let out = dir.path().join("out.gguf");
    let ran = tersor_at("quantize {} -o {} --format tl2", &[dir.path(), &out]);
    assert_eq!(ran.stderr, "", "no progress bar where standard error is no terminal");
    let table = ran.ended(0);
    let row = table.lines().find(|l| l.starts_with("blk.0.attn_q.weight")).unwrap();
    for part in ["512 x 512", "bf16", "tl2", "31.4 %", "37.2 %", "0.074356", "0.8"] {
        assert!(row.contains(part), "{part}: {row}");
    }
    assert!(table.contains("Melem/s in 24117248 linear weights, 7 tensors quantized by "), "{table}");
}

#[test]
fn inspect_shows_what_quantize_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.gguf");
    tersor_at("quantize fable-26m -o {} --format tl1 --name story-teller", &[&file]).ended(0);
    let report = tersor_at("inspect {} --json", &[&file]).json(0);
    assert_eq!(report["model"]["name"], "story-teller");
    assert_eq!(report["metadata"]["tersor.layout"], "row-major");
    assert_eq!(report["types"]["tl1"]["tensors"], 56);
    assert_eq!(report["suspicious"], Value::Array(Vec::new()));
    let tensors = report["tensors"].as_array().unwrap();
    let q = tensors.iter().find(|t| t["name"] == "blk.0.attn_q.weight").unwrap();
    assert_eq!((&q["type"], q["codes"]["scale"].as_f64()), (&"tl1".into(), Some(0.07421875)));
    let shares = ["minus", "zero", "plus"].map(|s| q["codes"][s].as_f64().unwrap());
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{shares:?}");
    let text = tersor_at("inspect {} --quick", &[&file]).ended(0);
    assert!(text.contains("blk.7.ffn_down.weight") && text.contains("nothing suspicious"), "{text}");
}

#[test]
fn a_file_that_is_no_model_of_ours_is_shown_with_the_reason() {
    // One layer of eight, without a config.json of the usual name.
    let report = tersor_at("inspect {} --json", &[&support::data("master-layer0.safetensors")]).json(0);
    assert!(report["model"].is_null());
    assert!(report["problem"].as_str().unwrap().contains("config.json"), "{report}");
    assert_eq!(report["tensors"].as_array().unwrap().len(), 11);
}

#[test]
fn a_layer_of_zeros_is_refused_until_allowed() {
    let dir = tempfile::tempdir().unwrap();
    half_master(dir.path(), |tensors| {
        tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap().2.fill(0);
    });
    let out = dir.path().join("out.gguf");
    let error = tersor_at("quantize {} -o {} --format i2_s", &[dir.path(), &out]).failed(1);
    assert!(error.contains("model.layers.0.mlp.up_proj.weight") && error.contains("--allow-zero"), "{error}");
    assert!(!out.exists(), "a conversion that failed leaves no file");
    tersor_at("quantize {} -o {} --format i2_s --allow-zero", &[dir.path(), &out]).ended(0);
    let report = tersor_at("inspect {} --json", &[&out]).json(0);
    assert!(
        report["suspicious"][0].as_str().unwrap().contains("blk.0.ffn_up.weight: all weights are zero"),
        "{report}"
    );
}

#[test]
fn a_backend_that_is_not_needed_is_not_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let report = tersor_at("quantize fable-26m -o {} --format i2_s --json", &[&out]).json(0);
    assert!(report["backend"].is_null(), "the model is ternary already");
    // A wrong name is an error all the same.
    let error = tersor(["quantize", "fable-26m", "-o", "x.gguf", "--format", "i2_s", "--backend", "acme"]).failed(2);
    assert!(error.contains("acme"), "{error}");
}
