//! Every backend of this repository, in every ISA tier of this machine.

use tersor_backend_cpu_avx2 as _;
use tersor_backend_cpu_avx512 as _;
use tersor_backend_cpu_neon as _;
use tersor_backend_cuda as _;
use tersor_backend_scalar as _;
use tersor_conformance::registered::{required_by_environment, run_all_registered};
use tersor_conformance::{Options, RegisteredReport};

#[test]
fn every_usable_backend_conforms_in_every_tier() {
    // `TERSOR_CONFORMANCE=full` runs the full profile.
    let profile = std::env::var("TERSOR_CONFORMANCE").unwrap_or_else(|_| "quick".into());
    let options = if profile == "full" { Options::full() } else { Options::quick() };
    assert_eq!(options.profile.id(), profile, "TERSOR_CONFORMANCE can be quick or full");
    // `TERSOR_CONFORMANCE_THREADS=1` halves the work, for emulated CPUs.
    let threads = std::env::var("TERSOR_CONFORMANCE_THREADS").unwrap_or_else(|_| "1,3".into());
    let threads: Vec<usize> = threads.split(',').map(|n| n.parse().unwrap()).collect();
    let report = run_all_registered(&options, &threads, &required_by_environment(), &mut |_, _| {});
    println!("{report}");
    let scalar = report.runs.iter().filter(|run| run.report.backend == "scalar").count();
    assert_eq!(scalar, threads.len(), "the scalar backend runs everywhere, with each number of threads");
    let seen = report.runs.iter().map(|run| run.report.backend.as_str());
    let mut seen: Vec<_> = seen.chain(report.skipped.iter().map(|s| s.backend.as_str())).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(
        seen,
        ["cpu-avx2", "cpu-avx512", "cpu-neon", "cuda", "scalar"],
        "each was run, or skipped with a reason"
    );
    assert_eq!(report.errors, []);
}

#[test]
fn a_requirement_that_was_not_run_is_an_error() {
    let only = Options::quick().with_only(&["copy/"]);
    let run = |name: &str| -> Result<RegisteredReport, _> {
        run_all_registered(&only, &[1], &[name.to_owned()], &mut |_, _| {}).into_result()
    };
    assert!(run("scalar").is_ok());
    assert!(run("avx1024").unwrap_err().to_string().contains("avx1024"));
    // No machine has both.
    let missing = ["avx2", "neon"].into_iter().filter(|isa| run(isa).is_err()).count();
    assert!(missing >= 1);
}
