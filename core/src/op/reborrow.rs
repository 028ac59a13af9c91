//! Looking at a checked op, and lending it.

use super::{Checked, FloatOut, Op, Output};
use crate::{Element, Out};

impl<'a, T: Element> Out<'a, T> {
    /// The same operand for a shorter time.
    pub fn reborrow(&mut self) -> Out<'_, T> {
        match self {
            Out::Host(s) => Out::Host(s),
            Out::Device(d) => Out::Device(*d),
        }
    }
}

impl<'a> Checked<'a> {
    /// The op, for those who only look: a backend that passes it on to another one.
    pub fn get(&self) -> &Op<'a> {
        &self.op
    }

    /// The same op, lent: what was submitted and failed can be submitted elsewhere. Nothing is checked again.
    pub fn reborrow(&mut self) -> Checked<'_> {
        Checked { spec: self.spec, op: self.op.reborrow() }
    }
}

impl Op<'_> {
    fn reborrow(&mut self) -> Op<'_> {
        match self {
            Op::Quantize { w, shape, format, codes, scales } => Op::Quantize {
                w: *w,
                shape: *shape,
                format: *format,
                codes: codes.reborrow(),
                scales: scales.reborrow(),
            },
            Op::Dequantize { w, y } => {
                let y = match y {
                    FloatOut::F32(y) => FloatOut::F32(y.reborrow()),
                    FloatOut::F16(y) => FloatOut::F16(y.reborrow()),
                    FloatOut::BF16(y) => FloatOut::BF16(y.reborrow()),
                };
                Op::Dequantize { w, y }
            }
            Op::QuantizeRows { x, cols, q, scales } => {
                Op::QuantizeRows { x: *x, cols: *cols, q: q.reborrow(), scales: scales.reborrow() }
            }
            Op::MatMul { w, x, y, epilogue } => {
                let y = match y {
                    Output::F32(y) => Output::F32(y.reborrow()),
                    Output::I32(y) => Output::I32(y.reborrow()),
                };
                Op::MatMul { w, x: *x, y, epilogue: *epilogue }
            }
            Op::GatherRows { table, ids, y } => Op::GatherRows { table, ids: *ids, y: y.reborrow() },
            Op::RmsNorm { x, w, eps, y } => Op::RmsNorm { x: *x, w: *w, eps: *eps, y: y.reborrow() },
            Op::RmsNormQuantize { x, w, eps, q, scales } => {
                Op::RmsNormQuantize { x: *x, w: *w, eps: *eps, q: q.reborrow(), scales: scales.reborrow() }
            }
            Op::Rope { x, head_dim, positions, cos, sin } => {
                Op::Rope { x: x.reborrow(), head_dim: *head_dim, positions: *positions, cos: *cos, sin: *sin }
            }
            Op::KvWrite { k, v, width, positions, k_cache, v_cache } => Op::KvWrite {
                k: *k,
                v: *v,
                width: *width,
                positions: *positions,
                k_cache: k_cache.reborrow(),
                v_cache: v_cache.reborrow(),
            },
            Op::Attention { q, heads, kv_heads, head_dim, positions, span, k_cache, v_cache, y } => Op::Attention {
                q: *q,
                heads: *heads,
                kv_heads: *kv_heads,
                head_dim: *head_dim,
                positions: *positions,
                span: *span,
                k_cache: *k_cache,
                v_cache: *v_cache,
                y: y.reborrow(),
            },
            Op::ReluSquaredMul { gate, up, y } => Op::ReluSquaredMul { gate: *gate, up: *up, y: y.reborrow() },
            Op::Add { x, y } => Op::Add { x: *x, y: y.reborrow() },
            Op::Copy { x, y } => Op::Copy { x: *x, y: y.reborrow() },
            Op::Sample { logits, params, steps, ids } => {
                Op::Sample { logits: *logits, params: *params, steps: *steps, ids: ids.reborrow() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::In;

    #[test]
    fn what_is_lent_writes_where_the_op_would() {
        let (x, mut y) = ([1.0f32, 2.0], [0.0f32; 2]);
        let mut op = Op::Copy { x: In::Host(&x), y: Out::Host(&mut y) }.check().unwrap();
        for value in [3.0, 4.0] {
            let lent = op.reborrow();
            assert_eq!(lent.spec(), crate::OpSpec::Copy { len: 2 });
            let Op::Copy { y: Out::Host(y), .. } = lent.op() else { unreachable!() };
            y[1] = value;
        }
        assert!(matches!(op.get(), Op::Copy { y: Out::Host([0.0, 4.0]), .. }));
    }
}
