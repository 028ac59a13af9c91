//! The embedded model on the GPU and on the CPU.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::json;
use tersor_backend_cuda::CudaBackend;
use tersor_conformance::Threads;
use tersor_core::{Format, HostContext, Probe, QuantBackend, SampleParams};
use tersor_model::generate::{Options, continue_ids, prompt_logits};
use tersor_model::graph::InFormat;
use tersor_model::{Model, Session, SessionOptions, Tokenizer, embedded};

use tersor_backend_cpu_avx2 as _;
use tersor_backend_cpu_avx512 as _;
use tersor_backend_scalar as _;

const PROMPTS: [&str; 3] = ["Once upon a time", "The old king had three daughters, and", "A"];

/// The fastest CPU backend of this machine.
pub(crate) fn cpu() -> Arc<dyn QuantBackend> {
    let usable = tersor_core::entries().filter(|e| e.id != "cuda" && matches!((e.probe)(), Probe::Usable { .. }));
    let entry = usable.max_by_key(|e| e.priority).unwrap();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(16));
    (entry.open)(&HostContext::new(Arc::new(Threads::new(threads)))).unwrap()
}

pub(crate) fn equals_the_cpu(gpu: &Arc<CudaBackend>) -> bool {
    let file = embedded::fable_26m().unwrap();
    let tokenizer = Tokenizer::of(&file).unwrap();
    let cpu = cpu();
    let mut ok = true;
    let mut results = Vec::new();
    for format in [Format::I2S, Format::TL1, Format::TL2, Format::TQ1_0, Format::TQ2_0] {
        let source = InFormat { file: &file, format };
        let load = |b: Arc<dyn QuantBackend>| Model::load(b, &source, |_| {}).unwrap();
        let (here, there) = (load(gpu.clone()), load(cpu.clone()));
        for prompt in PROMPTS {
            let ids = tokenizer.encode(prompt).unwrap();
            let [a, b] = [&here, &there].map(|m| prompt_logits(m, &ids).unwrap());
            let differing = a.values.iter().zip(&b.values).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            for (temperature, top_k) in [(0.0, None), (0.8, None), (0.7, Some(40))] {
                let sampling = SampleParams { temperature, top_k, seed: 11 };
                let options = Options { tokens: 100, sampling, ..Options::default() };
                let [a, b] = [&here, &there].map(|m| {
                    let mut session = Session::new(m, SessionOptions::default()).unwrap();
                    continue_ids(&mut session, &ids, &options, |_| ControlFlow::Continue(())).unwrap()
                });
                let equal = a.ids.iter().zip(&b.ids).take_while(|(a, b)| a == b).count();
                let same = a.ids == b.ids;
                ok &= same && differing == 0;
                let pace = |p: tersor_model::generate::Pace| p.tokens_per_second().unwrap_or(0.0);
                println!(
                    "{format} {prompt:?} T={temperature} k={top_k:?}: {differing} of {} logits differ, {equal} of {} ids equal{}; {:.0} tok/s, {} {:.0} tok/s",
                    ids.len() * here.config().vocab_size,
                    b.ids.len(),
                    if same { "" } else { " DIFFERENT" },
                    pace(a.decode),
                    cpu.info().id,
                    pace(b.decode),
                );
                results.push(json!({
                    "format": format.id(), "prompt": prompt, "temperature": temperature, "top_k": top_k,
                    "logits_differing": differing, "ids_equal": equal, "ids": b.ids.len(),
                    "cuda_tokens_per_second": pace(a.decode), "kernels": a.kernels,
                }));
            }
        }
    }
    crate::save("cuda-model", gpu, json!(results));
    ok
}

/// Twenty runs of 500 tokens: memory is the same after the second and after the last.
pub(crate) fn no_growth(gpu: &Arc<CudaBackend>) -> bool {
    let file = embedded::fable_26m().unwrap();
    let ids = Tokenizer::of(&file).unwrap().encode("Once upon a time").unwrap();
    let model = Model::load(gpu.clone(), &file, |_| {}).unwrap();
    let mut seen = Vec::new();
    for _ in 0..20 {
        let sampling = SampleParams { temperature: 0.0, top_k: None, seed: 0 };
        let tokens = 500.min(model.config().context_length - ids.len());
        let options = Options { tokens, sampling, stop_at_eos: false, ..Options::default() };
        let before = gpu.counters();
        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        let run = continue_ids(&mut session, &ids, &options, |_| ControlFlow::Continue(())).unwrap();
        let after = gpu.counters();
        let crossed = (after.uploads - before.uploads, after.downloads - before.downloads);
        seen.push((gpu.memory().unwrap().0, after.held, run.ids.len(), crossed, after.driver_allocations));
    }
    println!("free, held, tokens, (uploads, downloads), allocations: {:?} .. {:?}", seen[1], seen[19]);
    seen[1..].windows(2).all(|w| w[0].0 == w[1].0 && w[0].1 == w[1].1)
}
