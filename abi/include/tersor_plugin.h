/* The plugin ABI of Tersor, version 1. The contract is docs/plugin-abi.md.
 *
 * Generated from abi/src/raw/; TERSOR_REGENERATE=1 cargo test -p tersor-abi --test header writes it anew. */

#ifndef TERSOR_PLUGIN_H
#define TERSOR_PLUGIN_H

#include <stdint.h>

// Major version, part of the name of the exported symbol.
#define TERSOR_ABI_MAJOR 1

// Minor version: raised when fields, functions, ops or numbers are appended.
#define TERSOR_ABI_MINOR 1

// Done.
#define TERSOR_OK 0

// The backend does not do this; the message says why not.
#define TERSOR_UNSUPPORTED 1

// An argument that breaks the contract.
#define TERSOR_INVALID 2

// A NaN or an infinity; `index` and `value` say where and what, the message names the operand.
#define TERSOR_NOT_FINITE 3

// A scale that the format cannot store; `value` is the scale, the message says why.
#define TERSOR_SCALE 4

// No memory.
#define TERSOR_OUT_OF_MEMORY 5

// A device or driver failed.
#define TERSOR_DEVICE 6

// The host asked for the work to stop.
#define TERSOR_CANCELLED 7

// Cannot be used on this machine; the message says why.
#define TERSOR_UNUSABLE 8

// The call panicked; the instance is poisoned.
#define TERSOR_PANIC 9

// An earlier call on this instance panicked.
#define TERSOR_POISONED 10

// The tables of host and plugin do not fit together.
#define TERSOR_ABI_MISMATCH 11

// Anything else.
#define TERSOR_INTERNAL 12

// Log level: something failed.
#define TERSOR_LOG_ERROR 1

// Log level: something is not as it should be; work goes on.
#define TERSOR_LOG_WARN 2

// Log level: a decision or a fact worth knowing.
#define TERSOR_LOG_INFO 3

// Log level: for those who look for a cause.
#define TERSOR_LOG_DEBUG 4

// Device kind: the host's own cores and memory.
#define TERSOR_CPU 1

// Device kind: a GPU with memory of its own. Version 1.0 has no operands for it.
#define TERSOR_GPU 2

// Format `i2_s`.
#define TERSOR_I2_S 1

// Format `tl1`.
#define TERSOR_TL1 2

// Format `tl2`.
#define TERSOR_TL2 3

// Format `tq1_0`.
#define TERSOR_TQ1_0 4

// Format `tq2_0`.
#define TERSOR_TQ2_0 5

// Format `i2_s_g64`.
#define TERSOR_I2_S_G64 6

// Format `i2_s_g128`.
#define TERSOR_I2_S_G128 7

// Format `i2_s_g256`.
#define TERSOR_I2_S_G256 8

// Format `f32`.
#define TERSOR_DENSE_F32 16

// Format `f16`.
#define TERSOR_DENSE_F16 17

// Format `bf16`.
#define TERSOR_DENSE_BF16 18

// Format `q8_0`.
#define TERSOR_Q8_0 19

// Format `q6_k`.
#define TERSOR_Q6_K 20

// Element type binary32.
#define TERSOR_F32 1

// Element type binary16.
#define TERSOR_F16 2

// Element type bfloat16.
#define TERSOR_BF16 3

// Element type signed 8-bit.
#define TERSOR_I8 4

// Element type unsigned 8-bit.
#define TERSOR_U8 5

// Element type signed 32-bit.
#define TERSOR_I32 6

// Element type unsigned 32-bit.
#define TERSOR_U32 7

// ISA tier `avx2`. In masks, tier number t is bit t.
#define TERSOR_ISA_AVX2 1

// ISA tier `avx-vnni`.
#define TERSOR_ISA_AVX_VNNI 2

// ISA tier `avx512`.
#define TERSOR_ISA_AVX512 3

// ISA tier `avx512-vnni`.
#define TERSOR_ISA_AVX512_VNNI 4

// ISA tier `avx512-vbmi`.
#define TERSOR_ISA_AVX512_VBMI 5

// ISA tier `neon`.
#define TERSOR_ISA_NEON 6

// ISA tier `neon-dotprod`.
#define TERSOR_ISA_NEON_DOTPROD 7

// ISA tier `neon-i8mm`.
#define TERSOR_ISA_NEON_I8MM 8

// ISA tier `amx-int8`.
#define TERSOR_ISA_AMX_INT8 9

// Op `quantize`.
#define TERSOR_OP_QUANTIZE 1

// Op `dequantize`.
#define TERSOR_OP_DEQUANTIZE 2

// Op `quantize_rows`.
#define TERSOR_OP_QUANTIZE_ROWS 3

// Op `matmul`.
#define TERSOR_OP_MATMUL 4

// Op `gather_rows`.
#define TERSOR_OP_GATHER_ROWS 5

// Op `rms_norm`.
#define TERSOR_OP_RMS_NORM 6

// Op `rms_norm_quantize`.
#define TERSOR_OP_RMS_NORM_QUANTIZE 7

// Op `rope`.
#define TERSOR_OP_ROPE 8

// Op `kv_write`.
#define TERSOR_OP_KV_WRITE 9

// Op `attention`.
#define TERSOR_OP_ATTENTION 10

// Op `relu_squared_mul`.
#define TERSOR_OP_RELU_SQUARED_MUL 11

// Op `add`.
#define TERSOR_OP_ADD 12

// Op `copy`.
#define TERSOR_OP_COPY 13

// Op `sample`.
#define TERSOR_OP_SAMPLE 14

// Op `attention` over spans of the cache, with `TersorAttentionSpan`. Since 1.1.
#define TERSOR_OP_ATTENTION_SPAN 15

// Epilogue: store the result.
#define TERSOR_STORE 0

// Epilogue: add it to what the output holds.
#define TERSOR_ADD 1

// Flag: the weight's codes are used in place after the call, and the host keeps them. In `TersorPack`, until the pack is
// freed; in `TersorRan` and as the answer of `free_pack`, until the process ends.
#define TERSOR_KEEPS_CODES 1

// Static UTF-8 text of whoever wrote it; never freed.
typedef struct TersorStr {
  // Bytes; not terminated.
  const char *data;
  // How many.
  uint64_t len;
} TersorStr;

// A buffer of the caller for UTF-8 text.
typedef struct TersorText {
  // The buffer.
  char *data;
  // Its size in bytes.
  uint64_t capacity;
  // Out: length of the whole text, more than `capacity` where it was cut.
  uint64_t len;
} TersorText;

// What went wrong beyond the status. The caller owns it; a callee that succeeds leaves it alone. May be null.
typedef struct TersorError {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Element that the error is about.
  uint64_t index;
  // Value that the error is about.
  float value;
  // Zero.
  uint32_t reserved2;
  // The message.
  struct TersorText message;
} TersorError;

// Real values in one of the float types.
typedef struct TersorFloats {
  // The values.
  const void *data;
  // Number of values.
  uint64_t len;
  // Their type, such as `TERSOR_F32`.
  uint32_t dtype;
  // Zero.
  uint32_t reserved;
} TersorFloats;

// The same for writing.
typedef struct TersorFloatsMut {
  // The values.
  void *data;
  // Number of values.
  uint64_t len;
  // Their type.
  uint32_t dtype;
  // Zero.
  uint32_t reserved;
} TersorFloatsMut;

// Binary32 values to read.
typedef struct TersorF32 {
  // First element.
  const float *data;
  // Number of elements.
  uint64_t len;
} TersorF32;

// Binary32 values to write.
typedef struct TersorF32Mut {
  // First element.
  float *data;
  // Number of elements.
  uint64_t len;
} TersorF32Mut;

// Signed bytes to read.
typedef struct TersorI8 {
  // First element.
  const int8_t *data;
  // Number of elements.
  uint64_t len;
} TersorI8;

// Signed bytes to write.
typedef struct TersorI8Mut {
  // First element.
  int8_t *data;
  // Number of elements.
  uint64_t len;
} TersorI8Mut;

// Signed 32-bit integers to write.
typedef struct TersorI32Mut {
  // First element.
  int32_t *data;
  // Number of elements.
  uint64_t len;
} TersorI32Mut;

// Bytes to read.
typedef struct TersorU8 {
  // First element.
  const uint8_t *data;
  // Number of elements.
  uint64_t len;
} TersorU8;

// Bytes to write.
typedef struct TersorU8Mut {
  // First element.
  uint8_t *data;
  // Number of elements.
  uint64_t len;
} TersorU8Mut;

// Unsigned 32-bit integers to read.
typedef struct TersorU32 {
  // First element.
  const uint32_t *data;
  // Number of elements.
  uint64_t len;
} TersorU32;

// Unsigned 32-bit integers to write.
typedef struct TersorU32Mut {
  // First element.
  uint32_t *data;
  // Number of elements.
  uint64_t len;
} TersorU32Mut;

// A weight in canonical bytes; see formats.md.
typedef struct TersorWeight {
  // Size of this struct.
  uint32_t struct_size;
  // Number of the format.
  uint32_t format;
  // Rows (N).
  uint64_t rows;
  // Columns (K).
  uint64_t cols;
  // The bytes, tail included.
  struct TersorU8 codes;
  // Separate scales (group forms only).
  struct TersorF32 scales;
  // For `pack`: weights of a row that share a scale; 0 for a single-scale (or dense) weight, where one scale serves all.
  uint64_t scale_block;
} TersorWeight;

// An op as a question; which fields count is said by the table of plugin-abi.md.
typedef struct TersorSpec {
  // Size of this struct.
  uint32_t struct_size;
  // Number of the op.
  uint32_t op;
  // Format, or 0.
  uint32_t format;
  // Element type read, or 0.
  uint32_t input;
  // Element type written, or 0.
  uint32_t output;
  // Store or add.
  uint32_t epilogue;
  // Weights of a row that share a scale; 0: one scale.
  uint64_t scale_block;
  // Rows of activations.
  uint64_t m;
  // Rows of the weight.
  uint64_t n;
  // Columns, or length.
  uint64_t k;
  // Query heads.
  uint64_t heads;
  // Key/value heads.
  uint64_t kv_heads;
  // Elements of a head.
  uint64_t head_dim;
  // Positions of the cache.
  uint64_t capacity;
} TersorSpec;

// Real weights to canonical bytes.
typedef struct TersorQuantize {
  // Size of this struct.
  uint32_t struct_size;
  // Format to write.
  uint32_t format;
  // Rows.
  uint64_t rows;
  // Columns.
  uint64_t cols;
  // `rows * cols` weights.
  struct TersorFloats w;
  // Bytes.
  struct TersorU8Mut codes;
  // Separate scales (group forms only).
  struct TersorF32Mut scales;
} TersorQuantize;

// Canonical bytes to real weights.
typedef struct TersorDequantize {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // The weight.
  const struct TersorWeight *w;
  // `rows * cols` values.
  struct TersorFloatsMut y;
} TersorDequantize;

// Each row to int8 with a scale.
typedef struct TersorQuantizeRows {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Columns.
  uint64_t cols;
  // `rows * cols`.
  struct TersorF32 x;
  // `rows * cols`.
  struct TersorI8Mut q;
  // `rows`.
  struct TersorF32Mut scales;
} TersorQuantizeRows;

// `y = x * w^T`.
typedef struct TersorMatMul {
  // Size of this struct.
  uint32_t struct_size;
  // Store or add.
  uint32_t epilogue;
  // A pack of this instance, `n x k`.
  const void *w;
  // `m x k` int8 activations, for ternary weights; else empty.
  struct TersorI8 xq;
  // `m` scales, by which results are divided.
  struct TersorF32 x_scales;
  // `m x k` activations, for dense weights; else empty.
  struct TersorF32 x;
  // `m x n` scaled results, or empty.
  struct TersorF32Mut y;
  // `m x n` exact sums with no scale applied, or empty. One of `y` and `sums` is given.
  struct TersorI32Mut sums;
} TersorMatMul;

// Rows of a dense table, as f32.
typedef struct TersorGatherRows {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // A pack of this instance.
  const void *table;
  // Which rows.
  struct TersorU32 ids;
  // `ids.len x cols`.
  struct TersorF32Mut y;
} TersorGatherRows;

// RMSNorm of each row.
typedef struct TersorRmsNorm {
  // Size of this struct.
  uint32_t struct_size;
  // Added to the mean square.
  float eps;
  // `rows x w.len`.
  struct TersorF32 x;
  // Weights; their number is the row length.
  struct TersorF32 w;
  // As long as x.
  struct TersorF32Mut y;
} TersorRmsNorm;

// RMSNorm, then QuantizeRows.
typedef struct TersorRmsNormQuantize {
  // Size of this struct.
  uint32_t struct_size;
  // Added to the mean square.
  float eps;
  // `rows x w.len`.
  struct TersorF32 x;
  // Weights.
  struct TersorF32 w;
  // As long as x.
  struct TersorI8Mut q;
  // `rows`.
  struct TersorF32Mut scales;
} TersorRmsNormQuantize;

// Rotates heads in place.
typedef struct TersorRope {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Elements of a head; even.
  uint64_t head_dim;
  // `rows x heads * head_dim`.
  struct TersorF32Mut x;
  // Position of each row.
  struct TersorU32 positions;
  // `positions x head_dim / 2`.
  struct TersorF32 cos;
  // Likewise.
  struct TersorF32 sin;
} TersorRope;

// Writes keys and values into a cache.
typedef struct TersorKvWrite {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Elements of a cache position.
  uint64_t width;
  // `rows x width`.
  struct TersorF32 k;
  // `rows x width`.
  struct TersorF32 v;
  // Position of each row.
  struct TersorU32 positions;
  // `capacity x width`.
  struct TersorF32Mut k_cache;
  // `capacity x width`.
  struct TersorF32Mut v_cache;
} TersorKvWrite;

// Each row attends to the cache up to its own position.
typedef struct TersorAttention {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Query heads.
  uint64_t heads;
  // Key/value heads.
  uint64_t kv_heads;
  // Elements of a head.
  uint64_t head_dim;
  // `rows x heads * head_dim`.
  struct TersorF32 q;
  // Position of each row.
  struct TersorU32 positions;
  // `capacity x kv_heads * head_dim`.
  struct TersorF32 k_cache;
  // Likewise.
  struct TersorF32 v_cache;
  // As long as q.
  struct TersorF32Mut y;
} TersorAttention;

// Each row attends to a span of the cache that ends at its own position: to its sequence, of several that share the cache,
// or to a window. Since 1.1.
typedef struct TersorAttentionSpan {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Query heads.
  uint64_t heads;
  // Key/value heads.
  uint64_t kv_heads;
  // Elements of a head.
  uint64_t head_dim;
  // `rows x heads * head_dim`.
  struct TersorF32 q;
  // The last cache row that each row sees.
  struct TersorU32 positions;
  // `capacity x kv_heads * head_dim`.
  struct TersorF32 k_cache;
  // Likewise.
  struct TersorF32 v_cache;
  // As long as q.
  struct TersorF32Mut y;
  // The first cache row that each row sees.
  struct TersorU32 first;
  // The most cache rows that any row sees.
  uint64_t longest;
} TersorAttentionSpan;

// `y = max(gate, 0)^2 * up`.
typedef struct TersorReluSquaredMul {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Gate.
  struct TersorF32 gate;
  // As long.
  struct TersorF32 up;
  // As long.
  struct TersorF32Mut y;
} TersorReluSquaredMul;

// `y += x`.
typedef struct TersorAddOp {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Addend.
  struct TersorF32 x;
  // As long.
  struct TersorF32Mut y;
} TersorAddOp;

// `y = x`.
typedef struct TersorCopyOp {
  // Size of this struct.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved;
  // Source.
  struct TersorF32 x;
  // As long.
  struct TersorF32Mut y;
} TersorCopyOp;

// Draws a token from each row of logits.
typedef struct TersorSample {
  // Size of this struct.
  uint32_t struct_size;
  // Divides the logits; 0 takes the largest.
  float temperature;
  // Only so many largest take part; 0: all.
  uint32_t top_k;
  // Zero.
  uint32_t reserved;
  // Seed of the noise.
  uint64_t seed;
  // `rows x vocabulary`.
  struct TersorF32 logits;
  // Tokens before the drawn one, for each row.
  struct TersorU32 steps;
  // `rows`.
  struct TersorU32Mut ids;
} TersorSample;

// What the host offers. `ctx` is handed back to each function.
typedef struct TersorHost {
  // Size of this struct.
  uint32_t struct_size;
  // Minor version of the ABI that the host was built with.
  uint32_t abi_minor;
  // The host's own.
  void *ctx;
  // Hands a message of `len` bytes to the host.
  void (*log)(void *ctx, uint32_t level, const char *text, uint64_t len);
  // How many tasks can run at the same moment.
  uint32_t (*threads)(void *ctx);
  // Calls `task(data, i)` once for each `i` below `tasks`, from any thread, and returns when all are done.
  int32_t (*parallel_for)(void *ctx,
                          uint64_t tasks,
                          void (*task)(void *data, uint64_t index),
                          void *data);
  // Not 0 when the host wants the work to stop.
  uint32_t (*is_cancelled)(void *ctx);
  // A table of an extension, of at least this version; null where the host has none.
  const void *(*extension)(void *ctx, const char *name, uint64_t len, uint32_t min_version);
} TersorHost;

// Answer of `probe`.
typedef struct TersorProbe {
  // Size of this struct.
  uint32_t struct_size;
  // Number of devices, at least 1.
  uint32_t devices;
} TersorProbe;

// One processor.
typedef struct TersorDevice {
  // Size of this struct.
  uint32_t struct_size;
  // `TERSOR_CPU`, or `TERSOR_GPU`.
  uint32_t kind;
  // ISA tiers usable here: tier t is bit t.
  uint64_t isas;
  // Bytes of memory of its own; 0 where it shares the host's.
  uint64_t memory;
  // The maker's name for it.
  struct TersorText name;
} TersorDevice;

// How to open.
typedef struct TersorOptions {
  // Size of this struct.
  uint32_t struct_size;
  // ISA tier to use, or 0 for the best.
  uint32_t isa;
} TersorOptions;

// What an instance is.
typedef struct TersorInfo {
  // Size of this struct.
  uint32_t struct_size;
  // Number of its device.
  uint32_t device;
  // ISA tier of its kernels, or 0.
  uint32_t isa;
  // Zero.
  uint32_t reserved;
} TersorInfo;

// Which kernel would run, or ran.
typedef struct TersorRan {
  // Size of this struct.
  uint32_t struct_size;
  // `TERSOR_KEEPS_CODES`, or 0.
  uint32_t flags;
  // The kernel's name: static text.
  struct TersorStr kernel;
} TersorRan;

// What `pack` made.
typedef struct TersorPack {
  // Size of this struct.
  uint32_t struct_size;
  // `TERSOR_KEEPS_CODES`, or 0.
  uint32_t flags;
  // The pack; freed with `free_pack`.
  void *handle;
  // Bytes it occupies, those of the weight that it uses in place included.
  uint64_t bytes;
  // The plugin's name for the layout: static text.
  struct TersorStr packing;
} TersorPack;

// A backend: a constant of the library. All functions are mandatory in version 1.0.
typedef struct TersorBackend {
  // Size of this struct.
  uint32_t struct_size;
  // Raised whenever a kernel changes, so that old measurements are not believed.
  uint32_t kernel_revision;
  // The plugin's own.
  const void *data;
  // Unique id: lower case, digits and hyphens.
  struct TersorStr id;
  // Version of the backend.
  struct TersorStr version;
  // Rank where nothing has been measured: the highest usable one wins.
  int32_t priority;
  // Zero.
  uint32_t reserved;
  // Whether it can be used on this machine.
  int32_t (*probe)(const struct TersorBackend *backend,
                   struct TersorProbe *out,
                   struct TersorError *err);
  // Describes a device.
  int32_t (*device)(const struct TersorBackend *backend,
                    uint32_t index,
                    struct TersorDevice *out,
                    struct TersorError *err);
  // Makes an instance. `host` and its context live until `close` returns.
  int32_t (*open)(const struct TersorBackend *backend,
                  const struct TersorHost *host,
                  const struct TersorOptions *options,
                  void **out,
                  struct TersorError *err);
  // Frees an instance.
  void (*close)(void *instance);
  // What the instance is.
  int32_t (*info)(void *instance, struct TersorInfo *out, struct TersorError *err);
  // Whether `submit` would run such an op.
  int32_t (*supports)(void *instance,
                      const struct TersorSpec *spec,
                      struct TersorRan *out,
                      struct TersorError *err);
  // Bytes that a pack would occupy, at most.
  int32_t (*packed_size)(void *instance,
                         uint32_t format,
                         uint64_t rows,
                         uint64_t cols,
                         uint64_t *out,
                         struct TersorError *err);
  // Brings a weight into the plugin's layout.
  int32_t (*pack)(void *instance,
                  const struct TersorWeight *weight,
                  struct TersorPack *out,
                  struct TersorError *err);
  // Frees a pack. Returns flags: `TERSOR_KEEPS_CODES` if the weight's codes are used all the same, or 0.
  uint32_t (*free_pack)(void *instance, void *pack);
  // Opens an ordered queue of work.
  int32_t (*open_stream)(void *instance, void **out, struct TersorError *err);
  // Closes it.
  void (*close_stream)(void *stream);
  // Runs an op. `args` points to the struct of the op.
  int32_t (*submit)(void *stream,
                    uint32_t op,
                    const void *args,
                    struct TersorRan *out,
                    struct TersorError *err);
  // Waits for submitted work.
  int32_t (*synchronize)(void *stream, struct TersorError *err);
} TersorBackend;

// The plugin: a constant of the library.
typedef struct TersorPlugin {
  // Size of this struct.
  uint32_t struct_size;
  // Minor version of the ABI that the plugin was built with.
  uint32_t abi_minor;
  // Its name, as in the manifest.
  struct TersorStr name;
  // Its version, as in the manifest.
  struct TersorStr version;
  // Its backends.
  const struct TersorBackend *const *backends;
  // How many.
  uint64_t backend_count;
} TersorPlugin;

// Type of the exported symbol, `tersor_plugin_v1`.
typedef int32_t (*TersorPluginV1)(const struct TersorHost *host, const struct TersorPlugin **out);

#endif  /* TERSOR_PLUGIN_H */

/* The one symbol that a plugin exports. */
#if defined(_WIN32)
#define TERSOR_EXPORT __declspec(dllexport)
#else
#define TERSOR_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif
TERSOR_EXPORT int32_t tersor_plugin_v1(const TersorHost *host, const TersorPlugin **out);
#ifdef __cplusplus
}
#endif
