//! Notes what the program was built by: compiler, profile, target and, in a git checkout, the commit.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Grows with each commit and each checkout of another branch. In a worktree it lies elsewhere.
    let log = output("git", &["rev-parse", "--git-path", "logs/HEAD"]);
    if std::path::Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    println!("cargo::rustc-env=TERSOR_BUILD_RUSTC={}", output(&var("RUSTC"), &["--version"]));
    println!("cargo::rustc-env=TERSOR_BUILD_PROFILE={}", var("PROFILE"));
    println!("cargo::rustc-env=TERSOR_BUILD_OPT_LEVEL={}", var("OPT_LEVEL"));
    println!("cargo::rustc-env=TERSOR_BUILD_TARGET={}", var("TARGET"));
    println!("cargo::rustc-env=TERSOR_BUILD_RUSTFLAGS={}", var("CARGO_ENCODED_RUSTFLAGS").replace('\u{1f}', " "));
    println!("cargo::rustc-env=TERSOR_BUILD_COMMIT={}", output("git", &["rev-parse", "HEAD"]));
}

/// The first line that a command prints; empty where it cannot be had.
fn output(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().ok().filter(|o| o.status.success());
    out.and_then(|o| String::from_utf8(o.stdout).ok()?.lines().next().map(str::to_owned)).unwrap_or_default()
}
