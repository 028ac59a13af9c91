//! Every kernel at least once, in shapes that choose it, and each result bit by bit the CPU's. Short enough for
//! compute-sanitizer. `covered` in `main.rs` says which kernels nothing has launched.

use std::sync::Arc;

use tersor_backend_cuda::CudaBackend;
use tersor_core::codec::blocks;
use tersor_core::reference::math::rope_tables;
use tersor_core::{
    Activations, Buffer, Bytes, Download, Element, Epilogue, Error, Floats, Format, GroupSize, HostContext, Op, Output,
    PackedWeight, QuantBackend, SampleParams, Shape, Span, Stream, Weight, bf16, codec, f16,
};

use crate::bench::{i2s, noise};
use crate::model;

/// What an op gave, as bits; `exact`: in the order of `docs/numerics.md`.
struct Result {
    name: String,
    bits: Vec<u32>,
    exact: bool,
}

/// A backend at work.
struct Work<'b> {
    backend: &'b dyn QuantBackend,
    stream: Box<dyn Stream>,
    results: Vec<Result>,
    exact: bool,
}

pub(crate) fn run(gpu: &Arc<CudaBackend>) -> bool {
    let (here, there) = (all(&**gpu), all(&*model::cpu()));
    let mut ok = here.len() == there.len();
    for (a, b) in here.iter().zip(&there) {
        let same = a.name == b.name && if a.exact { a.bits == b.bits } else { near(&a.bits, &b.bits) };
        if !same {
            let first = a.bits.iter().zip(&b.bits).position(|(a, b)| a != b);
            println!("{}: DIFFERENT from element {first:?} on", a.name);
        }
        ok &= same;
    }
    let exact = here.iter().filter(|r| r.exact).count();
    println!("{} results, {exact} of them in the order: {}", here.len(), if ok { "as the CPU's" } else { "DIFFERENT" });
    ok
}

/// Floats that differ by little of the largest.
fn near(a: &[u32], b: &[u32]) -> bool {
    let largest = b.iter().map(|b| f32::from_bits(*b).abs()).fold(0.0, f32::max);
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs() <= 1e-4 * largest)
}

fn work(backend: &dyn QuantBackend) -> Work<'_> {
    Work { backend, stream: backend.open_stream().unwrap(), results: Vec::new(), exact: true }
}

fn all(backend: &dyn QuantBackend) -> Vec<Result> {
    let mut w = work(backend);
    products(&mut w);
    many_rows(&mut w);
    for rows in [1, 3, 8, 70] {
        // The second time, memory for staged rows is there, and nothing comes between a norm and its products.
        layer(&mut w, rows, SMALL);
        layer(&mut w, rows, SMALL);
    }
    // Of one row, whose attention is one kernel with q, k and v where a layer is before it: with one chunk of positions, with more
    // than the warps of a block take at once, and than they ask for before they wait; and with a cache too long for it.
    for (first, capacity) in [(20, 96), (200, 448), (447, 448), (1000, 1100)] {
        layer(&mut w, 1, Layer { heads: 8, kv_heads: 2, dim: 128, first, capacity, table: capacity });
    }
    norms(&mut w);
    guesses(&mut w);
    attention(&mut w);
    draws(&mut w);
    tables(&mut w);
    small_ops(&mut w);
    weights(&mut w);
    copies(&mut w);
    w.results
}

impl Work<'_> {
    fn buffer<T: Element>(&mut self, values: &[T]) -> Buffer<T> {
        let mut b = Buffer::alloc(self.backend, values.len()).unwrap();
        b.write(&mut *self.stream, values).unwrap();
        b
    }
    fn floats(&mut self, n: usize) -> Buffer<f32> {
        self.buffer(&noise(n))
    }
    fn codes(&mut self, n: usize) -> Buffer<i8> {
        self.buffer(&noise(n).iter().map(|v| (v * 127.5).floor() as i8).collect::<Vec<_>>())
    }
    /// Scales of activations that differ by a few powers of two.
    fn scales(&mut self, rows: usize) -> Buffer<f32> {
        self.buffer(&noise(rows).iter().map(|v| (5.0 * v).exp2()).collect::<Vec<_>>())
    }
    fn pack(&self, w: &Weight) -> PackedWeight {
        self.backend.pack(w).unwrap()
    }
    fn run(&mut self, op: Op<'_>) {
        let op = op.check().unwrap();
        self.exact = self.backend.follows_order(&op.spec());
        self.stream.submit(op).unwrap();
    }
    fn take<T: Element>(&mut self, name: String, from: &Buffer<T>, bits: impl Fn(T) -> u32) {
        let mut values = vec![T::zeroed(); from.len()];
        from.read(&mut *self.stream, 0, &mut values).unwrap();
        self.results.push(Result { name, bits: values.into_iter().map(bits).collect(), exact: self.exact });
    }
    fn take_floats(&mut self, name: String, from: &Buffer<f32>) {
        self.take(name, from, f32::to_bits);
    }
    fn multiply(&mut self, w: &PackedWeight, (q, s): (&Buffer<i8>, &Buffer<f32>), y: &mut Buffer<f32>, e: Epilogue) {
        let m = y.len() / w.shape().rows();
        let x = Activations::Int8 { q: q.input_range(0..m * w.shape().cols()), scales: s.input_range(0..m) };
        self.run(Op::MatMul { w, x, y: Output::F32(y.output()), epilogue: e });
    }
    fn norm(&mut self, x: &Buffer<f32>, weight: &Buffer<f32>, q: &mut Buffer<i8>, scales: &mut Buffer<f32>) {
        let q = q.output_range(0..x.len());
        self.run(Op::RmsNormQuantize { x: x.input(), w: weight.input(), eps: 1e-5, q, scales: scales.output() });
    }
}

/// Few rows times every number of tiles that has a kernel, aligned and not, one weight and three.
fn products(w: &mut Work<'_>) {
    for k in [384, 2560, 4096, 6912, 8448] {
        let n = 40;
        let packed = w.pack(&i2s(Shape::new(n, k).unwrap(), k as u64));
        for m in [1, 2, 3, 4, 8, 16, 32, 64] {
            let (q, s) = (w.codes(m * k + 4), w.scales(m));
            for e in [Epilogue::Store, Epilogue::Add] {
                let mut y = w.floats(m * n);
                w.multiply(&packed, (&q, &s), &mut y, e);
                w.take_floats(format!("{m} x {n} x {k}, {e:?}"), &y);
            }
            let mut y = w.buffer(&vec![7i32; m * n]);
            let x = Activations::Int8 { q: q.input_range(4..m * k + 4), scales: s.input() };
            w.run(Op::MatMul { w: &packed, x, y: Output::I32(y.output()), epilogue: Epilogue::Add });
            w.take(format!("{m} x {n} x {k}, sums"), &y, |v: i32| v as u32);
        }
    }
    let three = [40, 16, 24].map(|n| w.pack(&i2s(Shape::new(n, 2560).unwrap(), n as u64)));
    for count in [2, 3] {
        let (q, s) = (w.codes(2560), w.scales(1));
        let mut y = [w.floats(40), w.floats(16), w.floats(24)];
        for (packed, y) in three.iter().zip(&mut y).take(count) {
            w.multiply(packed, (&q, &s), y, Epilogue::Store);
        }
        y.iter().take(count).for_each(|y| w.take_floats(format!("one of {count} products"), y));
    }
    several_scales(w);
}

/// Weights whose rows have several scales: blocks of every length, as few as one of 64 lanes has and more than twice as many as
/// there are lanes, activations that 16-byte loads can read and others; then fewer and more rows than blocks of threads have.
fn several_scales(w: &mut Work<'_>) {
    let rows = [(1, Epilogue::Add), (3, Epilogue::Store), (9, Epilogue::Store), (32, Epilogue::Add)];
    let rows: Vec<_> = rows.into_iter().chain([(33, Epilogue::Store), (100, Epilogue::Add)]).collect();
    for (group, cols) in [
        (GroupSize::G64, [64, 192, 832, 4480, 8384]),
        (GroupSize::G128, [128, 384, 2560, 6912, 16_768]),
        (GroupSize::G256, [256, 768, 2560, 6912, 17_152]),
    ] {
        let format = Format::I2SGroup(group);
        for k in cols {
            scaled_products(w, format, (100, k), &rows);
        }
        for k in [256, 4352] {
            scaled_products(w, format, (4300, k), &[(1, Epilogue::Store)]);
        }
        scaled_products(w, format, (5, 256), &[(1, Epilogue::Store), (64, Epilogue::Add)]);
        scaled_products(w, format, (64, 512), &[(16, Epilogue::Store), (128, Epilogue::Store)]);
    }
}

fn scaled_products(w: &mut Work<'_>, format: Format, (n, k): (usize, usize), rows: &[(usize, Epilogue)]) {
    let shape = Shape::new(n, k).unwrap();
    let packed = w.pack(&codec::quantize(Floats::F32(&noise(shape.len())), shape, format).unwrap());
    for &(m, e) in rows {
        for skip in [0, 4] {
            let (q, s, mut y) = (w.codes(skip + m * k), w.scales(m), w.floats(m * n));
            let x = Activations::Int8 { q: q.input_range(skip..skip + m * k), scales: s.input() };
            w.run(Op::MatMul { w: &packed, x, y: Output::F32(y.output()), epilogue: e });
            w.take_floats(format!("{m} x {n} x {k}, {format}, from {skip}"), &y);
        }
    }
}

/// More rows than one block has, in shapes that suit each tile on a GPU of 132 multiprocessors.
fn many_rows(w: &mut Work<'_>) {
    for (m, n, k) in [(65, 200, 384), (65, 13_312, 256), (65, 17_408, 256), (770, 4736, 256)] {
        let packed = w.pack(&i2s(Shape::new(n, k).unwrap(), 3));
        let (q, s) = (w.codes(m * k), w.scales(m));
        for e in [Epilogue::Store, Epilogue::Add] {
            let mut y = w.floats(m * n);
            w.multiply(&packed, (&q, &s), &mut y, e);
            w.take_floats(format!("{m} x {n} x {k}, {e:?}"), &y);
        }
        let mut y = w.buffer(&vec![7i32; m * n]);
        let x = Activations::Int8 { q: q.input(), scales: s.input() };
        w.run(Op::MatMul { w: &packed, x, y: Output::I32(y.output()), epilogue: Epilogue::Store });
        w.take(format!("{m} x {n} x {k}, sums"), &y, |v: i32| v as u32);
    }
}

/// Heads, the cache of a layer, positions that rotation has tables for, and the position of the first row.
#[derive(Clone, Copy)]
struct Layer {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    first: u32,
    capacity: usize,
    table: usize,
}
const SMALL: Layer = Layer { heads: 4, kv_heads: 2, dim: 64, first: 20, capacity: 96, table: 96 };

/// What the operations of a layer have written.
struct Written {
    /// Rows: the sum, q, k, v, the caches, what attention gave, gate, up, and their product.
    floats: Vec<(&'static str, Buffer<f32>)>,
    scales: Buffer<f32>,
    int8: Buffer<i8>,
}

/// The operations of a layer, and what they gave.
fn layer(w: &mut Work<'_>, m: usize, layer: Layer) {
    let written = run_layer(w, m, layer);
    let of = format!("of a layer of {m} rows, {} heads, at {}", layer.heads, layer.first);
    for (name, floats) in &written.floats {
        w.take_floats(format!("{name} {of}"), floats);
    }
    w.take_floats(format!("scales {of}"), &written.scales);
    w.take(format!("int8 {of}"), &written.int8, |v: i8| v as u32);
}

/// The operations of a layer in their order, which groups of them go through one kernel; twice, as layers follow each other.
fn run_layer(w: &mut Work<'_>, m: usize, layer: Layer) -> Written {
    let Layer { heads, kv_heads, dim, first, capacity, table } = layer;
    let (hidden, ffn) = (512, 3072);
    let (width, kv) = (heads * dim, kv_heads * dim);
    let pack = |n, k| w.pack(&i2s(Shape::new(n, k).unwrap(), (n + k) as u64));
    let [wq, wk, wv, wo] = [(width, hidden), (kv, hidden), (kv, hidden), (hidden, width)].map(|(n, k)| pack(n, k));
    let [gate_w, up_w, down] = [(ffn, hidden), (ffn, hidden), (hidden, ffn)].map(|(n, k)| pack(n, k));
    let (mut x, norm, wide) = (w.floats(m * hidden), w.floats(hidden), w.floats(ffn));
    let narrow = w.floats(width);
    let (mut q8, mut s) = (w.codes(m * ffn), w.scales(m));
    let (mut q, mut k, mut v) = (w.floats(m * width), w.floats(m * kv), w.floats(m * kv));
    let (mut gate, mut up, mut gated) = (w.floats(m * ffn), w.floats(m * ffn), w.floats(m * ffn));
    let (mut k_cache, mut v_cache) = (w.floats(capacity * kv), w.floats(capacity * kv));
    let mut y = w.floats(m * width);
    let (cos, sin) = rope_tables(10_000.0, dim, table);
    let (cos, sin) = (w.buffer(&cos), w.buffer(&sin));
    let positions = w.buffer(&(0..m as u32).map(|r| first + r).collect::<Vec<_>>());
    for _ in 0..2 {
        w.norm(&x, &norm, &mut q8, &mut s);
        for (weight, y) in [(&wq, &mut q), (&wk, &mut k), (&wv, &mut v)] {
            w.multiply(weight, (&q8, &s), y, Epilogue::Store);
        }
        for x in [&mut q, &mut k] {
            let (x, positions) = (x.output(), positions.input());
            w.run(Op::Rope { x, head_dim: dim, positions, cos: cos.input(), sin: sin.input() });
        }
        let (at, k_out, v_out) = (positions.input(), k_cache.output(), v_cache.output());
        w.run(Op::KvWrite { k: k.input(), v: v.input(), width: kv, positions: at, k_cache: k_out, v_cache: v_out });
        let (at, k_in, v_in) = (positions.input(), k_cache.input(), v_cache.input());
        w.run(Op::Attention {
            q: q.input(),
            heads,
            kv_heads,
            head_dim: dim,
            positions: at,
            span: None,
            k_cache: k_in,
            v_cache: v_in,
            y: y.output(),
        });
        w.norm(&y, &narrow, &mut q8, &mut s);
        w.multiply(&wo, (&q8, &s), &mut x, Epilogue::Add);
        w.norm(&x, &norm, &mut q8, &mut s);
        w.multiply(&gate_w, (&q8, &s), &mut gate, Epilogue::Store);
        w.multiply(&up_w, (&q8, &s), &mut up, Epilogue::Store);
        w.run(Op::ReluSquaredMul { gate: gate.input(), up: up.input(), y: gated.output() });
        w.norm(&gated, &wide, &mut q8, &mut s);
        w.multiply(&down, (&q8, &s), &mut x, Epilogue::Add);
    }
    let rows = [("x", x), ("q", q), ("k", k), ("v", v), ("keys", k_cache), ("values", v_cache), ("attended", y)];
    let floats = rows.into_iter().chain([("gate", gate), ("up", up), ("gated", gated)]).collect();
    Written { floats, scales: s, int8: q8 }
}

/// A position that the cache has no room for, or rotation no table, in device memory, where only kernels see it: an error that
/// names the operand, nothing is written for it to the cache or as attention, and the next layer is as if nothing had been.
pub(crate) fn position_out_of_range(_: &CudaBackend) -> std::result::Result<(), String> {
    // One of its own, which has launched nothing.
    let gpu = tersor_backend_cuda::open_device(0, &HostContext::inline()).map_err(|e| e.to_string())?;
    let ran = |kernel| gpu.kernels().find(|(name, _)| *name == kernel).map(|(_, ran)| ran);
    let joint = Layer { heads: 8, kv_heads: 2, dim: 128, first: 447, capacity: 448, table: 448 };
    for (first, capacity, table) in
        [(448, 448, 448), (449, 448, 448), (u32::MAX, 448, 448), (448, 448, 512), (420, 448, 400), (420, 400, 448)]
    {
        let what = format!("position {first}, cache of {capacity}, tables of {table}");
        let mut w = work(&gpu);
        let written = run_layer(&mut w, 1, Layer { first, capacity, table, ..joint });
        match w.stream.synchronize() {
            Err(Error::Device { message, .. })
                if message.starts_with("positions: entry 0") && message.contains("out of range") => {}
            Err(e) => return Err(format!("{what}: FAILED with another error: {e}")),
            Ok(()) => return Err(format!("{what}: FAILED: no error")),
        }
        // Its kernel is the one of compute capability 9.0, which has those of stage_rows' module too.
        if ran("stage_rows").is_some() && ran("norm_qkv_attention") != Some(true) {
            return Err(format!("{what}: FAILED: q, k, v and attention were not one kernel"));
        }
        for (name, floats) in written.floats.iter().filter(|(name, _)| ["keys", "values", "attended"].contains(name)) {
            // Where rotation alone cannot be done, attention that is a kernel of its own can.
            if first < capacity as u32 && *name == "attended" {
                continue;
            }
            w.take_floats((*name).into(), floats);
            let untouched = noise(floats.len()).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            if w.results.pop().is_none_or(|r| r.bits != untouched) {
                return Err(format!("{what}: FAILED: {name} were written"));
            }
        }
        let cpu = model::cpu();
        let [here, there] = [&gpu as &dyn QuantBackend, &*cpu].map(|backend| {
            let mut w = work(backend);
            layer(&mut w, 1, joint);
            w.results
        });
        if here.len() != there.len() {
            return Err(format!("after {what}: FAILED: {} results instead of {}", here.len(), there.len()));
        }
        if let Some((a, _)) = here.iter().zip(&there).find(|(a, b)| a.bits != b.bits) {
            return Err(format!("after {what}: FAILED: {} differs from the CPU's", a.name));
        }
    }
    Ok(())
}

/// Norms that nothing follows, with a gate and without, of lengths that each kernel is for.
fn norms(w: &mut Work<'_>) {
    for (rows, cols) in [(3, 100), (3, 2560), (3, 4096), (3, 7300), (1, 2560), (70, 512)] {
        let (x, up, weight) = (w.floats(rows * cols), w.floats(rows * cols), w.floats(cols));
        let (mut y, mut gated, mut s) = (w.floats(rows * cols), w.floats(rows * cols), w.scales(rows));
        let mut q = w.codes(rows * cols);
        w.norm(&x, &weight, &mut q, &mut s);
        w.take(format!("norm of {rows} x {cols}"), &q, |v: i8| v as u32);
        w.take_floats(format!("its scales, {rows} x {cols}"), &s);
        w.run(Op::RmsNorm { x: x.input(), w: weight.input(), eps: 1e-5, y: y.output() });
        w.take_floats(format!("norm of {rows} x {cols}, not quantized"), &y);
        w.run(Op::ReluSquaredMul { gate: x.input(), up: up.input(), y: gated.output() });
        w.norm(&gated, &weight, &mut q, &mut s);
        w.take(format!("gate and norm of {rows} x {cols}"), &q, |v: i8| v as u32);
        w.run(Op::QuantizeRows { x: x.input(), cols, q: q.output(), scales: s.output() });
        w.take(format!("{rows} x {cols} quantized"), &q, |v: i8| v as u32);
        w.take_floats(format!("scales of {rows} x {cols} quantized"), &s);
    }
}

/// Rows whose norm is made by the blocks of the product that takes it, which guess the int8 row and check the guess: rows that
/// have values near a half of the int8 grid, as every seventh has, and rows for which the guess does not hold: many equal
/// values, zeros, magnitudes at the clamp of the scale and far out, and weights of norms beyond 2^40.
fn guesses(w: &mut Work<'_>) {
    for k in [2560, 6912] {
        let n = 40;
        let packed = w.pack(&i2s(Shape::new(n, k).unwrap(), k as u64));
        let values = noise(k + 4 * 64);
        let ordinary = |i: usize| values[4 * i..4 * i + k].to_vec();
        let mut rows: Vec<(String, Vec<f32>, f32)> =
            (0..64).map(|i| (format!("ordinary row {i}"), ordinary(i), 1.0)).collect();
        let scaled = |by: f32| ordinary(1).iter().map(|v| v * by).collect::<Vec<_>>();
        let grid = ordinary(2).iter().map(|v| (v * 254.0).round() / 2.0).collect();
        let spike = (0..k).map(|i| if i == 77 { 3.0 } else { 0.0 }).collect();
        let equal = (0..k).map(|i| if i % 3 == 0 { -0.75 } else { 0.75 }).collect();
        for (name, row, by) in [
            ("zeros", vec![0.0; k], 1.0),
            ("a spike", spike, 1.0),
            ("equal magnitudes", equal, 1.0),
            ("halves of the grid", grid, 1.0),
            ("below the clamp", scaled(1e-9), 1.0),
            ("near the clamp", scaled(3e-8), 1.0),
            ("subnormal squares", scaled(1e-21), 1.0),
            ("large", scaled(1e11), 1.0),
            ("larger", scaled(1e15), 1.0),
            ("heavy norm", ordinary(3), 1e15),
            ("light norm", ordinary(4), 1e-15),
            ("large row, light norm", scaled(1e13), 1e-30),
        ] {
            rows.push((name.into(), row, by));
        }
        for (name, row, by) in rows {
            let x = w.buffer(&row);
            let weight = w.buffer(&noise(k).iter().map(|v| (v + 1.5) * by).collect::<Vec<_>>());
            let (mut q, mut s, mut y) = (w.codes(k), w.scales(1), w.floats(n));
            w.norm(&x, &weight, &mut q, &mut s);
            w.multiply(&packed, (&q, &s), &mut y, Epilogue::Add);
            w.take_floats(format!("{name} of {k}, norm and product"), &y);
            w.take(format!("{name} of {k}, int8"), &q, |v: i8| v as u32);
            w.take_floats(format!("{name} of {k}, scale"), &s);
        }
    }
}

/// One row of heads of both lengths, few, as many as a block, and many; all that came before, and spans.
fn attention(w: &mut Work<'_>) {
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (8, 2, 128), (6, 2, 128)] {
        let capacity = 150;
        let kv = kv_heads * head_dim;
        let (k, v) = (w.floats(capacity * kv), w.floats(capacity * kv));
        for rows in [1, 8, 12, 40] {
            let q = w.floats(rows * heads * head_dim);
            let positions = w.buffer(&(0..rows as u32).map(|r| 149 - 2 * r).collect::<Vec<_>>());
            let first = w.buffer(&(0..rows as u32).map(|r| r % 5).collect::<Vec<_>>());
            for spans in [false, true] {
                let span = spans.then(|| Span { first: first.input(), longest: capacity });
                let mut y = w.floats(q.len());
                let (positions, k_cache, v_cache) = (positions.input(), k.input(), v.input());
                let (q, out) = (q.input(), y.output());
                w.run(Op::Attention { q, heads, kv_heads, head_dim, positions, span, k_cache, v_cache, y: out });
                w.take_floats(format!("attention of {rows} rows of {heads} heads of {head_dim}, spans {spans}"), &y);
            }
        }
    }
}

/// Heads and embeddings in every format.
fn tables(w: &mut Work<'_>) {
    for (format, k) in [
        (Format::F32, 512),
        (Format::F16, 512),
        (Format::BF16, 512),
        (Format::F32, 100),
        (Format::F16, 100),
        (Format::BF16, 100),
        (Format::Q8_0, 512),
        (Format::Q6K, 512),
        (Format::Q8_0, 8192),
        (Format::Q6K, 8192),
    ] {
        let shape = Shape::new(40, k).unwrap();
        let packed = w.pack(&table(shape, format));
        for m in [1, 2, 4, 7, 12, 20, 40] {
            // Rows of 8192 in blocks are too long for the shared memory of more tokens.
            let (x, q, s) = (w.floats(m * k), w.codes(m * k), w.scales(m));
            for epilogue in [Epilogue::Store, Epilogue::Add] {
                let mut y = w.floats(m * 40);
                let int8 = Activations::Int8 { q: q.input(), scales: s.input() };
                let x = if format.is_block() { int8 } else { Activations::F32(x.input()) };
                w.run(Op::MatMul { w: &packed, x, y: Output::F32(y.output()), epilogue });
                w.take_floats(format!("{m} rows times {format} {shape}, {epilogue:?}"), &y);
            }
        }
        let ids = w.buffer(&[0u32, 39, 7]);
        let mut y = w.floats(3 * k);
        w.run(Op::GatherRows { table: &packed, ids: ids.input(), y: y.output() });
        w.take_floats(format!("rows of {format} {shape}"), &y);
    }
}

fn table(shape: Shape, format: Format) -> Weight {
    let values = noise(shape.len());
    let bytes: Vec<u8> = match format {
        Format::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Format::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Format::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => return blocks::quantize(Floats::F32(&values), shape, format).unwrap(),
    };
    Weight::dense(format, shape, Bytes::from(bytes)).unwrap()
}

/// What is alone: rotation, cache, gate, addition, copy, drawing.
fn small_ops(w: &mut Work<'_>) {
    let (rows, dim, width) = (3, 64, 128);
    let (mut x, y) = (w.floats(rows * width), w.floats(rows * width));
    let (cos, sin) = rope_tables(10_000.0, dim, 32);
    let (cos, sin) = (w.buffer(&cos), w.buffer(&sin));
    let positions = w.buffer(&[5u32, 31, 0]);
    let at = positions.input();
    w.run(Op::Rope { x: x.output(), head_dim: dim, positions: at, cos: cos.input(), sin: sin.input() });
    w.take_floats("rotation".into(), &x);
    let (mut k_cache, mut v_cache) = (w.floats(32 * width), w.floats(32 * width));
    let (k, v, positions) = (x.input(), y.input(), positions.input());
    w.run(Op::KvWrite { k, v, width, positions, k_cache: k_cache.output(), v_cache: v_cache.output() });
    w.take_floats("keys".into(), &k_cache);
    w.take_floats("values".into(), &v_cache);
    let mut gated = w.floats(rows * width);
    w.run(Op::ReluSquaredMul { gate: x.input(), up: y.input(), y: gated.output() });
    w.take_floats("gate".into(), &gated);
    w.run(Op::Add { x: y.input(), y: gated.output() });
    w.take_floats("sum".into(), &gated);
    w.run(Op::Copy { x: y.input(), y: gated.output() });
    w.take_floats("copy".into(), &gated);
    let (logits, steps) = (w.floats(2 * 5000), w.buffer(&[4u32, 90]));
    for (temperature, top_k) in [(0.0, None), (0.8, None), (0.7, Some(40)), (1.1, Some(1))] {
        let mut ids = w.buffer(&[9u32, 9]);
        let params = SampleParams { temperature, top_k, seed: 3 };
        w.run(Op::Sample { logits: logits.input(), params, steps: steps.input(), ids: ids.output() });
        w.take(format!("drawn at {temperature}, of {top_k:?}"), &ids, |v: u32| v);
    }
}

/// One id that is drawn by many blocks and brought to the host by the last of them, with what failed in any: two steps begun,
/// and then the first one told, as decoding has it.
fn draws(w: &mut Work<'_>) {
    let vocab = 50_000;
    let steps = w.buffer(&[4u32]);
    let mut ids = [w.buffer(&[9u32]), w.buffer(&[9u32])];
    let mut told = Vec::new();
    let (mut before, mut logits) = (None, Vec::new());
    for round in 0..24 {
        // Good, or NaN in the first block, in the last, and anywhere.
        let bad = [None, Some(0), None, Some(vocab - 1), Some(round * 1999), None][round % 6];
        let mut values = noise(vocab + round)[round..].to_vec();
        bad.into_iter().for_each(|i| values[i] = f32::NAN);
        let temperature = if round % 4 < 2 { 0.0 } else { 0.9 };
        logits.push(w.buffer(&values));
        let params = SampleParams { temperature, top_k: None, seed: round as u64 };
        let to = &mut ids[round % 2];
        let op = Op::Sample { logits: logits[round].input(), params, steps: steps.input(), ids: to.output() };
        let op = op.check().unwrap();
        w.exact = w.backend.follows_order(&op.spec());
        let begun = w.stream.submit(op).and_then(|_| to.begin_read(&mut *w.stream, 0, 1));
        if let Some(earlier) = before.replace(begun) {
            told.extend(drawn(w, earlier));
        }
    }
    told.extend(before.into_iter().flat_map(|last| drawn(w, last)));
    w.results.push(Result { name: "one drawn after another".into(), bits: told, exact: w.exact });
}

/// An id, or what failed and where.
fn drawn(w: &mut Work<'_>, begun: tersor_core::Result<Download>) -> [u32; 2] {
    let mut id = [0];
    match begun.and_then(|copy| Buffer::finish_read(&mut *w.stream, copy, &mut id)) {
        Ok(()) => [0, id[0]],
        Err(Error::NotFinite { what: "logits", index, .. }) => [1, index as u32],
        Err(e) => panic!("{e}"),
    }
}

/// Real weights of every type to every format and back.
fn weights(w: &mut Work<'_>) {
    let shape = Shape::new(3, 4096).unwrap();
    let f32s = noise(shape.len());
    let f16s: Vec<f16> = f32s.iter().map(|v| f16::from_f32(*v)).collect();
    let bf16s: Vec<bf16> = f32s.iter().map(|v| bf16::from_f32(*v)).collect();
    let of = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).collect::<Vec<_>>();
    for format in Format::TERNARY.into_iter().chain(Format::GROUPED) {
        let want = codec::quantize(Floats::F32(&f32s), shape, format).unwrap();
        for (name, values) in [("f32", Floats::F32(&f32s)), ("f16", Floats::F16(&f16s)), ("bf16", Floats::BF16(&bf16s))]
        {
            let (mut codes, mut scales) = (vec![0x5a; want.codes().len()], vec![f32::NAN; want.scales().len()]);
            w.backend.quantize(values, shape, format, &mut codes, &mut scales).unwrap();
            let bits = of(&codes).into_iter().chain(scales.iter().map(|s| s.to_bits())).collect();
            w.results.push(Result { name: format!("{format} from {name}"), bits, exact: true });
        }
        expand(w, &want);
    }
    let shape = Shape::new(40, 512).unwrap();
    for format in [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q6K] {
        expand(w, &table(shape, format));
    }
}

fn expand(w: &mut Work<'_>, weight: &Weight) {
    use tersor_core::FloatsMut;
    let n = weight.shape().len();
    let (mut f32s, mut f16s, mut bf16s) = (vec![f32::NAN; n], vec![f16::NAN; n], vec![bf16::NAN; n]);
    w.backend.dequantize(weight, FloatsMut::F32(&mut f32s)).unwrap();
    w.backend.dequantize(weight, FloatsMut::F16(&mut f16s)).unwrap();
    w.backend.dequantize(weight, FloatsMut::BF16(&mut bf16s)).unwrap();
    let halves = f16s.iter().map(|v| v.to_bits()).chain(bf16s.iter().map(|v| v.to_bits())).map(u32::from);
    let bits = f32s.iter().map(|v| v.to_bits()).chain(halves).collect();
    w.results.push(Result { name: format!("{} as values", weight.format()), bits, exact: true });
}

/// Copies to the host that are finished after the buffer has been written again.
fn copies(w: &mut Work<'_>) {
    w.exact = true;
    let (mut x, other) = (w.floats(300), noise(301));
    let first = x.begin_read(&mut *w.stream, 1, 200).unwrap();
    x.write(&mut *w.stream, &other[1..]).unwrap();
    let second = x.begin_read(&mut *w.stream, 99, 2).unwrap();
    let (mut long, mut short) = ([0.0f32; 200], [0.0f32; 2]);
    Buffer::finish_read(&mut *w.stream, second, &mut short).unwrap();
    Buffer::finish_read(&mut *w.stream, first, &mut long).unwrap();
    let bits = long.iter().chain(&short).map(|v| v.to_bits()).collect();
    w.results.push(Result { name: "copies to the host".into(), bits, exact: true });
}
