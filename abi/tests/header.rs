//! The committed header is the one that the declarations make, and C and C++ see the layout that Rust sees.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests; their helpers are not marked as such")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const HEAD: &str = "/* The plugin ABI of Tersor, version 1. The contract is docs/plugin-abi.md.
 *
 * Generated from abi/src/raw/; TERSOR_REGENERATE=1 cargo test -p tersor-abi --test header writes it anew. */";

const TAIL: &str = "/* The one symbol that a plugin exports. */
#if defined(_WIN32)
#define TERSOR_EXPORT __declspec(dllexport)
#else
#define TERSOR_EXPORT __attribute__((visibility(\"default\")))
#endif

#ifdef __cplusplus
extern \"C\" {
#endif
TERSOR_EXPORT int32_t tersor_plugin_v1(const TersorHost *host, const TersorPlugin **out);
#ifdef __cplusplus
}
#endif";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn committed() -> PathBuf {
    root().join("include/tersor_plugin.h")
}

fn exported() -> Vec<String> {
    let structs = tersor_abi::raw::offsets().into_iter().map(|(name, ..)| name);
    structs.chain(["TersorPluginV1"]).map(str::to_owned).collect()
}

fn generate() -> String {
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        header: Some(HEAD.into()),
        trailer: Some(TAIL.into()),
        include_guard: Some("TERSOR_PLUGIN_H".into()),
        no_includes: true,
        sys_includes: vec!["stdint.h".into()],
        documentation_style: cbindgen::DocumentationStyle::C99,
        style: cbindgen::Style::Both,
        usize_is_size_t: false,
        // Ops are handed over as `void *`, so that no declaration leads to their structs.
        export: cbindgen::ExportConfig { include: exported(), ..Default::default() },
        ..cbindgen::Config::default()
    };
    let builder =
        ["codes", "text", "ops", "backend"].iter().fold(cbindgen::Builder::new().with_config(config), |b, file| {
            b.with_src(root().join(format!("src/raw/{file}.rs")))
        });
    let mut out = Vec::new();
    builder.generate().unwrap().write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_committed_header_is_the_one_that_the_declarations_make() {
    let text = generate();
    if std::env::var("TERSOR_REGENERATE").is_ok_and(|v| v == "1") {
        std::fs::write(committed(), &text).unwrap();
    }
    let found = std::fs::read_to_string(committed()).unwrap_or_default();
    assert!(
        found == text,
        "include/tersor_plugin.h is stale: TERSOR_REGENERATE=1 cargo test -p tersor-abi --test header"
    );
}

/// A program whose compilation fails where an offset differs.
fn program() -> String {
    let mut text = String::from(
        "#include \"tersor_plugin.h\"\n#include <stddef.h>\n#ifndef __cplusplus\n#define static_assert _Static_assert\n#endif\n",
    );
    for (name, size, fields) in tersor_abi::raw::offsets() {
        writeln!(text, "static_assert(sizeof({name}) == {size}, \"size of {name}\");").unwrap();
        for (field, offset) in fields {
            writeln!(text, "static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");").unwrap();
        }
    }
    text + "int main(void) { TersorPluginV1 *entry = 0; return entry != 0; }\n"
}

fn compiles(compiler: &str, args: &[&str], text: &str, name: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join(name);
    std::fs::write(&source, text).unwrap();
    let mut command = Command::new(compiler);
    command
        .args(args)
        .args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
        .arg(root().join("include"))
        .arg(&source);
    let out = command.output().map_err(|e| format!("{compiler} does not start: {e}"))?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

fn have(compiler: &str) -> bool {
    let found = Command::new(compiler).arg("--version").output().is_ok_and(|out| out.status.success());
    if !found {
        // CI sets it, so that there nothing is skipped.
        assert!(
            std::env::var_os("REQUIRE_COMPILERS").is_none(),
            "REQUIRE_COMPILERS is set, and there is no {compiler}"
        );
        println!("SKIPPED: no {compiler} on this machine");
    }
    found
}

#[test]
fn c11_sees_the_layout_of_rust() {
    if have("cc") {
        compiles("cc", &["-std=c11", "-pedantic"], &program(), "layout.c").unwrap();
        // The check can fail.
        let wrong = program().replace("offsetof(TersorHost, ctx) == 8", "offsetof(TersorHost, ctx) == 12");
        assert!(compiles("cc", &["-std=c11"], &wrong, "layout.c").unwrap_err().contains("TersorHost.ctx"));
    }
}

#[test]
fn cpp17_sees_the_layout_of_rust() {
    if have("c++") {
        compiles("c++", &["-std=c++17", "-pedantic"], &program(), "layout.cpp").unwrap();
    }
}
