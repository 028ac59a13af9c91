//! What is linked into the program, and how it is listed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{tersor, usable};

/// A dependency that no code mentions is not linked, and the list would be shorter without a word.
#[test]
fn exactly_the_backends_of_the_features_are_in_the_program() {
    let report = tersor(["backends", "--json"]).json(0);
    let mut ids: Vec<&str> = report["backends"].as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    let mut expected = Vec::new();
    if cfg!(feature = "cpu") {
        expected.extend(["cpu-avx2", "cpu-avx512", "cpu-neon", "scalar"]);
    }
    if cfg!(feature = "cuda") {
        expected.push("cuda");
    }
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

#[test]
fn every_backend_is_usable_or_says_why_not() {
    let report = tersor(["backends", "--json"]).json(0);
    for backend in report["backends"].as_array().unwrap() {
        let reason = backend["reason"].as_str().unwrap_or_default();
        assert_eq!(backend["usable"] == true, reason.is_empty(), "{backend}");
    }
    let text = tersor(["backends"]).ended(0);
    for backend in report["backends"].as_array().unwrap() {
        assert!(text.contains(&format!("{}: ", backend["id"].as_str().unwrap())), "{text}");
    }
}

#[test]
#[cfg(feature = "cpu")]
fn scalar_does_every_format_and_every_operation_with_a_named_kernel() {
    let report = tersor(["backends", "--json"]).json(0);
    let scalar = report["backends"].as_array().unwrap().iter().find(|b| b["id"] == "scalar").unwrap();
    for format in ["i2_s", "tl1", "tl2", "tq1_0", "tq2_0", "i2_s_g64", "i2_s_g128", "i2_s_g256"] {
        for job in ["quantize", "dequantize", "gemv", "gemm"] {
            let kernel = scalar["formats"][format][job]["kernel"].as_str().unwrap_or_default();
            assert!(
                kernel.starts_with(&format!("{job}.{format}")) && kernel.contains("scalar"),
                "{format} {job}: {kernel}"
            );
        }
    }
    for (op, ability) in scalar["ops"].as_object().unwrap() {
        assert!(ability["kernel"].is_string(), "{op}: {ability}");
    }
    assert_eq!(scalar["ops"].as_object().unwrap().len(), 11);
}

#[test]
#[cfg(feature = "cpu")]
fn why_names_kernels_reasons_and_the_choice_for_each_format() {
    let text = tersor(["backends", "--why", "--backend", "scalar"]).ended(0);
    assert!(text.contains("gemv.i2_s-i8.scalar"), "{text}");
    assert!(text.contains("quantize f32           no: "), "{text}");
    assert!(text.contains("tl2: scalar runs matmul tl2") && text.contains("select.backend (--backend)"), "{text}");
    let report = tersor(["backends", "--why", "--backend", "scalar", "--json"]).json(0);
    assert_eq!(report["decisions"]["tq1_0"]["chosen"], "scalar");
    assert!(report["decisions"]["tq1_0"]["rejected"].as_array().unwrap().iter().any(|r| r["id"] == "cpu-avx2"));
}

#[test]
#[cfg(feature = "cpu")]
fn a_processor_s_own_backends_are_usable_and_foreign_ones_say_so() {
    let ids = usable();
    assert!(ids.iter().any(|id| id == "scalar"), "{ids:?}");
    let report = tersor(["backends", "--json"]).json(0);
    let foreign = if cfg!(target_arch = "x86_64") { "cpu-neon" } else { "cpu-avx2" };
    let foreign = report["backends"].as_array().unwrap().iter().find(|b| b["id"] == foreign).unwrap();
    assert!(foreign["reason"].as_str().unwrap().contains("this program is for"), "{foreign}");
}

/// With `gpu` alone there is nothing to fall back on.
#[test]
#[cfg(all(feature = "cuda", not(feature = "cpu")))]
fn without_a_gpu_a_gpu_program_ends_in_a_clear_error() {
    if usable().iter().any(|id| id == "cuda") {
        eprintln!("this machine has a GPU that works: nothing to test");
        return;
    }
    let error = tersor(["run", "--tokens", "1"]).failed(6);
    assert!(error.contains("no backend for fable-26m") && error.contains("cuda: "), "{error}");
}
