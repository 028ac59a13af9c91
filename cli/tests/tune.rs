//! Measured choices, as a user meets them: explain, tune, doctor, and what ran in the result.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "cpu")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::{command, run, tersor, tersor_at};

/// A call with a cache of its own.
fn with_cache(cache: &Path, line: &str, paths: &[&Path]) -> support::Ran {
    let mut paths = paths.iter();
    let mut command = command();
    command.env("TERSOR_TUNE_CACHE", cache);
    for word in line.split_whitespace() {
        match word {
            "{}" => command.arg(paths.next().unwrap()),
            word => command.arg(word),
        };
    }
    run(&mut command)
}

#[test]
fn explain_tells_who_won_by_how_much_and_why_not_each_other() {
    let cache = tempfile::tempdir().unwrap();
    for what in ["matmul i2_s 256x512", "quantize i2_s 64x512", "dequantize tl2 64x768", "rms_norm_quantize f32 4x512"]
    {
        let report = with_cache(cache.path(), &format!("explain {what} --json"), &[]).json(0);
        let ids: Vec<&str> = report["rejected"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
        for id in ["cpu-avx2", "cpu-avx512", "cpu-neon", "scalar"] {
            assert!(
                ids.contains(&id) || report["chosen"] == id || report["chosen"] == "tuned",
                "{what}: {id}: {report}"
            );
        }
        assert!(report["rejected"].as_array().unwrap().iter().all(|r| !r["reason"].as_str().unwrap().is_empty()));
        let route = &report["routes"][0];
        if route["basis"]["kind"] == "static" {
            // A machine that others keep busy, or one that does not tell its caches: the reason is given.
            assert!(!route["basis"]["reason"].as_str().unwrap().is_empty(), "{route}");
            continue;
        }
        let measured = route["basis"]["record"]["measured"].as_array().unwrap();
        assert!(
            measured.iter().any(|m| m["fate"]["kind"] == "won" && m["median_ns"].as_f64().unwrap() > 0.0),
            "{route}"
        );
        assert_eq!(measured.len(), 1 + route["rejected"].as_array().unwrap().len(), "{route}");
        let text = with_cache(cache.path(), &format!("explain {what} --known"), &[]).ended(0);
        assert!(text.contains("measured earlier: ") && text.contains("x the fastest"), "{text}");
    }
    let ran = with_cache(cache.path(), "explain rms_norm f32 1x512", &[]);
    assert!(ran.stderr.contains("rms_norm is not measured: it takes less than 2 % of a pass"), "{}", ran.stderr);
    let error = tersor(["explain", "rms_norm", "i2_s", "1x512"]).failed(2);
    assert!(error.contains("its FORMAT is f32"), "{error}");
}

#[test]
fn what_was_measured_is_exported_forgotten_and_taken_in_again() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = (dir.path().join("cache"), dir.path().join("winners.json"));
    let basis = || {
        let report = with_cache(&cache, "explain matmul i2_s 128x512 --known --json", &[]).json(0);
        report["routes"][0]["basis"]["kind"].as_str().unwrap().to_owned()
    };
    assert_eq!(basis(), "static", "nothing is known yet");
    with_cache(&cache, "explain matmul i2_s 128x512", &[]).ended(0);
    if basis() == "static" {
        return eprintln!("this machine is too busy to measure on");
    }
    let keys = |what: &str| with_cache(&cache, &format!("tune --json --{what} {{}}"), &[&file]).json(0)["keys"].clone();
    assert_eq!(keys("export"), 1);
    with_cache(&cache, "tune --clear", &[]).ended(0);
    assert_eq!(basis(), "static", "it was forgotten");
    assert_eq!(keys("import"), 1);
    assert_eq!(basis(), "cached");
    // Of another machine, and damaged.
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"cpu\": \"", "\"cpu\": \"another ")).unwrap();
    let error = with_cache(&cache, "tune --import {}", &[&file]).failed(2);
    assert!(error.contains("it is of another machine"), "{error}");
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    with_cache(&cache, "tune --import {}", &[&file]).failed(2);
}

#[test]
fn tune_shows_winner_runner_up_margin_and_confidence() {
    let cache = tempfile::tempdir().unwrap();
    let text = with_cache(cache.path(), "tune --batch 1", &[]).ended(0);
    let head = text.lines().next().unwrap();
    for column in ["operation", "winner", "time", "runner-up", "margin", "+- (95 %)", "samples"] {
        assert!(head.contains(column), "{head}");
    }
    for op in
        ["matmul i2_s-i8-f32 512x512 m1", "quantize i2_s-f32 512x512", "dequantize i2_s-f32 512x512", "attention f32"]
    {
        assert!(text.lines().any(|line| line.starts_with(op)), "{op}: {text}");
    }
    let report = with_cache(cache.path(), "tune --batch 1 --json", &[]).json(0);
    let routes = report["routes"].as_array().unwrap();
    let kinds: Vec<&str> = routes.iter().map(|r| r["basis"]["kind"].as_str().unwrap()).collect();
    assert!(kinds.iter().all(|kind| ["cached", "measured", "static"].contains(kind)), "{kinds:?}");
    assert!(kinds.contains(&"cached") || kinds.iter().all(|kind| *kind == "static"), "{kinds:?}");
}

/// The finding of a report about something.
fn about<'a>(report: &'a Value, what: &str) -> &'a Value {
    let all = report["findings"].as_array().unwrap();
    let found = all.iter().find(|f| f["about"] == what);
    assert!(found.is_some(), "nothing about {what}: {report}");
    found.unwrap()
}

#[test]
fn doctor_says_what_is_there_and_what_is_left_unused() {
    let report = tersor_at("doctor --json", &[]).json(0);
    for what in ["caches", "backend", "alignment", "threads", "huge pages", "tuning", "GPU", "driver", "memory"] {
        assert!(!about(&report, what)["found"].as_str().unwrap().is_empty(), "{what}");
    }
    if cfg!(target_os = "linux") && report["machine"]["caches"].as_array().is_some_and(|c| !c.is_empty()) {
        let bandwidth = report["bandwidth"].as_array().unwrap();
        assert!(bandwidth.iter().all(|b| b[1].as_f64().unwrap() > 1e8) && !bandwidth.is_empty(), "{bandwidth:?}");
    }
    // Half of the machine is left unused, and doctor says how to get it.
    let processors = std::thread::available_parallelism().unwrap().get();
    let report = tersor_at("doctor --json --threads 1", &[]).json(0);
    let advice = about(&report, "threads")["advice"].as_str().map(str::to_owned);
    assert_eq!(advice.is_some(), processors > 1, "{advice:?}");
    assert!(advice.is_none_or(|advice| advice.contains(&format!("threads.count = {processors}"))));
    // A lower tier than the machine has.
    let tiers = tersor(["backends", "--json"]).json(0);
    let wide = tiers["backends"].as_array().unwrap().iter().find(|b| b["id"] == "cpu-avx2" && b["usable"] == true);
    if let Some(isas) = wide.and_then(|b| b["devices"][0]["isas"].as_array()).filter(|isas| isas.len() > 1) {
        let report = tersor_at("doctor --json --isa avx2", &[]).json(0);
        let said = report["findings"].to_string();
        assert!(said.contains(&format!("it also has {} here", isas.last().unwrap().as_str().unwrap())), "{said}");
    }
    let text = tersor_at("doctor --threads 1", &[]).ended(0);
    assert!(processors == 1 || text.contains("  faster: threads.count"), "{text}");
}

/// `cuda-or-cpu` falls back and says so; `cuda` does not.
#[test]
fn what_ran_instead_of_a_gpu_is_in_the_text_and_in_the_object() {
    let report = tersor_at("run --device cuda-or-cpu --tokens 1 --json", &[]).json(0);
    if report["backend"] == "cuda" {
        return eprintln!("this machine has a GPU that works: nothing to fall back from");
    }
    let reason = report["decision"]["because"]["reason"].as_str().unwrap().to_owned();
    assert_eq!(report["decision"]["because"]["kind"], "fallback", "{report}");
    let ran = tersor_at("run --device cuda-or-cpu --tokens 1", &[]);
    assert!(ran.stderr.contains(&format!("cuda-or-cpu fell back to the CPU: {reason}")), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("backend {} ", report["backend"].as_str().unwrap())), "{}", ran.stderr);
    let error = tersor_at("run --device cuda --tokens 1", &[]).failed(6);
    assert!(!error.contains("fell back"), "{error}");
    // With the backend in the program, its probe's reason is told.
    assert!(!cfg!(feature = "cuda") || error.contains(&reason), "{error}");
}

/// The same bits from run to run, at any thread count, tuned or not, with weights in place or copied.
#[test]
fn deterministic_runs_give_equal_text_and_logits() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = |n: usize, flags: &str| {
        let file = dir.path().join(n.to_string());
        let line = format!(
            "run --json --tokens 24 --temperature 0.8 --seed 7 --logits {{}} --set run.deterministic=true {flags}"
        );
        let report = tersor_at(&line, &[&file]).json(0);
        (report["text"].clone(), std::fs::read(&file).unwrap())
    };
    let first = outcome(0, "--threads 1");
    let others = ["--threads 1", "--threads 2", "--threads 3", "--set tune.mode=off", "--set memory.zero_copy=false"];
    for (n, flags) in others.iter().enumerate() {
        assert_eq!(outcome(n + 1, flags), first, "{flags}");
    }
    for off in ["0", "false"] {
        let mut command = command();
        let shown = run(command.args(["config", "show"]).env("TERSOR_RUN_DETERMINISTIC", off)).ended(0);
        assert!(shown.contains("run.deterministic = false"), "{shown}");
    }
}
