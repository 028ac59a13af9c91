//! Matrix products.

use tersor_core::reference::{lanes, matmul as reference};
use tersor_core::{Activations, Epilogue, Output, PackedWeight, Result, Ternary};

use crate::backend::{Faults, ID};
use crate::fault::Fault;

/// A weight, decoded.
#[derive(Debug)]
pub(crate) enum Packed {
    Ternary { ternary: Ternary, uniform: Option<f32> },
    Dense(Vec<f32>),
}

/// The exact sum of codes times activations.
fn sum(faults: Faults, codes: &[i8], x: &[i8]) -> i32 {
    let n = codes.len();
    if faults.has(Fault::TailOffByOne) && !n.is_multiple_of(4) {
        return reference::ternary(&codes[..n - 1], &x[..n - 1]);
    }
    if faults.has(Fault::SaturatingAdd) {
        let pair =
            |(t, x): (&[i8], &[i8])| t.iter().zip(x).map(|(t, x)| i16::from(*t + 1) * i16::from(*x)).sum::<i16>();
        let shifted = codes.chunks(2).zip(x.chunks(2)).map(pair).fold(0i16, i16::saturating_add);
        return i32::from(shifted) - x.iter().map(|x| i32::from(*x)).sum::<i32>();
    }
    reference::ternary(codes, x)
}

/// Row r of the weight times one row of activations, scaled.
fn scaled(faults: Faults, w: &Ternary, uniform: Option<f32>, r: usize, x: &[i8], x_scale: f32) -> f32 {
    let k = w.shape.cols();
    let codes = &w.codes[r * k..(r + 1) * k];
    if faults.has(Fault::IgnoredScale) {
        return sum(faults, codes, x) as f32 / x_scale;
    }
    if let Some(s) = uniform {
        return reference::scaled(sum(faults, codes, x), s, x_scale);
    }
    let scales = &w.scales[r * k / w.block..];
    let blocks = codes.chunks(w.block).zip(x.chunks(w.block)).zip(scales);
    let scale = |s: &f32| if faults.has(Fault::FirstBlockScale) { scales[0] } else { *s };
    let parts = blocks.map(|((t, x), s)| (sum(faults, t, x), scale(s)));
    if faults.has(Fault::BlocksInSequence) {
        return parts.map(|(acc, s)| acc as f32 * s).sum::<f32>() / x_scale;
    }
    reference::scaled_blocks(parts, x_scale)
}

/// A dot product by lanes with fused multiply-adds.
pub(crate) fn contracted_dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; lanes::LANES];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        sums[i % lanes::LANES] = a.mul_add(*b, sums[i % lanes::LANES]);
    }
    lanes::fold(&mut sums)
}

fn store<T: Copy + std::ops::Add<Output = T>>(faults: Faults, epilogue: Epilogue, y: &mut T, value: T) {
    *y = if epilogue == Epilogue::Add && !faults.has(Fault::AddStores) { *y + value } else { value };
}

pub(crate) fn matmul(
    faults: Faults,
    w: &PackedWeight,
    x: Activations<'_>,
    y: Output<'_>,
    epilogue: Epilogue,
    cache: Option<&mut Vec<f32>>,
) -> Result<()> {
    let (n, k) = (w.shape().rows(), w.shape().cols());
    let packed = match w.data::<Packed>(ID) {
        Err(_) if faults.has(Fault::AcceptsForeignPack) => return Ok(()),
        packed => packed?,
    };
    match (packed, x, y) {
        (Packed::Ternary { ternary, .. }, Activations::Int8 { q, .. }, Output::I32(y)) => {
            let rows = q.host("activations", ID)?.chunks(k);
            for (y, x) in y.host("y", ID)?.chunks_mut(n).zip(rows) {
                for (y, codes) in y.iter_mut().zip(ternary.codes.chunks(k)) {
                    store(faults, epilogue, y, sum(faults, codes, x));
                }
            }
        }
        (Packed::Ternary { ternary, uniform }, Activations::Int8 { q, scales }, Output::F32(y)) => {
            let rows = q.host("activations", ID)?.chunks(k).zip(scales.host("activation scales", ID)?);
            let y = y.host("y", ID)?;
            if let Some(known) = cache.as_ref().filter(|c| !c.is_empty()) {
                y.copy_from_slice(known);
                return Ok(());
            }
            for (y, (x, x_scale)) in y.chunks_mut(n).zip(rows) {
                if faults.has(Fault::StaleOutput) && x.iter().all(|x| *x == 0) {
                    continue;
                }
                for (r, y) in y.iter_mut().enumerate() {
                    store(faults, epilogue, y, scaled(faults, ternary, *uniform, r, x, *x_scale));
                }
            }
            if let Some(cache) = cache {
                *cache = y.to_vec();
            }
        }
        (Packed::Dense(values), Activations::F32(x), Output::F32(y)) => {
            for (y, x) in y.host("y", ID)?.chunks_mut(n).zip(x.host("activations", ID)?.chunks(k)) {
                for (y, row) in y.iter_mut().zip(values.chunks(k)) {
                    let value = if faults.has(Fault::SequentialSum) {
                        row.iter().zip(x).map(|(w, x)| w * x).sum()
                    } else if faults.has(Fault::ContractedDot) {
                        contracted_dot(row, x)
                    } else {
                        lanes::dot(row, x)
                    };
                    store(faults, epilogue, y, value);
                }
            }
        }
        // `Op::check` lets no other combination through.
        _ => {}
    }
    Ok(())
}
