//! Running the real program on the real model.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

/// What a run of the program left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Standard output, of a run that must have ended with this code.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// Standard error, of a run that must have failed with this code. A failure is told in words, never as a panic.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains("internal error"), "{}", self.stderr);
        self.stderr
    }

    /// The one JSON object on standard output, of a run that must have ended with this code.
    #[track_caller]
    pub(crate) fn json(self, code: i32) -> Value {
        let text = self.ended(code);
        assert_eq!(text.lines().count(), 1, "one object, one line: {text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// The program, away from the configuration of whoever runs the tests.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tersor"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("TERSOR_") || name_text == "RAYON_NUM_THREADS" || name_text == "RUST_BACKTRACE" {
            command.env_remove(&name);
        }
    }
    command.env_remove("XDG_CONFIG_HOME").env("HOME", env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command.env("TERSOR_TUNE_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("tune"));
    command
}

pub(crate) fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs `tersor` with these arguments.
pub(crate) fn tersor<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    run(command().args(args))
}

/// Arguments parted by blanks, `{}` standing for paths in turn.
pub(crate) fn tersor_at(line: &str, paths: &[&Path]) -> Ran {
    let mut paths = paths.iter();
    let args = line.split_whitespace().map(|word| match word {
        "{}" => paths.next().unwrap().as_os_str().to_owned(),
        word => word.into(),
    });
    tersor(args)
}

/// The packed model as a directory.
pub(crate) fn packed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/assets/fable-26m/packed")
}

pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data").join(name)
}

pub(crate) fn golden() -> Value {
    serde_json::from_str(&std::fs::read_to_string(data("golden.json")).unwrap()).unwrap()
}

/// Ids of the backends that this machine can run. What `TERSOR_REQUIRE` names and is not among them fails the test.
pub(crate) fn usable() -> Vec<String> {
    let report = tersor(["backends", "--json"]).json(0);
    let backends = report["backends"].as_array().unwrap().iter();
    let usable: Vec<&Value> = backends.filter(|b| b["usable"] == true).collect();
    let has = |isa: &str| usable.iter().any(|b| b["devices"][0]["isas"].as_array().unwrap().iter().any(|i| i == isa));
    for isa in std::env::var("TERSOR_REQUIRE").unwrap_or_default().split(',').filter(|i| !i.is_empty()) {
        // Tiers without kernels of their own yet are the conformance suite's to judge.
        assert!(has(isa) || !["avx2", "avx512", "neon"].contains(&isa), "TERSOR_REQUIRE names {isa}");
    }
    usable.iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect()
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |t: &TensorView<'_>| (t.dtype(), t.shape().to_vec(), t.data().to_vec());
    file.tensors().iter().map(|(name, tensor)| (name.clone(), owned(tensor))).collect()
}

/// Writes a checkpoint whose layer 0 is the bf16 weights that training kept, the other layers being packed, after `change`.
pub(crate) fn half_master(directory: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = read(&packed().join("model.safetensors"));
    tensors.retain(|name, _| !name.starts_with("model.layers.0."));
    tensors.extend(read(&data("master-layer0.safetensors")));
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let none: Option<std::collections::HashMap<String, String>> = None;
    safetensors::serialize_to_file(views, none, &directory.join("model.safetensors")).unwrap();
    std::fs::copy(data("master-layer0.config.json"), directory.join("config.json")).unwrap();
    std::fs::copy(packed().join("../tokenizer.json"), directory.join("tokenizer.json")).unwrap();
}
