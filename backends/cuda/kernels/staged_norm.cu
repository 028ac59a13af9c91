// What surrounds the products of many rows, for which memory is what counts: four elements a thread.
//
// rms_norm_quantize of many rows whose int8 values `gemm_warpgroups` takes: they are left where the operation says, and staged as
// warpgroups.cu has it, with their sums. A block a row, which stays in its registers: VECS times four elements a thread. Rows are whole
// tiles of 256 columns, all is aligned to 16 bytes.
//
// A warp a row needs no barrier, but took 13 us for 512 rows of 2560 columns where a block takes 5: too little was on its way.
#include "common.cuh"

// Sum of rows of 64 values by lanes, by one warp: thread t has the lanes 2t and 2t + 1. Reads up to seven rows too many, which may be
// anything. In all threads.
__device__ __forceinline__ float sum_by_lanes(const float4 *values, u32 rows) {
    const float2 *at = (const float2 *)values + threadIdx.x % 32;
    float2 ahead[8];
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) ahead[j] = at[32 * j];
    for (u32 i = 0; i < rows; i += 8) {
        at += 256;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (i + j < rows) low = low + ahead[j].x, high = high + ahead[j].y;
            if (i + 8 < rows) ahead[j] = at[32 * j];
        }
    }
    // The halvings by 32, 16, 8, 4 and 2, and the last.
#pragma unroll
    for (int h = 16; h; h >>= 1) low = low + __shfl_xor_sync(FULL, low, h), high = high + __shfl_xor_sync(FULL, high, h);
    return low + high;
}

// GATED: relu_squared_mul before that, its result stored as well.
template <int THREADS, int VECS, bool GATED>
__device__ __forceinline__ void norm_stage_row(const float *x, const float *up, float *gated, const float *w, float eps, u32 cols, i8 *q,
                                               float *scales, u32 padded, u8 *staged, int *sums, FAULT) {
    __shared__ float4 squares[THREADS * VECS + 7 * 16];
    __shared__ u32 maxima[32];
    __shared__ float factor;
    __shared__ int total;
    u32 t = threadIdx.x, row = blockIdx.x, vectors = cols / 4;
    u64 first = (u64)row * vectors;
    float4 v[VECS], by[VECS], none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    start_next();
    if (t == 0) total = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) by[j] = t + j * THREADS < vectors ? __ldg((const float4 *)w + t + j * THREADS) : none;
    wait_for_previous();
#pragma unroll
    for (int j = 0; j < VECS; j++) v[j] = t + j * THREADS < vectors ? ((const float4 *)x)[first + t + j * THREADS] : none;
    if (GATED) {
        float4 g[VECS];
#pragma unroll
        for (int j = 0; j < VECS; j++) g[j] = t + j * THREADS < vectors ? ((const float4 *)up)[first + t + j * THREADS] : none;
#pragma unroll
        for (int j = 0; j < VECS; j++) {
            float4 r = make_float4(fmaxf(v[j].x, 0.0f), fmaxf(v[j].y, 0.0f), fmaxf(v[j].z, 0.0f), fmaxf(v[j].w, 0.0f));
            v[j].x = __fmul_rn(__fmul_rn(r.x, r.x), g[j].x), v[j].y = __fmul_rn(__fmul_rn(r.y, r.y), g[j].y);
            v[j].z = __fmul_rn(__fmul_rn(r.z, r.z), g[j].z), v[j].w = __fmul_rn(__fmul_rn(r.w, r.w), g[j].w);
            if (t + j * THREADS < vectors) ((float4 *)gated)[first + t + j * THREADS] = v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < VECS; j++)
        squares[t + j * THREADS] = make_float4(__fmul_rn(v[j].x, v[j].x), __fmul_rn(v[j].y, v[j].y), __fmul_rn(v[j].z, v[j].z),
                                               __fmul_rn(v[j].w, v[j].w));
    __syncthreads();
    if (t < 32) {
        float sum = sum_by_lanes(squares, cols / 64);
        if (t == 0) factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sum, (float)cols) + eps));
    }
    __syncthreads();
    float r = factor;
    u32 largest = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        v[j].x = __fmul_rn(__fmul_rn(v[j].x, r), by[j].x), v[j].y = __fmul_rn(__fmul_rn(v[j].y, r), by[j].y);
        v[j].z = __fmul_rn(__fmul_rn(v[j].z, r), by[j].z), v[j].w = __fmul_rn(__fmul_rn(v[j].w, r), by[j].w);
        u32 most = max(max(abs_bits(v[j].x), abs_bits(v[j].y)), max(abs_bits(v[j].z), abs_bits(v[j].w)));
        if (t + j * THREADS < vectors) largest = max(largest, most);
    }
    largest = block_max(largest, maxima);
    if (largest >= INF_BITS) {
#pragma unroll
        for (int j = 0; j < VECS; j++) {
            float e[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
            u32 at = t + j * THREADS;
            for (int i = 0; i < 4; i++)
                if (at < vectors && abs_bits(e[i]) >= INF_BITS) raise_element(FAULT_ARGS, e[i], (first + at) * 4 + i);
        }
        return;
    }
    float scale = __fdiv_rn(127.0f, fmaxf(__uint_as_float(largest), 1e-5f));
    int sum = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * THREADS, word = 0;
        if (at >= vectors) continue;
        float e[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
#pragma unroll
        for (int i = 0; i < 4; i++) word |= (u32)(__float2int_rn(__fmul_rn(e[i], scale)) & 0xff) << 8 * i;
        sum = __dp4a(0x01010101, (int)word, sum);
        ((u32 *)q)[first + at] = word;
        // Word 4 t + s of 64 columns is word t of unit s.
        u32 unit = (at >> 4 & 1) * 4 + (at & 3);
        ((u32 *)staged)[((u64)(at >> 5) * padded + row) * 32 + (unit ^ (row & 7)) * 4 + (at >> 2 & 3)] = word;
    }
    sum = __reduce_add_sync(FULL, sum);
    if ((t & 31) == 0) atomicAdd(&total, sum);
    __syncthreads();
    if (t == 0) scales[row] = scale, sums[row] = total;
}
KERNEL __launch_bounds__(640) norm_stage(const float *x, const float *w, float eps, u32 cols, i8 *q, float *scales, u32 padded, u8 *staged,
                                         int *sums, FAULT) {
    norm_stage_row<640, 1, false>(x, 0, 0, w, eps, cols, q, scales, padded, staged, sums, FAULT_ARGS);
}
KERNEL __launch_bounds__(896) gate_norm_stage(const float *gate, const float *up, float *y, const float *w, float eps, u32 cols, i8 *q,
                                              float *scales, u32 padded, u8 *staged, int *sums, FAULT) {
    norm_stage_row<896, 2, true>(gate, up, y, w, eps, cols, q, scales, padded, staged, sums, FAULT_ARGS);
}

// rope_kv_write of rows.cu: four pairs of a query, key or value a thread, a block a row. Half a head is a multiple of four.
KERNEL __launch_bounds__(512)
    rope_kv_rows(float *q, float *k, const float *v, u32 heads, u32 kv_heads, u32 half, const u32 *positions, u32 known, const float *cos,
                 const float *sin, const u32 *places, u32 capacity, float *k_cache, float *v_cache, FAULT) {
    BEGIN;
    u32 row = blockIdx.x, p = positions[row], place = places[row], quads = half / 4;
    if (p >= known || place >= capacity) {
        if (threadIdx.x == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
    for (u32 i = threadIdx.x; i < (heads + 2 * kv_heads) * quads; i += blockDim.x) {
        u32 head = i / quads, e = i % quads;
        bool value = head >= heads + kv_heads, key = head >= heads;
        u32 h = value ? head - heads - kv_heads : key ? head - heads : head, at = h * 2 * quads + e;
        const float4 *from = (const float4 *)(value ? v : key ? k : q) + (u64)row * (key ? kv_heads : heads) * 2 * quads + at;
        float4 a = from[0], b = from[quads];
        if (!value) {
            float4 c = ((const float4 *)cos)[(u64)p * quads + e], s = ((const float4 *)sin)[(u64)p * quads + e], x = a;
            a.x = __fmul_rn(x.x, c.x) - __fmul_rn(b.x, s.x), b.x = __fmul_rn(b.x, c.x) + __fmul_rn(x.x, s.x);
            a.y = __fmul_rn(x.y, c.y) - __fmul_rn(b.y, s.y), b.y = __fmul_rn(b.y, c.y) + __fmul_rn(x.y, s.y);
            a.z = __fmul_rn(x.z, c.z) - __fmul_rn(b.z, s.z), b.z = __fmul_rn(b.z, c.z) + __fmul_rn(x.z, s.z);
            a.w = __fmul_rn(x.w, c.w) - __fmul_rn(b.w, s.w), b.w = __fmul_rn(b.w, c.w) + __fmul_rn(x.w, s.w);
            float4 *to = (float4 *)(key ? k : q) + (u64)row * (key ? kv_heads : heads) * 2 * quads + at;
            to[0] = a, to[quads] = b;
        }
        if (key) {
            float4 *to = (float4 *)(value ? v_cache : k_cache) + (u64)place * kv_heads * 2 * quads + at;
            to[0] = a, to[quads] = b;
        }
    }
}
