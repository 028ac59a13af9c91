//! Tensors of GGUF files: our own and other tools'.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tersor_core::{Format, Shape, Ternary, Weight, codec};

use super::layout::{self, I2sLayout, KernelConfig};
use super::{Dense, Linear, OpenOptions, TensorEntry, check_shape, dense_format};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::names::Role;

/// Suffixes of one-element tensors that scale the weight they are named after: llama.cpp's, and that of bitnet.cpp's
/// converter for `tl1` and `tl2`.
const SCALE_SUFFIXES: [&str; 2] = [".scale", ".weight_scale"];

/// The file's tensors by role, and the names that belong to none.
pub(super) fn entries(file: &Gguf, config: &ModelConfig) -> Result<(BTreeMap<Role, TensorEntry>, Vec<String>)> {
    let mut entries = BTreeMap::new();
    for info in file.tensors() {
        let Some(role) = Role::from_gguf(&info.name) else { continue };
        let shape = shape_of(info, role)?;
        if matches!(role, Role::Layer(layer, _) if layer >= config.layers) {
            continue;
        }
        check_shape(&info.name, shape, role, config)?;
        let entry = TensorEntry { role, name: info.name.clone(), shape, stored: info.ty.to_string(), bytes: info.len };
        entries.insert(role, entry);
    }
    let companions: BTreeSet<String> = entries.keys().filter(|r| r.is_linear()).flat_map(|r| scale_names(*r)).collect();
    let mut ignored = Vec::new();
    for info in file.tensors() {
        if info.name.ends_with(".bias") || info.name == "rope_freqs.weight" {
            let problem = "BitNet b1.58 has none, and leaving it out would change the model";
            return Err(Error::tensor(&info.name, problem));
        }
        let known = Role::from_gguf(&info.name).is_some_and(|r| entries.contains_key(&r));
        if !known && !companions.contains(&info.name) {
            ignored.push(info.name.clone());
        }
    }
    Ok((entries, ignored))
}

fn shape_of(info: &TensorInfo, role: Role) -> Result<(usize, usize)> {
    let (rows, cols) = (usize::try_from(info.rows()), usize::try_from(info.cols()));
    let dims_fit = info.dims.len() <= if role.is_norm() { 1 } else { 2 };
    match (rows, cols) {
        (Ok(rows), Ok(cols)) if dims_fit => Ok((rows, cols)),
        _ => Err(Error::tensor(&info.name, format!("has dimensions {:?}, too many or too large", info.dims))),
    }
}

fn scale_names(role: Role) -> impl Iterator<Item = String> {
    let name = role.gguf_name();
    let stem = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
    SCALE_SUFFIXES.into_iter().map(move |suffix| format!("{stem}{suffix}"))
}

/// The description and bytes behind an entry.
fn stored<'a>(file: &'a Gguf, entry: &TensorEntry) -> Result<(&'a TensorInfo, Bytes)> {
    let missing = || Error::MissingTensor { name: entry.name.clone(), why: "it was listed".to_owned() };
    file.tensor(&entry.name).zip(file.tensor_data(&entry.name)).ok_or_else(missing)
}

pub(super) fn dense(file: &Gguf, entry: &TensorEntry) -> Result<Dense> {
    let (info, data) = stored(file, entry)?;
    let shape = Shape::new(entry.shape.0, entry.shape.1)?;
    Ok(Dense { name: entry.name.clone(), ty: info.ty, shape, data })
}

pub(super) fn linear(file: &Gguf, entry: &TensorEntry, options: &OpenOptions) -> Result<Linear> {
    let (info, data) = stored(file, entry)?;
    let shape = Shape::new(entry.shape.0, entry.shape.1)?;
    let extra = extra_scale(file, entry.role)?;
    let linear = match info.ty {
        ty if dense_format(ty).is_some() => Linear::Master(dense(file, entry)?),
        GgmlType::TQ1_0 => packed(Format::TQ1_0, shape, data)?,
        GgmlType::TQ2_0 => packed(Format::TQ2_0, shape, data)?,
        GgmlType::I2_S => i2_s(shape, data, options.i2_s_layout)?,
        GgmlType::TL1 | GgmlType::TL2 => {
            let format = if info.ty == GgmlType::TL1 { Format::TL1 } else { Format::TL2 };
            if file.is_row_major()? {
                packed(format, shape, data)?
            } else {
                // The scale is in the tensor's tail, or in a tensor of its own: not both.
                return permuted(format, shape, &data, options.kernels.as_ref(), extra).map(Linear::Codes);
            }
        }
        other => {
            let problem =
                format!("is {other}, which holds no ternary weights; convert the model from its original weights");
            return Err(Error::tensor(&entry.name, problem));
        }
    };
    match (extra, linear) {
        (None, linear) => Ok(linear),
        (Some(scale), Linear::Master(_)) => Err(Error::tensor(
            &entry.name,
            format!("real weights with a separate scale {scale}; cannot tell what it means"),
        )),
        (Some(scale), Linear::Packed(weight)) => Ok(Linear::Codes(scaled(codec::decode(&weight)?, scale))),
        (Some(scale), Linear::Codes(ternary)) => Ok(Linear::Codes(scaled(ternary, scale))),
    }
}

fn scaled(mut ternary: Ternary, by: f32) -> Ternary {
    ternary.scales.iter_mut().for_each(|s| *s *= by);
    ternary
}

/// The canonical bytes at the beginning of the tensor's extent; what follows is padding.
fn packed(format: Format, shape: Shape, data: Bytes) -> Result<Linear> {
    let need = format.encoded_len(shape)?.bytes;
    let data = if data.len() > need { data.slice(..need) } else { data };
    Ok(Linear::Packed(Weight::new(format, shape, data, Vec::new())?))
}

fn i2_s(shape: Shape, data: Bytes, layout: I2sLayout) -> Result<Linear> {
    if layout == I2sLayout::Canonical {
        return packed(Format::I2S, shape, data);
    }
    let (codes, tail) = split(&data, shape.len() / 4)?;
    let codes = layout::decode_i2_s(codes, shape, layout)?;
    let scales = vec![tail_scale(tail)?];
    Ok(Linear::Codes(Ternary { shape, codes, block: shape.len(), scales }))
}

/// bitnet.cpp's tile order of `tl1` and `tl2`.
fn permuted(
    format: Format,
    shape: Shape,
    data: &[u8],
    kernels: Option<&KernelConfig>,
    separate_scale: Option<f32>,
) -> Result<Ternary> {
    let kernels = kernels.ok_or_else(|| Error::Layout {
        format,
        problem: "without the key tersor.layout these are bitnet.cpp's tiles, whose sizes the file does not carry; \
                  give the kernel_config.ini of the build that wrote it"
            .to_owned(),
    })?;
    let tile = kernels.tile(shape)?;
    let (codes, used) = match format {
        Format::TL1 => layout::decode_tl1(data, shape, tile)?,
        _ => layout::decode_tl2(data, shape, tile)?,
    };
    let tail = data.get(used..).filter(|t| t.len() >= 32);
    let scale = match (separate_scale, tail) {
        (Some(scale), _) => scale,
        (None, Some(tail)) => tail_scale(tail)?,
        (None, None) => {
            let problem = "no scale: neither behind the codes nor in a tensor NAME.weight_scale".to_owned();
            return Err(Error::Layout { format, problem });
        }
    };
    Ok(Ternary { shape, codes, block: shape.len(), scales: vec![scale] })
}

fn split(data: &[u8], codes: usize) -> Result<(&[u8], &[u8])> {
    data.split_at_checked(codes).ok_or_else(|| Error::Layout {
        format: Format::I2S,
        problem: format!("{} bytes, {codes} of codes and 32 of tail needed", data.len()),
    })
}

fn tail_scale(tail: &[u8]) -> Result<f32> {
    let scale = tail.first_chunk().map_or(f32::NAN, |b| f32::from_le_bytes(*b));
    if scale.is_finite() {
        return Ok(scale);
    }
    Err(Error::Core(tersor_core::Error::NotFinite { what: "scales", index: 0, value: scale }))
}

/// The product of the separate scale tensors, if there are any.
fn extra_scale(file: &Gguf, role: Role) -> Result<Option<f32>> {
    let mut product = None;
    for name in scale_names(role) {
        let (Some(info), Some(data)) = (file.tensor(&name), file.tensor_data(&name)) else { continue };
        let value = data.first_chunk().map(|b| f32::from_le_bytes(*b)).filter(|v| v.is_finite());
        match value {
            Some(value) if info.ty == GgmlType::F32 && info.dims.iter().all(|&d| d == 1) => {
                product = Some(product.unwrap_or(1.0) * value);
            }
            _ => {
                let problem = format!("is {} {:?}; one finite f32 scale was expected", info.ty, info.dims);
                return Err(Error::tensor(&name, problem));
            }
        }
    }
    Ok(product)
}
