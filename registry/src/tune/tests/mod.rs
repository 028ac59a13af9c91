//! The tuner as a whole, with candidates whose speed and faults are known.

mod fakes;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tersor_backend_cpu_avx2 as _;
use tersor_core::{Activations, DType, Epilogue, Format, HostContext, In, Op, OpSpec, Out, Output, QuantBackend};

use super::cache::tests::machine;
use super::routed::{Plans, Routed, Table};
use super::select::plan;
use super::subject::Subject;
use super::*;
use crate::config::{Config, TuneMode};
use fakes::{Alter, contender};

/// Bytes that measurements rotate through: less than any cache, so that tests are quick. What is measured is then how
/// fast the fakes compute, which is what they differ in.
const WARM: Option<u64> = Some(1 << 16);

fn tuner(directory: Option<&Path>) -> Tuner {
    let mut config = Config::default().tune;
    config.mode = TuneMode::Cached;
    config.budget_ms = 60_000;
    Tuner::with_directories(&config, machine("test"), directory, None)
}

fn gemv() -> Key {
    Key::of(&OpSpec::matmul(Format::I2S, 1, 64, 1024), 1).unwrap()
}

/// The same product with more rows.
fn gemm(rows: usize) -> Key {
    Key::of(&OpSpec::matmul(Format::I2S, rows, 64, 1024), 1).unwrap()
}

fn class(key: Key) -> WeightClass {
    key.product().unwrap().weight
}

fn only(plan: routed::ClassPlan) -> Plans {
    Plans::new(Table { classes: vec![plan], tasks: Vec::new() })
}

fn fates(record: &Record) -> Vec<(String, &Fate)> {
    record.measured.iter().map(|m| (m.who.name(), &m.fate)).collect()
}

#[test]
fn the_faster_one_wins_wherever_it_stands() {
    for names in [["slow", "fast"], ["fast", "slow"]] {
        let all = names.map(|n| contender(n, if n == "slow" { Alter::Slower(1.4) } else { Alter::Nothing }));
        let resolved = tuner(None).resolve(&[gemv()], &all, WARM, Effort::Unlimited, |_| ());
        assert_eq!(all[resolved[0].chosen].name(), "fast", "{:?}", resolved[0].basis);
        let Basis::Measured { record } = &resolved[0].basis else { panic!("{:?}", resolved[0].basis) };
        assert_eq!(record.winner.name(), "fast");
        assert_eq!(record.measured.len(), 2);
    }
}

#[test]
fn a_wrong_kernel_never_wins_and_is_told_why() {
    let all = [contender("wrong", Alter::Wrong), contender("slow", Alter::Slower(3.0))];
    for rows in [1, 5] {
        let key = gemm(rows);
        let resolved = tuner(None).resolve(&[key], &all, WARM, Effort::Unlimited, |_| ());
        assert_eq!(resolved[0].chosen, 1, "{:?}", resolved[0].basis);
        let record = resolved[0].basis.record().unwrap();
        assert!(
            matches!(&record.measured[0].fate, Fate::Barred { reason } if reason.contains("differs from the oracle"))
        );
    }
}

#[test]
fn equals_go_to_the_fixed_order() {
    let all = [contender("a", Alter::Nothing), contender("b", Alter::Nothing), contender("far", Alter::Slower(8.0))];
    let resolved = tuner(None).resolve(&[gemv()], &all, WARM, Effort::Unlimited, |_| ());
    assert_eq!(resolved[0].chosen, 0, "{:?}", resolved[0].basis);
    let record = resolved[0].basis.record().unwrap();
    assert!(matches!(fates(record)[2].1, Fate::FarBehind), "{:?}", fates(record));
}

#[test]
fn without_budget_static_priority_stays_and_the_reason_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default().tune;
    (config.mode, config.budget_ms) = (TuneMode::Cached, 0);
    let tuner = Tuner::with_directories(&config, machine("test"), Some(dir.path()), None);
    let all = [contender("slow", Alter::Slower(2.0)), contender("fast", Alter::Nothing)];
    let resolved = tuner.resolve(&[gemv()], &all, WARM, Effort::Missing, |_| ());
    assert_eq!(resolved[0].chosen, 0);
    assert!(matches!(&resolved[0].basis, Basis::Static { reason } if reason.contains("budget")), "{resolved:?}");
    assert!(tuner.known(&gemv()).is_none() && !tuner.cache().unwrap().path().exists());
}

#[test]
fn the_next_process_finds_the_winner_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let all = [contender("slow", Alter::Slower(1.4)), contender("fast", Alter::Nothing)];
    let first = tuner(Some(dir.path())).resolve(&[gemv()], &all, WARM, Effort::Missing, |_| ());
    assert!(matches!(first[0].basis, Basis::Measured { .. }), "{first:?}");
    // The order of candidates is another now; the winner is the same.
    let all = [contender("fast", Alter::Nothing), contender("slow", Alter::Slower(1.4))];
    let tuner = tuner(Some(dir.path()));
    let second = tuner.resolve(&[gemv()], &all, WARM, Effort::Known, |_| ());
    assert!(matches!(second[0].basis, Basis::Cached { .. }), "{second:?}");
    assert_eq!(second[0].chosen, 0);
    assert!(tuner.spent().is_zero());
    // Whoever is not there today cannot win today.
    let alone = [contender("slow", Alter::Slower(1.4)), contender("slow", Alter::Nothing)];
    assert_eq!(tuner.resolve(&[gemv()], &alone, WARM, Effort::Known, |_| ())[0].chosen, 0);
}

#[test]
fn a_new_candidate_is_measured_against_the_leader_only() {
    let tuner = tuner(None);
    let two = [contender("slow", Alter::Slower(1.4)), contender("fast", Alter::Nothing)];
    let before = tuner.resolve(&[gemv()], &two, WARM, Effort::Unlimited, |_| ());
    let slow_before = before[0].basis.record().unwrap().measured[0].clone();
    let three = [two[0].clone(), two[1].clone(), contender("new", Alter::Slower(1.3))];
    let after = tuner.resolve(&[gemv()], &three, WARM, Effort::Unlimited, |_| ());
    let Basis::Measured { record } = &after[0].basis else { panic!("{after:?}") };
    assert_eq!(record.winner.name(), "fast");
    assert_eq!(record.measured.iter().find(|m| m.who.name() == "slow"), Some(&slow_before));
    assert!(record.measured.iter().any(|m| m.who.name() == "new"));
    // And then all is known.
    let again = tuner.resolve(&[gemv()], &three, WARM, Effort::Unlimited, |_| ());
    assert!(matches!(again[0].basis, Basis::Cached { .. }));
}

#[test]
fn a_kernel_that_was_rebuilt_is_measured_again() {
    let tuner = tuner(None);
    let mut all = [contender("slow", Alter::Slower(1.4)), contender("fast", Alter::Nothing)];
    tuner.resolve(&[gemv()], &all, WARM, Effort::Unlimited, |_| ());
    all[1].build = "another compiler".into();
    let after = tuner.resolve(&[gemv()], &all, WARM, Effort::Known, |_| ());
    assert!(matches!(after[0].basis, Basis::Static { .. }), "{after:?}");
}

#[test]
fn a_system_cache_seeds_and_is_never_written() {
    let (system, user) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = [contender("slow", Alter::Slower(1.4)), contender("fast", Alter::Nothing)];
    let measured = tuner(Some(system.path())).resolve(&[gemv()], &all, WARM, Effort::Unlimited, |_| ());
    assert_eq!(measured[0].chosen, 1, "{measured:?}");
    let file = Cache::new(system.path(), machine("test")).path();
    let before = std::fs::read(&file).unwrap();
    let mut config = Config::default().tune;
    config.mode = TuneMode::Cached;
    let seeded = Tuner::with_directories(&config, machine("test"), Some(user.path()), Some(system.path()));
    assert_eq!(seeded.resolve(&[gemv()], &all, WARM, Effort::Known, |_| ())[0].chosen, 1);
    seeded.strike(&gemv(), "fast", "test");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn a_winner_that_fails_is_struck_out_and_the_next_does_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let tuner = Arc::new(tuner(Some(dir.path())));
    let broken = Arc::new(AtomicBool::new(false));
    let all = [contender("slow", Alter::Slower(1.4)), contender("fast", Alter::Fails(broken.clone()))];
    let resolved = tuner.resolve(&[gemv()], &all, WARM, Effort::Unlimited, |_| ());
    assert_eq!(resolved[0].chosen, 1, "{resolved:?}");
    let plan = plan(class(gemv()), &resolved, &all).unwrap();
    assert_eq!((plan.group.as_slice(), plan.owner), (&[0, 1][..], 0), "one packing serves both");
    let host = HostContext::inline();
    let routed = Routed::new(all.to_vec(), only(plan), tuner.clone(), false, &host).unwrap();
    let subject = Subject::new(class(gemv()), 64).unwrap();
    let packed = routed.pack(&subject.weight).unwrap();
    let mut stream = routed.open_stream().unwrap();
    let (q, scales) = (vec![1i8; 1024], [1.0f32]);
    let mut run = |epilogue| {
        let mut y = vec![0.0; 64];
        let x = Activations::Int8 { q: In::Host(&q), scales: In::Host(&scales) };
        let op = Op::MatMul { w: &packed, x, y: Output::F32(Out::Host(&mut y)), epilogue };
        stream.submit(op.check().unwrap()).map(|_| y)
    };
    let right = run(Epilogue::Store).unwrap();
    assert!(right.iter().any(|v| *v != 0.0));
    broken.store(true, Ordering::Relaxed);
    assert_eq!(run(Epilogue::Store).unwrap(), right);
    assert!(tuner.known(&gemv()).is_none());
    assert!(!tuner.cache().unwrap().load().contains_key(&gemv().id()));
    // Rerouted: the broken one is not even asked.
    broken.store(false, Ordering::Relaxed);
    assert_eq!(run(Epilogue::Store).unwrap(), right);
}

/// An embedding that serves as the head too is packed by whoever wins the head's product, and rows are gathered from it.
#[test]
fn rows_are_gathered_from_a_table_by_whoever_packed_it() {
    let entry = |id| tersor_core::entries().find(|e| e.id == id).unwrap();
    let open = |id| (entry(id).open)(&HostContext::inline());
    // Where AVX2 is missing there are no two backends to tell apart; TERSOR_REQUIRE says where that must not be.
    let Ok(first) = open("cpu-avx2") else {
        let required = std::env::var("TERSOR_REQUIRE").unwrap_or_default();
        return assert!(!required.split(',').any(|isa| isa == "avx2"), "AVX2 is required and missing");
    };
    let all = vec![Contender::new(first), Contender::new(open("scalar").unwrap())];
    let key = Key::of(&OpSpec::matmul(Format::BF16, 1, 64, 256), 1).unwrap();
    let resolved = Resolved { key, chosen: 1, basis: Basis::Measured { record: Arc::new(won_by(&all, 1, key)) } };
    let plan = plan(class(key), &[resolved], &all).unwrap();
    assert_eq!(plan.owner, 1);
    let host = HostContext::inline();
    let routed = Routed::new(all, only(plan), Arc::new(tuner(None)), false, &host).unwrap();
    let table = routed.pack(&Subject::new(class(key), 64).unwrap().weight).unwrap();
    assert_eq!(table.tag().backend, "scalar");
    let mut y = vec![0.0; 256];
    let op = Op::GatherRows { table: &table, ids: In::Host(&[3]), y: Out::Host(&mut y) };
    let ran = routed.open_stream().unwrap().submit(op.check().unwrap()).unwrap();
    assert!(ran.kernel.contains("scalar") && y.iter().any(|v| *v != 0.0), "{ran:?}");
}

/// A record in which candidate `winner` won, and the others are half as fast.
fn won_by(all: &[Contender], winner: usize, key: Key) -> Record {
    let measured = all.iter().enumerate().map(|(c, contender)| {
        let (fate, ratio) = if c == winner { (Fate::Won, 1.0) } else { (Fate::Slower, 2.0) };
        let who = contender.identity(&key.spec()).unwrap();
        Measured { who, median_ns: Some(ratio), ratio: Some(ratio), margin: Some(0.0), samples: 9, fate }
    });
    let measured: Vec<_> = measured.collect();
    Record { winner: measured[winner].who.clone(), rows: 64, cold_bytes: 0, measured }
}

#[test]
fn what_is_wrong_with_the_caller_is_no_fault_of_the_winner() {
    let scalar = contender("scalar", Alter::Nothing);
    let tuner = Arc::new(tuner(None));
    let members = vec![scalar.clone(), contender("other", Alter::Nothing)];
    let routed = Routed::new(members, Plans::new(Table::default()), tuner, false, &HostContext::inline()).unwrap();
    let spec = OpSpec::matmul(Format::I2S, 1, 64, 1024);
    assert_eq!(routed.supports(&spec), scalar.backend.supports(&spec));
    let no = OpSpec::GatherRows { format: Format::I2S, rows: 1, cols: 128 };
    assert!(!routed.supports(&no).is_yes());
}

/// The limits are those of the issue; a cached start is four products known and read from disk.
#[test]
fn a_cached_start_takes_less_than_five_milliseconds_and_measuring_keeps_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let all = [contender("slow", Alter::Slower(1.4)), contender("fast", Alter::Nothing)];
    let keys = [1, 5, 9, 17].map(gemm);
    tuner(Some(dir.path())).resolve(&keys, &all, WARM, Effort::Unlimited, |_| ());
    let start = || {
        let begun = std::time::Instant::now();
        let resolved = tuner(Some(dir.path())).resolve(&keys, &all, WARM, Effort::Known, |_| ());
        assert!(resolved.iter().any(|r| matches!(r.basis, Basis::Cached { .. })), "{resolved:?}");
        begun.elapsed()
    };
    // The best of ten: the machine may be busy with something else.
    let best = (0..10).map(|_| start()).min().unwrap();
    assert!(best.as_millis() < 5, "{best:?}");

    let mut config = Config::default().tune;
    (config.mode, config.budget_ms) = (TuneMode::Cached, 60);
    let many: Vec<Key> = [64, 128, 256, 512].map(gemm).into();
    let spend = || {
        let tuner = Tuner::with_directories(&config, machine("test"), None, None);
        tuner.resolve(&many, &all, WARM, Effort::Missing, |_| ());
        tuner.spent()
    };
    let least = (0..5).map(|_| spend()).min().unwrap();
    assert!(least.as_millis() <= 66, "{least:?}");
}

#[test]
fn fewer_threads_win_where_more_are_slower() {
    let tuner = tuner(None);
    let all = [contender("x", Alter::Slower(1.4)), contender("x", Alter::Nothing).with_threads(1)];
    let resolved = tuner.resolve(&[gemv()], &all, WARM, Effort::Unlimited, |_| ());
    let record = resolved[0].basis.record().unwrap();
    assert_eq!((record.winner.name().as_str(), resolved[0].chosen), ("x@1t", 1), "{record:?}");
    // Both use one packing, so that another number of rows may go to all threads.
    let plan = plan(class(gemv()), &resolved, &all).unwrap();
    assert_eq!(plan.group, [0, 1]);
}

#[test]
fn thread_counts_are_candidates() {
    let config = Config::from_toml_str("threads.count = 4\ntune.mode = \"off\"").unwrap();
    let registry = crate::Registry::build(config).unwrap();
    let found = registry.found().iter().find(|f| f.entry.id == "scalar").unwrap();
    let eligible = [(found, registry.open("scalar").unwrap())];
    let names: Vec<_> = registry.contenders(&eligible, &[]).iter().map(Contender::name).collect();
    // Of the four, as many as the machine has processors for.
    let pool = registry.host().executor().threads();
    assert_eq!(pool, tersor_pool::Pool::available().min(4));
    let want =
        [&["scalar"][..], &["scalar", "scalar@1t"], &["scalar", "scalar@1t"], &["scalar", "scalar@2t", "scalar@1t"]];
    assert_eq!(names, want[pool - 1]);
    let counts = |threads| super::select::fewer(threads).collect::<Vec<_>>();
    assert_eq!([1, 2, 4, 12].map(counts), [vec![], vec![1], vec![2, 1], vec![6, 3, 1]]);
}

/// The same gate as for products: the fastest that is right wins, and a wrong one is told why.
#[test]
fn other_ops_are_measured_too_and_wrong_kernels_never_win() {
    let shape = tersor_core::Shape::new(64, 512).unwrap();
    let attention = OpSpec::Attention { rows: 1, heads: 8, kv_heads: 2, head_dim: 64, capacity: 256, span: None };
    let specs = [
        OpSpec::Quantize { from: DType::F32, format: Format::I2S, shape },
        OpSpec::Dequantize { format: Format::TQ2_0, to: DType::F32, shape },
        OpSpec::RmsNormQuantize { rows: 4, cols: 1024 },
        OpSpec::QuantizeRows { rows: 4, cols: 1024 },
        attention,
    ];
    let all =
        [contender("wrong", Alter::Wrong), contender("slow", Alter::Slower(1.4)), contender("fast", Alter::Nothing)];
    for spec in specs {
        let key = Key::of(&spec, 1).unwrap();
        let resolved = tuner(None).resolve(&[key], &all, WARM, Effort::Unlimited, |_| ());
        let Basis::Measured { record } = &resolved[0].basis else { panic!("{key}: {:?}", resolved[0].basis) };
        assert_eq!(record.winner.name(), "fast", "{key}: {record:?}");
        let fate = &record.measured[0].fate;
        assert!(
            matches!(fate, Fate::Barred { reason } if reason.contains("differs from the oracle")),
            "{key}: {fate:?}"
        );
    }
}

/// The second is the winner of quantization alone, and gets that alone; where it fails, the first does it.
#[test]
fn an_op_goes_to_its_winner_and_falls_back_where_that_fails() {
    let broken = Arc::new(AtomicBool::new(false));
    let all = vec![contender("first", Alter::Nothing), contender("second", Alter::Fails(broken.clone()))];
    let shape = tersor_core::Shape::new(4, 128).unwrap();
    let spec = OpSpec::Quantize { from: DType::F32, format: Format::I2S, shape };
    let tuner = Arc::new(tuner(None));
    let table = Table { classes: Vec::new(), tasks: vec![(spec, 1)] };
    let routed = Routed::new(all, Plans::new(table), tuner, false, &HostContext::inline()).unwrap();
    let w: Vec<f32> = (0..shape.len()).map(|i| i as f32 - 200.0).collect();
    let len = Format::I2S.encoded_len(shape).unwrap();
    let quantize = |broken_now: bool| {
        broken.store(broken_now, Ordering::Relaxed);
        let (mut codes, mut scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
        routed.quantize(tersor_core::Floats::F32(&w), shape, Format::I2S, &mut codes, &mut scales).map(|_| codes)
    };
    let right = quantize(false).unwrap();
    assert_eq!(quantize(true).unwrap(), right, "the first does it");
    let mut y = vec![0.0; 4];
    broken.store(true, Ordering::Relaxed);
    let add = Op::Add { x: In::Host(&[1.0; 4]), y: Out::Host(&mut y) };
    routed.open_stream().unwrap().submit(add.check().unwrap()).unwrap();
    assert_eq!(y, [1.0; 4], "what was not measured is the first's");
}
