//! A plugin's stream: an op as its struct, one indirect call.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use tersor_core::{Activations, Checked, Error, Op, OpSpec, Output, Ran, Result, Stream};

use super::backend::{ForeignPack, Opened, ran};
use super::operands::{self, Host};
use super::status::{Report, broken};
use super::{call, own_text, spec};
use crate::codes::Code;
use crate::raw::*;

pub(super) struct ForeignStream {
    opened: Arc<Opened>,
    handle: *mut c_void,
    report: Report,
    /// Kernel names seen, by their static text: a name is read and copied once.
    kernels: Vec<(*const c_char, u64, &'static str)>,
}

// SAFETY: the ABI lets a stream be used by one thread at a time, whichever; the names are only compared by address.
unsafe impl Send for ForeignStream {}

impl Drop for ForeignStream {
    fn drop(&mut self) {
        // SAFETY: made by `open_stream`, and used no more.
        unsafe { call!(self.opened.table, close_stream, self.handle) }
    }
}

impl ForeignStream {
    pub(super) fn open(opened: &Arc<Opened>) -> Result<Self> {
        let (mut report, mut handle) = (Report::new(), std::ptr::null_mut());
        // SAFETY: an instance of this table and memory of ours.
        let status = unsafe { call!(opened.table, open_stream, opened.instance, &mut handle, report.as_mut()) };
        report.check(status, opened.id, "open_stream")?;
        if handle.is_null() {
            return Err(broken(opened.id, "open_stream made no stream".into()));
        }
        Ok(ForeignStream { opened: opened.clone(), handle, report, kernels: Vec::new() })
    }

    /// Hands over the struct of an op, that of `spec`. The second answer is the flags.
    fn send<T: Args>(&mut self, spec: &OpSpec, args: &T) -> (Result<Ran>, u32) {
        let mut out = ran();
        let (opened, number) = (&self.opened, T::OP);
        let args = std::ptr::from_ref(args).cast();
        // SAFETY: a stream of this table; the operands were validated and are borrowed by our caller for the call.
        let status = unsafe { call!(opened.table, submit, self.handle, number, args, &mut out, self.report.as_mut()) };
        if status == TERSOR_OK {
            return (self.kernel(out.kernel).map(|kernel| Ran { kernel }), out.flags);
        }
        (
            self.report.check_op(status, opened.id, spec).and_then(|()| Err(broken(opened.id, "no status".into()))),
            out.flags,
        )
    }

    fn kernel(&mut self, text: TersorStr) -> Result<&'static str> {
        let known = self.kernels.iter().find(|(data, len, _)| (*data, *len) == (text.data, text.len));
        if let Some((_, _, name)) = known {
            return Ok(name);
        }
        let name = own_text("a kernel's name", text).map_err(|e| broken(self.opened.id, e.to_string()))?;
        self.kernels.push((text.data, text.len, name));
        Ok(name)
    }
}

/// Fills in the size of an op's struct.
macro_rules! args {
    ($name:ident { $($field:tt)* }) => { $name { struct_size: size_of::<$name>() as u32, $($field)* } };
}

impl Stream for ForeignStream {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        if self.opened.host.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let (spec, host, reserved) = (op.spec(), Host(self.opened.id), 0);
        let ran = match op.op() {
            Op::Quantize { w, shape, format, codes, scales } => {
                let (rows, cols) = (shape.rows() as u64, shape.cols() as u64);
                let (w, codes) = (host.floats("weights", w)?, host.u8_mut("codes", codes)?);
                let (format, scales) = (format.number().unwrap_or(0), host.f32_mut("scales", scales)?);
                self.send(&spec, &args!(TersorQuantize { format, rows, cols, w, codes, scales }))
            }
            Op::Dequantize { w, y } => {
                let c = operands::weight(w);
                let y = host.floats_mut("dequantized values", y)?;
                let (ran, flags) = self.send(&spec, &args!(TersorDequantize { reserved, w: &c, y }));
                if flags & TERSOR_KEEPS_CODES != 0 {
                    std::mem::forget(w.shared_codes());
                }
                (ran, flags)
            }
            Op::QuantizeRows { x, cols, q, scales } => {
                let (x, cols) = (host.f32("x", x)?, cols as u64);
                let (q, scales) = (host.i8_mut("q", q)?, host.f32_mut("scales", scales)?);
                self.send(&spec, &args!(TersorQuantizeRows { reserved, cols, x, q, scales }))
            }
            Op::MatMul { w, x, y, epilogue } => {
                let w = ForeignPack::handle(w, &self.opened)?;
                let (no_f32, no_i8) = (operands::f32s(&[]), operands::i8s(&[]));
                let (xq, x_scales, x) = match x {
                    Activations::Int8 { q, scales } => {
                        (host.i8("activations", q)?, host.f32("activation scales", scales)?, no_f32)
                    }
                    Activations::F32(x) => (no_i8, no_f32, host.f32("activations", x)?),
                };
                let (y, sums) = match y {
                    Output::F32(y) => (host.f32_mut("y", y)?, operands::i32s_mut(&mut [])),
                    Output::I32(y) => (operands::f32s_mut(&mut []), host.i32_mut("y", y)?),
                };
                let epilogue = spec::epilogue(epilogue);
                self.send(&spec, &args!(TersorMatMul { epilogue, w, xq, x_scales, x, y, sums }))
            }
            Op::GatherRows { table, ids, y } => {
                let table = ForeignPack::handle(table, &self.opened)?;
                let (ids, y) = (host.u32("ids", ids)?, host.f32_mut("y", y)?);
                self.send(&spec, &args!(TersorGatherRows { reserved, table, ids, y }))
            }
            Op::RmsNorm { x, w, eps, y } => {
                let (x, w, y) = (host.f32("x", x)?, host.f32("w", w)?, host.f32_mut("y", y)?);
                self.send(&spec, &args!(TersorRmsNorm { eps, x, w, y }))
            }
            Op::RmsNormQuantize { x, w, eps, q, scales } => {
                let (x, w) = (host.f32("x", x)?, host.f32("w", w)?);
                let (q, scales) = (host.i8_mut("q", q)?, host.f32_mut("scales", scales)?);
                self.send(&spec, &args!(TersorRmsNormQuantize { eps, x, w, q, scales }))
            }
            Op::Rope { x, head_dim, positions, cos, sin } => {
                let (x, positions) = (host.f32_mut("x", x)?, host.u32("positions", positions)?);
                let (cos, sin, head_dim) = (host.f32("cos", cos)?, host.f32("sin", sin)?, head_dim as u64);
                self.send(&spec, &args!(TersorRope { reserved, head_dim, x, positions, cos, sin }))
            }
            Op::KvWrite { k, v, width, positions, k_cache, v_cache } => {
                let (k, v, positions) = (host.f32("k", k)?, host.f32("v", v)?, host.u32("positions", positions)?);
                let (k_cache, v_cache) = (host.f32_mut("k_cache", k_cache)?, host.f32_mut("v_cache", v_cache)?);
                let width = width as u64;
                self.send(&spec, &args!(TersorKvWrite { reserved, width, k, v, positions, k_cache, v_cache }))
            }
            Op::Attention { q, heads, kv_heads, head_dim, positions, span, k_cache, v_cache, y } => {
                let (heads, kv_heads, head_dim) = (heads as u64, kv_heads as u64, head_dim as u64);
                let (q, positions, y) = (host.f32("q", q)?, host.u32("positions", positions)?, host.f32_mut("y", y)?);
                let (k_cache, v_cache) = (host.f32("k_cache", k_cache)?, host.f32("v_cache", v_cache)?);
                match span {
                    None => {
                        let args = args!(TersorAttention {
                            reserved,
                            heads,
                            kv_heads,
                            head_dim,
                            q,
                            positions,
                            k_cache,
                            v_cache,
                            y
                        });
                        self.send(&spec, &args)
                    }
                    Some(span) => {
                        let (first, longest) = (host.u32("first rows", span.first)?, span.longest as u64);
                        let args = args!(TersorAttentionSpan {
                            reserved,
                            heads,
                            kv_heads,
                            head_dim,
                            q,
                            positions,
                            k_cache,
                            v_cache,
                            y,
                            first,
                            longest
                        });
                        self.send(&spec, &args)
                    }
                }
            }
            Op::ReluSquaredMul { gate, up, y } => {
                let (gate, up, y) = (host.f32("gate", gate)?, host.f32("up", up)?, host.f32_mut("y", y)?);
                self.send(&spec, &args!(TersorReluSquaredMul { reserved, gate, up, y }))
            }
            Op::Add { x, y } => {
                let (x, y) = (host.f32("x", x)?, host.f32_mut("y", y)?);
                self.send(&spec, &args!(TersorAddOp { reserved, x, y }))
            }
            Op::Copy { x, y } => {
                let (x, y) = (host.f32("x", x)?, host.f32_mut("y", y)?);
                self.send(&spec, &args!(TersorCopyOp { reserved, x, y }))
            }
            Op::Sample { logits, params, steps, ids } => {
                let (logits, steps) = (host.f32("logits", logits)?, host.u32("steps", steps)?);
                let (ids, top_k, seed) = (host.u32_mut("ids", ids)?, params.top_k.unwrap_or(0), params.seed);
                let temperature = params.temperature;
                self.send(&spec, &args!(TersorSample { temperature, top_k, reserved, seed, logits, steps, ids }))
            }
            _ => {
                let (backend, op) = (self.opened.id.into(), spec.to_string());
                return Err(Error::Unsupported { backend, op, reason: "this ABI does not know the op".into() });
            }
        };
        ran.0
    }

    fn synchronize(&mut self) -> Result<()> {
        let opened = &self.opened;
        // SAFETY: a stream of this table.
        let status = unsafe { call!(opened.table, synchronize, self.handle, self.report.as_mut()) };
        self.report.check(status, opened.id, "synchronize")
    }
}
