//! What is wrong, where, and what would be right.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "cpu")]

mod support;

use half::bf16;
use serde_json::Value;
use support::{command, half_master, run, tersor, tersor_at};

#[test]
fn a_file_that_is_not_there() {
    for line in ["run --model nowhere.gguf", "inspect nowhere.gguf", "verify fable-26m nowhere.gguf"] {
        let error = tersor_at(line, &[]).failed(1);
        assert!(error.contains("cannot open nowhere.gguf") && error.contains("hint: check the path"), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_off_or_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole.gguf"), dir.path().join("cut.gguf"));
    tersor_at("quantize fable-26m -o {} --format i2_s", &[&whole]).ended(0);
    let bytes = std::fs::read(&whole).unwrap();
    for len in [bytes.len() - 1, bytes.len() / 2, 1000, 10] {
        std::fs::write(&cut, &bytes[..len]).unwrap();
        let error = tersor_at("run --model {}", &[&cut]).failed(1);
        assert!(error.contains("cut.gguf: truncated at byte ") && error.contains("fetch it again"), "{error}");
    }
    std::fs::write(&cut, "hello").unwrap();
    let error = tersor_at("inspect {}", &[&cut]).failed(1);
    assert!(error.contains("cut.gguf: not a model this program knows"), "{error}");
    let error = tersor_at("inspect {}", &[dir.path()]).failed(1);
    assert!(error.contains("safetensors"), "{error}");
}

#[test]
fn names_that_nothing_has() {
    let error = tersor_at("quantize fable-26m -o x.gguf --format i2s", &[]).failed(2);
    assert!(
        error.contains("'i2s'") && error.contains("tq2_0") && error.contains("similar value exists: 'i2_s'"),
        "{error}"
    );
    let error = tersor_at("run --backend cpu-avx3", &[]).failed(2);
    assert!(error.contains("select.backend (--backend) names backend \"cpu-avx3\""), "{error}");
    assert!(error.contains("known: ") && error.contains("cpu-avx2"), "{error}");
    let error = tersor_at("run --isa sse9", &[]).failed(2);
    assert!(error.contains("--isa: `select.isa` is \"sse9\"") && error.contains("avx512-vnni"), "{error}");
    let error = tersor_at("run --threads many", &[]).failed(2);
    assert!(error.contains("--threads: `threads.count` is \"many\""), "{error}");
    let error = tersor_at("inspect fable-26m --from-layout sideways", &[]).failed(2);
    assert!(error.contains("arm64-block"), "{error}");
    let error = tersor_at("backends --log loudly=very", &[]).failed(2);
    assert!(error.contains("--log: `log.filter` is \"loudly=very\"") && error.contains("tersor=debug"), "{error}");
}

#[test]
fn a_backend_that_cannot_run_here_is_no_reason_to_run_another() {
    let error = tersor_at("run --device cuda --tokens 1", &[]).failed(6);
    assert!(error.contains("no backend for fable-26m") && error.contains("select.device (--device)"), "{error}");
    let foreign = if cfg!(target_arch = "x86_64") { "cpu-neon" } else { "cpu-avx2" };
    let error = tersor_at(&format!("run --backend {foreign} --tokens 1"), &[]).failed(6);
    assert!(error.contains("this program is for") && error.contains("tersor backends --why"), "{error}");
    // cuda-or-cpu may fall back, and says so.
    let report = tersor_at("run --device cuda-or-cpu --tokens 1 --json", &[]).json(0);
    if report["backend"] != "cuda" {
        assert_eq!(report["decision"]["because"]["kind"], "fallback", "{report}");
    }
}

#[test]
fn weights_that_are_not_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let name = "model.layers.0.self_attn.k_proj.weight";
    half_master(dir.path(), |tensors| {
        let bytes = &mut tensors.get_mut(name).unwrap().2;
        bytes[2 * 1234..][..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    });
    let out = dir.path().join("out.gguf");
    for backend in support::usable() {
        let line = format!("quantize {{}} -o {{}} --format i2_s --backend {backend}");
        let error = tersor_at(&line, &[dir.path(), &out]).failed(1);
        assert!(error.contains(name) && error.contains("element 1234 is NaN"), "{backend}: {error}");
        assert!(error.contains("hint: such weights cannot be quantized"), "{error}");
        assert!(!out.exists());
    }
    let report = tersor_at("inspect {} --json", &[dir.path()]).json(0);
    assert!(report["suspicious"][0].as_str().unwrap().contains("element 1234 is NaN"), "{report}");
}

#[test]
fn a_prompt_that_does_not_fit() {
    let error = tersor(["run", "--prompt", &"word ".repeat(2000)]).failed(1);
    assert!(error.contains("the context holds 512 tokens") && error.contains("shorten the prompt"), "{error}");
}

#[test]
fn output_where_nothing_can_be_written() {
    let error = tersor_at("quantize fable-26m -o /nonexistent/dir/x.gguf --format i2_s", &[]).failed(1);
    assert!(error.contains("/nonexistent/dir"), "{error}");
    let error = tersor_at("run --tokens 1 --logits /nonexistent/dir/x", &[]).failed(1);
    assert!(error.contains("/nonexistent/dir"), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_standard_output_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = run_to(full);
    assert!(error.contains("cannot write to standard output"), "{error}");
}

#[cfg(target_os = "linux")]
fn run_to(file: std::fs::File) -> String {
    let output = command().args(["backends", "--json"]).stdout(file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_configuration_file_with_a_wrong_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tersor.toml");
    std::fs::write(&file, "[select]\nbackend = \"scalar\"\n\n[threads]\n  cuont = 2\n").unwrap();
    for line in ["run --config {}", "config check {}"] {
        let error = tersor_at(line, &[&file]).failed(2);
        assert!(error.contains("tersor.toml:5:3: unknown key `threads.cuont`"), "{error}");
        assert!(error.contains("did you mean `threads.count`?"), "{error}");
    }
    let error = run(command().args(["run", "--tokens", "1"]).env("TERSOR_CONFIG", &file)).failed(2);
    assert!(error.contains(":5:3:"), "{error}");
    std::fs::write(&file, "[select]\norder = [\"cpu-avx3\"]\n").unwrap();
    let error = tersor_at("config check {}", &[&file]).failed(2);
    assert!(error.contains("tersor.toml:2:1") && error.contains("cpu-avx3"), "{error}");
    std::fs::write(&file, "[select]\nbackend = \"scaler\"\n").unwrap();
    let error = tersor_at("config check {}", &[&file]).failed(2);
    assert!(error.contains("tersor.toml:2:1") && error.contains("scaler"), "{error}");
}

#[test]
fn the_configuration_says_who_set_what() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tersor.toml");
    std::fs::write(&file, "[select]\ndeny = [\"cpu-avx2\"]\n[memory]\nzero_copy = false\n").unwrap();
    let mut show = command();
    show.args(["config", "show", "--origin", "--backend", "scalar", "--config"]).arg(&file).env("TERSOR_THREADS", "2");
    let ran = run(&mut show);
    for (line, origin) in [
        ("select.backend = \"scalar\"", "# --backend"),
        ("threads.count = 2", "# TERSOR_THREADS"),
        ("select.deny = [\"cpu-avx2\"]", "tersor.toml:2:1"),
        ("select.device = \"auto\"", "# default"),
    ] {
        assert!(ran.stdout.lines().any(|l| l.starts_with(line) && l.contains(origin)), "{line}: {}", ran.stdout);
    }
    // Every key has an effect, so none is warned of.
    assert!(!ran.stderr.contains("warning: "), "{}", ran.stderr);
    let report = tersor_at("config show --json --config {}", &[&file]).json(0);
    let deny = report["entries"].as_array().unwrap().iter().find(|e| e["key"] == "select.deny").unwrap();
    assert!(deny["origin"].as_str().unwrap().ends_with("tersor.toml:2:1"), "{deny}");
    // What it prints is a configuration file.
    let all = dir.path().join("all.toml");
    std::fs::write(&all, tersor(["config", "show"]).ended(0)).unwrap();
    tersor_at("config check {}", &[&all]).ended(0);
    // A file decides what runs.
    let report = tersor_at("run --tokens 1 --json --config {}", &[&file]).json(0);
    assert_ne!(report["backend"], "cpu-avx2");
}

#[test]
fn every_key_has_a_flag() {
    let show = tersor(["config", "show", "--json"]).json(0);
    // Keys that have a value by themselves can be set to it.
    for entry in show["entries"].as_array().unwrap() {
        let (key, value) = (entry["key"].as_str().unwrap(), &entry["value"]);
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Array(_) => String::new(),
            other => other.to_string(),
        };
        let set = tersor(["config", "show", "--json", "--set", &format!("{key}={text}")]).json(0);
        let entry = set["entries"].as_array().unwrap().iter().find(|e| e["key"] == key).unwrap();
        assert_eq!((&entry["value"], &entry["origin"]), (value, &Value::from("--set")), "{key}={text}");
    }
    let error = tersor(["config", "show", "--set", "tune.mod=off"]).failed(2);
    assert!(error.contains("--set") && error.contains("did you mean `tune.mode`?"), "{error}");
    let error = tersor(["config", "show", "--set", "threads.count"]).failed(2);
    assert!(error.contains("KEY=VALUE"), "{error}");
    // A flag of its own is stronger, and the environment is weaker.
    let mut both = command();
    both.args(["config", "show", "--json", "--set", "threads.count=3", "--threads", "4"]).env("TERSOR_THREADS", "2");
    let shown = run(&mut both).json(0);
    let count = shown["entries"].as_array().unwrap().iter().find(|e| e["key"] == "threads.count").unwrap();
    assert_eq!((&count["value"], &count["origin"]), (&Value::from(4), &Value::from("--threads")));
}
