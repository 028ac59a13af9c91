//! Plugins as their users meet them: the C example built by its Makefile, and what is hostile, kept out.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tersor::registry::config::Config;
use tersor::registry::plugins::{Loader, PluginError, Stage, State};
use tersor_abi::raw::TERSOR_ABI_MINOR;

const TERSOR: &str = env!("CARGO_BIN_EXE_tersor");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A directory that nobody else can write to, whatever the umask.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap()
}

fn succeed(mut command: Command) {
    // A plugin that others may write to is refused, so the umask must not decide about the tests.
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn make(to: &Path) -> PathBuf {
    make_example("c-example", to);
    to.join("i2s-c.toml")
}

fn make_example(name: &str, to: &Path) {
    let mut command = Command::new("sh");
    command.arg("-c").arg("umask 022; exec make -s -C \"$0\" OUT=\"$1\"");
    command.arg(repository().join("plugins").join(name)).arg(to);
    // As from an author's shell: nothing of this workspace's build.
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    succeed(command);
}

/// The C example, gone wrong in one way.
fn hostile(to: &Path, case: &str) -> PathBuf {
    let manifest = make(to);
    let library = to.join("libi2s_c.so");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("umask 022; exec cc -std=c11 -O1 -ffp-contract=off -fvisibility=hidden -fPIC -shared \"$@\"")
        .arg("cc");
    command.arg(format!("-DCASE={case}"));
    for include in ["abi/include", "plugins/c-example"] {
        command.arg("-I").arg(repository().join(include));
    }
    command.arg("-o").arg(&library).arg(repository().join("cli/tests/data/hostile.c"));
    succeed(command);
    rehash(&manifest, &library);
    manifest
}

/// Writes the library's own hash into the manifest.
fn rehash(manifest: &Path, library: &Path) {
    let e = loader().vet(manifest).unwrap_err();
    assert_eq!(e.stage, Stage::Hash, "{e}");
    let hash = e.reason.split(" has SHA-256 ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    assert!(e.reason.contains(library.to_str().unwrap()), "{e}");
    let old = e.reason.rsplit(' ').next().unwrap();
    edit(manifest, old, hash);
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text} has no {from}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

fn loader() -> Loader {
    let limit = Duration::from_secs(20);
    Loader { allow: Vec::new(), helper: Some(TERSOR.into()), limit, state: State::load(None) }
}

fn refusal(loader: &mut Loader, manifest: &Path, stage: Stage, says: &str) -> PluginError {
    let e = loader.load(manifest).unwrap_err();
    assert_eq!(e.stage, stage, "{e}");
    assert!(e.to_string().contains(says), "{e} should say {says:?}");
    e
}

fn tersor(state: &Path, plugins: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(TERSOR);
    command.args(args).env("XDG_STATE_HOME", state).env("XDG_CONFIG_HOME", state).env("XDG_DATA_HOME", state);
    command.env("TERSOR_PLUGINS_ENABLED", "1").env("TERSOR_PLUGIN_PATH", plugins);
    command.output().unwrap()
}

fn json(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn the_c_example_conforms_is_listed_selected_and_explained() {
    let (dir, state) = (directory(), directory());
    let manifest = make(dir.path());
    let run = |args: &[&str]| tersor(state.path(), dir.path(), args);
    let conform = run(&["conform", manifest.to_str().unwrap(), "--json"]);
    let report = json(&conform);
    assert!(conform.status.success() && report["conforms"] == true, "{report}");
    let cases = report["runs"][1]["report"]["cases"].as_array().unwrap();
    assert!(cases.iter().filter(|c| c["outcome"] == "passed").count() > 300);

    // Two plugin processes later it is a backend like any other, with a version that names its bytes.
    let listed = json(&run(&["backends", "--json"]));
    let ours = listed["backends"].as_array().unwrap().iter().find(|b| b["id"] == "i2s-c").unwrap().clone();
    assert_eq!(ours["usable"], true, "{ours}");
    let hash = report["sha256"].as_str().unwrap();
    assert_eq!(ours["version"], format!("0.1.0+{}", &hash[..12]));
    let found = json(&run(&["plugins", "list", "--json"]));
    assert_eq!(found["found"][0]["verdict"]["verdict"], "passed", "{found}");

    let config = format!(
        "[plugins]\nenabled = true\npaths = ['{}']\nprobe_helper = '{TERSOR}'\n[select]\nbackend = 'i2s-c'\n[tune]\nmode = 'off'",
        manifest.display()
    );
    let registry = tersor::Registry::build(Config::from_toml_str(&config).unwrap()).unwrap();
    assert_eq!(registry.plugins().loaded.len(), 1, "{:?}", registry.plugins().refused);
    let choice = registry.select(&[tersor::core::OpSpec::matmul(tersor::Format::I2S, 1, 256, 256)]).unwrap();
    assert_eq!(choice.decision.kernels, ["gemv.i2_s-i8.c.4x32"]);
}

#[test]
fn the_rust_example_is_built_as_its_author_would_and_conforms() {
    let (dir, state) = (directory(), directory());
    make_example("rust-example", dir.path());
    let manifest = dir.path().join("bitplanes.toml");
    let loaded = loader().load(&manifest).unwrap();
    assert_eq!((loaded.about.name.as_str(), loaded.backends[0].id), ("bitplanes", "bitplanes"));
    let conform = tersor(state.path(), dir.path(), &["conform", manifest.to_str().unwrap(), "--json"]);
    let report = json(&conform);
    assert!(conform.status.success() && report["conforms"] == true, "{report}");
    let cases = report["runs"][0]["report"]["cases"].as_array().unwrap();
    assert!(cases.iter().filter(|c| c["outcome"] == "passed").count() > 1000);
}

#[test]
fn conform_fails_what_computes_wrong() {
    let (dir, state) = (directory(), directory());
    let manifest = hostile(dir.path(), "WRONG");
    let conform = tersor(state.path(), dir.path(), &["conform", manifest.to_str().unwrap(), "--json"]);
    assert_eq!(conform.status.code(), Some(1));
    assert_eq!(json(&conform)["conforms"], false);
}

/// Cases of the boundary itself, by name.
fn boundary(report: &Value, outcome: &str) -> Vec<String> {
    let cases = report["boundary"].as_array().unwrap().iter().filter(|c| c["outcome"] == outcome);
    cases.map(|c| c["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn conform_makes_the_calls_that_other_hosts_would_and_lets_the_pool_panic() {
    for (case, wrong) in [("NONE", None), ("DEAF", Some("panic/pool")), ("LYING", Some("abi_abuse/unknown-op"))] {
        let (dir, state) = (directory(), directory());
        let manifest = if wrong.is_none() { make(dir.path()) } else { hostile(dir.path(), case) };
        let conform = tersor(state.path(), dir.path(), &["conform", manifest.to_str().unwrap(), "--json"]);
        let report = json(&conform);
        let failed = boundary(&report, "failed");
        match wrong {
            None => assert_eq!((boundary(&report, "passed").len(), failed.len()), (7, 0), "{}", report["boundary"]),
            Some(name) => {
                assert!(failed.iter().any(|f| f == name), "{case}: {}", report["boundary"]);
                assert_eq!(conform.status.code(), Some(1));
            }
        }
    }
}

#[test]
fn plugins_are_off_unless_the_configuration_turns_them_on() {
    let (dir, state) = (directory(), directory());
    make(dir.path());
    let mut command = Command::new(TERSOR);
    command.args(["backends", "--json"]).env("XDG_STATE_HOME", state.path()).env("TERSOR_PLUGIN_PATH", dir.path());
    let listed = json(&command.output().unwrap());
    assert!(listed["backends"].as_array().unwrap().iter().all(|b| b["id"] != "i2s-c"));
}

#[test]
fn what_dies_in_its_probe_is_quarantined_and_the_host_lives() {
    for (case, says) in
        [("SEGFAULT", "signal 11 (invalid memory access)"), ("ILLEGAL", "signal 4"), ("EXIT", "without an answer")]
    {
        let dir = directory();
        let manifest = hostile(dir.path(), case);
        let mut loader = loader();
        refusal(&mut loader, &manifest, Stage::Quarantine, says);
        // The verdict is remembered: without a helper, another one could not be had.
        loader.helper = None;
        refusal(&mut loader, &manifest, Stage::Quarantine, says);
    }
    let dir = directory();
    let mut loader = Loader { limit: Duration::from_millis(1500), ..loader() };
    refusal(&mut loader, &hostile(dir.path(), "LOOP"), Stage::Quarantine, "did not end within 1.5 s");
}

#[test]
fn a_quarantined_plugin_is_listed_with_its_reason_and_can_be_cleared() {
    let (dir, state) = (directory(), directory());
    hostile(dir.path(), "SEGFAULT");
    let run = |args: &[&str]| tersor(state.path(), dir.path(), args);
    for _ in 0..2 {
        let listed = run(&["backends", "--json"]);
        assert!(listed.status.success());
        let listed = json(&listed);
        let ours = listed["backends"].as_array().unwrap().iter().find(|b| b["id"] == "i2s-c").unwrap().clone();
        assert!(ours["usable"] == false && ours["reason"].as_str().unwrap().contains("signal 11"), "{ours}");
    }
    let held = json(&run(&["plugins", "quarantine", "--json"]));
    let library = held["quarantined"][0]["path"].as_str().unwrap().to_owned();
    let cleared = json(&run(&["plugins", "quarantine", "--json", "--clear", &library]));
    assert_eq!(cleared["quarantined"].as_array().unwrap().len(), 0);
}

#[test]
fn wrong_answers_and_lies_are_quarantined() {
    for (case, says) in [("WRONG", "element 4 is"), ("LYING", "i2s-c: ")] {
        let dir = directory();
        refusal(&mut loader(), &hostile(dir.path(), case), Stage::Quarantine, says);
    }
}

#[test]
fn tables_that_do_not_fit_are_refused_with_what_is_wrong() {
    let cases = [
        ("NULL_TABLE", "TersorPlugin is null"),
        ("SHORT", "TersorBackend says that it has 40 bytes"),
        ("STATUS", "status 4711"),
        ("NULL_FUNCTION", "the function pack is null"),
    ];
    for (case, says) in cases {
        let dir = directory();
        refusal(&mut loader(), &hostile(dir.path(), case), Stage::Probe, says);
    }
}

#[test]
fn a_plugin_that_writes_much_does_not_block_its_probe() {
    let dir = directory();
    loader().load(&hostile(dir.path(), "NOISY")).unwrap();
}

#[test]
fn files_that_are_not_what_their_manifest_says_are_never_opened() {
    let dir = directory();
    let manifest = make(dir.path());
    let library = dir.path().join("libi2s_c.so");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let platform = tersor::registry::plugins::platform();
    let refuse = |from: &str, to: &str, stage, says: &str| {
        edit(&manifest, from, to);
        refusal(&mut loader(), &manifest, stage, says);
        std::fs::write(&manifest, &text).unwrap();
    };
    refuse(&platform, "plan9-z80", Stage::Platform, &format!("no library for {platform}, only for: plan9-z80"));
    refuse("major = 1", "major = 2", Stage::Abi, "it needs version 2.0");
    refuse("min_minor = 0", "min_minor = 9", Stage::Abi, &format!("this program has 1.{TERSOR_ABI_MINOR}"));
    refuse("path = \"lib", "path = \"../lib", Stage::Manifest, "has a \"..\"");
    refuse("[provides]", "[provides]\nrequires_isa = [\"neon\", \"avx2\"]", Stage::Isa, "lacks");
    refuse("backends = [\"i2s-c\"]", "backends = [\"other\"]", Stage::Probe, "its manifest says [\"other\"]");
    refuse("license", "licence", Stage::Manifest, "licence");
    let mut unprobed = Loader { helper: None, ..loader() };
    refusal(&mut unprobed, &manifest, Stage::Probe, "plugins.probe_helper names no program");

    let bytes = std::fs::read(&library).unwrap();
    std::fs::write(&library, &bytes[..bytes.len() / 2]).unwrap();
    let e = refusal(&mut loader(), &manifest, Stage::Hash, "and the manifest says");
    assert!(e.to_string().starts_with("plugin ") && e.to_string().contains("i2s-c.toml"), "{e}");
    rehash(&manifest, &library);
    let e = loader().load(&manifest).unwrap_err();
    assert!(matches!(e.stage, Stage::Probe | Stage::Quarantine), "a truncated library with its own hash: {e}");
}

#[test]
fn the_allow_list_pins_names_and_hashes() {
    let dir = directory();
    let manifest = make(dir.path());
    let hash = loader().vet(&manifest).unwrap().library.sha256;
    let vet = |allow: &str| {
        let config = Config::from_toml_str(&format!("plugins.allow = [{allow}]")).unwrap();
        Loader { allow: config.plugins.allow, ..loader() }.vet(&manifest).map(|_| ()).map_err(|e| e.reason)
    };
    assert_eq!(vet("{ name = 'i2s-c' }"), Ok(()));
    assert_eq!(vet(&format!("{{ name = 'i2s-c', sha256 = '{hash}' }}")), Ok(()));
    assert!(vet("{ name = 'acme' }").unwrap_err().contains("does not name \"i2s-c\""));
    let other = "0".repeat(64);
    assert!(vet(&format!("{{ name = 'i2s-c', sha256 = '{other}' }}")).unwrap_err().contains("another hash"));
}

/// A plugin built with the header of a later version, in which every struct that states its size has grown.
#[test]
fn a_plugin_built_with_a_later_header_works_in_this_host() {
    let (dir, state, include) = (directory(), directory(), directory());
    let header = std::fs::read_to_string(repository().join("abi/include/tersor_plugin.h")).unwrap();
    let mut grown = header.replace(&format!("TERSOR_ABI_MINOR {TERSOR_ABI_MINOR}"), "TERSOR_ABI_MINOR 77");
    let structs: Vec<_> =
        header.split("typedef struct ").skip(1).filter(|s| s.contains("uint32_t struct_size;")).collect();
    assert!(structs.len() > 20, "{}", structs.len());
    for name in structs.iter().filter_map(|s| s.split(' ').next()) {
        let end = format!("}} {name};");
        assert!(grown.contains(&end), "{name}");
        grown = grown.replace(&end, &format!("  uint64_t of_a_later_version[3];\n{end}"));
    }
    std::fs::write(include.path().join("tersor_plugin.h"), grown).unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg("umask 022; exec make -s -C \"$0\" OUT=\"$1\" TERSOR_INCLUDE=\"$2\"");
    command.arg(repository().join("plugins/c-example")).arg(dir.path()).arg(include.path());
    succeed(command);
    let manifest = dir.path().join("i2s-c.toml");
    assert_eq!(loader().load(&manifest).unwrap().abi_minor, 77);
    let conform = tersor(state.path(), dir.path(), &["conform", manifest.to_str().unwrap(), "--json"]);
    let report = json(&conform);
    assert!(conform.status.success() && report["conforms"] == true && report["abi_minor"] == 77, "{report}");
    assert_eq!(boundary(&report, "passed").len(), 7, "{}", report["boundary"]);
    // Messages cross although its TersorError is longer than ours.
    assert!(report.to_string().contains("only i2_s"), "{report}");
}

/// Built for this processor, both examples beat the portable backend by a third and more.
#[test]
fn the_tuner_chooses_the_examples_where_they_win() {
    let dir = directory();
    for (example, native) in [
        ("c-example", &["CFLAGS=-O3 -march=native"][..]),
        ("rust-example", &["CARGO_FLAGS=--target-dir target/native", "BUILT=target/native/release/libbitplanes.so"]),
    ] {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("umask 022; exec make -s -C \"$@\"")
            .arg("sh")
            .arg(repository().join("plugins").join(example));
        command.arg(format!("OUT={}", dir.path().display())).args(native);
        command.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_ENCODED_RUSTFLAGS");
        command.env("RUSTFLAGS", "-Ctarget-cpu=native");
        succeed(command);
    }
    for (manifest, id, shape) in [("i2s-c.toml", "i2s-c", "512x1024"), ("bitplanes.toml", "bitplanes", "512x2048")] {
        // Other tests run beside this one, and may disturb a measurement, but not each of four.
        let told: Vec<_> = (0..4).map(|_| raced(&dir.path().join(manifest), shape)).collect();
        for decision in &told {
            let route = &decision["routes"][0];
            let (chosen, text) = (route["chosen"].as_str().unwrap(), decision.to_string());
            // Both were measured, and the one that won is the one that runs, by its own kernel.
            assert!(
                text.contains(&format!("\"backend\":\"{id}\"")) && text.contains("\"backend\":\"scalar\""),
                "{text}"
            );
            assert_eq!(route["basis"]["record"]["winner"]["backend"].as_str(), chosen.split('@').next(), "{text}");
            assert!(!text.contains("it failed"), "{text}");
        }
        assert!(told.iter().any(|decision| decision["routes"][0]["chosen"] == id), "{id} never won: {told:?}");
    }
}

/// `tersor explain` of a product, measured between a plugin and the portable backend.
fn raced(manifest: &Path, shape: &str) -> Value {
    let state = directory();
    let config = state.path().join("tersor.toml");
    let deny = "deny = ['cpu-avx2', 'cpu-avx512', 'cpu-neon']";
    let text = format!(
        "[plugins]\nenabled = true\npaths = ['{}']\n[select]\n{deny}\n[tune]\nmode = 'on-miss'",
        manifest.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(TERSOR);
    command.arg("--config").arg(&config).args(["explain", "matmul", "i2_s", shape, "--threads", "1", "--json"]);
    command.env("XDG_STATE_HOME", state.path()).env("TERSOR_TUNE_CACHE", state.path().join("tune"));
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    json(&out)
}

/// The tuner measures with fewer threads too, and for that opens a second instance, which has packs of its own.
#[test]
fn a_plugin_is_measured_with_fewer_threads_too() {
    let (dir, state) = (directory(), directory());
    let manifest = make(dir.path());
    let config = format!(
        "[plugins]\nenabled = true\npaths = ['{}']\n[select]\ndeny = ['scalar', 'cpu-avx2', 'cpu-avx512', 'cpu-neon']\n[tune]\nmode = 'on-miss'",
        manifest.display()
    );
    let file = state.path().join("tersor.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(TERSOR);
    command.arg("--config").arg(&file).args(["explain", "matmul", "i2_s", "256x512", "--threads", "2"]);
    command.env("XDG_STATE_HOME", state.path()).env("TERSOR_TUNE_CACHE", state.path().join("tune"));
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("i2s-c@1t") && !text.contains("it failed"), "{text}");
}

#[test]
fn check_allow_list_and_why_say_who_a_plugin_is() {
    let (dir, state) = (directory(), directory());
    let manifest = make(dir.path());
    let run = |args: &[&str]| {
        let out = tersor(state.path(), dir.path(), args);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        (out.status.code(), text, String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (file, hash) = (manifest.to_str().unwrap(), loader().vet(&manifest).unwrap().library.sha256);
    let (code, text, _) = run(&["plugins", "list"]);
    assert!(code == Some(0) && text.contains(&hash) && text.contains("not probed yet"), "{text}");
    let (code, text, _) = run(&["plugins", "check", file]);
    assert!(code == Some(0) && text.contains("i2s-c 0.1.0 loads; backends: i2s-c"), "{text}");
    let (_, text, _) = run(&["plugins", "list"]);
    assert!(text.contains("passed its probe"), "{text}");
    let (code, text, _) = run(&["plugins", "allow", file]);
    assert_eq!(
        (code, text.as_str()),
        (Some(0), format!("[[plugins.allow]]\nname = \"i2s-c\"\nsha256 = \"{hash}\"\n").as_str())
    );
    Config::from_toml_str(&text).unwrap();
    let (_, text, _) = run(&["plugins", "quarantine"]);
    assert_eq!(text, "nothing is quarantined\n");
    let (code, _, told) = run(&["plugins", "quarantine", "--clear", "/nowhere.so"]);
    assert!(code != Some(0) && told.contains("nothing is known of /nowhere.so"), "{told}");
    let (code, text, _) = run(&["backends", "--why"]);
    let origin = format!("from plugin i2s-c 0.1.0, {file}\n");
    assert!(code == Some(0) && text.contains(&origin) && text.contains(&format!("sha256 {hash}")), "{text}");

    // A refused plugin: exit code 1 from all of them, with the stage.
    edit(&manifest, &hash, &"0".repeat(64));
    for what in [&["plugins", "check", file][..], &["plugins", "allow", file], &["conform", file]] {
        let (code, _, told) = run(what);
        assert!(code == Some(1) && told.contains(&hash), "{what:?}: {code:?} {told}");
    }
    let refused = json(&tersor(state.path(), dir.path(), &["conform", file, "--json"]));
    assert!(refused["loads"] == false && refused["error"]["reason"].as_str().unwrap().contains(&hash), "{refused}");
    let (code, _, told) = run(&["conform", "/nowhere.toml"]);
    assert!(code == Some(1) && told.contains("/nowhere.toml"), "{code:?} {told}");
}
