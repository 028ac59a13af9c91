//! What the golden tests share: the backends of this machine, the embedded model on them, and the golden values.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::{Dtype, SafeTensors};
use tersor_core::{
    BackendInfo, Executor, Format, HostContext, OpSpec, PackedWeight, Probe, QuantBackend, RawBuffer, SampleParams,
    Shape, Stream, Support, Weight,
};
use tersor_model::graph::InFormat;
use tersor_model::{Model, ModelFile, embedded};

// A dependency that no code mentions is not linked, and its entry would be missing.
use tersor_backend_cpu_avx2 as _;
use tersor_backend_cpu_avx512 as _;
use tersor_backend_cpu_neon as _;
use tersor_backend_scalar as _;

pub(crate) const GREEDY: SampleParams = SampleParams { temperature: 0.0, top_k: None, seed: 0 };

/// A gap below which two correct implementations may choose differently (tests/data/README.md).
pub(crate) const NEAR_TIE: f64 = 0.06;

/// Plain threads, started for each call.
pub(crate) struct Threads(pub(crate) usize);

impl Executor for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.0.min(tasks) {
                scope.spawn(|| {
                    loop {
                        match next.fetch_add(1, Ordering::Relaxed) {
                            i if i < tasks => task(i),
                            _ => break,
                        }
                    }
                });
            }
        });
    }
}

/// Every usable backend at every tier that this machine has, with a name for messages; the fastest first.
pub(crate) fn backends(threads: usize) -> Vec<(String, Arc<dyn QuantBackend>)> {
    let mut all = Vec::new();
    for entry in tersor_core::entries() {
        let Probe::Usable { devices } = (entry.probe)() else { continue };
        let tiers = devices[0].isas.iter().rev().map(|isa| Some(*isa));
        let tiers: Vec<_> = if devices[0].isas.is_empty() { vec![None] } else { tiers.collect() };
        for isa in tiers {
            let host = HostContext::new(Arc::new(Threads(threads))).with_isa(isa);
            let name = isa.map_or(entry.id.to_owned(), |isa| format!("{} ({isa})", entry.id));
            all.push((name, (entry.open)(&host).unwrap()));
        }
    }
    assert!(all.iter().any(|(name, _)| name == "scalar"), "the portable backend is always usable");
    all
}

/// A backend that says no to some operations.
#[derive(Debug)]
pub(crate) struct Without(pub(crate) fn(&OpSpec) -> bool, pub(crate) Arc<dyn QuantBackend>);

impl QuantBackend for Without {
    fn info(&self) -> &BackendInfo {
        self.1.info()
    }
    fn supports(&self, spec: &OpSpec) -> Support {
        if self.0(spec) { Support::no("left out for this test") } else { self.1.supports(spec) }
    }
    fn packed_size(&self, format: Format, shape: Shape) -> tersor_core::Result<usize> {
        self.1.packed_size(format, shape)
    }
    fn pack(&self, weight: &Weight) -> tersor_core::Result<PackedWeight> {
        self.1.pack(weight)
    }
    fn alloc(&self, bytes: usize) -> tersor_core::Result<RawBuffer> {
        self.1.alloc(bytes)
    }
    fn open_stream(&self) -> tersor_core::Result<Box<dyn Stream>> {
        self.1.open_stream()
    }
}

pub(crate) fn fable() -> ModelFile {
    embedded::fable_26m().unwrap()
}

pub(crate) fn load(backend: &Arc<dyn QuantBackend>) -> Model {
    Model::load(backend.clone(), &fable(), |_| {}).unwrap()
}

pub(crate) fn load_as(backend: &Arc<dyn QuantBackend>, format: Format) -> Model {
    Model::load(backend.clone(), &InFormat { file: &fable(), format }, |_| {}).unwrap()
}

/// A prompt with what the reference made of it.
pub(crate) struct Golden {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
    pub(crate) greedy_text: String,
    /// Difference of the two best logits at each greedy step.
    pub(crate) gaps: Vec<f64>,
    /// `positions x vocab`.
    pub(crate) logits: Vec<f32>,
    /// `layers + 1` residual streams of `positions x hidden`.
    pub(crate) hidden: Vec<f32>,
}

/// Text the model has not seen.
pub(crate) struct HeldOut {
    pub(crate) windows: Vec<Vec<u32>>,
    /// Mean negative log-likelihood of each window.
    pub(crate) nll: Vec<f64>,
    pub(crate) perplexity: f64,
}

struct Data {
    f32s: BTreeMap<String, Vec<f32>>,
    ids: BTreeMap<String, (Vec<usize>, Vec<u32>)>,
    f64s: BTreeMap<String, Vec<f64>>,
    json: serde_json::Value,
}

fn data() -> Data {
    let bytes = include_bytes!("../data/golden.safetensors");
    let json = serde_json::from_str(include_str!("../data/golden.json")).unwrap();
    let mut data = Data { f32s: BTreeMap::new(), ids: BTreeMap::new(), f64s: BTreeMap::new(), json };
    for (name, view) in SafeTensors::deserialize(bytes).unwrap().iter() {
        let (name, raw) = (name.to_owned(), view.data());
        match view.dtype() {
            Dtype::F32 => {
                let values = raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                data.f32s.insert(name, values);
            }
            Dtype::F64 => {
                let values = raw.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
                data.f64s.insert(name, values);
            }
            Dtype::I32 => {
                let values = raw.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as u32).collect();
                data.ids.insert(name, (view.shape().to_vec(), values));
            }
            other => panic!("{name} is {other:?}"),
        }
    }
    data
}

pub(crate) fn golden() -> Vec<Golden> {
    let data = data();
    let prompts = data.json["prompts"].as_array().unwrap();
    let golden = prompts.iter().enumerate().map(|(i, p)| Golden {
        text: p["text"].as_str().unwrap().to_owned(),
        ids: data.ids[&format!("prompt.{i}.ids")].1.clone(),
        greedy: data.ids[&format!("packed.{i}.greedy")].1.clone(),
        greedy_text: p["packed_text"].as_str().unwrap().to_owned(),
        gaps: p["packed_gaps"].as_array().unwrap().iter().map(|g| g.as_f64().unwrap()).collect(),
        logits: data.f32s[&format!("packed.{i}.logits")].clone(),
        hidden: data.f32s[&format!("packed.{i}.hidden")].clone(),
    });
    golden.collect()
}

pub(crate) fn held_out() -> HeldOut {
    let data = data();
    let (shape, ids) = &data.ids["ppl.ids"];
    HeldOut {
        windows: ids.chunks(shape[1]).map(<[u32]>::to_vec).collect(),
        // The file has sums over the predicted tokens.
        nll: data.f64s["ppl.packed.window_nll"].iter().map(|sum| sum / (shape[1] - 1) as f64).collect(),
        perplexity: data.json["packed_ppl"].as_f64().unwrap(),
    }
}
