//! The backend: ops to calls of ggml.

use std::sync::{Arc, Mutex, PoisonError};

use tersor_core::codec::{self, absmean};
use tersor_core::{
    Activations, BackendInfo, Checked, DType, Epilogue, Error, Floats, FloatsMut, Format, HostContext, Op, OpSpec,
    Output, PackTag, PackedWeight, QuantBackend, Ran, RawBuffer, Result, Shape, Stream, Support, Weight, f16,
    reference,
};

use crate::ffi::{self, BLOCK, Q8K, Type};
use crate::{ID, KERNEL_REVISION, MAX_K, VERSION};

/// Rows and columns of a tile of a product of several rows, as in ggml's own loop.
const TILE: usize = 16;

/// The instance.
#[derive(Debug)]
pub struct Backend {
    info: BackendInfo,
    host: HostContext,
}

impl Backend {
    /// On the host's threads.
    pub fn new(host: &HostContext) -> Self {
        let (id, version, kernel_revision) = (ID.into(), VERSION.into(), KERNEL_REVISION);
        let info = BackendInfo { id, version, kernel_revision, device: crate::device(), isa: None };
        Backend { info, host: host.clone() }
    }
}

/// ggml's blocks with scale 1, and the scales.
#[derive(Debug)]
struct Packed {
    functions: Type,
    blocks: Vec<u16>,
    scales: Scales,
}

#[derive(Debug)]
enum Scales {
    One(f32),
    /// One for each block, row by row.
    Blocks(Vec<f32>),
}

fn functions(format: Format) -> Result<Type, String> {
    Type::of(format).ok_or_else(|| format!("{format} is not tq1_0 or tq2_0"))
}

/// The kernel that runs an op, or why none does.
fn kernel_of(spec: &OpSpec) -> Result<&'static str, String> {
    match *spec {
        OpSpec::QuantizeRows { .. } => Ok("quantize_rows.f32.reference"),
        OpSpec::Quantize { from, format, shape } => {
            let _ = functions(format)?;
            whole(format, shape.cols())?;
            match (from, format) {
                (DType::F32, Format::TQ1_0) => Ok("quantize.tq1_0-f32.ggml"),
                (DType::F32, _) => Ok("quantize.tq2_0-f32.ggml"),
                _ => Err("ggml quantizes f32 only".into()),
            }
        }
        OpSpec::Dequantize { format, to, shape } => {
            let _ = functions(format)?;
            whole(format, shape.cols())?;
            match (to, format) {
                (DType::F32, Format::TQ1_0) => Ok("dequantize.tq1_0-f32.ggml"),
                (DType::F32, _) => Ok("dequantize.tq2_0-f32.ggml"),
                _ => Err("ggml dequantizes to f32 only".into()),
            }
        }
        OpSpec::MatMul { format, scale_block, activations: DType::I8, output, m, k, .. } => {
            let _ = functions(format)?;
            whole(format, k)?;
            if k > MAX_K {
                return Err(format!("ggml sums in f32, which is exact up to rows of {MAX_K}, not {k}"));
            }
            match (output, scale_block) {
                (DType::I32, _) | (DType::F32, None | Some(BLOCK)) => {}
                _ => return Err("only i32, or f32 with one scale or a scale for each block".into()),
            }
            Ok(match (format, m) {
                (Format::TQ1_0, 1) => "gemv.tq1_0-i8.ggml.1x256",
                (Format::TQ1_0, _) => "gemm.tq1_0-i8.ggml.16x16",
                (_, 1) => "gemv.tq2_0-i8.ggml.1x256",
                (_, _) => "gemm.tq2_0-i8.ggml.16x16",
            })
        }
        OpSpec::MatMul { .. } => Err("its activations are int8".into()),
        _ => Err(format!("it does not know {}", spec.kind())),
    }
}

fn whole(format: Format, cols: usize) -> Result<(), String> {
    if cols.is_multiple_of(BLOCK) { Ok(()) } else { Err(format!("{format} has no rows of {cols}")) }
}

fn unsupported(op: impl ToString, reason: String) -> Error {
    Error::Unsupported { backend: ID.into(), op: op.to_string(), reason }
}

impl QuantBackend for Backend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, spec: &OpSpec) -> Support {
        match kernel_of(spec) {
            Ok(kernel) => Support::Yes { kernel },
            Err(reason) => Support::No { reason },
        }
    }

    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        let bytes = format.encoded_len(shape)?.bytes;
        let _ = functions(format).map_err(|reason| unsupported("pack", reason))?;
        // The blocks, and at most a scale for each.
        Ok(bytes + shape.len() / BLOCK * size_of::<f32>())
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let bytes = self.packed_size(weight.format(), weight.shape())?;
        let functions = functions(weight.format()).map_err(|reason| unsupported("pack", reason))?;
        let mut blocks = Vec::new();
        ffi::words(weight.codes(), &mut blocks);
        functions.drop_scales(&mut blocks);
        let scales = match weight.uniform_scale() {
            Some(scale) => Scales::One(scale),
            None => Scales::Blocks(weight.block_scales().0),
        };
        let tag = PackTag { backend: ID.into(), packing: "ggml-blocks" };
        Ok(PackedWeight::new(tag, weight, bytes, false, Arc::new(Packed { functions, blocks, scales })))
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        Ok(RawBuffer::host(bytes))
    }

    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(Queue { host: self.host.clone(), x: Vec::new() }))
    }
}

struct Queue {
    host: HostContext,
    /// Activations of the product that runs; kept for its memory.
    x: Vec<Q8K>,
}

impl Stream for Queue {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        if self.host.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let spec = op.spec();
        let kernel = kernel_of(&spec).map_err(|reason| unsupported(spec, reason))?;
        match op.op() {
            Op::Quantize { w, shape, format, codes, .. } => {
                quantize(w.host("weights", ID)?, shape, format, codes.host("codes", ID)?)?;
            }
            Op::Dequantize { w, y } => match y.host("dequantized values", ID)? {
                FloatsMut::F32(y) => dequantize(w, y)?,
                _ => return Err(unsupported(spec, "ggml dequantizes to f32".into())),
            },
            Op::QuantizeRows { x, cols, q, scales } => {
                quantize_rows(x.host("x", ID)?, cols, q.host("q", ID)?, scales.host("scales", ID)?)?;
            }
            Op::MatMul { w, x: Activations::Int8 { q, scales }, y, epilogue } => {
                let (w, shape) = (w.data::<Packed>(ID)?, w.shape());
                ffi::activations(q.host("activations", ID)?, &mut self.x);
                self.matmul(w, shape, scales.host("activation scales", ID)?, y, epilogue)?;
            }
            _ => return Err(unsupported(spec, "not with these operands".into())),
        }
        Ok(Ran { kernel })
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Codes by Tersor's rule, laid out by ggml. Its own rule is applied to values -1, 0 and +1, which it keeps, and then the
/// scale of the tensor takes the place of that of each block.
fn quantize(w: Floats<'_>, shape: Shape, format: Format, out: &mut [u8]) -> Result<()> {
    let functions = functions(format).map_err(|reason| unsupported("quantize", reason))?;
    let scale = absmean::scale_of(w)?;
    let stored = f16::from_f32(codec::storable_scale(format, scale)?).to_bits();
    let cols = shape.cols();
    let (mut values, mut codes) = (vec![0.0; cols], vec![0; cols]);
    let mut blocks = vec![0; cols / BLOCK * functions.words];
    for (r, out) in out.chunks_exact_mut(2 * blocks.len()).enumerate() {
        w.read(r * cols, &mut values);
        absmean::ternarize(&values, scale, &mut codes);
        values.iter_mut().zip(&codes).for_each(|(v, c)| *v = f32::from(*c));
        functions.quantize(&values, &mut blocks);
        functions.set_scales(&mut blocks, stored);
        ffi::bytes(&blocks, out);
    }
    Ok(())
}

fn dequantize(w: &Weight, y: &mut [f32]) -> Result<()> {
    let functions = functions(w.format()).map_err(|reason| unsupported("dequantize", reason))?;
    let cols = w.shape().cols();
    let mut blocks = Vec::new();
    for (row, y) in w.codes().chunks_exact(2 * cols / BLOCK * functions.words).zip(y.chunks_exact_mut(cols)) {
        ffi::words(row, &mut blocks);
        functions.dequantize(&blocks, y);
    }
    Ok(())
}

fn quantize_rows(x: &[f32], cols: usize, q: &mut [i8], scales: &mut [f32]) -> Result<()> {
    for (r, ((x, q), scale)) in x.chunks(cols).zip(q.chunks_mut(cols)).zip(scales).enumerate() {
        let bad = || {
            let at = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
            Error::NotFinite { what: "activations", index: r * cols + at, value: x[at] }
        };
        *scale = reference::rows::quantize(x, q).ok_or_else(bad)?;
    }
    Ok(())
}

impl Queue {
    fn matmul(&self, w: &Packed, shape: Shape, x_scales: &[f32], y: Output<'_>, epilogue: Epilogue) -> Result<()> {
        let (n, add) = (shape.rows(), epilogue == Epilogue::Add);
        let per_row = shape.cols() / BLOCK;
        let row = |c: usize| &w.blocks[c * per_row * w.functions.words..][..per_row * w.functions.words];
        let x = |r: usize| &self.x[r * per_row..][..per_row];
        // A whole number in f32: see the crate's documentation.
        let sum = |r: usize, c: usize| w.functions.dot(row(c), x(r)) as i32;
        match y {
            Output::I32(y) => self.each(y.host("y", ID)?, n, |r, c, y| {
                let sum = sum(r, c);
                *y = if add { y.wrapping_add(sum) } else { sum };
            }),
            Output::F32(y) => self.each(y.host("y", ID)?, n, |r, c, y| {
                let value = match &w.scales {
                    Scales::One(scale) => reference::matmul::scaled(sum(r, c), *scale, x_scales[r]),
                    Scales::Blocks(scales) => {
                        let blocks = row(c).chunks_exact(w.functions.words).zip(x(r).chunks_exact(1));
                        let sums = blocks.map(|(w_block, x)| w.functions.dot(w_block, x) as i32);
                        let scales = scales[c * per_row..][..per_row].iter().copied();
                        reference::matmul::scaled_blocks(sums.zip(scales), x_scales[r])
                    }
                };
                *y = if add { *y + value } else { value };
            }),
        }
        Ok(())
    }

    /// Calls `set(row, column, element)` for all elements of a result of `n` columns, on the host's threads.
    fn each<T: Send>(&self, y: &mut [T], n: usize, set: impl Fn(usize, usize, &mut T) + Sync) {
        let executor = self.host.executor();
        let rows = y.len() / n.max(1);
        // Some parts for each thread; of several rows, parts that stay in the first caches.
        let width = if rows == 1 { n.div_ceil(4 * executor.threads()).max(TILE) } else { TILE };
        let across = n.div_ceil(width);
        // A lock for each part, taken once: safe, and nothing beside the work of a part.
        let parts: Vec<_> = y.chunks_mut(n.max(1)).flat_map(|row| row.chunks_mut(width)).map(Mutex::new).collect();
        executor.run(across, &|tile| {
            for (r, part) in parts.iter().skip(tile).step_by(across).enumerate() {
                let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
                part.iter_mut().enumerate().for_each(|(i, y)| set(r, tile * width + i, y));
            }
        });
    }
}
