//! What the backend makes of drivers that are missing, old, or failing: an error, never a panic, and the CPU goes on.
//!
//! A driver of our own (`fake.c`) stands in for NVIDIA's: the test starts itself again with a library path that has it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod ahead;
mod images;
mod joins;
mod promises;
mod settled;
mod steps;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};

use tersor_backend_cuda::{open_device, open_portable};
use tersor_backend_scalar as _;
use tersor_core::{
    Buffer, Error, Floats, Format, GroupSize, HostContext, Op, Probe, QuantBackend, Result, Shape, Weight, codec,
    entries,
};

/// Builds the driver into a directory of its own; `stub` without all functions but one.
fn driver(stub: bool) -> PathBuf {
    static MADE: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    MADE[usize::from(stub)].get_or_init(|| build(stub)).clone()
}

fn build(stub: bool) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(if stub { "stub" } else { "fake" });
    std::fs::create_dir_all(&directory).unwrap();
    let library = directory.join("libcuda.so.1");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/fake.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-w"]).args(stub.then_some("-DSTUB"));
    let made = cc.arg(source).arg("-o").arg(&library).status().expect("a C compiler");
    assert!(made.success());
    directory
}

/// Runs `child` of this program with a driver and its settings.
fn run(driver: Option<&Path>, settings: &[(&str, String)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--ignored", "--nocapture"]);
    if let Some(driver) = driver {
        command.env("LD_LIBRARY_PATH", driver);
    }
    command.envs(settings.iter().map(|(k, v)| (k, v))).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    // Whatever the driver did, the CPU goes on.
    assert!(text.contains("cpu: ok"), "{text}");
    text
}

/// Writes a line of our own between the calls that the driver logs.
fn log(line: &str) {
    if let Some(path) = std::env::var_os("FAKE_LOG") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        write!(file, "\n{line}").unwrap();
    }
}

/// The lines of the log of a run that does `work`.
fn logged(work: &str, settings: &[(&str, &str)]) -> Vec<String> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(settings.iter().fold(format!("log-{work}"), |name, (k, v)| name + "-" + k + "-" + v));
    // What an earlier run left; that there is none is no matter.
    let _ = std::fs::remove_file(&path);
    let mut all = vec![("FAKE_LOG", path.to_str().unwrap()), ("FAKE_WORK", work)];
    all.extend(settings);
    let text = ask(&driver(false), &all);
    assert!(text.contains("outcome: ok"), "{text}");
    std::fs::read_to_string(path).unwrap().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn ask(driver: &Path, settings: &[(&str, &str)]) -> String {
    let settings: Vec<_> = settings.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    said(&run(Some(driver), &settings))
}

#[test]
#[ignore = "started by the other tests, with a driver"]
fn child() {
    let entry = entries().find(|e| e.id == "cuda").unwrap();
    match (entry.probe)() {
        Probe::Unusable { reason } => println!("unusable: {reason}"),
        Probe::Usable { devices } => {
            devices.iter().for_each(|d| println!("device {}: {}", d.index, d.name));
            log("opens");
            let device = std::env::var("FAKE_OPEN").ok().map(|n| n.parse().unwrap());
            let host = HostContext::inline().with_device(device);
            let work = |backend: Arc<dyn QuantBackend>| match std::env::var("FAKE_WORK").as_deref() {
                Ok("nothing") => Ok(()),
                Ok("steps") => steps::work(&backend),
                Ok("ahead") => ahead::work(&*backend),
                Ok("promises") => promises::work(&*backend),
                Ok("settled") => settled::work(&*backend),
                Ok("joins") => joins::work(&*backend),
                _ => work(&*backend),
            };
            // The kernels of a GPU that is newer than every cubin.
            let open = || match std::env::var_os("FAKE_PORTABLE") {
                Some(_) => open_portable(0, &host).map(|b| Arc::new(b) as Arc<dyn QuantBackend>),
                None => (entry.open)(&host),
            };
            match open().and_then(work) {
                Ok(()) => println!("outcome: ok"),
                Err(e) => println!("outcome: {e}"),
            }
        }
    }
    let w: Vec<f32> = (0..4096).map(|i| (i % 7) as f32 - 3.0).collect();
    let shape = Shape::new(4, 1024).unwrap();
    let cpu = entries().find(|e| e.id == "scalar").map(|e| (e.open)(&HostContext::inline()).unwrap()).unwrap();
    let want = codec::quantize(Floats::F32(&w), shape, Format::I2S).unwrap();
    let mut codes = vec![0; want.codes().len()];
    cpu.quantize(Floats::F32(&w), shape, Format::I2S, &mut codes, &mut []).unwrap();
    assert_eq!(codes, want.codes());
    println!("cpu: ok");
}

/// Everything that calls the driver.
fn work(backend: &dyn QuantBackend) -> Result<()> {
    let mut stream = backend.open_stream()?;
    let (small, large): (Vec<f32>, Vec<f32>) = (vec![1.0; 100], (0..300_000).map(|i| i as f32).collect());
    let mut a = Buffer::<f32>::alloc(backend, large.len())?;
    let mut b = Buffer::<f32>::alloc(backend, large.len())?;
    a.write(&mut *stream, &large)?;
    b.write(&mut *stream, &small)?;
    for round in 0..4 {
        // As many as make a graph, with arguments of which a few change.
        for i in 0..16 {
            let range = if i == 3 { round..round + small.len() } else { 0..large.len() };
            let op = Op::Add { x: a.input_range(range.clone()), y: b.output_range(range) };
            stream.submit(op.check()?)?;
        }
        stream.synchronize()?;
    }
    stream.submit(Op::Copy { x: a.input(), y: b.output() }.check()?)?;
    let mut out = vec![0.0; large.len()];
    b.read(&mut *stream, 0, &mut out)?;
    assert_eq!(out, large);
    b.read(&mut *stream, 0, &mut out[..50])?;
    let copy = b.begin_read(&mut *stream, 0, 50)?;
    Buffer::finish_read(&mut *stream, copy, &mut out[..50])?;
    drop((a, b));
    let mut pinned = Buffer::<f32>::pinned(backend, large.len())?;
    if let Some(values) = pinned.as_host_mut() {
        values.copy_from_slice(&large);
    }
    let shape = Shape::new(1, 299_008)?;
    let mut codes = vec![0; Format::I2S.encoded_len(shape)?.bytes];
    backend.quantize(Floats::F32(&large[..shape.len()]), shape, Format::I2S, &mut codes, &mut [])?;
    // Large enough to go in pieces, with one scale and with many.
    let (huge, shape) = (vec![0.5f32; 9 << 20], Shape::new(9, 1 << 20)?);
    for format in [Format::I2S, Format::I2SGroup(GroupSize::G128)] {
        let len = format.encoded_len(shape)?;
        let (mut codes, mut scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
        backend.quantize(Floats::F32(&huge), shape, format, &mut codes, &mut scales)?;
    }
    let w = codec::quantize(Floats::F32(&large[..4096]), Shape::new(4, 1024)?, Format::I2S)?;
    backend.pack(&w)?;
    backend.pack(&Weight::dense(Format::F32, Shape::new(2, 100)?, vec![0; 800])?)?;
    Ok(())
}

#[test]
fn no_driver_is_a_reason() {
    // Where there is one, the other tests are what can be tested.
    let text = said(&run(None, &[]));
    assert!(text.contains("unusable: the NVIDIA driver library (libcuda.so.1") || text.contains("device 0"), "{text}");
}

#[test]
fn an_old_driver_is_a_reason_with_both_versions() {
    let text = ask(&driver(false), &[("FAKE_VERSION", "11040")]);
    assert!(text.contains("unusable: the NVIDIA driver is for CUDA 11.4; 12.0"), "{text}");
    let text = ask(&driver(true), &[("FAKE_VERSION", "11040")]);
    assert!(text.contains("is for CUDA 11.4"), "{text}");
}

#[test]
fn a_library_without_the_functions_is_a_reason() {
    let text = ask(&driver(true), &[]);
    assert!(text.contains("unusable: the NVIDIA driver library has no cu"), "{text}");
}

#[test]
fn a_driver_that_does_not_start_is_a_reason() {
    for (function, code, reason) in [
        ("cuDriverGetVersion", 999, "does not tell its version"),
        ("cuInit", 100, "does not start"),
        ("cuDeviceGetCount", 3, "cannot count"),
        ("cuDeviceGetName", 999, "GPU 0 does not answer"),
        ("cuDeviceTotalMem_v2", 999, "GPU 0 does not answer"),
    ] {
        let text = ask(&driver(false), &[("FAKE_FAIL", &format!("{function}:{code}:1"))]);
        assert!(text.contains("unusable: ") && text.contains(reason), "{function}: {text}");
    }
    let text = ask(&driver(false), &[("FAKE_CAPABILITIES", "")]);
    assert!(text.contains("unusable: the NVIDIA driver finds no GPU"), "{text}");
}

#[test]
fn every_device_is_listed_and_the_one_asked_for_is_opened() {
    let fake = driver(false);
    let text = ask(&fake, &[("FAKE_CAPABILITIES", "9,9,9")]);
    assert!((0..3).all(|i| text.contains(&format!("device {i}: Fake {i}"))), "{text}");
    assert!(text.contains("outcome: ok"), "{text}");
    let text = ask(&fake, &[("FAKE_CAPABILITIES", "9,9,9"), ("FAKE_OPEN", "2")]);
    assert!(text.contains("outcome: ok"), "{text}");
    // The first is too old: it is not listed, and the next one is the default.
    let text = ask(&fake, &[("FAKE_CAPABILITIES", "7,9")]);
    assert!(!text.contains("device 0") && text.contains("device 1: Fake 1") && text.contains("outcome: ok"), "{text}");
    let text = ask(&fake, &[("FAKE_CAPABILITIES", "9,9"), ("FAKE_OPEN", "5")]);
    let reason = "there is no supported GPU number 5; there are: 0 (Fake 0), 1 (Fake 1)";
    assert!(text.contains("outcome: ") && text.contains(reason), "{text}");
    let text = ask(&fake, &[("FAKE_CAPABILITIES", "7")]);
    assert!(text.contains("unusable: GPU 0 (Fake 0) has compute capability 7.0; 8.0 or newer is needed"), "{text}");
}

#[test]
fn the_probe_creates_no_context() {
    let calls = logged("nothing", &[("FAKE_CAPABILITIES", "9,9")]);
    let opens = calls.iter().position(|line| line == "opens").unwrap();
    let (probe, open) = calls.split_at(opens);
    assert_eq!(probe.iter().filter(|call| *call == "cuDeviceGetName").count(), 2, "{probe:?}");
    let only = ["cuDriverGetVersion", "cuInit", "cuDevice"];
    let asks = |call: &String| only.iter().any(|name| call.starts_with(name)) && !call.contains("Ctx");
    assert!(probe.iter().all(asks), "{probe:?}");
    // Opening does: the log would have shown it.
    assert!(open.iter().any(|call| call == "cuDevicePrimaryCtxRetain"), "{open:?}");
}

#[test]
fn out_of_memory_is_that_error() {
    // Room for the first buffers, not for all.
    let text = ask(&driver(false), &[("FAKE_MEMORY", "2500000")]);
    assert!(text.contains("outcome: cuda: ") && text.contains("(memory of the GPU)"), "{text}");
    let text = ask(&driver(false), &[("FAKE_FAIL", "cuMemHostAlloc:2:2")]);
    assert!(text.contains("(page-locked memory of the system)"), "{text}");
}

/// Functions whose failure nobody can act on: they give back what is needed no more.
const GIVE_BACK: [&str; 8] = [
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventDestroy_v2",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuModuleUnload",
    "cuStreamDestroy_v2",
];

#[test]
fn a_failure_of_any_function_is_an_error_that_names_it() {
    let fake = driver(false);
    let source = include_str!("fake.c");
    let names = source.lines().filter_map(|line| line.strip_prefix("FN(")?.split(',').next());
    let probed = ["cuDriverGetVersion", "cuInit", "cuDeviceGetCount", "cuDeviceGetName", "cuDeviceTotalMem_v2"];
    // Asked of the driver by the caller of `memory` alone.
    let unused = ["cuMemGetInfo_v2"];
    let mut tried = 0;
    for name in names.filter(|name| !probed.contains(name) && !unused.contains(name)) {
        let text = ask(&fake, &[("FAKE_FAIL", &format!("{name}:719:1"))]);
        let plain = name.split('_').next().unwrap();
        if GIVE_BACK.contains(&name) {
            assert!(text.contains("outcome: ok"), "{name}: {text}");
        } else if ["cuDeviceGet", "cuDeviceGetAttribute"].contains(&name) {
            assert!(text.contains("unusable: GPU 0 does not answer"), "{name}: {text}");
        } else {
            assert!(text.contains("outcome: cuda: ") && text.contains(plain), "{name}: {text}");
        }
        tried += 1;
    }
    assert!(tried > 30, "{tried}");
}

#[test]
fn a_device_lost_at_any_moment_is_an_error() {
    let fake = driver(false);
    let count = Path::new(env!("CARGO_TARGET_TMPDIR")).join("calls");
    let text = ask(&fake, &[("FAKE_COUNT", count.to_str().unwrap())]);
    assert!(text.contains("outcome: ok"), "{text}");
    let calls: usize = std::fs::read_to_string(&count).unwrap().parse().unwrap();
    assert!(calls > 200, "{calls}");
    for first in (1..calls).step_by(calls / 60) {
        let text = ask(&fake, &[("FAKE_FAIL", &format!("*:719:{first}"))]);
        // The last calls give back what was used, and need no error; none may panic.
        let in_time = first < calls / 2;
        assert!(!text.contains("outcome: ok") || !in_time, "lost at call {first} of {calls}: {text}");
    }
}

#[test]
fn a_backend_without_a_driver_does_not_open() {
    if let Err(e) = open_device(0, &HostContext::inline()) {
        assert!(matches!(e, Error::Unusable { .. }), "{e}");
    }
}
