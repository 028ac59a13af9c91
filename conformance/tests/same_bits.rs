//! Host backends agree with each other to the last bit, in every tier and at any number of threads.

use tersor_backend_cpu_avx2 as _;
use tersor_backend_cpu_avx512 as _;
use tersor_backend_cpu_neon as _;
use tersor_backend_scalar as _;
use tersor_conformance::Outcome;
use tersor_conformance::pipeline::{Trace, transformer};
use tersor_conformance::registered::{open, tiers};
use tersor_core::entries;

#[test]
fn a_transformer_gives_the_same_bits_on_every_host_backend_and_thread_count() {
    let mut traces: Vec<(String, Trace)> = Vec::new();
    for entry in entries() {
        let tiers = match tiers(entry) {
            Ok(tiers) => tiers,
            Err(reason) => {
                println!("{:12} SKIPPED: {reason}", entry.id);
                continue;
            }
        };
        for (isa, threads) in tiers.iter().flat_map(|isa| [1, 2, 3, 7].map(|t| (*isa, t))) {
            let backend = open(entry, isa, threads).unwrap();
            // A device may have a second, faster kernel set with another order of sums; that is its own test's business.
            if !backend.info().is_host() {
                println!("{:12} SKIPPED: not a host backend", entry.id);
                continue;
            }
            let name = format!("{} (tier {:?}, {threads} threads)", entry.id, isa);
            match transformer(&*backend, 1) {
                Ok(trace) => traces.push((name, trace)),
                Err(Outcome::NotSupported { reason }) => println!("{name}: NOT COMPARED: {reason}"),
                Err(failed) => assert_eq!(failed, Outcome::Passed, "{name}"),
            }
        }
    }
    let (first, expected) = &traces[0];
    assert!(traces.iter().any(|(name, _)| name.starts_with("scalar")) && traces.len() >= 4);
    for (name, trace) in &traces[1..] {
        println!("{name}: {} stages, as {first}", trace.stages().count());
        assert_eq!(trace.first_difference(expected), None, "{name} against {first}");
    }
}

#[test]
fn another_seed_gives_another_trace() {
    let scalar = entries().find(|e| e.id == "scalar").unwrap();
    let backend = open(scalar, None, 1).unwrap();
    let [a, b] = [1, 2].map(|seed| transformer(&*backend, seed).unwrap());
    assert!(a.first_difference(&b).unwrap().contains("quantize"));
}
