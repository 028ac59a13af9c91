//! The few calls that most embedders need.

use std::path::Path;
use std::sync::Arc;

use tersor_core::{
    Activations, Buffer, DType, Epilogue, Floats, Format, In, Op, OpSpec, Out, Output, PackedWeight, QuantBackend,
    Shape, Weight,
};
use tersor_registry::config::{Config, LoadOptions};
use tersor_registry::{Choice, Decision, Registry, Result};

/// Backends, configured and ready to choose from.
#[derive(Debug)]
pub struct Runtime {
    registry: Registry,
}

impl Runtime {
    /// With the configuration of the process: environment, user and system files, defaults.
    pub fn new() -> Result<Self> {
        Self::with_config(Config::load(&LoadOptions::from_process())?)
    }

    /// With a configuration file, below the environment and above the user's and the system's files.
    pub fn from_config(file: impl AsRef<Path>) -> Result<Self> {
        Self::with_config(Config::load(&LoadOptions::from_process().file(file.as_ref()))?)
    }

    /// With a configuration and nothing else.
    pub fn with_config(config: Config) -> Result<Self> {
        Ok(Runtime { registry: Registry::build(config)? })
    }

    /// The backends.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Quantizes f32 weights on the backend chosen for that.
    pub fn quantize(&self, w: &[f32], shape: Shape, format: Format) -> Result<Weight> {
        let len = format.encoded_len(shape)?;
        let choice = self.registry.select(&[OpSpec::Quantize { from: DType::F32, format, shape }])?;
        let (mut codes, mut scales) = (vec![0; len.bytes], vec![0.0; len.scales]);
        choice.backend.quantize(Floats::F32(w), shape, format, &mut codes, &mut scales)?;
        Ok(Weight::new(format, shape, codes, scales)?)
    }

    /// Expands a weight to f32 on the backend chosen for that.
    pub fn dequantize(&self, w: &Weight) -> Result<Vec<f32>> {
        let spec = OpSpec::Dequantize { format: w.format(), to: DType::F32, shape: w.shape() };
        let mut y = vec![0.0; w.shape().len()];
        self.registry.select(&[spec])?.backend.dequantize(w, tersor_core::FloatsMut::F32(&mut y))?;
        Ok(y)
    }

    /// Packs a ternary weight for the backend chosen for its format and shape.
    pub fn linear(&self, w: &Weight) -> Result<Linear> {
        let (n, k) = (w.shape().rows(), w.shape().cols());
        let scale_block = if w.uniform_scale().is_some() { None } else { w.format().scale_block() };
        let spec = |m| match OpSpec::matmul(w.format(), m, n, k) {
            OpSpec::MatMul { format, activations, output, m, n, k, epilogue, .. } => {
                OpSpec::MatMul { format, scale_block, activations, output, m, n, k, epilogue }
            }
            other => other,
        };
        let choice = self.registry.select(&[OpSpec::QuantizeRows { rows: 1, cols: k }, spec(1), spec(2)])?;
        let packed = choice.backend.pack(w)?;
        Ok(Linear { choice, packed })
    }
}

/// A linear layer with operands in host memory, wherever the weights are: ternary weights, activations quantized to int8 row by row.
#[derive(Debug)]
pub struct Linear {
    choice: Choice,
    packed: PackedWeight,
}

impl Linear {
    /// `x` is `m x k`, the result `m x n`.
    pub fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (n, k) = (self.packed.shape().rows(), self.packed.shape().cols());
        let m = x.len() / k;
        let (mut q, mut scales, mut y) = (vec![0; x.len()], vec![0.0; m], vec![0.0; m * n]);
        if !self.choice.backend.info().is_host() {
            self.forward_on_device(x, k, &mut y)?;
            return Ok(y);
        }
        let mut stream = self.choice.backend.open_stream()?;
        let rows = Op::QuantizeRows { x: In::Host(x), cols: k, q: Out::Host(&mut q), scales: Out::Host(&mut scales) };
        stream.submit(rows.check()?)?;
        let x = Activations::Int8 { q: In::Host(&q), scales: In::Host(&scales) };
        let y_out = Output::F32(Out::Host(&mut y));
        stream.submit(Op::MatMul { w: &self.packed, x, y: y_out, epilogue: Epilogue::Store }.check()?)?;
        stream.synchronize()?;
        Ok(y)
    }

    /// The activations go to the device, the results come back.
    fn forward_on_device(&self, x: &[f32], k: usize, y: &mut [f32]) -> Result<()> {
        let backend = &*self.choice.backend;
        let mut stream = backend.open_stream()?;
        let stream = &mut *stream;
        let mut rows = Buffer::<f32>::alloc(backend, x.len())?;
        rows.write(stream, x)?;
        let mut q = Buffer::<i8>::alloc(backend, x.len())?;
        let mut scales = Buffer::<f32>::alloc(backend, x.len() / k)?;
        let op = Op::QuantizeRows { x: rows.input(), cols: k, q: q.output(), scales: scales.output() };
        stream.submit(op.check()?)?;
        let mut out = Buffer::<f32>::alloc(backend, y.len())?;
        let x = Activations::Int8 { q: q.input(), scales: scales.input() };
        let product = Op::MatMul { w: &self.packed, x, y: Output::F32(out.output()), epilogue: Epilogue::Store };
        stream.submit(product.check()?)?;
        Ok(out.read(stream, 0, y)?)
    }

    /// Which backend, and why.
    pub fn decision(&self) -> &Decision {
        &self.choice.decision
    }

    /// The backend, for its streams and ops.
    pub fn backend(&self) -> &Arc<dyn QuantBackend> {
        &self.choice.backend
    }

    /// The weight in the backend's layout.
    pub fn packed(&self) -> &PackedWeight {
        &self.packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way over device buffers is the same on any backend: one of the host stands in for a device.
    #[test]
    fn a_linear_layer_gives_the_same_over_device_buffers() {
        let runtime = Runtime::with_config(Config::from_toml_str("select.device = \"cpu\"").unwrap()).unwrap();
        let values: Vec<f32> = (0..64 * 256).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
        let weight = runtime.quantize(&values, Shape::new(64, 256).unwrap(), Format::I2S).unwrap();
        let linear = runtime.linear(&weight).unwrap();
        let x: Vec<f32> = (0..3 * 256).map(|i| (i * 53 % 97) as f32 / 7.0).collect();
        let mut y = vec![f32::NAN; 3 * 64];
        linear.forward_on_device(&x, 256, &mut y).unwrap();
        assert_eq!(y, linear.forward(&x).unwrap());
    }
}
