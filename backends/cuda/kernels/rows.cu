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
    __shared__ u32 shared[32];
    u64 first = (u64)blockIdx.x * cols;
    const float *xr = x + first;
    quantize_row([&](u32 i) { return xr[i]; }, cols, q + first, scales + blockIdx.x, first, shared, FAULT_ARGS);
}

// 1 / sqrt(mean(x^2) + eps), the sum by lanes: all threads square a part of the row, 64 of them add.
#define NORM_PART 4096
__device__ __forceinline__ float norm_factor(const float *x, u32 cols, float eps, float *squares, float *result) {
    float lane = 0.0f;
    for (u32 base = 0; base < cols; base += NORM_PART) {
        u32 count = min(cols - base, (u32)NORM_PART);
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
            float v = x[base + i];
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

KERNEL rms_norm(const float *x, const float *w, float eps, u32 cols, float *y) {
    __shared__ float squares[NORM_PART], result;
    u64 first = (u64)blockIdx.x * cols;
    float r = norm_factor(x + first, cols, eps, squares, &result);
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x) y[first + i] = __fmul_rn(__fmul_rn(x[first + i], r), w[i]);
}

KERNEL rms_norm_quantize(const float *x, const float *w, float eps, u32 cols, i8 *q, float *scales, FAULT) {
    __shared__ float squares[NORM_PART], result;
    __shared__ u32 shared[32];
    u64 first = (u64)blockIdx.x * cols;
    const float *xr = x + first;
    float r = norm_factor(xr, cols, eps, squares, &result);
    quantize_row([&](u32 i) { return __fmul_rn(__fmul_rn(xr[i], r), w[i]); }, cols, q + first, scales + blockIdx.x,
                 first, shared, FAULT_ARGS);
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
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    u32 p = positions[i / width];
    if (!index_ok(p, capacity, i / width, FAULT_ARGS)) return;
    u64 to = (u64)p * width + i % width;
    k_cache[to] = k[i];
    v_cache[to] = v[i];
}

// The loops of these take any length.
#define EACH(i, n)                                                                                                     \
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)

KERNEL relu_squared_mul(const float *gate, const float *up, float *y, u64 n) {
    EACH(i, n) {
        float r = fmaxf(gate[i], 0.0f);
        y[i] = __fmul_rn(__fmul_rn(r, r), up[i]);
    }
}

KERNEL add(const float *x, float *y, u64 n) {
    EACH(i, n) y[i] = y[i] + x[i];
}

// One block a row; rows of the table are `stride` elements apart.
KERNEL gather_rows(const void *table, u32 type, u32 entries, u32 cols, u32 stride, const u32 *ids, float *y, FAULT) {
    u32 id = ids[blockIdx.x];
    if (!index_ok(id, entries, blockIdx.x, FAULT_ARGS)) return;
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x)
        y[(u64)blockIdx.x * cols + i] = load_as(type, table, (u64)id * stride + i);
}
