//! The layout of every struct, in numbers. The compiler checks them here, and the header's test checks them in C and C++.

use std::mem::{offset_of, size_of};

use super::*;

/// A struct that begins with its size.
pub(crate) trait Prefixed {
    /// Size in version 1.0, or in the one that brought it: the least that is accepted.
    const V1: u32;
}

macro_rules! layout {
    ($($name:ident $size:literal { $($field:ident $offset:literal),+ })+) => {
        // A change of a number below is a new major version. (Pointers are 64 bits: others are refused in lib.rs.)
        $(const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(offset_of!($name, $field) == $offset);)+
        };)+

        /// Struct, size, fields with offsets.
        #[doc(hidden)]
        pub fn offsets() -> Vec<(&'static str, usize, Vec<(&'static str, usize)>)> {
            vec![$((stringify!($name), size_of::<$name>(), vec![$((stringify!($field), offset_of!($name, $field))),+])),+]
        }
    };
}

layout! {
    TersorStr 16 { data 0, len 8 }
    TersorText 24 { data 0, capacity 8, len 16 }
    TersorError 48 { struct_size 0, reserved 4, index 8, value 16, reserved2 20, message 24 }
    TersorFloats 24 { data 0, len 8, dtype 16, reserved 20 }
    TersorFloatsMut 24 { data 0, len 8, dtype 16, reserved 20 }
    TersorF32 16 { data 0, len 8 }
    TersorF32Mut 16 { data 0, len 8 }
    TersorI8 16 { data 0, len 8 }
    TersorI8Mut 16 { data 0, len 8 }
    TersorI32Mut 16 { data 0, len 8 }
    TersorU8 16 { data 0, len 8 }
    TersorU8Mut 16 { data 0, len 8 }
    TersorU32 16 { data 0, len 8 }
    TersorU32Mut 16 { data 0, len 8 }
    TersorWeight 64 { struct_size 0, format 4, rows 8, cols 16, codes 24, scales 40, scale_block 56 }
    TersorSpec 88 { struct_size 0, op 4, format 8, input 12, output 16, epilogue 20, scale_block 24, m 32, n 40, k 48, heads 56, kv_heads 64, head_dim 72, capacity 80 }
    TersorQuantize 80 { struct_size 0, format 4, rows 8, cols 16, w 24, codes 48, scales 64 }
    TersorDequantize 40 { struct_size 0, reserved 4, w 8, y 16 }
    TersorQuantizeRows 64 { struct_size 0, reserved 4, cols 8, x 16, q 32, scales 48 }
    TersorMatMul 96 { struct_size 0, epilogue 4, w 8, xq 16, x_scales 32, x 48, y 64, sums 80 }
    TersorGatherRows 48 { struct_size 0, reserved 4, table 8, ids 16, y 32 }
    TersorRmsNorm 56 { struct_size 0, eps 4, x 8, w 24, y 40 }
    TersorRmsNormQuantize 72 { struct_size 0, eps 4, x 8, w 24, q 40, scales 56 }
    TersorRope 80 { struct_size 0, reserved 4, head_dim 8, x 16, positions 32, cos 48, sin 64 }
    TersorKvWrite 96 { struct_size 0, reserved 4, width 8, k 16, v 32, positions 48, k_cache 64, v_cache 80 }
    TersorAttention 112 { struct_size 0, reserved 4, heads 8, kv_heads 16, head_dim 24, q 32, positions 48, k_cache 64, v_cache 80, y 96 }
    TersorAttentionSpan 136 { struct_size 0, reserved 4, heads 8, kv_heads 16, head_dim 24, q 32, positions 48, k_cache 64, v_cache 80, y 96, first 112, longest 128 }
    TersorReluSquaredMul 56 { struct_size 0, reserved 4, gate 8, up 24, y 40 }
    TersorAddOp 40 { struct_size 0, reserved 4, x 8, y 24 }
    TersorCopyOp 40 { struct_size 0, reserved 4, x 8, y 24 }
    TersorSample 72 { struct_size 0, temperature 4, top_k 8, reserved 12, seed 16, logits 24, steps 40, ids 56 }
    TersorHost 56 { struct_size 0, abi_minor 4, ctx 8, log 16, threads 24, parallel_for 32, is_cancelled 40, extension 48 }
    TersorPlugin 56 { struct_size 0, abi_minor 4, name 8, version 24, backends 40, backend_count 48 }
    TersorProbe 8 { struct_size 0, devices 4 }
    TersorDevice 48 { struct_size 0, kind 4, isas 8, memory 16, name 24 }
    TersorOptions 8 { struct_size 0, isa 4 }
    TersorInfo 16 { struct_size 0, device 4, isa 8, reserved 12 }
    TersorRan 24 { struct_size 0, flags 4, kernel 8 }
    TersorPack 40 { struct_size 0, flags 4, handle 8, bytes 16, packing 24 }
    TersorBackend 160 { struct_size 0, kernel_revision 4, data 8, id 16, version 32, priority 48, reserved 52, probe 56, device 64, open 72, close 80, info 88, supports 96, packed_size 104, pack 112, free_pack 120, open_stream 128, close_stream 136, submit 144, synchronize 152 }
}

macro_rules! prefixed {
    ($($name:ident $v1:literal),+) => { $(impl Prefixed for $name { const V1: u32 = $v1; })+ };
}

prefixed! {
    TersorError 48,
    TersorWeight 64,
    TersorSpec 88,
    TersorQuantize 80,
    TersorDequantize 40,
    TersorQuantizeRows 64,
    TersorMatMul 96,
    TersorGatherRows 48,
    TersorRmsNorm 56,
    TersorRmsNormQuantize 72,
    TersorRope 80,
    TersorKvWrite 96,
    TersorAttention 112,
    TersorAttentionSpan 136,
    TersorReluSquaredMul 56,
    TersorAddOp 40,
    TersorCopyOp 40,
    TersorSample 72,
    TersorHost 56,
    TersorPlugin 56,
    TersorProbe 8,
    TersorDevice 48,
    TersorOptions 8,
    TersorInfo 16,
    TersorRan 24,
    TersorPack 40,
    TersorBackend 160
}

/// The struct of an op.
pub(crate) trait Args {
    /// The op's number.
    const OP: u32;
}

macro_rules! args_of {
    ($($name:ident $op:ident),+) => { $(impl Args for $name { const OP: u32 = $op; })+ };
}

args_of! {
    TersorQuantize TERSOR_OP_QUANTIZE,
    TersorDequantize TERSOR_OP_DEQUANTIZE,
    TersorQuantizeRows TERSOR_OP_QUANTIZE_ROWS,
    TersorMatMul TERSOR_OP_MATMUL,
    TersorGatherRows TERSOR_OP_GATHER_ROWS,
    TersorRmsNorm TERSOR_OP_RMS_NORM,
    TersorRmsNormQuantize TERSOR_OP_RMS_NORM_QUANTIZE,
    TersorRope TERSOR_OP_ROPE,
    TersorKvWrite TERSOR_OP_KV_WRITE,
    TersorAttention TERSOR_OP_ATTENTION,
    TersorAttentionSpan TERSOR_OP_ATTENTION_SPAN,
    TersorReluSquaredMul TERSOR_OP_RELU_SQUARED_MUL,
    TersorAddOp TERSOR_OP_ADD,
    TersorCopyOp TERSOR_OP_COPY,
    TersorSample TERSOR_OP_SAMPLE
}
