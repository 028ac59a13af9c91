//! Help that teaches, and output that ends when nobody reads it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Stdio;

use support::{command, tersor};

const COMMANDS: [&str; 7] = ["backends", "quantize", "synth", "inspect", "verify", "run", "config"];

#[test]
fn each_command_s_help_shows_examples() {
    for name in COMMANDS {
        let help = tersor([name, "--help"]).ended(0);
        let examples = help.split("Examples:").nth(1).unwrap_or_default();
        assert!(examples.matches(&format!("tersor {name}")).count() >= 2, "{name}: {help}");
    }
}

#[test]
fn the_help_lists_commands_and_exit_codes() {
    let help = tersor(["--help"]).ended(0);
    for name in COMMANDS {
        assert!(help.contains(&format!("\n  {name}")), "{name}: {help}");
    }
    for code in 0..=6 {
        assert!(help.contains(&format!("\n  {code}  ")), "{code}: {help}");
    }
}

#[test]
fn a_wrong_command_line_is_answered_with_code_2_and_nothing_on_standard_output() {
    for args in [
        &["frobnicate"][..],
        &["run", "--nonsense"],
        &["quantize", "x.gguf"],
        &["run", "--tokens", "0"],
        &["run", "--temperature", "-1"],
        &["run", "--top-k", "4"],
        &["run", "--greedy", "--temperature", "1"],
    ] {
        let ran = tersor(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.stderr.starts_with("error: "), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_program_in_silence() {
    for args in [
        &["--help"][..],
        &["backends", "--why"],
        &["backends", "--why", "--json"],
        &["inspect", "fable-26m"],
        &["config", "show"],
        &["run", "--tokens", "400", "--ignore-eos"],
    ] {
        if args[0] == "run" && !cfg!(feature = "cpu") {
            continue; // needs a backend that runs everywhere
        }
        let mut child = command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{args:?}: {stderr}");
        assert!(output.status.success(), "{args:?}: {:?} {stderr}", output.status);
    }
}
