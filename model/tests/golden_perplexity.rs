//! Perplexity on held-out text, on the fastest backend alone: the others compute the same logits bit for bit, which
//! `golden_equality.rs` holds them to.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use support::{backends, held_out, load};
use tersor_model::perplexity::perplexity;

#[test]
fn perplexity_of_forty_windows_is_the_reference_s() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (name, backend) = &backends(threads)[0];
    let held_out = held_out();
    let windows: Vec<&[u32]> = held_out.windows.iter().map(Vec::as_slice).collect();
    let start = std::time::Instant::now();
    let got = perplexity(&load(backend), &windows, |_, _| {}).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let rate = got.tokens as f64 / seconds;
    println!("{name}: perplexity {:.4}, {} tokens, {seconds:.1} s, {rate:.0} tokens/s", got.value(), got.tokens);
    let off = got.value() / held_out.perplexity - 1.0;
    assert!(off.abs() < 1e-3, "perplexity {} is off by {:.3} %", got.value(), 100.0 * off);
    let off = |got: &f64, want: &f64| got / want - 1.0;
    let worst = got.windows.iter().zip(&held_out.nll).map(|(g, w)| off(g, w).abs()).fold(0.0, f64::max);
    println!("the window furthest off: {:.3} %", 100.0 * worst);
    for (i, (got, want)) in got.windows.iter().zip(&held_out.nll).enumerate() {
        let off = off(got, want);
        assert!(off.abs() < 5e-3, "window {i}: {got} against {want}, off by {:.3} %", 100.0 * off);
    }
}
