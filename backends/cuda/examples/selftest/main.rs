//! Everything that has to be seen on a GPU, in one program to carry there: conformance, the model against the CPU, and
//! figures. `selftest [conformance|full|model|bench|batch|batch=32|parts=32|products|operations|prefill|prefill=512|chains|small|small=attention|small=products|link|errors|scales|reproducible=off|image=ptx|kernels|covered|overlap|fast|heads|2b|2b=f16|2b=q8_0|2b=q6_k|2b=cpu|growth|graphs=off|graphs=on]...`; results as JSON in the folder that `TERSOR_OUT` names.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test program")]

mod batch;
mod bench;
mod chains;
mod errors;
mod fast;
mod kernels;
mod large;
mod link;
mod many_rows;
mod model;
mod overlap;
mod prefill;
mod small;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tersor_backend_cuda::CudaBackend;
use tersor_conformance::{Options, Suite};
use tersor_core::{Format, HostContext, QuantBackend};

fn main() {
    let mut parts: Vec<String> = std::env::args().skip(1).collect();
    if parts.is_empty() {
        parts = ["conformance", "model", "bench", "2b"].map(str::to_owned).to_vec();
    }
    let open = |exact: bool| match tersor_backend_cuda::open_device(0, &HostContext::inline().with_reproducible(exact))
    {
        Ok(backend) => Arc::new(backend),
        Err(e) => {
            println!("{e}");
            std::process::exit(1);
        }
    };
    let mut backend = open(true);
    println!("{} ({:?})", backend.info().device.name, backend.memory().unwrap());
    let mut ok = true;
    let mut launched = BTreeMap::new();
    for part in parts {
        note(&backend, &mut launched);
        let started = Instant::now();
        ok &= match part.as_str() {
            "graphs=off" => {
                backend.set_graphs(false);
                true
            }
            "graphs=on" => {
                backend.set_graphs(true);
                true
            }
            "reproducible=off" => {
                backend = open(false);
                true
            }
            "image=ptx" => {
                let host = HostContext::inline().with_reproducible(true);
                backend = Arc::new(tersor_backend_cuda::open_portable(0, &host).unwrap());
                true
            }
            "overlap" => overlap::run(&backend),
            "kernels" => kernels::run(&backend),
            "covered" => covered(&backend, &mut launched),
            "fast" => fast::run(&backend, &open(false)),
            "conformance" => conformance(&backend, Options::quick()),
            "full" => conformance(&backend, Options::full()),
            "model" => model::equals_the_cpu(&backend),
            "growth" => model::no_growth(&backend),
            "chains" => chains::run(&backend),
            "small=attention" => small::attention(&backend),
            "small=products" => small::products(&backend),
            "small" => small::run(&backend),
            "link" => link::run(),
            "errors" => errors::run(&backend),
            "errors=lost" => errors::lost_device(&backend),
            "bench" => bench::run(&backend),
            "scales" => bench::scales(&backend),
            "batch" => batch::run(&backend),
            "operations" => !many_rows::operations(&backend, 512).is_null(),
            "products" => many_rows::products_equal(&backend),
            "prefill" => prefill::run(&backend, &[128, 512, 1024, 2048]),
            "prefill=512" => prefill::run(&backend, &[512]),
            "parts=32" => batch::parts_alone(&backend, 32),
            "batch=32" => batch::alone(&backend, 32),
            "heads" => large::heads(&backend),
            "2b" | "2b=bf16" => large::run(&backend, Format::BF16),
            "2b=f16" => large::run(&backend, Format::F16),
            "2b=q8_0" => large::run(&backend, Format::Q8_0),
            "2b=q6_k" => large::run(&backend, Format::Q6K),
            "2b=cpu" => large::equals_the_cpu(&backend),
            only => conformance(&backend, Options::full().with_only(&[only])),
        };
        println!("{part}: {:.1} s; {:?}\n", started.elapsed().as_secs_f64(), backend.counters());
    }
    std::process::exit(if ok { 0 } else { 2 });
}

/// Adds what a backend has launched to what others have, by the name of each kernel that was ever loaded.
fn note(backend: &CudaBackend, launched: &mut BTreeMap<&'static str, bool>) {
    backend.kernels().for_each(|(kernel, ran)| *launched.entry(kernel).or_default() |= ran);
}

/// Whether the parts so far have launched every kernel, by whichever of the backends that they opened.
fn covered(backend: &CudaBackend, launched: &mut BTreeMap<&'static str, bool>) -> bool {
    note(backend, launched);
    let missing: Vec<&str> = launched.iter().filter(|(_, ran)| !**ran).map(|(kernel, _)| *kernel).collect();
    println!("{} of {} kernels were launched; not: {missing:?}", launched.len() - missing.len(), launched.len());
    missing.is_empty()
}

fn conformance(backend: &Arc<CudaBackend>, options: Options) -> bool {
    let report = Suite::new(options).run(&**backend, &mut |_| {});
    println!("{report}");
    report.failures().next().is_none()
}

/// Writes a result file, with the machine named.
fn save(name: &str, backend: &CudaBackend, results: Value) {
    let device = &backend.info().device;
    let file = json!({
        "machine": { "gpu": device.name, "memory_bytes": device.memory },
        "package": format!("tersor-backend-cuda {}", backend.info().version),
        "kernel_revision": backend.info().kernel_revision,
        "results": results,
    });
    if let Some(folder) = std::env::var_os("TERSOR_OUT") {
        let path = PathBuf::from(folder).join(format!("{name}.json"));
        std::fs::write(path, serde_json::to_string_pretty(&file).unwrap()).unwrap();
    }
}

/// Median, smallest and largest.
fn spread(samples: &mut [f64]) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[0], samples[samples.len() - 1])
}
