//! The embedded images: which one is loaded, and that none lacks a kernel that is asked of it.

use std::path::PathBuf;
use std::process::Command;

use crate::{driver, logged};

const SM_80: &[u8] = include_bytes!("../../kernels/built/sm_80.cubin");
const SM_90: &[u8] = include_bytes!("../../kernels/built/sm_90.cubin");
const SM_90A: &[u8] = include_bytes!("../../kernels/built/sm_90a.cubin");
const PTX: &[u8] = include_bytes!("../../kernels/built/compute_80.ptx");

/// Kernels of a cubin have a section each, those of PTX an entry.
fn has(image: &[u8], kernel: &str) -> bool {
    let section = if image.starts_with(b"\x7fELF") {
        format!("\0.text.{kernel}\0")
    } else {
        format!(".visible .entry {kernel}(")
    };
    image.windows(section.len()).any(|w| w == section.as_bytes())
}

fn arguments<'a>(calls: &'a [String], function: &str) -> Vec<&'a str> {
    let argument = |call: &'a String| call.strip_prefix(function)?.strip_prefix(' ');
    let mut all: Vec<&str> = calls.iter().filter_map(argument).collect();
    all.iter_mut().for_each(|a| *a = a.trim_end_matches(", captured"));
    all
}

#[test]
fn every_image_has_the_kernels_that_are_asked_of_it() {
    let calls = logged("nothing", &[]);
    assert_eq!(arguments(&calls, "cuModuleLoadData"), ["cubin", "cubin"]);
    let all = arguments(&calls, "cuModuleGetFunction");
    assert!(all.len() > 80, "{all:?}");
    assert_eq!(
        all.iter().filter(|kernel| has(SM_90, kernel) == has(SM_90A, kernel)).count(),
        0,
        "each is in one of them"
    );
    let portable = logged("nothing", &[("FAKE_PORTABLE", "1")]);
    assert_eq!(arguments(&portable, "cuModuleLoadData"), ["PTX"]);
    let asked = arguments(&portable, "cuModuleGetFunction");
    // All but those that compute capability 9.0 alone has.
    assert!(all.iter().all(|kernel| asked.contains(kernel) != has(SM_90A, kernel)), "{asked:?}");
    for kernel in asked {
        assert!(has(PTX, kernel) && has(SM_80, kernel), "{kernel}");
    }
    assert!(!has(PTX, "gemv") && !has(SM_80, "gemv"), "names are whole");
}

#[test]
fn ptx_ends_where_the_driver_looks_for_its_end() {
    assert_eq!(PTX.iter().position(|byte| *byte == 0), Some(PTX.len() - 1));
}

#[test]
fn without_the_instructions_of_9_0_a_kernel_without_them_does_the_same() {
    let calls = logged("steps", &[("FAKE_PORTABLE", "1")]);
    let launched = arguments(&calls, "cuLaunchKernelEx");
    assert!(launched.contains(&"gemm_large"), "a prompt has many rows: {launched:?}");
    for kernel in launched {
        assert!(has(PTX, kernel), "{kernel}");
    }
    // The same prompt with them.
    let calls = logged("steps", &[("FAKE_VERSION", "12080")]);
    let launched = arguments(&calls, "cuLaunchKernelEx");
    assert!(launched.iter().any(|kernel| has(SM_90A, kernel)) && !launched.contains(&"gemm_large"), "{launched:?}");
}

/// The example of that name, which `cargo test` has built beside this test; where only this test was asked for, it is built now.
fn selftest() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let built = here.ancestors().nth(2).unwrap();
    let example = built.join("examples").join("selftest");
    if !example.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--example", "selftest"]).args(built.ends_with("release").then_some("--release"));
        let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success() && example.exists(), "{}", example.display());
    }
    example
}

#[test]
fn the_selftest_launches_every_kernel() {
    // As one backend, as one of a newer GPU, and where the order of additions is free. What is computed is nothing.
    let parts = ["kernels", "image=ptx", "kernels", "reproducible=off", "kernels", "covered"];
    let mut command = Command::new(selftest());
    command.args(parts).env("LD_LIBRARY_PATH", driver(false)).env("FAKE_MEMORY", "20000000000");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(" kernels were launched; not: []"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
