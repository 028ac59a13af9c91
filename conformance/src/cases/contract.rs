//! The contract around the numbers: packed weights know their maker, `supports` does not promise the impossible, sizes are
//! what they were said to be.

use std::sync::Arc;

use tersor_core::{
    Activations, DType, Epilogue, Error, Format, Op, OpSpec, Output, PackTag, PackedWeight, Shape, Support, Weight,
};

use super::operands::{Scales, random, weight};
use super::{Case, ternary_formats};
use crate::compare::fail;
use crate::rig::{Rig, Stop, Verdict};
use crate::suite::Profile;

pub(super) fn cases(_: Profile) -> Vec<Case> {
    let mut cases = Vec::new();
    for format in ternary_formats() {
        cases.push(Case::new(format!("foreign-pack/matmul/{format}"), move |rig| foreign_pack(rig, format)));
    }
    cases.push(Case::new("foreign-pack/gather_rows/f32", foreign_table));
    for format in ternary_formats().chain(Format::tables()) {
        cases.push(Case::new(format!("pack/{format}"), move |rig| pack(rig, format)));
    }
    cases.push(Case::new("supports/impossible-specs", impossible));
    cases.push(Case::new("check/other-shapes", other_shapes));
    cases
}

/// The private data of a backend that does not exist.
#[derive(Debug)]
struct Unknown;

/// What the backend's own pack of `weight` would be, had somebody else made it; and a forgery, with the right name on the
/// outside and the wrong data inside.
fn foreign(rig: &mut Rig<'_>, weight: &Weight) -> Result<[PackedWeight; 2], Stop> {
    let own = rig.pack(weight.clone())?;
    let tag = PackTag { backend: "conformance-unknown".into(), packing: "none" };
    let made = |tag| PackedWeight::new(tag, weight, own.bytes(), own.borrowed(), Arc::new(Unknown));
    Ok([made(tag), made(own.tag().clone())])
}

fn judge_foreign(error: Error) -> Verdict {
    match error {
        Error::ForeignPack { .. } => Ok(()),
        other => fail(format!("the error is not ForeignPack: {other}")),
    }
}

fn foreign_pack(rig: &mut Rig<'_>, format: Format) -> Verdict {
    let matrix = random(&mut rig.rng, format, Shape::new(4, 256)?, Scales::One);
    for packed in foreign(rig, &weight(&matrix)?)? {
        let (q, scales) = (rig.hold(&[1i8; 256])?, rig.hold(&[1.0f32])?);
        let mut y = rig.blank(4)?;
        let op = Op::MatMul {
            w: &packed,
            x: Activations::Int8 { q: q.input(), scales: scales.input() },
            y: Output::F32(y.output()),
            epilogue: Epilogue::Store,
        };
        judge_foreign(rig.refused(op, &format!("the weight is {:?}, not the backend's", packed.tag()))?)?;
    }
    Ok(())
}

fn foreign_table(rig: &mut Rig<'_>) -> Verdict {
    let table = Weight::dense(Format::F32, Shape::new(4, 8)?, vec![0; 128])?;
    for packed in foreign(rig, &table)? {
        let ids = rig.hold(&[1u32])?;
        let mut y = rig.blank(8)?;
        let op = Op::GatherRows { table: &packed, ids: ids.input(), y: y.output() };
        judge_foreign(rig.refused(op, &format!("the table is {:?}, not the backend's", packed.tag()))?)?;
    }
    Ok(())
}

/// A packed weight says who made it, of what, and occupies no more than was announced. (Before the weight is there, nobody
/// knows whether its block scales are all one: then a pack may be smaller.)
fn pack(rig: &mut Rig<'_>, format: Format) -> Verdict {
    for (n, k) in [(1, 256), (5, 2560), (17, 768)] {
        let shape = Shape::new(n, k)?;
        let weight = if format.is_ternary() {
            weight(&random(&mut rig.rng, format, shape, Scales::Positive))?
        } else {
            Weight::dense(format, shape, vec![0; format.encoded_len(shape)?.bytes])?
        };
        let packed = rig.pack(weight)?;
        let (announced, made) = (rig.backend().packed_size(format, shape)?, packed.bytes());
        let exact = format.scale_block().is_none();
        if made > announced || (exact && made != announced) {
            return fail(format!("{format} {shape}: packed_size says {announced} bytes, pack made {made}"));
        }
        if packed.tag().backend != rig.backend().info().id || packed.format() != format || packed.shape() != shape {
            return fail(format!("{format} {shape} became {packed:?}"));
        }
        if packed.borrowed() && !rig.backend().info().is_host() {
            return fail("a device cannot borrow the host's bytes");
        }
    }
    let odd = Shape::new(2, 257)?;
    if format.encoded_len(odd).is_err() && rig.backend().packed_size(format, odd).is_ok() {
        return fail(format!("packed_size has an answer for {odd}, which {format} cannot hold"));
    }
    Ok(())
}

/// Specs that no op has: nothing could be submitted, so a yes would be empty.
fn impossible(rig: &mut Rig<'_>) -> Verdict {
    let matmul = |format, activations, output, k| OpSpec::MatMul {
        format,
        scale_block: None,
        activations,
        output,
        m: 1,
        n: 4,
        k,
        epilogue: Epilogue::Store,
    };
    let mut specs = vec![
        matmul(Format::I2S, DType::F32, DType::F32, 256),
        matmul(Format::I2S, DType::I8, DType::U8, 256),
        matmul(Format::F32, DType::I8, DType::F32, 256),
        matmul(Format::F32, DType::F32, DType::I32, 256),
        matmul(Format::I2S, DType::I8, DType::F32, 100),
        matmul(Format::TL2, DType::I8, DType::F32, 7),
        matmul(Format::TQ1_0, DType::I8, DType::F32, 384),
    ];
    let shape = Shape::new(4, 256)?;
    specs.push(OpSpec::Quantize { from: DType::F32, format: Format::F16, shape });
    specs.push(OpSpec::Quantize { from: DType::I8, format: Format::I2S, shape });
    specs.push(OpSpec::Quantize { from: DType::F32, format: Format::TQ2_0, shape: Shape::new(4, 128)? });
    specs.push(OpSpec::Dequantize { format: Format::I2S, to: DType::I32, shape });
    specs.push(OpSpec::GatherRows { format: Format::I2S, rows: 1, cols: 256 });
    for spec in specs {
        match rig.backend().supports(&spec) {
            Support::No { reason } if reason.trim().is_empty() => return fail(format!("{spec}: no, without a reason")),
            Support::No { .. } => {}
            Support::Yes { kernel } => {
                return fail(format!("{spec:?} is no possible op, but supports says yes ({kernel})"));
            }
        }
    }
    Ok(())
}

/// What was packed for one shape cannot be submitted as if it had another.
fn other_shapes(rig: &mut Rig<'_>) -> Verdict {
    let Some((format, packed)) = ternary_formats().find_map(|format| {
        let matrix = random(&mut rig.rng, format, Shape::new(4, 256).ok()?, Scales::One);
        Some((format, rig.pack(weight(&matrix).ok()?).ok()?))
    }) else {
        return fail("no ternary format could be packed");
    };
    for (k, y_len) in [(255, 4), (257, 4), (128, 4), (256, 3), (256, 5), (256, 8)] {
        let (q, scales) = (rig.hold(&vec![1i8; k])?, rig.hold(&[1.0f32])?);
        let mut y = rig.blank::<f32>(y_len)?;
        let op = Op::MatMul {
            w: &packed,
            x: Activations::Int8 { q: q.input(), scales: scales.input() },
            y: Output::F32(y.output()),
            epilogue: Epilogue::Store,
        };
        if op.check().is_ok() {
            return fail(format!("{format} 4 x 256 times {k} activations into {y_len} results passed the check"));
        }
    }
    Ok(())
}
