//! The kit passes the correct backend and catches every faulty one, by a case whose name says what is wrong.

use tersor_conformance::{Options, Outcome, Report, Suite};
use tersor_conformance_broken::{Fault, backend};

/// A fault, the cases that are run, and a part of the names of cases that have to fail.
///
/// Only the ops that a fault touches are run, to save time; the honest backend passes them all.
const CAUGHT_BY: [(Fault, &str, &str); 40] = [
    (Fault::TailOffByOne, "matmul/tl", "matmul/tl1/m1.n3.k2/sums"),
    (Fault::NibblesSwapped, "matmul/tl1", "matmul/tl1/m2.n256.k256/onehot"),
    (Fault::I2sBlock64, "quantize/i2_s/", "quantize/i2_s/f32/1x128/gaussian"),
    (Fault::GarbageInTail, "quantize/tl2/", "quantize/tl2/f32/3x6/gaussian"),
    (Fault::SaturatingAdd, "matmul/i2_s/", "matmul/i2_s/m1.n2.k27648/extremes"),
    (Fault::IgnoredScale, "matmul/tq2_0/", "matmul/tq2_0/m1.n1.k256/scaled"),
    (Fault::FirstBlockScale, "matmul/i2_s_g128/", "matmul/i2_s_g128/m1.n1.k2560/block-scales"),
    (Fault::BlocksInSequence, "matmul/tq2_0/", "matmul/tq2_0/m8.n17.k1024/block-scales"),
    (Fault::BlocksInSequence, "matmul/q6_k/", "matmul/q6_k/m1.n3.k2560/random"),
    (Fault::FirstBlockScale, "matmul/q8_0/", "matmul/q8_0/m1.n3.k64/random"),
    (Fault::AddStores, "matmul/q6_k/", "matmul/q6_k/m3.n5.k2560/add"),
    (Fault::ZeroBlocksCount, "matmul/tq1_0/", "matmul/tq1_0/m3.n4.k1280/zero-blocks"),
    (Fault::StaleOutput, "stale/", "stale/matmul/i2_s"),
    (Fault::CachedByShape, "determinism/", "determinism/matmul/tl2"),
    (Fault::AddStores, "matmul/i2_s/", "matmul/i2_s/m7.n5.k2560/scaled-add"),
    (Fault::LyingYes, "sample/", "supports/sample"),
    (Fault::LyingNo, "gather_rows/", "supports/gather_rows"),
    (Fault::ImpossibleYes, "supports/", "supports/impossible-specs"),
    (Fault::WrongKernelName, "matmul/f16/", "kernel-names/matmul"),
    (Fault::AcceptsForeignPack, "foreign-pack/", "foreign-pack/matmul/i2_s"),
    (Fault::PackedSizeTooSmall, "pack/", "pack/tl1"),
    (Fault::DirtyMemory, "memory/", "memory/zeroed"),
    (Fault::ActivationsRoundAway, "quantize_rows/", "quantize_rows/3x70/ties"),
    (Fault::AbsmaxWithoutLast, "quantize_rows/", "quantize_rows/3x70/peak-last"),
    (Fault::NanBecomesZero, "quantize_rows/", "quantize_rows/3x70/nan"),
    (Fault::WeightTiesAway, "quantize/i2_s/", "quantize/i2_s/f32/5x2560/ties"),
    (Fault::MeanWithoutChunks, "quantize/i2_s/", "quantize/i2_s/f32/11x2560/gaussian"),
    (Fault::NanIndexInRow, "quantize/tq1_0/", "quantize/tq1_0/bf16/5x2560/nan"),
    (Fault::ContractedFma, "rms_norm", "rms_norm/64x128/contraction"),
    (Fault::ContractedDot, "matmul/bf16/", "matmul/bf16/m3.n7.k2560/random"),
    (Fault::HalfTheLanes, "rms_norm", "rms_norm/64x2560/order"),
    (Fault::SequentialSum, "matmul/f32/", "matmul/f32/m1.n5.k2560/random"),
    (Fault::FlushesDenormals, "add/", "add/1000/denormals"),
    (Fault::AttentionOffByOne, "attention/", "attention/heads8.kv2.dim64/few"),
    (Fault::AttentionWithoutChunks, "attention/", "attention/heads8.kv2.dim64/unordered"),
    (Fault::SpansIgnored, "attention/", "attention/heads8.kv2.dim64/sequences"),
    (Fault::HeadsInterleaved, "attention/", "attention/heads20.kv5.dim128/prefill"),
    (Fault::RopeInterleaved, "rope/", "rope/rows2.heads20.dim128/random"),
    (Fault::LastOfEquals, "sample/", "sample/1000/argmax-ties"),
    (Fault::Panics, "copy/", "copy/127/random"),
];

fn run(fault: Option<Fault>, options: Options) -> Report {
    Suite::new(options).run(&*backend(fault), &mut |_| {})
}

#[test]
fn the_correct_backend_passes_and_supports_everything() {
    let report = run(None, Options::quick());
    println!("{report}");
    let other: Vec<_> = report.cases.iter().filter(|c| c.outcome != Outcome::Passed).collect();
    assert!(other.is_empty(), "{other:#?}");
    assert!(report.conforms() && report.cases.len() > 4000, "{} cases", report.cases.len());
}

#[test]
fn every_fault_is_caught_by_a_case_that_is_named_for_it() {
    for (fault, only, caught_by) in CAUGHT_BY {
        let report = run(Some(fault), Options::quick().with_only(&[only]));
        let failed: Vec<&str> = report.failures().map(|c| c.name.as_str()).collect();
        println!("{fault:?}: {} of {} cases failed, such as {:?}", failed.len(), report.cases.len(), failed.first());
        assert!(failed.contains(&caught_by), "{fault:?} was not caught by {caught_by}; failed: {failed:?}");
        assert!(!report.conforms());
        let honest = run(None, Options::quick().with_only(&[only]));
        assert!(honest.conforms(), "{honest}");
    }
}

#[test]
fn what_a_fault_does_not_touch_still_passes() {
    // A kit that fails everything would catch every fault too.
    let report = run(Some(Fault::SaturatingAdd), Options::quick().with_only(&["quantize", "rms_norm", "matmul/f32/"]));
    assert!(report.conforms(), "{report}");
    let report = run(Some(Fault::TailOffByOne), Options::quick().with_only(&["matmul/i2_s/", "matmul/tq"]));
    assert!(report.conforms(), "{report}");
    let report = run(Some(Fault::IgnoredScale), Options::quick().with_only(&["/sums"]));
    assert!(report.conforms(), "{report}");
}

#[test]
fn a_panic_is_a_failed_case_and_the_rest_goes_on() {
    let report = run(Some(Fault::Panics), Options::quick().with_only(&["copy/", "add/1000/"]));
    let copies = report.cases.iter().filter(|c| c.name.starts_with("copy/"));
    assert!(copies.clone().count() > 5 && copies.clone().all(|c| c.failure() == Some("panicked: planted")));
    assert!(report.cases.iter().filter(|c| c.name.starts_with("add/")).all(|c| c.outcome == Outcome::Passed));
}
