//! The whole benchmark, with a tiny budget, on the portable backend.

use std::time::Duration;

use tersor::Registry;
use tersor::core::Shape;
use tersor::registry::config::Config;
use tersor_bench::report::Measure;
use tersor_bench::{Options, compare, output, run};

fn registry() -> Registry {
    Registry::build(Config::from_toml_str("select.backend = \"scalar\"\nthreads.count = 2").expect("valid"))
        .expect("linked")
}

fn tiny() -> Options {
    Options {
        tokens: 2,
        iterations: 2,
        // Far more than it takes: a machine that is busy with other things must not be told from one where something is wrong.
        budget: Duration::from_secs(60),
        quantize_elements: 1 << 16,
        shapes: vec![Shape::new(64, 256).expect("a shape")],
        profile_quantization: true,
        ..Options::default()
    }
}

#[test]
fn everything_is_measured_or_absent_with_a_reason_and_nothing_is_wrong() {
    let mut steps = Vec::new();
    let report = run(&registry(), &tiny(), &mut |p| {
        assert!((0.0..=1.0).contains(&p.done), "{p:?}");
        steps.push(p.phase.to_owned());
    })
    .unwrap();
    for measure in
        [Measure::Quantize, Measure::QuantizeRows, Measure::Gemv, Measure::Gemm, Measure::Prefill, Measure::Decode]
    {
        let measured = report.figures.iter().filter(|f| f.measure == measure && f.time.is_some()).count();
        let of_it: Vec<_> = report.figures.iter().filter(|f| f.measure == measure).map(|f| &f.absent).collect();
        // Prefill and decode may not fit into a few seconds on a slow machine; then they have to say so.
        let slow = matches!(measure, Measure::Prefill | Measure::Decode) && of_it.iter().all(|a| a.is_some());
        assert!(measured > 0 || slow, "{measure:?}: {of_it:?}");
    }
    for f in &report.figures {
        match (&f.time, &f.absent) {
            (None, reason) => {
                let reason = reason.as_deref().unwrap_or_default();
                assert!(!reason.is_empty() && !reason.contains("WRONG"), "{}: {reason}", f.case());
            }
            (Some(time), _) => {
                assert!(time.median > 0.0 && f.checked.is_some() && f.work.units > 0.0, "{f:?}");
                assert!(f.kernels.iter().all(|k| !k.is_empty()), "{f:?}");
                assert_eq!(f.samples.len(), time.count);
            }
        }
    }
    assert!(report.figures.iter().any(|f| f.ratio().is_some()), "no floor at all");
    assert!(report.backends.iter().any(|b| b.id == "scalar" && b.unusable.is_none()));
    assert!(steps.iter().any(|s| s == "inference"));

    let names: std::collections::BTreeSet<String> = report.figures.iter().map(|f| f.case()).collect();
    assert_eq!(names.len(), report.figures.len(), "case names tell cases apart");

    let dir = tempfile::tempdir().unwrap();
    let files = output::write(&report, dir.path()).unwrap();
    let back = output::read(&files[0]).unwrap();
    assert_eq!(back, report);
    assert!(compare(&back, &report).unwrap().changes.iter().all(|c| c.speedup() == 1.0));
    assert!(output::terminal(&report).contains("scalar"));
}

#[test]
fn a_model_that_is_not_there_is_an_error_that_names_it() {
    let options = Options { model: Some("no/such/model.gguf".into()), ..tiny() };
    let e = run(&registry(), &options, &mut |_| {}).unwrap_err().to_string();
    assert!(e.contains("no/such/model.gguf"), "{e}");
}

#[test]
fn several_sequences_are_measured_in_sum_and_each_and_nothing_else_is() {
    let options = Options { batch: Some(3), prompt: Some(6), iterations: 1, profile_quantization: false, ..tiny() };
    let options = Options { budget: Duration::from_secs(20), ..options };
    let report = run(&registry(), &options, &mut |_| {}).unwrap();
    assert!(report.figures.iter().all(|f| f.measure.is_inference()), "{:?}", report.figures);
    let several: Vec<_> = report.figures.iter().filter(|f| f.measure == Measure::DecodeBatch).collect();
    assert_eq!(several.len(), 2, "with one thread and with two");
    for f in several {
        assert_eq!((f.shape.as_str(), f.sequences, f.work.units), ("3 sequences, 2 tokens after 6", Some(3), 6.0));
        let (Some(all), Some(each)) = (f.rate(), f.each()) else { panic!("{f:?}") };
        assert!((all - 3.0 * each).abs() < 1e-6 * all && f.checked.is_some(), "{f:?}");
        assert!(output::terminal(&report).contains("tok/s each"));
    }
}
