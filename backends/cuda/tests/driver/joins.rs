//! q, k, v and their attention are one kernel only where what it reads before the kernel ahead of it is done, positions and caches,
//! cannot be what that one writes; and where attention is of what q, k and v gave.

use tersor_core::reference::math::rope_tables;
use tersor_core::{
    Activations, Buffer, Epilogue, Floats, Format, Op, Output, QuantBackend, Result, Shape, Weight, codec,
};

use crate::{log, logged};

const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 128;
const HIDDEN: usize = 512;
const CAPACITY: usize = 128;

/// What differs from a layer of a model.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Case {
    Nothing,
    /// The kernel before is not one whose results are known.
    UnknownBefore,
    /// It gathers the row, and starts the next one after its own wait.
    GatherBefore,
    /// It writes into the cache of keys.
    CacheBefore,
    /// An op wrote the positions once.
    PositionsWritten,
    /// Attention takes another q.
    OtherQuery,
    /// Attention writes over the row of the norm.
    OverRow,
    /// The cache is longer than a block holds values of.
    LongCache,
}

const CASES: [Case; 8] = [
    Case::Nothing,
    Case::UnknownBefore,
    Case::GatherBefore,
    Case::CacheBefore,
    Case::PositionsWritten,
    Case::OtherQuery,
    Case::OverRow,
    Case::LongCache,
];

pub(crate) fn work(backend: &dyn QuantBackend) -> Result<()> {
    for case in CASES {
        layer(backend, case)?;
    }
    Ok(())
}

/// A product that is added to a row, the norm of this, q, k, v, their rotation, the cache, and attention.
fn layer(backend: &dyn QuantBackend, case: Case) -> Result<()> {
    let (width, kv) = (HEADS * DIM, KV_HEADS * DIM);
    let capacity = if case == Case::LongCache { 640 } else { CAPACITY };
    let values: Vec<f32> = (0..width * HIDDEN).map(|i| (i % 7) as f32 - 3.0).collect();
    let pack = |n: usize| {
        let shape = Shape::new(n, HIDDEN)?;
        backend.pack(&codec::quantize(Floats::F32(&values[..n * HIDDEN]), shape, Format::I2S)?)
    };
    let [wo, wq, wk, wv] = [pack(HIDDEN)?, pack(width)?, pack(kv)?, pack(kv)?];
    let bytes: Vec<u8> = values[..80 * HIDDEN].iter().flat_map(|v| v.to_le_bytes()).collect();
    let table = backend.pack(&Weight::dense(Format::F32, Shape::new(80, HIDDEN)?, tersor_core::Bytes::from(bytes))?)?;
    let mut stream = backend.open_stream()?;
    let floats = |n| Buffer::<f32>::alloc(backend, n);
    let [mut x, mut norm, mut given] = [floats(HIDDEN)?, floats(HIDDEN)?, floats(HIDDEN)?];
    let [mut q, other, mut k, mut v] = [floats(width)?, floats(width)?, floats(kv)?, floats(kv)?];
    let mut y = floats(width.max(2 * HIDDEN))?;
    let [mut k_cache, mut v_cache] = [floats(capacity * kv)?, floats(capacity * kv)?];
    let (cos_table, sin_table) = rope_tables(10_000.0, DIM, capacity);
    let [mut cos, mut sin] = [floats(cos_table.len())?, floats(sin_table.len())?];
    let (mut q8, mut scale) = (Buffer::<i8>::alloc(backend, HIDDEN)?, Buffer::<f32>::alloc(backend, 1)?);
    let (mut positions, mut source) = (Buffer::<u32>::alloc(backend, 1)?, Buffer::<u32>::alloc(backend, 1)?);
    for (to, from) in [(&mut x, &values[..HIDDEN]), (&mut norm, &values[..HIDDEN]), (&mut given, &values[..HIDDEN])] {
        to.write(&mut *stream, from)?;
    }
    cos.write(&mut *stream, &cos_table)?;
    sin.write(&mut *stream, &sin_table)?;
    positions.write(&mut *stream, &[70])?;
    source.write(&mut *stream, &[70])?;
    if case == Case::PositionsWritten {
        let op = Op::Sample {
            logits: given.input(),
            params: tersor_core::SampleParams { temperature: 0.0, top_k: None, seed: 0 },
            steps: source.input(),
            ids: positions.output(),
        };
        stream.submit(op.check()?)?;
    }
    stream.synchronize()?;
    log(&format!("case {case:?}"));
    if case == Case::GatherBefore {
        stream.submit(Op::GatherRows { table: &table, ids: source.input(), y: x.output() }.check()?)?;
    } else if case != Case::UnknownBefore {
        let (q_out, s_out) = (q8.output(), scale.output());
        let op = Op::RmsNormQuantize { x: given.input(), w: norm.input(), eps: 1e-5, q: q_out, scales: s_out };
        stream.submit(op.check()?)?;
        let taken = Activations::Int8 { q: q8.input(), scales: scale.input() };
        let to = if case == Case::CacheBefore { k_cache.output_range(0..HIDDEN) } else { x.output() };
        let op = Op::MatMul { w: &wo, x: taken, y: Output::F32(to), epilogue: Epilogue::Add };
        stream.submit(op.check()?)?;
    }
    let row = if case == Case::OverRow { y.input_range(0..HIDDEN) } else { x.input() };
    let op = Op::RmsNormQuantize { x: row, w: norm.input(), eps: 1e-5, q: q8.output(), scales: scale.output() };
    stream.submit(op.check()?)?;
    for (w, to) in [(&wq, &mut q), (&wk, &mut k), (&wv, &mut v)] {
        let taken = Activations::Int8 { q: q8.input(), scales: scale.input() };
        let op = Op::MatMul { w, x: taken, y: Output::F32(to.output()), epilogue: Epilogue::Store };
        stream.submit(op.check()?)?;
    }
    for x in [&mut q, &mut k] {
        let (cos, sin) = (cos.input(), sin.input());
        let op = Op::Rope { x: x.output(), head_dim: DIM, positions: positions.input(), cos, sin };
        stream.submit(op.check()?)?;
    }
    let (k_out, v_out) = (k_cache.output(), v_cache.output());
    let (k_in, v_in, at) = (k.input(), v.input(), positions.input());
    let op = Op::KvWrite { k: k_in, v: v_in, width: kv, positions: at, k_cache: k_out, v_cache: v_out };
    stream.submit(op.check()?)?;
    let op = Op::Attention {
        q: if case == Case::OtherQuery { other.input() } else { q.input() },
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        positions: positions.input(),
        span: None,
        k_cache: k_cache.input(),
        v_cache: v_cache.input(),
        y: y.output_range(0..width),
    };
    stream.submit(op.check()?)?;
    stream.synchronize()?;
    log("done");
    Ok(())
}

fn launched(calls: &[String], case: Case) -> Vec<String> {
    let begins = format!("case {case:?}");
    let of_case = calls.iter().skip_while(|line| **line != begins).take_while(|line| *line != "done");
    of_case.filter_map(|call| call.strip_prefix("cuLaunchKernelEx ")).map(str::to_owned).collect()
}

#[test]
fn attention_joins_q_k_and_v_only_where_nothing_is_read_too_early() {
    let calls = logged("joins", &[]);
    for case in CASES {
        let joined = matches!(case, Case::Nothing | Case::GatherBefore);
        let kernels = launched(&calls, case);
        assert_eq!(kernels.iter().any(|k| k == "norm_qkv_attention"), joined, "{case:?}: {kernels:?}");
        assert_eq!(kernels.iter().any(|k| k == "attention_cluster"), !joined, "{case:?}: {kernels:?}");
        assert_eq!(kernels.iter().any(|k| k == "norm_qkv"), !joined, "{case:?}: {kernels:?}");
    }
}

#[test]
fn where_no_cluster_of_sixteen_blocks_fits_attention_has_a_kernel_of_its_own() {
    let calls = logged("joins", &[("FAKE_CLUSTERS", "0")]);
    let kernels = launched(&calls, Case::Nothing);
    assert!(kernels.iter().any(|k| k == "attention_cluster"), "{kernels:?}");
    assert!(!kernels.iter().any(|k| k == "norm_qkv_attention"), "{kernels:?}");
}
