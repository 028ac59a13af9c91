//! A prompt through the shape of BitNet b1.58 2B-4T: tokens per second, what one pass consists of, and the products alone.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tersor_backend_cuda::CudaBackend;
use tersor_core::Shape;
use tersor_model::{Model, Session, SessionOptions, embedded};

use crate::large::{GREEDY, Random};
use crate::{bench, many_rows, spread};

/// The products of a layer: q, k, v; the attention's output; gate and up; down.
const PRODUCTS: [(usize, usize, usize); 6] =
    [(2560, 2560, 2), (640, 2560, 2), (6912, 2560, 2), (2560, 6912, 1), (3840, 2560, 0), (13_824, 2560, 0)];

pub(crate) fn run(gpu: &Arc<CudaBackend>, lengths: &[usize]) -> bool {
    let source = Random::new(embedded::fable_26m().unwrap().config().clone());
    let model = Model::load(gpu.clone(), &source, |_| {}).unwrap();
    let lengths: Vec<Value> = lengths.iter().map(|n| prompt(gpu, &model, *n)).collect();
    if lengths == [512] {
        return true;
    }
    let products: Vec<Value> = PRODUCTS
        .iter()
        .map(|(n, k, _)| bench::product(gpu, &bench::i2s(Shape::new(*n, *k).unwrap(), 3), 512))
        .collect();
    let layer: f64 =
        products.iter().zip(PRODUCTS).map(|(p, (.., times))| p["median_s"].as_f64().unwrap() * times as f64).sum();
    println!("products of 512 rows, summed over 30 layers: {:.3} ms", 30.0 * layer * 1e3);
    crate::save(
        "cuda-prefill",
        gpu,
        json!({ "prompts": lengths, "products": products, "products_of_30_layers_s": 30.0 * layer, "operations": many_rows::operations(gpu, 512) }),
    );
    true
}

/// A prompt in one batch, again and again.
fn prompt(gpu: &CudaBackend, model: &Model, rows: usize) -> Value {
    let options = SessionOptions { capacity: Some(rows + 1), batch: rows, ..SessionOptions::default() };
    let ids: Vec<u32> = (0..rows as u32).map(|i| i * 97 % 128_000).collect();
    let mut session = Session::new(model, options).unwrap();
    let (mut times, mut launches) = (Vec::new(), 0);
    for _ in 0..12 {
        session.reset();
        let before = gpu.counters().launches;
        let started = Instant::now();
        session.prefill(&ids).unwrap();
        times.push(started.elapsed().as_secs_f64());
        launches = gpu.counters().launches - before;
        session.sample(GREEDY).unwrap();
    }
    let (median, least, most) = spread(&mut times[2..]);
    let pace = rows as f64 / median;
    println!(
        "prompt of {rows}: {:.3} ms ({:.3}..{:.3}), {pace:.0} tok/s, {launches} launches; kernels {:?}",
        median * 1e3,
        least * 1e3,
        most * 1e3,
        session.kernels()
    );
    json!({ "rows": rows, "median_s": median, "least_s": least, "most_s": most, "tokens_per_second": pace,
            "launches": launches, "head": "bf16", "cache": "f32", "kernels": session.kernels() })
}
