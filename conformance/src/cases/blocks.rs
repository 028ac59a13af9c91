//! Heads and embeddings in `q8_0` and `q6_k`: products with int8 activations, embedding rows, real values.

use tersor_core::{Activations, DType, Epilogue, Format, Op, OpSpec, Output, Shape, Support, Weight};

use super::Case;
use super::operands::row_scales;
use crate::compare::{fail, same};
use crate::oracle::blocks::{Table, block, unit};
use crate::oracle::float::f16_bits;
use crate::reals::{RealOperand, Reals, TYPES, type_id};
use crate::rig::{Rig, Stop, Verdict};
use crate::suite::Profile;

/// What a weight and its activations hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// Codes and activations at random, scales of a model.
    Random,
    /// Scales that are zero, negative, denormal, as large as can be.
    Scales,
    /// Every code byte and every activation alike.
    Alike(u8, i8),
}

pub(super) fn cases(profile: Profile) -> Vec<Case> {
    let full = profile == Profile::Full;
    let mut cases = Vec::new();
    for format in Format::BLOCK {
        let step = format.unit();
        let mut shapes = Vec::new();
        // Every number of blocks up to a few registers of sums, and past the 64 lanes.
        let many = if step == 32 { 40 } else { 9 };
        for k in (1..=many).map(|u| u * step).chain([65 * block(format).max(step), 2560, 6912]) {
            shapes.extend([(1, 3, k), (4, 5, k)]);
        }
        for n in [1, 2, 15, 16, 17, 33] {
            shapes.extend([1, 2, 3, 7, 12, 64, 65].map(|m| (m, n, 512)));
        }
        if full {
            shapes.extend([(1, 1000, 2560), (17, 33, 2560), (128, 7, 2560), (1, 2, 27_648), (5, 3, 13_824)]);
        }
        shapes.sort_unstable();
        shapes.dedup();
        cases.extend(shapes.into_iter().map(|shape| product(format, shape, Data::Random, Epilogue::Store, "random")));
        for m in [1, 3] {
            cases.push(product(format, (m, 5, 2560), Data::Random, Epilogue::Add, "add"));
        }
        for m in [1, 2] {
            cases.push(product(format, (m, 17, 2560), Data::Scales, Epilogue::Store, "scale-range"));
        }
        for (what, code, x) in [
            ("zero-codes.low", 0x00, -128),
            ("ones.low", 0xff, -128),
            ("ones.high", 0xff, 127),
            ("lowest.low", 0x80, -128),
            ("highest.high", 0x7f, 127),
        ] {
            for m in [1, 2] {
                cases.push(product(format, (m, 3, 6912), Data::Alike(code, x), Epilogue::Store, what));
            }
        }
        cases.push(Case::new(format!("gather_rows/{format}/random"), move |rig| gather(rig, format)));
        for to in TYPES {
            let id = type_id(to);
            for (rows, cols) in [(1, step), (3, 5 * step), (5, 2560)] {
                cases.push(Case::new(format!("dequantize/{format}/{id}/{rows}x{cols}/random"), move |rig| {
                    dequantize(rig, format, Shape::new(rows, cols)?, to)
                }));
            }
        }
        cases.push(Case::new(format!("supports/{format}/impossible"), move |rig| impossible(rig, format)));
    }
    cases
}

fn table(rig: &mut Rig<'_>, format: Format, shape: Shape, data: Data) -> Result<Table, Stop> {
    let (_, size, d) = unit(format);
    let len = format.encoded_len(shape)?.bytes;
    let mut bytes: Vec<u8> = match data {
        Data::Alike(code, _) => vec![code; len],
        _ => (0..len).map(|_| rig.rng.next() as u8).collect(),
    };
    for part in bytes.chunks_exact_mut(size) {
        let scale = match data {
            Data::Scales => [0.0, -0.0, 6e-8, -3e-6, 65_504.0, -1.0, 1.0e-4][rig.rng.below(7)],
            _ => (1 + rig.rng.below(2000)) as f32 * 1e-5,
        };
        part[d..d + 2].copy_from_slice(&f16_bits(scale).to_le_bytes());
    }
    Ok(Table { format, shape, bytes })
}

fn weight(t: &Table) -> Result<Weight, Stop> {
    Ok(Weight::dense(t.format, t.shape, t.bytes.clone())?)
}

fn product(
    format: Format,
    (m, n, k): (usize, usize, usize),
    data: Data,
    epilogue: Epilogue,
    what: &'static str,
) -> Case {
    Case::new(format!("matmul/{format}/m{m}.n{n}.k{k}/{what}"), move |rig| {
        let table = table(rig, format, Shape::new(n, k)?, data)?;
        let packed = rig.pack(weight(&table)?)?;
        let x = if let Data::Alike(_, x) = data { vec![x; m * k] } else { rig.rng.int8(m * k) };
        let (x_scales, held) = (row_scales(&mut rig.rng, m), rig.rng.gaussians(m * n));
        let adds = epilogue == Epilogue::Add;
        let results = table.product(&x, &x_scales);
        let want: Vec<f32> = results.iter().zip(&held).map(|(y, h)| if adds { h + y } else { *y }).collect();
        let (q, scales) = (rig.hold(&x)?, rig.hold(&x_scales)?);
        let mut y = if adds { rig.hold(&held)? } else { rig.blank(m * n)? };
        rig.submit(Op::MatMul {
            w: &packed,
            x: Activations::Int8 { q: q.input(), scales: scales.input() },
            y: Output::F32(y.output()),
            epilogue,
        })?;
        same("results", n, &rig.read(&y)?, &want)
    })
}

fn gather(rig: &mut Rig<'_>, format: Format) -> Verdict {
    let unit = format.unit();
    for (entries, cols, data) in
        [(1, unit, Data::Random), (5, 3 * unit, Data::Random), (33, 17 * unit, Data::Scales), (40, 2560, Data::Random)]
    {
        let table = table(rig, format, Shape::new(entries, cols)?, data)?;
        let values = table.values();
        let mut ids = vec![entries as u32 - 1, 0];
        ids.extend((0..entries).map(|_| rig.rng.below(entries) as u32));
        let rows = ids.iter().flat_map(|id| values.chunks(cols).nth(*id as usize).unwrap_or_default());
        let want: Vec<f32> = rows.copied().collect();
        let packed = rig.pack(weight(&table)?)?;
        let ids = rig.hold(&ids)?;
        let mut y = rig.blank(want.len())?;
        rig.submit(Op::GatherRows { table: &packed, ids: ids.input(), y: y.output() })?;
        same("gathered rows", cols, &rig.read(&y)?, &want)?;
    }
    Ok(())
}

fn dequantize(rig: &mut Rig<'_>, format: Format, shape: Shape, to: DType) -> Verdict {
    for data in [Data::Random, Data::Scales] {
        let table = table(rig, format, shape, data)?;
        let mut y = RealOperand::blank(rig, to, shape.len())?;
        rig.submit(Op::Dequantize { w: &weight(&table)?, y: y.output() })?;
        y.read(rig)?.same("values", shape.cols(), &Reals::new(to, &table.values()))?;
    }
    Ok(())
}

/// Products that are not defined, and rows that the format cannot hold.
fn impossible(rig: &mut Rig<'_>, format: Format) -> Verdict {
    let usual = OpSpec::matmul(format, 1, 4, 512);
    let OpSpec::MatMul { scale_block, activations, output, epilogue, m, n, k, .. } = usual else { return Ok(()) };
    let of = |scale_block, activations, output, k| OpSpec::MatMul {
        format,
        scale_block,
        activations,
        output,
        m,
        n,
        k,
        epilogue,
    };
    let specs = [
        of(None, activations, output, k),
        of(Some(8), activations, output, k),
        of(scale_block, DType::F32, output, k),
        of(scale_block, activations, DType::I32, k),
        of(scale_block, activations, output, k + 16),
        OpSpec::GatherRows { format, rows: 1, cols: 100 },
        OpSpec::Quantize { from: DType::F32, format, shape: Shape::new(4, 256)? },
    ];
    for spec in specs {
        match rig.backend().supports(&spec) {
            Support::No { reason } if reason.trim().is_empty() => return fail(format!("{spec}: no, without a reason")),
            Support::No { .. } => {}
            Support::Yes { kernel } => return fail(format!("{spec:?} cannot be, but supports says yes ({kernel})")),
        }
    }
    Ok(())
}
