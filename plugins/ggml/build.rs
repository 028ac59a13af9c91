//! Compiles three C files of ggml from where cargo unpacked the crate that ships them.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const SOURCES: &str = "llama-cpp-sys-2";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("ggml's kernels cannot be built: {e}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let (version, root) = sources()?;
    println!("cargo::rustc-env=GGML_SOURCES={SOURCES} {version}");
    let ggml = root.join("llama.cpp/ggml");
    let src = ggml.join("src");
    let mut cc = cc::Build::new();
    // As ggml's own release builds are: assertions off, unused functions dropped by the linker. The flags of x86 are what
    // its kernels ask for; the manifest and the probe refuse processors without them.
    let arch = match std::env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => {
            ["-mavx2", "-mfma", "-mf16c", "-mbmi2"].into_iter().for_each(|flag| _ = cc.flag(flag));
            "x86"
        }
        "aarch64" => "arm",
        other => return Err(format!("no kernels are chosen for {other}, only for x86_64 and aarch64").into()),
    };
    cc.files([
        src.join("ggml-quants.c"),
        src.join("ggml-cpu/quants.c"),
        src.join("ggml-cpu/arch").join(arch).join("quants.c"),
    ]);
    cc.includes([ggml.join("include"), src.clone(), src.join("ggml-cpu")]);
    cc.std("c11").opt_level(3).define("NDEBUG", None).define("_GNU_SOURCE", None);
    cc.flag("-ffunction-sections").flag("-fdata-sections").flag("-fvisibility=hidden").warnings(false);
    // gcc contracts a*b+c by default in gnu modes only; this says it for every compiler.
    cc.flag("-ffp-contract=off");
    cc.try_compile("ggml_ternary")?;
    // What ggml's files need of each other and is not here is an error of the linker, not of the user's loader.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");
    Ok(())
}

/// Version and directory of the crate with the sources.
fn sources() -> Result<(String, PathBuf), Box<dyn Error>> {
    let cargo = std::env::var("CARGO")?;
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
    let out = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(here)
        // The build's own choice of a target must not narrow the list.
        .env_remove("CARGO_BUILD_TARGET")
        .output()?;
    if !out.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let package = packages.iter().find(|p| p["name"] == SOURCES).ok_or("cargo metadata does not list its sources")?;
    let version = package["version"].as_str().ok_or("the sources have no version")?;
    let manifest = package["manifest_path"].as_str().ok_or("the sources have no path")?;
    let root = PathBuf::from(manifest).parent().ok_or("the sources have no directory")?.to_owned();
    Ok((version.to_owned(), root))
}
