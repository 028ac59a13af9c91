//! What the Criterion benches share: candidates with all threads, real weights, short measurements.

use std::time::Duration;

use criterion::Criterion;
use tersor::Registry;
use tersor::model::embedded;
use tersor::registry::config::{Config, LoadOptions};
use tersor_bench::candidates::{Candidate, Candidates};
use tersor_bench::material::Material;

/// Short, because there are many cases: a run of all benches takes a few minutes. Criterion's own flags override it.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(150))
        .measurement_time(Duration::from_millis(400))
        .configure_from_args()
}

/// Every usable backend and tier with all threads. `TERSOR_*` variables (`TERSOR_BACKEND`, `TERSOR_THREADS`) narrow it.
pub(crate) fn candidates() -> Vec<Candidate> {
    let config = Config::load(&LoadOptions::from_process()).expect("the configuration is valid");
    let registry = Registry::build(config).expect("backends are linked");
    let open = Candidates::open(&registry).expect("a backend is usable");
    let most = *open.threads().last().expect("at least one thread");
    open.all.into_iter().filter(|c| c.threads == most).collect()
}

/// Ternary codes of the embedded model.
#[allow(dead_code, reason = "not every bench needs weights")]
pub(crate) fn material() -> Material {
    Material::of(&embedded::fable_26m().expect("the model is embedded")).expect("its layers are ternary")
}

/// `cpu-avx2.avx-vnni/2t`.
pub(crate) fn name(candidate: &Candidate) -> String {
    format!("{}/{}t", candidate.name(), candidate.threads)
}
