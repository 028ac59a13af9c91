//! The shape of BitNet b1.58 2B-4T with random weights.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tersor_backend_cuda::CudaBackend;
use tersor_core::{Bytes, Format, QuantBackend, SampleParams, Shape, Weight, f16};
use tersor_model::generate::{Options, continue_ids};
use tersor_model::graph::TensorSource;
use tersor_model::names::Role;
use tersor_model::{Model, ModelConfig, Result, Session, SessionOptions, embedded};

use crate::bench::{i2s, noise};
use crate::{bench, model, spread};

/// Every matrix of a shape has the same random bytes; each is packed into memory of its own.
pub(crate) struct Random {
    pub(crate) config: ModelConfig,
    embedding: Weight,
    matrices: Vec<Weight>,
}

impl Random {
    pub(crate) fn new(mut config: ModelConfig) -> Self {
        config.layers = 30;
        config.hidden_size = 2560;
        config.ffn_size = 6912;
        (config.heads, config.kv_heads, config.head_dim) = (20, 5, 128);
        config.vocab_size = 128_256;
        config.context_length = 4096;
        config.rope_theta = 500_000.0;
        config.rms_eps = 1e-5;
        config.tied_head = true;
        config.bos_id = Some(1);
        config.eos_ids = vec![2];
        Self::with_table(config, Format::BF16)
    }

    /// The same with an embedding, which is the head too, in another format: random as well, not what quantizing that of
    /// [`Random::new`] would give, which takes minutes for `q6_k`.
    pub(crate) fn with_table(config: ModelConfig, format: Format) -> Self {
        let shape = Shape::new(config.vocab_size, config.hidden_size).unwrap();
        let embedding = table(shape, format);
        let shapes = [(2560, 2560), (640, 2560), (6912, 2560), (2560, 6912)];
        let matrices = shapes.iter().map(|(n, k)| i2s(Shape::new(*n, *k).unwrap(), *n as u64)).collect();
        Random { config, embedding, matrices }
    }
}

/// A random table. Every f16 scale of a block is 1/64, every code and int8 scale random.
fn table(shape: Shape, format: Format) -> Weight {
    if format.is_block() {
        let (block, at) = if format == Format::Q6K { (210, 208) } else { (34, 0) };
        let mut bytes = Vec::with_capacity(format.encoded_len(shape).unwrap().bytes + 4);
        let mut state = 9u64;
        while bytes.len() < bytes.capacity() - 4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&((state >> 33) as u32).to_le_bytes());
        }
        bytes.truncate(format.encoded_len(shape).unwrap().bytes);
        bytes.chunks_exact_mut(block).for_each(|b| b[at..at + 2].copy_from_slice(&0x2400u16.to_le_bytes()));
        return Weight::new(format, shape, Bytes::from(bytes), Vec::new()).unwrap();
    }
    let values = noise(shape.len());
    let bytes: Vec<u8> = match format {
        Format::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect(),
    };
    Weight::dense(if format == Format::F16 { format } else { Format::BF16 }, shape, Bytes::from(bytes)).unwrap()
}

impl TensorSource for Random {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn matrix(&self, role: Role, _: &dyn QuantBackend) -> Result<Weight> {
        let (n, k) = role.shape(&self.config);
        let shape = Shape::new(n, k).unwrap();
        let found = self.matrices.iter().find(|w| w.shape() == shape);
        Ok(found.unwrap_or(&self.embedding).clone())
    }
    fn norm(&self, role: Role) -> Result<Vec<f32>> {
        Ok(noise(role.shape(&self.config).1).iter().map(|v| 1.0 + 0.25 * v).collect())
    }
}

pub(crate) const GREEDY: SampleParams = SampleParams { temperature: 0.0, top_k: None, seed: 0 };

pub(crate) fn run(gpu: &Arc<CudaBackend>, head: Format) -> bool {
    let source = Random::new(embedded::fable_26m().unwrap().config().clone());
    let source = if head == Format::BF16 { source } else { Random::with_table(source.config, head) };
    let started = Instant::now();
    let model = Model::load(gpu.clone(), &source, |_| {}).unwrap();
    println!(
        "2B-4T shape, head in {head}: {} bytes of weights in {:.1} s",
        model.weight_bytes(),
        started.elapsed().as_secs_f64()
    );
    let (results, transfers): (Vec<Value>, Vec<bool>) =
        [(128, 128), (512, 128)].into_iter().map(|(p, t)| sequence(gpu, &model, head, p, t)).unzip();
    if head == Format::BF16 {
        profile(&model);
    }
    let name = if head == Format::BF16 { "cuda-2b4t".to_owned() } else { format!("cuda-2b4t-{head}") };
    crate::save(&name, gpu, json!(results));
    transfers.into_iter().all(|right| right)
}

/// The products of heads alone: one row of activations, and as many as sequences of a batch.
pub(crate) fn heads(gpu: &Arc<CudaBackend>) -> bool {
    let mut results = Vec::new();
    for format in [Format::BF16, Format::F16, Format::Q8_0, Format::Q6K] {
        let w = table(Shape::new(128_256, 2560).unwrap(), format);
        for m in [1, 4, 8, 32] {
            results.push(bench::head(gpu, &w, m));
        }
    }
    crate::save("cuda-heads", gpu, json!(results));
    true
}

/// The same logits and ids on the GPU and on the CPU: a prompt that fills two chunks of positions and begins a third, then
/// steps, so that every kernel of prefill and decode has its say at the shapes that it is made for.
pub(crate) fn equals_the_cpu(gpu: &Arc<CudaBackend>) -> bool {
    let mut source = Random::new(embedded::fable_26m().unwrap().config().clone());
    source.config.layers = 4;
    let mut outputs = Vec::new();
    let cpu = model::cpu();
    for backend in [gpu.clone() as Arc<dyn QuantBackend>, cpu] {
        let started = Instant::now();
        let model = Model::load(backend.clone(), &source, |_| {}).unwrap();
        let mut runs = Vec::new();
        for prompt in [3, 130, 300] {
            let options = SessionOptions { capacity: Some(prompt + 20), batch: 256, ..SessionOptions::default() };
            let mut session = Session::new(&model, options).unwrap();
            let ids: Vec<u32> = (0..prompt as u32).map(|i| i * 97 % 128_000).collect();
            session.prefill(&ids).unwrap();
            let mut logits = vec![session.logits().unwrap()];
            let mut drawn = vec![session.sample(GREEDY).unwrap()];
            for _ in 0..8 {
                drawn.push(session.step(GREEDY).unwrap());
                logits.push(session.logits().unwrap());
            }
            runs.push((logits, drawn));
        }
        println!("{}: {:.1} s", backend.info().id, started.elapsed().as_secs_f64());
        outputs.push(runs);
    }
    let mut ok = true;
    for (here, there) in outputs[0].iter().zip(&outputs[1]) {
        let bits = |a: &Vec<f32>, b: &Vec<f32>| a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        let differing: Vec<usize> = here.0.iter().zip(&there.0).map(|(a, b)| bits(a, b)).collect();
        let same = here.1 == there.1 && differing.iter().all(|d| *d == 0);
        println!(
            "logits that differ after the prompt and after each step: {differing:?}; ids equal: {}",
            here.1 == there.1
        );
        ok &= same;
    }
    ok
}

/// Figures, and whether nothing crossed in a step but the id that was drawn.
fn sequence(gpu: &CudaBackend, model: &Model, head: Format, prompt: usize, tokens: usize) -> (Value, bool) {
    let options = SessionOptions { capacity: Some(prompt + tokens + 1), batch: prompt, ..SessionOptions::default() };
    let ids: Vec<u32> = (0..prompt as u32).map(|i| i * 97 % 128_000).collect();
    let mut session = Session::new(model, options).unwrap();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    let mut before = gpu.counters();
    // The prompt gives one more.
    let generation = Options { tokens: tokens + 1, stop_at_eos: false, ..Options::default() };
    for _ in 0..4 {
        session.reset();
        let started = Instant::now();
        session.prefill(&ids).unwrap();
        prefill.push(prompt as f64 / started.elapsed().as_secs_f64());
        session.reset();
        let mut first = None;
        let run = continue_ids(&mut session, &ids, &generation, |_| {
            first.get_or_insert_with(|| {
                before = gpu.counters();
                Instant::now()
            });
            ControlFlow::Continue(())
        });
        decode.push(tokens as f64 / first.unwrap().elapsed().as_secs_f64());
        assert_eq!(run.unwrap().decode.tokens, tokens);
    }
    let after = gpu.counters();
    let per = |a: u64, b: u64| (a - b) as f64 / tokens as f64;
    let (launches, ups, downs) = (
        per(after.launches, before.launches),
        per(after.uploads, before.uploads),
        per(after.downloads, before.downloads),
    );
    let (p, ..) = spread(&mut prefill[1..]);
    let (d, least, most) = spread(&mut decode[1..]);
    let bytes = model.bytes_per_token();
    println!(
        "prompt {prompt}: prefill {p:.0} tok/s; {tokens} tokens: {d:.1} tok/s ({least:.1}..{most:.1}), {:.0} GB/s of weights; a step: {launches} launches, {ups} uploads, {downs} downloads; kernels {:?}",
        d * bytes as f64 / 1e9,
        session.kernels()
    );
    let crossed = (after.uploads - before.uploads, after.uploaded - before.uploaded);
    let brought = (after.downloads - before.downloads, after.downloaded - before.downloaded);
    let right = crossed == (0, 0) && brought == (tokens as u64, 4 * tokens as u64);
    let figures = json!({ "prompt": prompt, "tokens": tokens, "prefill_tokens_per_second": p, "decode_tokens_per_second": d,
            "decode_least": least, "decode_most": most, "weight_bytes_per_token": bytes, "head": head.id(), "cache": "f32",
            "launches_per_step": launches, "uploads_per_step": ups, "downloads_per_step": downs,
            "kernels": session.kernels() });
    (figures, right)
}

/// Time of each op, waited for one by one.
fn profile(model: &Model) {
    let options = SessionOptions { capacity: Some(300), profile: true, ..SessionOptions::default() };
    let ids: Vec<u32> = (0..128).collect();
    let mut session = Session::new(model, options).unwrap();
    session.prefill(&ids).unwrap();
    session.sample(GREEDY).unwrap();
    session.take_profile();
    for _ in 0..20 {
        session.step(GREEDY).unwrap();
    }
    println!("20 steps, each op waited for: {:?}", session.take_profile());
}
