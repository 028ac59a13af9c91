// Quantizing, dequantizing and packing weights.
//
// Per tensor there are three passes: sums of chunks, the tree over them, and the codes. Per group there is one.
#include "common.cuh"

#define CHUNK 4096

struct Stats {
    double sum;
    u32 max, min;
};

__device__ __forceinline__ Stats both(Stats a, Stats b) {
    return {a.sum + b.sum, max(a.max, b.max), min(a.min, b.min)};
}

// Four elements, where they may be unaligned or past the end.
template <int T> __device__ __noinline__ float4 quad_slow(const void *w, u64 i, u64 n) {
    float v[4];
    for (int c = 0; c < 4; c++) v[c] = i + c < n ? load<T>(w, i + c) : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
}
template <int T> __device__ __forceinline__ bool is_aligned(const void *w) {
    return ((u64)w & (T == T_F32 ? 15 : 7)) == 0;
}

struct Lanes {
    float lane[4];
    u32 max, min;
};

__device__ __forceinline__ void take(Lanes &l, float4 v) {
    float a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        u32 b = abs_bits(a[j]);
        l.lane[j] = l.lane[j] + __uint_as_float(b);
        l.max = max(l.max, b);
        l.min = min(l.min, b - 1);
    }
}

// Sixteen threads sum a chunk: thread t has lanes 4t .. 4t+3. Sixteen chunks make a block, whose sums are added as the
// lowest four levels of the tree: a right neighbour that is missing leaves the left one as it is.
template <int T> __device__ __forceinline__ void chunk_sums(const void *w, u64 n, Stats *out) {
    __shared__ Stats stats[16];
    u32 t = threadIdx.x & 15, c = threadIdx.x >> 4;
    u64 chunks = (n + CHUNK - 1) / CHUNK, chunk = (u64)blockIdx.x * 16 + c;
    Lanes l = {{0.0f, 0.0f, 0.0f, 0.0f}, 0, FULL};
    u64 first = chunk * CHUNK + 4 * t;
    if (is_aligned<T>(w) && (chunk + 1) * CHUNK <= n) {
#pragma unroll 16
        for (u32 i = 0; i < CHUNK; i += 64) take(l, load4<T>(w, first + i));
    } else if (chunk < chunks) {
#pragma unroll 1
        for (u32 i = 0; i < CHUNK && first + i < n; i += 64) take(l, quad_slow<T>(w, first + i, n));
    }
#pragma unroll
    for (int h = 8; h; h >>= 1) {
#pragma unroll
        for (int j = 0; j < 4; j++) l.lane[j] = l.lane[j] + __shfl_xor_sync(FULL, l.lane[j], h);
        l.max = max(l.max, __shfl_xor_sync(FULL, l.max, h));
        l.min = min(l.min, __shfl_xor_sync(FULL, l.min, h));
    }
    if (t == 0) stats[c] = {(double)((l.lane[0] + l.lane[2]) + (l.lane[1] + l.lane[3])), l.max, l.min};
    u64 count = min(chunks - (u64)blockIdx.x * 16, 16ull);
    for (u32 h = 1; h < 16; h *= 2) {
        __syncthreads();
        if (threadIdx.x < 16 && threadIdx.x % (2 * h) == 0 && threadIdx.x + h < count)
            stats[threadIdx.x] = both(stats[threadIdx.x], stats[threadIdx.x + h]);
    }
    if (threadIdx.x == 0) out[blockIdx.x] = stats[0];
}

KERNEL __launch_bounds__(256) chunk_stats(const void *w, u32 type, u64 n, Stats *out) {
    BEGIN;
    if (type == T_F32) chunk_sums<T_F32>(w, n, out);
    else if (type == T_F16) chunk_sums<T_F16>(w, n, out);
    else chunk_sums<T_BF16>(w, n, out);
}

// The scale as found, the scale as stored, and whether the codes are wanted.
struct Scale {
    float scale, stored;
    u32 state;
};
enum State { OK = 0, NOT_FINITE = 1, REFUSED = 2 };

// The rest of the tree, in one block, level by level in place; then the scale. `f16` says that the format stores it so.
KERNEL __launch_bounds__(1024) tree(Stats *stats, u64 count, u64 n, u32 f16, Scale *out, u8 *tail, FAULT) {
    BEGIN;
    for (u64 h = 1; h < count; h *= 2) {
        for (u64 i = (u64)threadIdx.x * 2 * h; i + h < count; i += (u64)blockDim.x * 2 * h)
            stats[i] = both(stats[i], stats[i + h]);
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    Stats all = stats[0];
    u32 smallest = all.min == FULL ? FULL : all.min + 1;
    float s = __uint_as_float(all.max);
    u32 state = all.max >= INF_BITS ? NOT_FINITE : OK;
    if (state == OK && all.max != smallest) {
        float mean = __double2float_rn(__ddiv_rn(all.sum, (double)n));
        s = fmaxf(mean, 1e-5f);
        if (abs_bits(mean) >= INF_BITS) {
            state = REFUSED;
            raise_fault(FAULT_ARGS, F_MEAN, 0);
        }
    }
    float stored = s;
    if (state == OK && f16) {
        u16 h = half_bits(s);
        stored = half_value(h);
        if ((h & 0x7c00) == 0x7c00 || (stored == 0.0f && s != 0.0f)) {
            state = REFUSED;
            raise_fault(FAULT_ARGS, F_SCALE, __float_as_uint(s));
        }
    }
    *out = {s, stored, state};
    if (tail && state == OK)
        for (u32 i = 0; i < 32; i++) tail[i] = i < 4 ? (u8)(__float_as_uint(s) >> 8 * i) : 0;
}

// Code + 1 of a finite weight; half the scale decides, see core's absmean.
__device__ __forceinline__ u32 code(float v, float half) { return 1u + (v > half) - (v < -half); }

// Names every element of the tensor that is not finite; the smallest index wins.
template <int T> __device__ __forceinline__ void report(const void *w, u64 n, FAULT) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        float v = load<T>(w, i);
        if (abs_bits(v) >= INF_BITS) raise_element(FAULT_ARGS, v, i);
    }
}

// i2_s: eight threads make a block of 128 values, four bytes each from four places of the block.
template <int T>
__device__ __forceinline__ void encode_i2s(const void *w, u64 n, const Scale *scale, u8 *out, FAULT) {
    Scale s = *scale;
    if (s.state == NOT_FINITE) report<T>(w, n, FAULT_ARGS);
    if (s.state != OK) return;
    bool words = ((u64)out & 3) == 0, aligned = is_aligned<T>(w);
    float half = __fmul_rn(0.5f, s.scale);
    u64 blocks = (n + 127) / 128;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < blocks * 8; i += (u64)gridDim.x * blockDim.x) {
        u64 first = i / 8 * 128 + i % 8 * 4;
        float4 v[4];
        if (aligned && first + 100 <= n) {
#pragma unroll
            for (int q = 0; q < 4; q++) v[q] = load4<T>(w, first + 32 * q);
        } else {
#pragma unroll
            for (int q = 0; q < 4; q++) v[q] = quad_slow<T>(w, first + 32 * q, n);
        }
        u32 word = 0;
#pragma unroll
        for (int q = 0; q < 4; q++) {
            u32 c = code(v[q].x, half) | code(v[q].y, half) << 8 | code(v[q].z, half) << 16 | code(v[q].w, half) << 24;
            word |= c << (6 - 2 * q);
        }
        if (words) ((u32 *)out)[i] = word;
        else
            for (int b = 0; b < 4; b++) out[4 * i + b] = (u8)(word >> 8 * b);
    }
}

KERNEL __launch_bounds__(256) quantize_i2s(const void *w, u32 type, u64 n, const Scale *scale, u8 *out, FAULT) {
    BEGIN;
    if (type == T_F32) encode_i2s<T_F32>(w, n, scale, out, FAULT_ARGS);
    else if (type == T_F16) encode_i2s<T_F16>(w, n, scale, out, FAULT_ARGS);
    else encode_i2s<T_BF16>(w, n, scale, out, FAULT_ARGS);
}

// Groups: eight threads read a block of 128 values in four places; thread t of a block has elements 32q + 4t + i. Lanes of
// the sum are elements mod 64, so q and q + 2 share one. `GROUP` is 64, 128 or 256 values.
template <int T, int GROUP>
__device__ __forceinline__ void encode_groups(const void *w, u64 n, u8 *out, float *scales, FAULT) {
    bool words = ((u64)out & 3) == 0;
    u64 threads = (n + 255) / 256 * 16, i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    // Whole warps go on together, as they exchange sums.
    if ((i & ~31ull) >= threads) return;
    u64 first = i / 8 * 128 + i % 8 * 4;
    float4 a[4];
    if (is_aligned<T>(w) && first + 100 <= n) {
#pragma unroll
        for (int q = 0; q < 4; q++) a[q] = load4<T>(w, first + 32 * q);
    } else {
#pragma unroll
        for (int q = 0; q < 4; q++) a[q] = quad_slow<T>(w, first + 32 * q, n);
    }
    float v[4][4];
#pragma unroll
    for (int q = 0; q < 4; q++) v[q][0] = a[q].x, v[q][1] = a[q].y, v[q][2] = a[q].z, v[q][3] = a[q].w;
    const int PARTS = GROUP == 64 ? 2 : 1;
    float scale[PARTS];
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        float low[4], high[4];
        u32 largest = 0, smallest = FULL;
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int q = 2 * p; q < (GROUP == 64 ? 2 * p + 2 : 4); q++) {
                u32 b = abs_bits(v[q][j]);
                largest = max(largest, b);
                smallest = min(smallest, b - 1);
            }
            low[j] = fabsf(v[2 * p][j]);
            high[j] = fabsf(v[2 * p + 1][j]);
            if (GROUP >= 128) low[j] = low[j] + fabsf(v[2][j]), high[j] = high[j] + fabsf(v[3][j]);
            if (GROUP == 256) {
                // The second block goes on with the lanes of the first.
                float l = __shfl_up_sync(FULL, low[j], 8), h = __shfl_up_sync(FULL, high[j], 8);
                if (threadIdx.x & 8) {
                    low[j] = (l + fabsf(v[0][j])) + fabsf(v[2][j]);
                    high[j] = (h + fabsf(v[1][j])) + fabsf(v[3][j]);
                }
            }
            low[j] = low[j] + high[j];
#pragma unroll
            for (int h = 4; h; h >>= 1) low[j] = low[j] + __shfl_xor_sync(FULL, low[j], h);
        }
        float sum = (low[0] + low[2]) + (low[1] + low[3]);
#pragma unroll
        for (int h = GROUP == 256 ? 8 : 4; h; h >>= 1) {
            largest = max(largest, __shfl_xor_sync(FULL, largest, h));
            smallest = min(smallest, __shfl_xor_sync(FULL, smallest, h));
        }
        if (GROUP == 256) sum = __shfl_sync(FULL, sum, (threadIdx.x & 31) | 8);
        u64 start = GROUP == 256 ? i / 16 * 256 : i / 8 * 128 + 64 * p;
        smallest = smallest == FULL ? FULL : smallest + 1;
        float s = __uint_as_float(largest);
        if (start < n && largest >= INF_BITS) {
#pragma unroll
            for (int q = 2 * p; q < (GROUP == 64 ? 2 * p + 2 : 4); q++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (abs_bits(v[q][j]) >= INF_BITS) raise_element(FAULT_ARGS, v[q][j], first + 32 * q + j);
        } else if (start < n && largest != smallest) {
            u64 count = min(n - start, (u64)GROUP);
            float mean = __double2float_rn(__ddiv_rn((double)sum, (double)count));
            s = fmaxf(mean, 1e-5f);
            if (abs_bits(mean) >= INF_BITS) raise_fault(FAULT_ARGS, F_MEAN, 0);
        }
        scale[p] = s;
        bool leader = GROUP == 256 ? (threadIdx.x & 15) == 0 : (threadIdx.x & 7) == 0;
        if (leader && start < n) scales[start / GROUP] = s;
    }
    u32 word = 0;
#pragma unroll
    for (int q = 0; q < 4; q++) {
        float half = __fmul_rn(0.5f, scale[GROUP == 64 ? q / 2 : 0]);
        u32 c = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) c |= code(v[q][j], half) << 8 * j;
        word |= c << (6 - 2 * q);
    }
    if (i / 8 * 128 >= n) return;
    if (words) ((u32 *)out)[i] = word;
    else
        for (int b = 0; b < 4; b++) out[4 * i + b] = (u8)(word >> 8 * b);
}

#define QUANTIZE_GROUPS(GROUP)                                                                                         \
    KERNEL __launch_bounds__(256) quantize_g##GROUP(const void *w, u32 type, u64 n, u8 *out, float *scales, FAULT) {   \
        BEGIN;                                                                                                         \
        if (type == T_F32) encode_groups<T_F32, GROUP>(w, n, out, scales, FAULT_ARGS);                                        \
        else if (type == T_F16) encode_groups<T_F16, GROUP>(w, n, out, scales, FAULT_ARGS);                                   \
        else encode_groups<T_BF16, GROUP>(w, n, out, scales, FAULT_ARGS);                                                     \
    }
QUANTIZE_GROUPS(64)
QUANTIZE_GROUPS(128)
QUANTIZE_GROUPS(256)

// Formats, as the host numbers them.
enum Format { I2S = 0, TL1 = 1, TL2 = 2, TQ1 = 3, TQ2 = 4 };

// Code + 1 of column c of a row of `cols` in canonical bytes.
__device__ __forceinline__ u32 decode(u32 format, const u8 *row, u32 cols, u64 c) {
    if (format == I2S) return row[c / 128 * 32 + c % 32] >> (6 - 2 * (c % 128 / 32)) & 3;
    if (format == TQ2) {
        u32 e = c % 256;
        return row[c / 256 * 66 + 32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32)) & 3;
    }
    if (format == TQ1) {
        u32 e = c % 256, byte, digit;
        if (e < 160) byte = e % 32, digit = e / 32;
        else if (e < 240) byte = 32 + (e - 160) % 16, digit = (e - 160) / 16;
        else byte = 48 + (e - 240) % 4, digit = (e - 240) / 4;
        u32 fraction = row[c / 256 * 54 + byte];
        for (u32 i = 0; i < digit; i++) fraction = fraction * 3 & 255;
        return fraction * 3 >> 8;
    }
    u32 col = (u32)c, base = 0;
    if (format == TL2) {
        u32 triples = cols / 6 * 2;
        if (col < 3 * triples) {
            u32 i = col / 3;
            int magnitude = row[i / 2] >> (4 * (1 - i % 2)) & 15;
            bool negative = row[triples / 2 + i / 8] >> (i % 8) & 1;
            u32 v = (u32)(negative ? 13 - magnitude : 13 + magnitude);
            return col % 3 == 0 ? v / 9 : col % 3 == 1 ? v / 3 % 3 : v % 3;
        }
        row += triples / 2 + (triples + 7) / 8;
        base = 3 * triples;
    }
    col -= base;
    u32 index = row[col / 4] >> (col % 4 < 2 ? 4 : 0) & 15;
    return col % 2 == 0 ? index / 3 : index % 3;
}

// Rows in any format to packed tiles; see matmul.cu. A thread makes a word, sixteen codes. Where blocks run over the
// flattened tensor, `row_bytes` is 0.
KERNEL __launch_bounds__(256) pack(u32 format, const u8 *codes, u64 row_bytes, u32 rows, u32 cols, u32 tiles, u32 *out) {
    BEGIN;
    u64 words = (u64)rows * tiles * 16;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += (u64)gridDim.x * blockDim.x) {
        u64 r = i / (tiles * 16ull);
        u32 within = (u32)(i % (tiles * 16ull)), t = within / 4 % 4, w = within % 4;
        u32 first = within / 16 * 256 + 64 * w + 16 * t, word = 0;
        const u8 *row = codes + r * row_bytes;
        u64 flat = row_bytes ? 0 : r * cols;
        for (u32 j = 0; j < 16; j++) {
            u32 c = first + j, u = c < cols ? decode(format, row, cols, flat + c) : 1;
            word |= u << (8 * (j % 4) + 2 * (j / 4));
        }
        out[i] = word;
    }
}

// Rows of a dense table, padded with zeros to `stride` elements.
KERNEL __launch_bounds__(256) pack_dense(const u8 *bytes, u32 size, u32 rows, u32 cols, u32 stride, u8 *out) {
    BEGIN;
    u64 n = (u64)rows * stride;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        u64 r = i / stride, c = i % stride;
        if (size == 4) ((u32 *)out)[i] = c < cols ? ((const u32 *)bytes)[r * cols + c] : 0;
        else ((u16 *)out)[i] = c < cols ? ((const u16 *)bytes)[r * cols + c] : 0;
    }
}

__device__ __forceinline__ void store_as(u32 type, void *y, u64 i, float v) {
    if (type == T_F32) ((float *)y)[i] = v;
    else ((u16 *)y)[i] = type == T_F16 ? half_bits(v) : bf16_bits(v);
}

// Code times scale, rounded to the output's type. `block` values share a scale, counted over the flattened tensor.
KERNEL __launch_bounds__(256) dequantize(u32 format, const u8 *codes, u64 row_bytes, u32 cols, u64 n,
                                         const float *scales, u64 block, u32 type, void *y) {
    BEGIN;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        u64 r = row_bytes ? i / cols : 0;
        u32 u = decode(format, codes + r * row_bytes, cols, i - r * cols);
        store_as(type, y, i, __fmul_rn((float)((int)u - 1), scales[i / block]));
    }
}

KERNEL __launch_bounds__(256) convert(u32 from, const void *x, u64 n, u32 to, void *y) {
    BEGIN;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
        store_as(to, y, i, load_as(from, x, i));
}

// Bytes of the formats other than i2_s, one a thread.
__device__ __forceinline__ u32 pair(u32 type, const void *w, u64 at, float half) {
    return 3 * code(load_as(type, w, at), half) + code(load_as(type, w, at + 1), half);
}
__device__ __forceinline__ u32 pairs_byte(u32 type, const void *w, u64 row, u32 c, u32 cols, float half) {
    u32 low = c + 2 < cols ? pair(type, w, row + c + 2, half) : 0;
    return pair(type, w, row + c, half) << 4 | low;
}
__device__ __forceinline__ int triple(u32 type, const void *w, u64 at, float half) {
    return (int)(9 * code(load_as(type, w, at), half) + pair(type, w, at + 1, half)) - 13;
}

KERNEL __launch_bounds__(256) quantize_bytes(u32 format, const void *w, u32 type, u32 rows, u32 cols, u32 row_bytes,
                                             const Scale *scale, u8 *out, FAULT) {
    BEGIN;
    Scale s = *scale;
    u64 n = (u64)rows * cols, bytes = (u64)rows * row_bytes;
    if (s.state == NOT_FINITE) {
        if (type == T_F32) report<T_F32>(w, n, FAULT_ARGS);
        else if (type == T_F16) report<T_F16>(w, n, FAULT_ARGS);
        else report<T_BF16>(w, n, FAULT_ARGS);
    }
    if (s.state != OK) return;
    float half = __fmul_rn(0.5f, s.scale);
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < bytes; i += (u64)gridDim.x * blockDim.x) {
        u64 r = i / row_bytes, row = r * cols;
        u32 b = (u32)(i % row_bytes), byte = 0;
        if (format == TL1) {
            byte = pairs_byte(type, w, row, 4 * b, cols, half);
        } else if (format == TL2) {
            u32 triples = cols / 6 * 2, nibbles = triples / 2, signs = nibbles + (triples + 7) / 8;
            if (b < nibbles) {
                int first = triple(type, w, row + 6 * b, half), second = triple(type, w, row + 6 * b + 3, half);
                byte = (u32)abs(first) << 4 | (u32)abs(second);
            } else if (b < signs) {
                for (u32 j = 0, i3 = 8 * (b - nibbles); j < 8 && i3 + j < triples; j++)
                    byte |= (triple(type, w, row + 3 * (i3 + j), half) < 0 ? 1u : 0u) << j;
            } else {
                byte = pairs_byte(type, w, row, 3 * triples + 4 * (b - signs), cols, half);
            }
        } else {
            u32 size = format == TQ1 ? 54 : 66, block = b / size, p = b % size;
            u64 at = row + (u64)block * 256;
            if (p >= size - 2) {
                byte = half_bits(s.stored) >> (p == size - 1 ? 8 : 0) & 255;
            } else if (format == TQ2) {
                at += p / 32 * 128 + p % 32;
                for (u32 q = 0; q < 4; q++) byte |= code(load_as(type, w, at + 32 * q), half) << (2 * q);
            } else {
                u32 first = p < 32 ? p : p < 48 ? 128 + p : 192 + p, step = p < 32 ? 32 : p < 48 ? 16 : 4, q = 0;
                for (u32 d = 0; d < 5; d++)
                    q = 3 * q + (d < 4 || p < 48 ? code(load_as(type, w, at + first + d * step), half) : 0);
                byte = (q * 256 + 242) / 243;
            }
        }
        out[i] = (u8)byte;
    }
}
