//! Text from the embedded model.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "cpu")]

mod support;

use safetensors::SafeTensors;
use serde_json::Value;
use support::{command, golden, run, tersor, tersor_at, usable};

const KEYS: [&str; 8] =
    ["text", "token_ids", "prompt_token_ids", "prefill_tok_s", "decode_tok_s", "backend", "kernels", "peak_rss_bytes"];

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// Two correct implementations may part at a near tie; up to the first one the text must be the reference's.
#[test]
fn greedy_text_is_the_golden_text_up_to_the_first_near_tie() {
    let golden = golden();
    for prompt in golden["prompts"].as_array().unwrap() {
        let gaps = prompt["packed_gaps"].as_array().unwrap();
        let sure = gaps.iter().position(|gap| gap.as_f64().unwrap() < 0.06).unwrap_or(gaps.len()).max(1);
        let text = prompt["text"].as_str().unwrap();
        let report = tersor(["run", "--json", "--greedy", "--prompt", text, "--tokens", &sure.to_string()]).json(0);
        assert_eq!(ids(&report["prompt_token_ids"]), ids(&prompt["ids"]));
        assert_eq!(ids(&report["token_ids"]), ids(&prompt["packed_greedy"])[..sure]);
        let continuation = prompt["packed_text"].as_str().unwrap();
        assert!(continuation.starts_with(report["text"].as_str().unwrap()), "{report}");
    }
}

#[test]
fn the_object_has_the_keys_that_are_promised() {
    let report = tersor(["run", "--json", "--tokens", "4", "--threads", "1"]).json(0);
    for key in KEYS {
        assert!(report.get(key).is_some(), "{key}: {report}");
    }
    assert!(report["prefill_tok_s"].as_f64().unwrap() > 0.0 && report["decode_tok_s"].as_f64().unwrap() > 0.0);
    assert_eq!((&report["threads"], &report["stop"]), (&1.into(), &"tokens".into()));
    assert_eq!(report["decision"]["chosen"], report["backend"]);
    assert!(report["kernels"].as_array().unwrap().iter().any(|k| k.as_str().unwrap().starts_with("gemv.i2_s-i8.")));
    if cfg!(target_os = "linux") {
        assert!(report["peak_rss_bytes"].as_u64().unwrap() > 10 << 20, "more than the weights");
    }
}

#[test]
fn text_is_the_same_on_every_backend_at_any_thread_count_and_in_every_format() {
    let text = |args: &str| {
        let line = format!("run --json --tokens 40 {args}");
        tersor_at(&line, &[]).json(0)["text"].as_str().unwrap().to_owned()
    };
    let reference = text("--backend scalar --threads 1");
    assert!(reference.len() > 60, "{reference}");
    for backend in usable() {
        for threads in [1, 2] {
            assert_eq!(text(&format!("--backend {backend} --threads {threads}")), reference, "{backend} {threads}");
        }
        for format in ["tl1", "tl2", "tq1_0", "tq2_0"] {
            assert_eq!(text(&format!("--backend {backend} --format {format}")), reference, "{backend} {format}");
        }
    }
}

#[test]
fn a_converted_file_tells_the_same_story() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.gguf");
    tersor_at("quantize fable-26m -o {} --format tq2_0", &[&file]).ended(0);
    let report = tersor_at("run --json --tokens 24 --model {}", &[&file]).json(0);
    assert_eq!(report["text"], tersor_at("run --json --tokens 24", &[]).json(0)["text"]);
    assert!(report["kernels"].as_array().unwrap().iter().any(|k| k.as_str().unwrap().contains("tq2_0")), "{report}");
}

#[test]
fn text_is_streamed_to_standard_output_and_the_rest_to_standard_error() {
    let ran = tersor(["run", "--tokens", "8", "--prompt", "Once upon a time", "--threads", "2"]);
    assert_eq!(ran.stdout, " there lived a king who had a beautiful\n");
    for part in [
        "prefill ",
        "tok/s",
        "decode ",
        "ended by --tokens",
        "backend ",
        "2 threads",
        " runs fable-26m",
        "kernels ",
        "peak memory ",
    ] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    assert_eq!(ran.code, Some(0));
}

#[test]
fn a_seed_makes_drawn_text_repeatable() {
    let draw = |seed: &str| {
        tersor(["run", "--json", "--tokens", "24", "--temperature", "1.2", "--top-k", "50", "--seed", seed]).json(0)
    };
    let first = draw("7");
    assert_eq!(first["seed"], 7);
    assert_eq!(first["text"], draw("7")["text"]);
    assert_ne!(first["text"], draw("8")["text"]);
    // Without a seed a run reports the one it took, and can be repeated with it.
    let free = tersor(["run", "--json", "--tokens", "24", "--temperature", "1.2", "--top-k", "50"]).json(0);
    assert_eq!(free["text"], draw(&free["seed"].to_string())["text"]);
    // The seed may come from the configuration, and the flag is stronger.
    let mut by_key = command();
    by_key.args(["run", "--json", "--tokens", "24", "--temperature", "1.2", "--top-k", "50"]).env("TERSOR_SEED", "7");
    let ran = run(&mut by_key);
    assert_eq!(ran.stderr, "", "the key has an effect: no warning");
    assert_eq!(ran.json(0)["text"], first["text"]);
    assert_eq!(run(by_key.args(["--seed", "8"])).json(0)["seed"], 8);
    assert!(tersor(["run", "--json", "--tokens", "2"]).json(0)["seed"].is_null(), "greedy text has no seed");
}

#[test]
fn the_prompt_may_be_taken_in_steps_of_any_size() {
    let prompt = golden()["prompts"][2]["text"].as_str().unwrap().to_owned();
    let text = |batch: &str| {
        let mut by_key = command();
        by_key.args(["run", "--json", "--tokens", "12", "--prompt", &prompt]).env("TERSOR_RUN_BATCH", batch);
        run(&mut by_key).json(0)["text"].clone()
    };
    assert_eq!(text("1"), text("128"));
    assert_eq!(text("3"), text("128"));
}

#[test]
fn logits_are_written_for_every_position_and_are_the_same_bytes_on_every_backend() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = golden()["prompts"][0]["text"].as_str().unwrap().to_owned();
    let mut all = Vec::new();
    for backend in usable() {
        let file = dir.path().join(&backend);
        let path = file.to_str().unwrap();
        let args = ["run", "--json", "--tokens", "1", "--prompt", &prompt, "--backend", &backend, "--logits", path];
        let report = tersor(args).json(0);
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let logits = tensors.tensor("logits").unwrap();
        assert_eq!(logits.shape(), [10, 4096]);
        assert_eq!(tensors.tensor("token_ids").unwrap().shape(), [10]);
        let last: Vec<f32> =
            logits.data()[9 * 4096 * 4..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let best = (0..4096).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap() as u64;
        assert_eq!(ids(&report["token_ids"]), [best]);
        all.push(bytes);
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_profile_accounts_for_each_layer() {
    let report = tersor(["run", "--json", "--tokens", "3", "--profile"]).json(0);
    let [prefill, decode] = [0, 1].map(|i| &report["profile"][i]);
    assert_eq!((&prefill["phase"], &decode["phase"]), (&"prefill".into(), &"decode".into()));
    let places = |p: &Value| {
        let entries = p["entries"].as_array().unwrap();
        entries.iter().map(|e| e["place"].as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!((places(prefill), places(decode)), (10, 10), "embedding, eight layers, head");
    let text = tersor(["run", "--tokens", "3", "--profile"]).stderr;
    assert!(text.contains("decode by operation") && text.contains("layer 7"), "{text}");
}

#[test]
fn debug_logs_show_the_spans_with_their_times() {
    let ran = tersor(["run", "--tokens", "2", "--log", "debug"]);
    for part in ["select{", "load{", "pack{", "prefill{", "close time.busy="] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    assert_eq!(ran.stdout, " there lived\n", "logs do not mix with text");
    let quiet = tersor(["run", "--tokens", "2", "--json"]);
    assert_eq!(quiet.stderr, "");
}

#[test]
fn every_line_of_a_file_gets_the_text_that_it_gets_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.txt");
    std::fs::write(&path, "Once upon a time\n\nThe old king had three daughters, and\nA\n").unwrap();
    let path = path.to_str().unwrap();
    let flags = ["--tokens", "12", "--temperature", "0.9", "--top-k", "40", "--seed", "5"];
    for at_once in ["1", "2", "32"] {
        let report =
            tersor(["run", "--json", "--prompts", path, "--at-once", at_once].into_iter().chain(flags)).json(0);
        let texts = report["texts"].as_array().unwrap();
        assert_eq!(texts.len(), 3);
        for text in texts {
            let alone =
                tersor(["run", "--json", "--prompt", text["prompt"].as_str().unwrap()].into_iter().chain(flags));
            let alone = alone.json(0);
            assert_eq!((&text["text"], &text["token_ids"]), (&alone["text"], &alone["token_ids"]), "{at_once} at once");
        }
        assert!(report["decode_tok_s"].as_f64().unwrap() > 0.0 && report["steps"].as_u64().unwrap() >= 11);
    }
    let out = tersor(["run", "--prompts", path, "--tokens", "3"]).ended(0);
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.starts_with("Once upon a time"), "{out}");
    std::fs::write(path, "\n").unwrap();
    assert!(tersor(["run", "--prompts", path]).failed(1).contains("no line with a prompt"));
}
