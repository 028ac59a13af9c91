//! Numbers that cross. They never change their meaning.

/// Major version, part of the name of the exported symbol.
pub const TERSOR_ABI_MAJOR: u32 = 1;
/// Minor version: raised when fields, functions, ops or numbers are appended.
pub const TERSOR_ABI_MINOR: u32 = 1;

/// Done.
pub const TERSOR_OK: i32 = 0;
/// The backend does not do this; the message says why not.
pub const TERSOR_UNSUPPORTED: i32 = 1;
/// An argument that breaks the contract.
pub const TERSOR_INVALID: i32 = 2;
/// A NaN or an infinity; `index` and `value` say where and what, the message names the operand.
pub const TERSOR_NOT_FINITE: i32 = 3;
/// A scale that the format cannot store; `value` is the scale, the message says why.
pub const TERSOR_SCALE: i32 = 4;
/// No memory.
pub const TERSOR_OUT_OF_MEMORY: i32 = 5;
/// A device or driver failed.
pub const TERSOR_DEVICE: i32 = 6;
/// The host asked for the work to stop.
pub const TERSOR_CANCELLED: i32 = 7;
/// Cannot be used on this machine; the message says why.
pub const TERSOR_UNUSABLE: i32 = 8;
/// The call panicked; the instance is poisoned.
pub const TERSOR_PANIC: i32 = 9;
/// An earlier call on this instance panicked.
pub const TERSOR_POISONED: i32 = 10;
/// The tables of host and plugin do not fit together.
pub const TERSOR_ABI_MISMATCH: i32 = 11;
/// Anything else.
pub const TERSOR_INTERNAL: i32 = 12;

/// Log level: something failed.
pub const TERSOR_LOG_ERROR: u32 = 1;
/// Log level: something is not as it should be; work goes on.
pub const TERSOR_LOG_WARN: u32 = 2;
/// Log level: a decision or a fact worth knowing.
pub const TERSOR_LOG_INFO: u32 = 3;
/// Log level: for those who look for a cause.
pub const TERSOR_LOG_DEBUG: u32 = 4;

/// Device kind: the host's own cores and memory.
pub const TERSOR_CPU: u32 = 1;
/// Device kind: a GPU with memory of its own. Version 1.0 has no operands for it.
pub const TERSOR_GPU: u32 = 2;

/// Format `i2_s`.
pub const TERSOR_I2_S: u32 = 1;
/// Format `tl1`.
pub const TERSOR_TL1: u32 = 2;
/// Format `tl2`.
pub const TERSOR_TL2: u32 = 3;
/// Format `tq1_0`.
pub const TERSOR_TQ1_0: u32 = 4;
/// Format `tq2_0`.
pub const TERSOR_TQ2_0: u32 = 5;
/// Format `i2_s_g64`.
pub const TERSOR_I2_S_G64: u32 = 6;
/// Format `i2_s_g128`.
pub const TERSOR_I2_S_G128: u32 = 7;
/// Format `i2_s_g256`.
pub const TERSOR_I2_S_G256: u32 = 8;
/// Format `f32`.
pub const TERSOR_DENSE_F32: u32 = 16;
/// Format `f16`.
pub const TERSOR_DENSE_F16: u32 = 17;
/// Format `bf16`.
pub const TERSOR_DENSE_BF16: u32 = 18;
/// Format `q8_0`.
pub const TERSOR_Q8_0: u32 = 19;
/// Format `q6_k`.
pub const TERSOR_Q6_K: u32 = 20;

/// Element type binary32.
pub const TERSOR_F32: u32 = 1;
/// Element type binary16.
pub const TERSOR_F16: u32 = 2;
/// Element type bfloat16.
pub const TERSOR_BF16: u32 = 3;
/// Element type signed 8-bit.
pub const TERSOR_I8: u32 = 4;
/// Element type unsigned 8-bit.
pub const TERSOR_U8: u32 = 5;
/// Element type signed 32-bit.
pub const TERSOR_I32: u32 = 6;
/// Element type unsigned 32-bit.
pub const TERSOR_U32: u32 = 7;

/// ISA tier `avx2`. In masks, tier number t is bit t.
pub const TERSOR_ISA_AVX2: u32 = 1;
/// ISA tier `avx-vnni`.
pub const TERSOR_ISA_AVX_VNNI: u32 = 2;
/// ISA tier `avx512`.
pub const TERSOR_ISA_AVX512: u32 = 3;
/// ISA tier `avx512-vnni`.
pub const TERSOR_ISA_AVX512_VNNI: u32 = 4;
/// ISA tier `avx512-vbmi`.
pub const TERSOR_ISA_AVX512_VBMI: u32 = 5;
/// ISA tier `neon`.
pub const TERSOR_ISA_NEON: u32 = 6;
/// ISA tier `neon-dotprod`.
pub const TERSOR_ISA_NEON_DOTPROD: u32 = 7;
/// ISA tier `neon-i8mm`.
pub const TERSOR_ISA_NEON_I8MM: u32 = 8;
/// ISA tier `amx-int8`.
pub const TERSOR_ISA_AMX_INT8: u32 = 9;

/// Op `quantize`.
pub const TERSOR_OP_QUANTIZE: u32 = 1;
/// Op `dequantize`.
pub const TERSOR_OP_DEQUANTIZE: u32 = 2;
/// Op `quantize_rows`.
pub const TERSOR_OP_QUANTIZE_ROWS: u32 = 3;
/// Op `matmul`.
pub const TERSOR_OP_MATMUL: u32 = 4;
/// Op `gather_rows`.
pub const TERSOR_OP_GATHER_ROWS: u32 = 5;
/// Op `rms_norm`.
pub const TERSOR_OP_RMS_NORM: u32 = 6;
/// Op `rms_norm_quantize`.
pub const TERSOR_OP_RMS_NORM_QUANTIZE: u32 = 7;
/// Op `rope`.
pub const TERSOR_OP_ROPE: u32 = 8;
/// Op `kv_write`.
pub const TERSOR_OP_KV_WRITE: u32 = 9;
/// Op `attention`.
pub const TERSOR_OP_ATTENTION: u32 = 10;
/// Op `relu_squared_mul`.
pub const TERSOR_OP_RELU_SQUARED_MUL: u32 = 11;
/// Op `add`.
pub const TERSOR_OP_ADD: u32 = 12;
/// Op `copy`.
pub const TERSOR_OP_COPY: u32 = 13;
/// Op `sample`.
pub const TERSOR_OP_SAMPLE: u32 = 14;
/// Op `attention` over spans of the cache, with `TersorAttentionSpan`. Since 1.1.
pub const TERSOR_OP_ATTENTION_SPAN: u32 = 15;

/// Epilogue: store the result.
pub const TERSOR_STORE: u32 = 0;
/// Epilogue: add it to what the output holds.
pub const TERSOR_ADD: u32 = 1;

/// Flag: the weight's codes are used in place after the call, and the host keeps them. In `TersorPack`, until the pack is
/// freed; in `TersorRan` and as the answer of `free_pack`, until the process ends.
pub const TERSOR_KEEPS_CODES: u32 = 1;
