//! What every backend has to do: quantize, dequantize, quantize activations, multiply.

use tersor_core::{DType, Epilogue, Format, OpSpec, Shape, Support};

use super::{Case, ternary_formats};
use crate::compare::fail;
use crate::rig::Rig;
use crate::suite::Profile;

/// Rows and columns that every format can hold.
const N: usize = 16;
const K: usize = 2560;

fn product(format: Format, m: usize, output: DType) -> OpSpec {
    let epilogue = Epilogue::Store;
    OpSpec::MatMul { format, scale_block: None, activations: DType::I8, output, m, n: N, k: K, epilogue }
}

fn refusal(rig: &Rig<'_>, spec: OpSpec) -> Option<String> {
    match rig.backend().supports(&spec) {
        Support::Yes { .. } => None,
        Support::No { reason } => Some(format!("{spec} is required and not supported: {reason}")),
    }
}

pub(super) fn cases(_: Profile) -> Vec<Case> {
    let mut cases = vec![
        Case::new("required/a-ternary-format", |rig| {
            let answers: Vec<_> = ternary_formats().map(|f| refusal(rig, product(f, 1, DType::F32))).collect();
            match answers.iter().flatten().next() {
                Some(first) if answers.iter().all(Option::is_some) => {
                    fail(format!("no ternary format is supported in products: {first}"))
                }
                _ => Ok(()),
            }
        }),
        Case::new("required/quantize_rows", |rig| {
            let specs = [1, 5].map(|rows| OpSpec::QuantizeRows { rows, cols: K });
            specs.into_iter().find_map(|spec| refusal(rig, spec)).map_or(Ok(()), fail)
        }),
    ];
    for format in ternary_formats() {
        // A backend supports a format when it multiplies by it. Then it also reads it, writes it, and gives exact sums.
        cases.push(Case::new(format!("required/{format}"), move |rig| {
            if let Support::No { reason } = rig.backend().supports(&product(format, 1, DType::F32)) {
                return Err(crate::rig::Stop::NotSupported(reason));
            }
            let shape = Shape::new(N, K)?;
            let specs = [
                product(format, 5, DType::F32),
                product(format, 1, DType::I32),
                product(format, 5, DType::I32),
                OpSpec::Quantize { from: DType::F32, format, shape },
                OpSpec::Dequantize { format, to: DType::F32, shape },
            ];
            specs.into_iter().find_map(|spec| refusal(rig, spec)).map_or(Ok(()), fail)
        }));
    }
    cases
}
