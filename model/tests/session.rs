//! Sessions and generation at their edges: full contexts, calls in the wrong order, models and backends that do not fit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use safetensors::tensor::TensorView;
use support::{GREEDY, Without, backends, fable, golden, load};
use tersor_core::{Format, OpKind, QuantBackend, Weight, codec};
use tersor_model::config::Activation;
use tersor_model::generate::{Options, Stop, continue_ids, generate, prompt_logits};
use tersor_model::graph::{InFormat, Place};
use tersor_model::perplexity::perplexity;
use tersor_model::{
    Checkpoint, Error, LayerPart, Model, ModelConfig, ModelFile, OpenOptions, Role, Session, SessionOptions,
    TensorSource, Tokenizer,
};

fn small(model: &Model, capacity: usize) -> Session {
    Session::new(model, SessionOptions { capacity: Some(capacity), ..SessionOptions::default() }).unwrap()
}

#[test]
fn a_full_context_is_an_error_before_anything_is_computed() {
    let model = load(&backends(1)[0].1);
    let mut session = small(&model, 8);
    session.prefill(&[0, 3773, 648]).unwrap();
    let e = session.prefill(&[5; 6]).unwrap_err();
    assert!(matches!(e, Error::ContextFull { capacity: 8, used: 3, wanted: 6, .. }), "{e}");
    assert_eq!((session.position(), session.room()), (3, 5));
    session.prefill(&[5; 5]).unwrap();
    session.sample(GREEDY).unwrap();
    assert!(matches!(session.step(GREEDY), Err(Error::ContextFull { used: 8, wanted: 1, .. })));
    session.reset();
    session.prefill(&[0; 8]).unwrap();
    let most = small(&model, 512).prefill(&[1; 513]).unwrap_err().to_string();
    assert!(most.contains("the model's own limit is 512"), "{most}");
}

#[test]
fn generation_stops_for_the_reason_it_states() {
    let model = load(&backends(1)[0].1);
    let prompt = &golden()[0].ids;
    let run = |capacity, options: Options| {
        continue_ids(&mut small(&model, capacity), prompt, &options, |_| ControlFlow::Continue(())).unwrap()
    };
    let all = run(40, Options { tokens: 12, ..Options::default() });
    assert_eq!((all.stop, all.ids.len(), all.prefill.tokens, all.decode.tokens), (Stop::Tokens, 12, 10, 11));
    // Ten tokens in the cache leave room to feed four; the fifth is drawn but cannot be fed.
    let full = run(14, Options { tokens: 12, ..Options::default() });
    assert_eq!((full.stop, &full.ids[..]), (Stop::Context, &all.ids[..5]));
    let mut seen = 0;
    let caller = continue_ids(&mut small(&model, 40), prompt, &Options::default(), |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let caller = caller.unwrap();
    assert_eq!((caller.stop, &caller.ids[..]), (Stop::Caller, &all.ids[..3]));

    // The fourth token as end of text: it ends the generation and is not part of it.
    let mut config = fable().config().clone();
    config.eos_ids = vec![9, all.ids[3]];
    let other = Changed { file: fable(), config, matrix: |_, w| w };
    let model = Model::load(model.backend().clone(), &other, |_| {}).unwrap();
    let end = |stop_at_eos| {
        let options = Options { tokens: 12, stop_at_eos, ..Options::default() };
        continue_ids(&mut small(&model, 40), prompt, &options, |_| ControlFlow::Continue(())).unwrap()
    };
    assert_eq!((end(true).stop, &end(true).ids[..]), (Stop::EndOfText, &all.ids[..3]));
    assert_eq!((end(false).stop, end(false).ids), (Stop::Tokens, all.ids));
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let model = load(&backends(1)[0].1);
    let tokenizer = Tokenizer::of(&fable()).unwrap();
    let e = generate(&model, &tokenizer, &"king ".repeat(600), &Options::default(), |_| ControlFlow::Continue(()));
    let e = e.unwrap_err().to_string();
    assert!(e.contains("holds 512 tokens") && e.contains("were given"), "{e}");
}

#[test]
fn calls_in_the_wrong_order_and_bad_arguments_are_errors() {
    let model = load(&backends(1)[0].1);
    let mut session = small(&model, 8);
    assert!(matches!(session.sample(GREEDY), Err(Error::Order { call: "sample", .. })));
    assert!(matches!(session.step(GREEDY), Err(Error::Order { call: "step", .. })));
    assert!(matches!(session.logits(), Err(Error::Order { call: "logits", .. })));
    assert!(matches!(session.prefill(&[]), Err(Error::Argument { .. })));
    let e = session.prefill(&[0, 4096]).unwrap_err().to_string();
    assert!(e.contains("token ids: entry 1 is 4096, but must be below 4096"), "{e}");
    session.prefill(&[0]).unwrap();
    assert!(matches!(session.step(GREEDY), Err(Error::Order { .. })), "nothing was sampled yet");
    assert!(matches!(session.forward_from_hidden(8, &[0.0; 512]), Err(Error::Argument { what: "layer", .. })));
    assert!(session.forward_from_hidden(0, &[0.0; 500]).is_err());
    assert!(session.forward_from_hidden(0, &[0.0; 9 * 512]).is_err());
    for options in [
        SessionOptions { batch: 0, ..SessionOptions::default() },
        SessionOptions { capacity: Some(0), ..SessionOptions::default() },
        SessionOptions { capacity: Some(513), ..SessionOptions::default() },
        SessionOptions { logit_rows: 0, ..SessionOptions::default() },
    ] {
        assert!(matches!(Session::new(&model, options), Err(Error::Argument { .. })), "{options:?}");
    }
    assert!(prompt_logits(&model, &[]).is_err());
    assert!(perplexity(&model, &[], |_, _| {}).is_err());
    assert!(perplexity(&model, &[&[1]], |_, _| {}).is_err());
    assert!(perplexity(&model, &[&[1, 9999]], |_, _| {}).unwrap_err().to_string().contains("9999"));
}

#[test]
fn a_profile_accounts_for_every_operation_and_kernels_are_named() {
    let model = load(&backends(1)[0].1);
    let options = Options { tokens: 3, profile: true, ..Options::default() };
    let tokenizer = Tokenizer::of(&fable()).unwrap();
    let g = generate(&model, &tokenizer, "Once", &options, |_| ControlFlow::Continue(())).unwrap();
    let (prefill, decode) = g.run.profiles.unwrap();
    let calls = |place, kind| {
        let found = decode.entries().find(|(p, k, _)| (*p, *k) == (place, kind));
        found.map_or(0, |(_, _, spent)| spent.calls)
    };
    // Two decode steps: seven products in each layer and one in the head.
    assert_eq!(calls(Place::Layer(7), OpKind::MatMul), 14);
    assert_eq!(calls(Place::Head, OpKind::MatMul), 2);
    assert_eq!(calls(Place::Layer(0), OpKind::Rope), 4);
    assert_eq!(calls(Place::Embedding, OpKind::GatherRows), 2);
    assert!(prefill.total() <= g.run.prefill.time && decode.total() <= g.run.decode.time);
    for op in ["gemv.i2_s-i8.", "gemm.i2_s-i8.", "gather_rows.bf16.", "gemv.bf16-f32.", "attention.", "sample."] {
        assert!(g.run.kernels.iter().any(|k| k.starts_with(op)), "{op} is not in {:?}", g.run.kernels);
    }
    assert!(g.run.prefill.tokens_per_second().unwrap() > 0.0);
}

#[test]
fn progress_is_told_for_every_tensor() {
    let mut seen = Vec::new();
    let model = Model::load(backends(1)[0].1.clone(), &fable(), |p| seen.push(p)).unwrap();
    assert_eq!(seen.len(), Role::all(model.config()).count());
    assert!(seen.iter().enumerate().all(|(i, p)| p.done == i + 1 && p.total == seen.len()));
    assert_eq!(seen.last().unwrap().bytes, model.weight_bytes());
    assert_eq!(model.bytes_per_token(), model.weight_bytes(), "the head is the embedding");
}

#[test]
fn models_are_shared_between_threads_and_sessions_move_to_them() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    fn moved<T: Send>(_: &T) {}
    let model = load(&backends(1)[0].1);
    shared(&model);
    moved(&small(&model, 4));
}

/// Layer 0 in bf16 master weights, as a model of one layer with the embedding of the packed one.
fn one_layer_of_master_weights() -> ModelFile {
    let part = Bytes::from_static(include_bytes!("data/master-layer0.safetensors"));
    let whole = Bytes::from_static(include_bytes!("../assets/fable-26m/packed/model.safetensors"));
    let (part, whole) = (Checkpoint::from_bytes(part).unwrap(), Checkpoint::from_bytes(whole).unwrap());
    let others = ["model.embed_tokens.weight", "model.norm.weight"];
    let tensors = part.tensors().chain(others.map(|name| (name, whole.tensor(name).unwrap())));
    let views = tensors.map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(include_str!("data/master-layer0.config.json")).unwrap();
    config["num_hidden_layers"] = 1.into();
    let checkpoint = Checkpoint::from_bytes(file.into()).unwrap();
    ModelFile::from_checkpoint(checkpoint, &config.to_string(), &OpenOptions::default()).unwrap()
}

#[test]
fn master_weights_are_quantized_on_loading_with_the_codes_of_the_packed_model() {
    let (master, packed, backend) = (one_layer_of_master_weights(), fable(), &backends(2)[0].1);
    let role = Role::Layer(0, LayerPart::FfnDown);
    for format in Format::TERNARY {
        let file = InFormat { file: &master, format };
        let got = file.matrix(role, &**backend).unwrap();
        assert_eq!(got.format(), format);
        let want = packed.matrix(role, &**backend).unwrap();
        let (got, want) = (codec::decode(&got).unwrap(), codec::decode(&want).unwrap());
        assert!(got.codes == want.codes, "{format}");
        // The packed model rounds the mean of |W| to bf16, half a unit in 2^-8; f16 rounds it much less.
        assert!((got.scales[0] / want.scales[0] - 1.0).abs() < 1.0 / 256.0, "{format}");
        let model = Model::load(backend.clone(), &file, |_| {}).unwrap();
        let mut session = small(&model, 16);
        let g = &golden()[0];
        let (first, second) = g.hidden.split_at(g.ids.len() * model.config().hidden_size);
        let block = session.forward_from_hidden(0, first).unwrap();
        let difference: f32 = block.iter().zip(second).map(|(a, b)| (a - b) * (a - b)).sum();
        let size: f32 = second[..block.len()].iter().map(|v| v * v).sum();
        assert!((difference / size).sqrt() < 0.02, "{format}: {}", (difference / size).sqrt());
    }
}

/// The embedded model with something about it changed.
struct Changed<F> {
    file: ModelFile,
    config: ModelConfig,
    matrix: F,
}

impl<F: Fn(Role, Weight) -> Weight> TensorSource for Changed<F> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn matrix(&self, role: Role, backend: &dyn QuantBackend) -> Result<Weight, Error> {
        Ok((self.matrix)(role, self.file.matrix(role, backend)?))
    }
    fn norm(&self, role: Role) -> Result<Vec<f32>, Error> {
        TensorSource::norm(&self.file, role)
    }
}

fn refusal(change: impl FnOnce(&mut ModelConfig), matrix: impl Fn(Role, Weight) -> Weight) -> String {
    let mut config = fable().config().clone();
    change(&mut config);
    let source = Changed { file: fable(), config, matrix };
    Model::load(backends(1)[0].1.clone(), &source, |_| {}).unwrap_err().to_string()
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let same = |_: Role, w: Weight| w;
    assert!(refusal(|c| c.activation = Activation::Silu, same).contains("activation = silu"));
    assert!(refusal(|c| c.tied_head = false, same).contains("output.weight"));
    let e = refusal(|c| c.vocab_size = 5000, same);
    assert!(e.contains("token_embd.weight") && e.contains("4096 x 512") && e.contains("5000 x 512"), "{e}");
    let e = refusal(|c| c.ffn_size = 1024, same);
    assert!(e.contains("blk.0.ffn_gate.weight") && e.contains("1024 x 512"), "{e}");
    let dense = |role: Role, w: Weight| {
        if role != Role::Layer(2, LayerPart::AttnK) {
            return w;
        }
        Weight::dense(Format::F32, w.shape(), vec![0; 4 * w.shape().len()]).unwrap()
    };
    let e = refusal(|_| {}, dense);
    assert!(e.contains("blk.2.attn_k.weight") && e.contains("must be ternary"), "{e}");
}

#[test]
fn a_backend_that_lacks_an_operation_says_which_and_why() {
    let whole = backends(1)[0].1.clone();
    let e =
        Model::load(Arc::new(Without(|s| s.kind() == OpKind::MatMul, whole.clone())), &fable(), |_| {}).unwrap_err();
    assert!(matches!(e, Error::Backend { .. }) && e.to_string().contains("left out for this test"), "{e}");
    let model = Model::load(Arc::new(Without(|s| s.kind() == OpKind::Attention, whole)), &fable(), |_| {}).unwrap();
    let e = Session::new(&model, SessionOptions::default()).unwrap_err().to_string();
    assert!(e.contains("Attention") && e.contains("left out for this test") && !e.contains("matmul"), "{e}");
}
