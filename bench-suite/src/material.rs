//! Real data to measure with: the model's ternary codes, tiled to the shapes that are wanted, and pseudo-random activations.

use tersor::model::{LayerPart, Linear, ModelFile, Role};
use tersor_core::{Floats, Format, Shape, Ternary, Weight, codec, reference};

use crate::error::{Error, Result};

/// One layer of the model as ternary codes, and real values.
#[derive(Debug)]
pub struct Material {
    /// Codes and scale of every linear tensor of a layer, with its role.
    tensors: Vec<(Role, Ternary)>,
    /// The codes of all of them, one after another.
    codes: Vec<i8>,
    /// The scale of the first.
    scale: f32,
}

/// One tensor's real values.
#[derive(Debug)]
pub struct Values {
    /// Rows and columns.
    pub shape: Shape,
    /// The values.
    pub values: Vec<f32>,
}

impl Material {
    /// Reads the layer in the middle of the model. Master weights are ternarized by the reference.
    ///
    /// # Errors
    /// Those of reading the model.
    pub fn of(file: &ModelFile) -> Result<Self> {
        let layer = file.config().layers / 2;
        let mut tensors = Vec::new();
        for part in LayerPart::all().filter(|p| p.is_linear()) {
            let role = Role::Layer(layer, part);
            let ternary = match file.linear(role)? {
                Linear::Master(dense) => {
                    let weight = dense.with_floats(|w| codec::quantize(w, dense.shape, any_row(dense.shape)))??;
                    codec::decode(&weight)?
                }
                other => match other.ternary()? {
                    Some(ternary) => ternary,
                    None => continue,
                },
            };
            tensors.push((role, ternary));
        }
        let codes: Vec<i8> = tensors.iter().flat_map(|(_, t)| t.codes.iter().copied()).collect();
        let scale = tensors.first().and_then(|(_, t)| t.uniform_scale()).filter(|s| *s > 0.0).unwrap_or(1.0);
        if codes.is_empty() {
            let missing = tersor::model::Error::MissingTensor {
                name: format!("linear tensors of layer {layer}"),
                why: "they are what is measured".to_owned(),
            };
            return Err(Error::Model(missing));
        }
        Ok(Material { tensors, codes, scale })
    }

    /// The distinct shapes of the layer, in the order of their first use.
    pub fn shapes(&self) -> Vec<Shape> {
        let mut shapes = Vec::new();
        for (_, t) in &self.tensors {
            if !shapes.contains(&t.shape) {
                shapes.push(t.shape);
            }
        }
        shapes
    }

    /// The real values of the layer's tensors.
    pub fn layer_values(&self) -> Vec<Values> {
        self.tensors.iter().map(|(_, t)| Values { shape: t.shape, values: t.values() }).collect()
    }

    /// The real values of the first tensor of this shape.
    pub fn values_of(&self, shape: Shape) -> Option<Values> {
        self.tensors.iter().find(|(_, t)| t.shape == shape).map(|(_, t)| Values { shape, values: t.values() })
    }

    /// Codes for a shape, repeated from the model's. The period is odd, so that no two rows of a matrix are alike.
    pub fn tiled(&self, shape: Shape) -> Ternary {
        let period = self.codes.len() - usize::from(self.codes.len().is_multiple_of(2) && self.codes.len() > 1);
        let codes = self.codes[..period].iter().copied().cycle().take(shape.len()).collect();
        Ternary { shape, codes, block: shape.len(), scales: vec![self.scale] }
    }

    /// Real values for a shape, likewise.
    pub fn tiled_values(&self, shape: Shape) -> Values {
        let values = self.tiled(shape).codes.iter().map(|&t| f32::from(t) * self.scale).collect();
        Values { shape, values }
    }

    /// A weight of this shape in a format. In the group forms neighbouring groups have different scales: with equal ones the
    /// weight would be single-scale, and the kernels for several scales a row would not be what is measured.
    ///
    /// # Errors
    /// [`Error::Core`] where the format cannot hold the shape or the scale.
    pub fn weight(&self, shape: Shape, format: Format) -> Result<Weight> {
        let ternary = self.tiled(shape);
        if let Format::I2SGroup(group) = format {
            let mut values = ternary.values();
            for (i, group) in values.chunks_mut(group.values()).enumerate() {
                let factor = 1.0 + (i % 7) as f32 / 8.0;
                group.iter_mut().for_each(|v| *v *= factor);
            }
            return Ok(codec::quantize(Floats::F32(&values), shape, format)?);
        }
        // A format that stores f16 scales gets one that it can store.
        let scale = codec::storable_scale(format, self.scale)?;
        Ok(codec::encode(&Ternary { scales: vec![scale], ..ternary }, format)?)
    }
}

/// A format that holds any row.
fn any_row(shape: Shape) -> Format {
    if shape.cols().is_multiple_of(2) { Format::TL1 } else { Format::I2SGroup(tersor_core::GroupSize::G256) }
}

/// A small generator (SplitMix64): the same data on every machine.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal: the sum of four uniform values, as activations of a network are bell-shaped.
    pub fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: i32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as i32).sum();
        (sum - 2 * 0xffff) as f32 / 37_837.0
    }
}

/// `rows x cols` activations.
pub fn activations(rows: usize, cols: usize) -> Vec<f32> {
    let mut rng = Rng::new((rows * 31 + cols) as u64);
    (0..rows * cols).map(|_| rng.normal()).collect()
}

/// Activations as int8 with a scale a row, by the reference.
pub fn int8_activations(rows: usize, cols: usize) -> (Vec<i8>, Vec<f32>) {
    let x = activations(rows, cols);
    let mut q = vec![0; x.len()];
    let scales = x
        .chunks_exact(cols)
        .zip(q.chunks_exact_mut(cols))
        .map(|(x, q)| reference::rows::quantize(x, q).unwrap_or(f32::NAN))
        .collect();
    (q, scales)
}

/// The product of a weight and one row of activations, by the reference.
///
/// # Errors
/// [`Error::Core`] from the codec.
pub fn reference_product(weight: &Weight, x: &[i8], x_scale: f32) -> Result<Vec<f32>> {
    let t = codec::decode(weight)?;
    let k = t.shape.cols();
    let uniform = weight.uniform_scale();
    let rows = t.codes.chunks_exact(k).enumerate().map(|(r, codes)| match uniform {
        Some(scale) => reference::matmul::scaled(reference::matmul::ternary(codes, x), scale, x_scale),
        None => {
            let scales = &t.scales[r * k / t.block..];
            let sums = codes.chunks(t.block).zip(x.chunks(t.block)).map(|(c, x)| reference::matmul::ternary(c, x));
            reference::matmul::scaled_blocks(sums.zip(scales.iter().copied()), x_scale)
        }
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor::model::embedded;

    #[test]
    fn the_embedded_model_has_real_codes_in_all_its_shapes() {
        let m = Material::of(&embedded::fable_26m().unwrap()).unwrap();
        assert!(m.shapes().len() >= 3, "{:?}", m.shapes());
        for t in [-1, 0, 1] {
            let share = m.codes.iter().filter(|c| **c == t).count() as f64 / m.codes.len() as f64;
            assert!(share > 0.1, "{t}: {share}");
        }
        let shape = Shape::new(300, 2560).unwrap();
        let tiled = m.tiled(shape);
        assert_ne!(tiled.codes[..2560], tiled.codes[2560..5120]);
    }

    #[test]
    fn every_format_holds_the_same_codes() {
        let m = Material::of(&embedded::fable_26m().unwrap()).unwrap();
        let shape = Shape::new(4, 512).unwrap();
        let codes = m.tiled(shape).codes;
        for format in Format::TERNARY {
            assert_eq!(codec::decode(&m.weight(shape, format).unwrap()).unwrap().codes, codes, "{format}");
        }
    }

    #[test]
    fn group_forms_have_several_scales_and_the_others_one() {
        let m = Material::of(&embedded::fable_26m().unwrap()).unwrap();
        let shape = Shape::new(4, 512).unwrap();
        for format in Format::GROUPED {
            assert_eq!(m.weight(shape, format).unwrap().uniform_scale(), None, "{format}");
        }
        for format in Format::TERNARY {
            assert!(m.weight(shape, format).unwrap().uniform_scale().is_some(), "{format}");
        }
    }

    #[test]
    fn activations_are_bell_shaped_and_reproducible() {
        let x = activations(4, 2560);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let variance = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.05 && (0.8..1.2).contains(&variance), "{mean} {variance}");
        assert_eq!(x, activations(4, 2560));
        let (q, scales) = int8_activations(2, 256);
        assert!(scales.iter().all(|s| s.is_finite()) && q.iter().any(|v| *v == 127 || *v == -127));
    }
}
