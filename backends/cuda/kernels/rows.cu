// Operations on rows of activations and on plain vectors.
#include "common.cuh"

// Rounds finite values to int8 at 127 over the largest magnitude. `value(i)` is computed twice rather than kept.
template <typename F>
__device__ __forceinline__ void quantize_row(F value, u32 cols, i8 *q, float *scale, u64 first, u32 *shared, FAULT) {
    u32 largest = 0;
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x) largest = max(largest, abs_bits(value(i)));
    largest = block_max(largest, shared);
    if (largest >= INF_BITS) {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x)
            if (abs_bits(value(i)) >= INF_BITS) raise_element(FAULT_ARGS, value(i), first + i);
        return;
    }
    float s = __fdiv_rn(127.0f, fmaxf(__uint_as_float(largest), 1e-5f));
    if (threadIdx.x == 0) *scale = s;
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x) q[i] = (i8)__float2int_rn(__fmul_rn(value(i), s));
}

KERNEL quantize_rows(const float *x, u32 cols, i8 *q, float *scales, FAULT) {
    BEGIN;
    __shared__ u32 shared[32];
    u64 first = (u64)blockIdx.x * cols;
    const float *xr = x + first;
    quantize_row([&](u32 i) { return xr[i]; }, cols, q + first, scales + blockIdx.x, first, shared, FAULT_ARGS);
}

// 1 / sqrt(mean(x^2) + eps), the sum by lanes: all threads square a part of the row, 64 of them add.
#define NORM_PART 7168
template <typename F>
__device__ __forceinline__ float norm_factor(F x, u32 cols, float eps, float *squares, float *result) {
    float lane = 0.0f;
    for (u32 base = 0; base < cols; base += NORM_PART) {
        u32 count = min(cols - base, (u32)NORM_PART);
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
            float v = x(base + i);
            squares[i] = __fmul_rn(v, v);
        }
        __syncthreads();
        if (threadIdx.x < 64)
#pragma unroll 8
            for (u32 i = threadIdx.x; i < count; i += 64) lane = lane + squares[i];
        __syncthreads();
    }
    if (threadIdx.x < 64) squares[threadIdx.x] = lane;
    __syncthreads();
    if (threadIdx.x < 32) {
        float sum = fold64(squares[threadIdx.x], squares[threadIdx.x + 32]);
        if (threadIdx.x == 0) *result = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sum, (float)cols) + eps));
    }
    __syncthreads();
    return *result;
}

// Brings the norm's weights nearer while earlier work still runs. Nothing is read yet.
__device__ __forceinline__ void prefetch_row(const float *w, u32 cols) {
    for (u32 i = threadIdx.x * 32; i < cols; i += blockDim.x * 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(w + i));
}

KERNEL rms_norm(const float *x, const float *w, float eps, u32 cols, float *y) {
    __shared__ float squares[NORM_PART], result;
    start_next();
    prefetch_row(w, cols);
    wait_for_previous();
    u64 first = (u64)blockIdx.x * cols;
    float r = norm_factor([&](u32 i) { return x[first + i]; }, cols, eps, squares, &result);
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x) y[first + i] = __fmul_rn(__fmul_rn(x[first + i], r), w[i]);
}

KERNEL rms_norm_quantize(const float *x, const float *w, float eps, u32 cols, i8 *q, float *scales, FAULT) {
    __shared__ float squares[NORM_PART], result;
    start_next();
    prefetch_row(w, cols);
    wait_for_previous();
    __shared__ u32 shared[32];
    u64 first = (u64)blockIdx.x * cols;
    const float *xr = x + first;
    float r = norm_factor([&](u32 i) { return xr[i]; }, cols, eps, squares, &result);
    quantize_row([&](u32 i) { return __fmul_rn(__fmul_rn(xr[i], r), w[i]); }, cols, q + first, scales + blockIdx.x,
                 first, shared, FAULT_ARGS);
}

// relu_squared_mul, then rms_norm_quantize of its result, which is stored as well.
KERNEL gate_norm_quantize(const float *gate, const float *up, float *y, const float *w, float eps, u32 cols, i8 *q,
                          float *scales, FAULT) {
    __shared__ float squares[NORM_PART], result;
    start_next();
    prefetch_row(w, cols);
    wait_for_previous();
    __shared__ u32 shared[32];
    u64 first = (u64)blockIdx.x * cols;
    auto gated = [&](u32 i) {
        float r = fmaxf(gate[first + i], 0.0f);
        float v = __fmul_rn(__fmul_rn(r, r), up[first + i]);
        y[first + i] = v;
        return v;
    };
    float r = norm_factor(gated, cols, eps, squares, &result);
    // What a thread reads here, it wrote itself.
    quantize_row([&](u32 i) { return __fmul_rn(__fmul_rn(y[first + i], r), w[i]); }, cols, q + first,
                 scales + blockIdx.x, first, shared, FAULT_ARGS);
}

// Indices on the device cannot be checked before the launch; here they are, before anything is addressed with them.
__device__ __forceinline__ bool index_ok(u32 value, u32 limit, u64 at, FAULT) {
    if (value < limit) return true;
    raise_fault(FAULT_ARGS, F_INDEX, at);
    return false;
}

// One thread for each pair of elements.
KERNEL rope(float *x, u32 pairs, u32 heads, u32 half, const u32 *positions, u32 known, const float *cos,
            const float *sin, FAULT) {
    BEGIN;
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs) return;
    u32 row = i / (heads * half), head = i / half % heads, e = i % half;
    u32 p = positions[row];
    if (!index_ok(p, known, row, FAULT_ARGS)) return;
    float *at = x + (u64)(row * heads + head) * 2 * half + e;
    float a = at[0], b = at[half], c = cos[(u64)p * half + e], s = sin[(u64)p * half + e];
    at[0] = __fmul_rn(a, c) - __fmul_rn(b, s);
    at[half] = __fmul_rn(b, c) + __fmul_rn(a, s);
}

KERNEL kv_write(const float *k, const float *v, u32 len, u32 width, const u32 *positions, u32 capacity, float *k_cache,
                float *v_cache, FAULT) {
    BEGIN;
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    u32 p = positions[i / width];
    if (!index_ok(p, capacity, i / width, FAULT_ARGS)) return;
    u64 to = (u64)p * width + i % width;
    k_cache[to] = k[i];
    v_cache[to] = v[i];
}

// rope of queries, rope of keys, and kv_write, whose rows are not the positions where sequences share a cache: one thread for each pair of elements of a query, key or value.
KERNEL rope_kv_write(float *q, float *k, const float *v, u32 rows, u32 heads, u32 kv_heads, u32 half,
                     const u32 *positions, u32 known, const float *cos, const float *sin, const u32 *places, u32 capacity,
                     float *k_cache, float *v_cache, FAULT) {
    BEGIN;
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, a_row = (heads + 2 * kv_heads) * half, row = i / a_row;
    if (row >= rows) return;
    u32 head = i % a_row / half, e = i % half, p = positions[row], place = places[row];
    if (!index_ok(p, known, row, FAULT_ARGS) || !index_ok(place, capacity, row, FAULT_ARGS)) return;
    float c = cos[(u64)p * half + e], s = sin[(u64)p * half + e];
    if (head >= heads + kv_heads) {
        u32 at = (head - heads - kv_heads) * 2 * half + e;
        const float *from = v + (u64)row * kv_heads * 2 * half + at;
        float *to = v_cache + (u64)place * kv_heads * 2 * half + at;
        to[0] = from[0], to[half] = from[half];
        return;
    }
    bool key = head >= heads;
    u32 h = key ? head - heads : head, at = h * 2 * half + e;
    float *x = key ? k + (u64)row * kv_heads * 2 * half + at : q + (u64)row * heads * 2 * half + at;
    float a = x[0], b = x[half];
    float low = __fmul_rn(a, c) - __fmul_rn(b, s), high = __fmul_rn(b, c) + __fmul_rn(a, s);
    x[0] = low, x[half] = high;
    if (key) {
        float *to = k_cache + (u64)place * kv_heads * 2 * half + at;
        to[0] = low, to[half] = high;
    }
}

// The loops of these take any length.
#define EACH(i, n)                                                                                                     \
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)

KERNEL relu_squared_mul(const float *gate, const float *up, float *y, u64 n) {
    BEGIN;
    EACH(i, n) {
        float r = fmaxf(gate[i], 0.0f);
        y[i] = __fmul_rn(__fmul_rn(r, r), up[i]);
    }
}

KERNEL add(const float *x, float *y, u64 n) {
    BEGIN;
    EACH(i, n) y[i] = y[i] + x[i];
}

// One block a row; rows of the table are `stride` elements apart.
KERNEL gather_rows(const void *table, u32 type, u32 entries, u32 cols, u32 stride, const u32 *ids, float *y, FAULT) {
    BEGIN_LATE;
    u32 id = ids[blockIdx.x];
    if (!index_ok(id, entries, blockIdx.x, FAULT_ARGS)) return;
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x)
        y[(u64)blockIdx.x * cols + i] = load_as(type, table, (u64)id * stride + i);
}
