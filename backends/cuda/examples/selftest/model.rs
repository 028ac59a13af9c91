//! The embedded model on the GPU and on the CPU.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::json;
use tersor_backend_cuda::CudaBackend;
use tersor_conformance::Threads;
use tersor_core::{
    Bytes, Floats, Format, HostContext, Probe, QuantBackend, SampleParams, Shape, Weight, bf16, codec, f16,
};
use tersor_model::generate::{Options, continue_ids, prompt_logits};
use tersor_model::graph::{InFormat, TensorSource};
use tersor_model::names::Role;
use tersor_model::{Model, ModelConfig, Session, SessionOptions, Tokenizer, embedded};

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

/// A source whose embedding and head are in another format; `None` leaves them.
pub(crate) struct WithHead<'a> {
    pub(crate) source: &'a dyn TensorSource,
    pub(crate) format: Option<Format>,
}

impl TensorSource for WithHead<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
    }
    fn matrix(&self, role: Role, backend: &dyn QuantBackend) -> tersor_model::Result<Weight> {
        let w = self.source.matrix(role, backend)?;
        let Some(format) = self.format.filter(|_| !w.format().is_ternary()) else { return Ok(w) };
        let values = codec::dequantize(&w)?;
        if format.is_block() {
            return Ok(in_parts(&values, w.shape(), format));
        }
        let bytes: Vec<u8> = match format {
            Format::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Format::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let format = if matches!(format, Format::F16 | Format::BF16) { format } else { Format::F32 };
        Ok(Weight::dense(format, w.shape(), Bytes::from(bytes))?)
    }
    fn norm(&self, role: Role) -> tersor_model::Result<Vec<f32>> {
        self.source.norm(role)
    }
}

/// A table in a block format, rows shared among threads: a vocabulary of 128,256 takes one of them long.
fn in_parts(values: &[f32], shape: Shape, format: Format) -> Weight {
    let (cols, rows) = (shape.cols(), shape.rows().div_ceil(16));
    let part = |values: &[f32]| {
        let shape = Shape::new(values.len() / cols, cols).unwrap();
        codec::blocks::quantize(Floats::F32(values), shape, format).unwrap()
    };
    let parts: Vec<Weight> = std::thread::scope(|s| {
        let threads: Vec<_> = values.chunks(rows * cols).map(|values| s.spawn(move || part(values))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let bytes: Vec<u8> = parts.iter().flat_map(|w| w.codes().iter().copied()).collect();
    Weight::new(format, shape, Bytes::from(bytes), Vec::new()).unwrap()
}

pub(crate) fn equals_the_cpu(gpu: &Arc<CudaBackend>) -> bool {
    let file = embedded::fable_26m().unwrap();
    let tokenizer = Tokenizer::of(&file).unwrap();
    let cpu = cpu();
    let mut ok = true;
    let mut results = Vec::new();
    let ternary = [Format::I2S, Format::TL1, Format::TL2, Format::TQ1_0, Format::TQ2_0].map(|format| (format, None));
    let heads = [Format::F16, Format::Q8_0, Format::Q6K].map(|head| (Format::I2S, Some(head)));
    for (format, head) in ternary.into_iter().chain(heads) {
        let source = InFormat { file: &file, format };
        let source = WithHead { source: &source, format: head };
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
                    "{format}, head {head:?}, {prompt:?} T={temperature} k={top_k:?}: {differing} of {} logits differ, {equal} of {} ids equal{}; {:.0} tok/s, {} {:.0} tok/s",
                    ids.len() * here.config().vocab_size,
                    b.ids.len(),
                    if same { "" } else { " DIFFERENT" },
                    pace(a.decode),
                    cpu.info().id,
                    pace(b.decode),
                );
                results.push(json!({
                    "format": format.id(), "head": head.map(|f| f.to_string()), "prompt": prompt, "temperature": temperature, "top_k": top_k,
                    "logits_differing": differing, "ids_equal": equal, "ids": b.ids.len(),
                    "cuda_tokens_per_second": pace(a.decode), "kernels": a.kernels,
                }));
            }
        }
    }
    crate::save("cuda-model", gpu, json!(results));
    ok
}

/// Twenty runs of 500 tokens: memory is the same after the second and after the last, and so is what crosses.
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
    // An id for each token comes down, and each run does as the one before.
    seen[1..].windows(2).all(|w| w[0] == w[1]) && seen.iter().all(|run| run.3.1 == run.2 as u64)
}
