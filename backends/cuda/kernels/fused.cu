// The decode step: one row of activations, and as few kernels in a row as its dependences allow.
//
// A norm that ran on its own would keep 131 multiprocessors waiting for one. So each block of a product makes the norm of the
// whole row for itself, straight into its shared memory, while its weights are on their way: the row is ten kilobytes, and
// comes from the cache. The first block also stores what the separate operations would have stored.
//
// All weights of a block are asked for before it waits for the kernel before it.
#include "common.cuh"
#include "math.cuh"

// The row: x, its norm's weights, and where the int8 row and its scale go.
struct NormRow {
    const float *x, *w;
    float eps;
    u32 cols;
    i8 *q;
    float *scale;
};

template <int TILES> struct Staged {
    uint4 xs[TILES * 20];
    float squares[TILES * TILE];
    float results[64];
    u32 maxima[32];
    float factor;
    int sum;
};

// A thread's part of the row and of its norm's weights: VECS times four elements.
template <int VECS> struct Part {
    float4 v[VECS], g[VECS];
};

template <int THREADS, int VECS> __device__ __forceinline__ void load_row(Part<VECS> &part, const NormRow &row) {
    u32 vectors = row.cols / 4;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = threadIdx.x + j * THREADS;
        part.v[j] = at < vectors ? ((const float4 *)row.x)[at] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = threadIdx.x + j * THREADS;
        part.g[j] = at < vectors ? ((const float4 *)row.w)[at] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}

// The sum of `cols` values by lanes, by one warp: a thread has lanes 2t and 2t + 1, whose additions wait for each other and
// for nothing else. In all threads.
__device__ __forceinline__ float lane_sum(const float *values, u32 cols) {
    const float2 *at = (const float2 *)values + threadIdx.x % 32;
    float low = 0.0f, high = 0.0f;
    u32 rows = cols / 64, i = 0;
    // Eight in flight: what was added makes room for the one eight further on.
    float2 ahead[8];
#pragma unroll
    for (int j = 0; j < 8; j++) ahead[j] = j < rows ? at[32 * j] : make_float2(0.0f, 0.0f);
    for (; i + 8 <= rows; i += 8) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            low = low + ahead[j].x, high = high + ahead[j].y;
            if (i + 8 + j < rows) ahead[j] = at[32 * (i + 8 + j)];
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (i + j < rows) low = low + ahead[j].x, high = high + ahead[j].y;
    // The halvings by 32, 16, 8, 4 and 2, and the last.
#pragma unroll
    for (int h = 16; h; h >>= 1) low = low + __shfl_xor_sync(FULL, low, h), high = high + __shfl_xor_sync(FULL, high, h);
    return low + high;
}

// rms_norm and quantize_row of one row by a block, into `s.xs` as `gemv` lays it out and `s.sum`. Returns the row's scale.
// TILES * TILE <= THREADS * VECS * 4, and cols is a multiple of 64. Ends with a barrier.
template <int THREADS, int VECS, int TILES>
__device__ __forceinline__ float stage_norm(Staged<TILES> &s, Part<VECS> &mine, const NormRow &row, u32 tiles, FAULT) {
    float4(&v)[VECS] = mine.v, (&g)[VECS] = mine.g;
    u32 vectors = row.cols / 4, t = threadIdx.x, lane = t & 31;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * THREADS;
        if (at < vectors)
            ((float4 *)s.squares)[at] = make_float4(__fmul_rn(v[j].x, v[j].x), __fmul_rn(v[j].y, v[j].y),
                                                    __fmul_rn(v[j].z, v[j].z), __fmul_rn(v[j].w, v[j].w));
    }
    if (t == THREADS - 1) s.sum = 0;
    __syncthreads();
    if (t < 32) {
        float sum = lane_sum(s.squares, row.cols);
        if (t == 0) s.factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sum, (float)row.cols) + row.eps));
    }
    __syncthreads();
    float r = s.factor;
    u32 largest = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        v[j].x = __fmul_rn(__fmul_rn(v[j].x, r), g[j].x), v[j].y = __fmul_rn(__fmul_rn(v[j].y, r), g[j].y);
        v[j].z = __fmul_rn(__fmul_rn(v[j].z, r), g[j].z), v[j].w = __fmul_rn(__fmul_rn(v[j].w, r), g[j].w);
        if (t + j * THREADS < vectors)
            largest = max(max(largest, max(abs_bits(v[j].x), abs_bits(v[j].y))), max(abs_bits(v[j].z), abs_bits(v[j].w)));
    }
    largest = warp_max(largest);
    if (lane == 0) s.maxima[t >> 5] = largest;
    __syncthreads();
    largest = warp_max(lane < THREADS / 32 ? s.maxima[lane] : 0);
    bool finite = largest < INF_BITS, first = blockIdx.x == 0;
    float scale = __fdiv_rn(127.0f, fmaxf(__uint_as_float(largest), 1e-5f));
    int part = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * THREADS;
        float e[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
        u32 four = 0;
        if (at < vectors) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (finite) four |= (u32)(u8)__float2int_rn(__fmul_rn(e[i], scale)) << 8 * i;
                else if (first && abs_bits(e[i]) >= INF_BITS) raise_element(FAULT_ARGS, e[i], at * 4 + i);
            }
            if (first && finite) ((u32 *)row.q)[at] = four;
        }
        if (at < tiles * (TILE / 4)) ((u32 *)s.xs)[((at >> 6) * 20 + (at >> 2 & 15)) * 4 + (at & 3)] = four;
        part = __dp4a(0x01010101, (int)four, part);
    }
    if (first && finite && t == 0) *row.scale = scale;
    part = __reduce_add_sync(FULL, part);
    if (lane == 0) atomicAdd(&s.sum, part);
    __syncthreads();
    return scale;
}

// A row's weights, LANES threads to a row, LOADS times 16 bytes each.
template <int LANES, int LOADS>
__device__ __forceinline__ void ask(uint4 (&v)[LOADS], const uint4 *row, u32 sub, u32 tiles) {
#pragma unroll
    for (int j = 0; j < LOADS; j++)
        v[j] = sub + LANES * j < tiles * 4 ? __ldg(row + sub + LANES * j) : make_uint4(0, 0, 0, 0);
}

// Their product with the staged row, less the sum of the row; in all LANES threads.
template <int LANES, int LOADS, int TILES>
__device__ __forceinline__ int product(const uint4 (&v)[LOADS], const Staged<TILES> &s, u32 sub, u32 tiles) {
    int acc = 0;
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        u32 at = sub + LANES * j;
        if (at < tiles * 4) {
            const uint4 *x = s.xs + (at >> 2) * 20 + (at & 3);
            acc = dot_word(v[j].x, x[0], acc);
            acc = dot_word(v[j].y, x[4], acc);
            acc = dot_word(v[j].z, x[8], acc);
            acc = dot_word(v[j].w, x[12], acc);
        }
    }
#pragma unroll
    for (int h = LANES / 2; h; h >>= 1) acc += __shfl_xor_sync(FULL, acc, h);
    return acc - s.sum;
}

__device__ __forceinline__ float result(int acc, float weight_scale, float x_scale) {
    return __fdiv_rn(__fmul_rn(__int2float_rn(acc), weight_scale), x_scale);
}

// rms_norm_quantize and a product, stored or added: sixteen rows a block, sixteen threads a row.
template <int LOADS, int TILES>
__device__ __forceinline__ void norm_gemv(const NormRow &row, u32 tiles, const uint4 *w, float *y, u32 n, float scale,
                                          u32 mode, FAULT) {
    __shared__ Staged<TILES> s;
    u32 sub = threadIdx.x & 15, at = blockIdx.x * 16 + (threadIdx.x >> 4);
    uint4 v[LOADS];
    start_next();
    ask<16>(v, w + (u64)min(at, n - 1) * tiles * 4, sub, tiles);
    prefetch_row(row.w, row.cols);
    wait_for_previous();
    Part<TILES / 4> part;
    load_row<256>(part, row);
    // Read early: it is needed last.
    float before = mode & ADD && sub == 0 && at < n ? y[at] : 0.0f;
    float x_scale = stage_norm<256>(s, part, row, tiles, FAULT_ARGS);
    float out = result(product<16>(v, s, sub, tiles), scale, x_scale);
    if (sub == 0 && at < n) y[at] = mode & ADD ? before + out : out;
}
#define NORM_GEMV(NAME, LOADS, TILES, BLOCKS)                                                                               \
    KERNEL __launch_bounds__(256, BLOCKS) NAME(const float *x, const float *norm, float eps, u32 cols, i8 *q, float *x_scale,  \
                                       u32 tiles, const uint4 *w, float *y, u32 n, float scale, u32 mode, FAULT) {     \
        norm_gemv<LOADS, TILES>({x, norm, eps, cols, q, x_scale}, tiles, w, y, n, scale, mode, FAULT_ARGS);            \
    }
NORM_GEMV(norm_gemv, 3, 12, 3)
NORM_GEMV(norm_gemv_wide, 7, 28, 2)

// rms_norm_quantize, two products of n rows, and relu_squared_mul of theirs: eighteen rows of each a block, eight threads a
// row. At 6,912 rows that is 384 blocks, three for each of 132 multiprocessors, which are then equally busy.
#define PAIR_ROWS 18
KERNEL __launch_bounds__(PAIR_ROWS * 16, 3) norm_gate_up(const float *x, const float *norm, float eps, u32 cols, i8 *q,
                                                      float *x_scale, u32 tiles, const uint4 *w0, float *y0, float s0,
                                                      const uint4 *w1, float *y1, float s1, float *y, u32 n, FAULT) {
    __shared__ Staged<12> s;
    u32 sub = threadIdx.x & 7, slot = threadIdx.x >> 3, first = blockIdx.x * PAIR_ROWS;
    bool up = slot >= PAIR_ROWS;
    u32 at = first + (up ? slot - PAIR_ROWS : slot);
    uint4 v[6];
    start_next();
    ask<8>(v, (up ? w1 : w0) + (u64)min(at, n - 1) * tiles * 4, sub, tiles);
    prefetch_row(norm, cols);
    wait_for_previous();
    NormRow row = {x, norm, eps, cols, q, x_scale};
    Part<3> part;
    load_row<PAIR_ROWS * 16>(part, row);
    float scale = stage_norm<PAIR_ROWS * 16>(s, part, row, tiles, FAULT_ARGS);
    float out = result(product<8>(v, s, sub, tiles), up ? s1 : s0, scale);
    if (sub == 0) s.results[slot] = out;
    __syncthreads();
    at = first + threadIdx.x;
    if (threadIdx.x < PAIR_ROWS && at < n) {
        float gate = s.results[threadIdx.x], other = s.results[PAIR_ROWS + threadIdx.x], r = fmaxf(gate, 0.0f);
        y0[at] = gate;
        y1[at] = other;
        y[at] = __fmul_rn(__fmul_rn(r, r), other);
    }
}

// rms_norm_quantize, the products q, k and v, the rotation of q and k, and kv_write. A block has sixteen rows of one head that
// turn with each other, eight from each half; values too, though they stay as they are.
KERNEL __launch_bounds__(256, 3) norm_qkv(const float *x, const float *norm, float eps, u32 cols, i8 *q8, float *x_scale,
                                       u32 tiles, const uint4 *wq, float sq, float *q, const uint4 *wk, float sk,
                                       float *k, const uint4 *wv, float sv, float *v, u32 heads, u32 kv_heads, u32 half,
                                       const u32 *positions, u32 known, const float *cos, const float *sin,
                                       u32 capacity, float *k_cache, float *v_cache, FAULT, u64 position_seq) {
    __shared__ Staged<12> s;
    u32 sub = threadIdx.x & 15, slot = threadIdx.x >> 4, a_head = half / 8;
    u32 head = blockIdx.x / a_head, e = blockIdx.x % a_head * 8 + (slot & 7);
    u32 kind = head < heads ? 0 : head < heads + kv_heads ? 1 : 2;
    head -= kind == 0 ? 0 : kind == 1 ? heads : heads + kv_heads;
    const uint4 *w = kind == 0 ? wq : kind == 1 ? wk : wv;
    uint4 a[3];
    start_next();
    ask<16>(a, w + (u64)(head * 2 * half + e + (slot >> 3) * half) * tiles * 4, sub, tiles);
    prefetch_row(norm, cols);
    wait_for_previous();
    NormRow row = {x, norm, eps, cols, q8, x_scale};
    Part<3> part;
    load_row<256>(part, row);
    u32 p = positions[0];
    bool known_position = p < min(known, capacity);
    u32 pair = blockIdx.x % a_head * 8 + (threadIdx.x & 7);
    float c = 1.0f, turn = 0.0f;
    if (known_position && threadIdx.x < 8) c = cos[(u64)p * half + pair], turn = sin[(u64)p * half + pair];
    float scale = stage_norm<256>(s, part, row, tiles, FAULT_ARGS);
    float out = result(product<16>(a, s, sub, tiles), kind == 0 ? sq : kind == 1 ? sk : sv, scale);
    if (sub == 0) s.results[slot] = out;
    __syncthreads();
    if (threadIdx.x >= 8) return;
    float low = s.results[threadIdx.x], high = s.results[threadIdx.x + 8];
    u32 at = head * 2 * half + pair;
    float *to = kind == 0 ? q : kind == 1 ? k : v;
    if (!known_position) {
        if (blockIdx.x == 0 && threadIdx.x == 0) raise_fault(fault_word, fault_raised, position_seq, F_INDEX, 0);
    } else if (kind < 2) {
        float l = __fmul_rn(low, c) - __fmul_rn(high, turn), h = __fmul_rn(high, c) + __fmul_rn(low, turn);
        low = l, high = h;
    }
    to[at] = low;
    to[at + half] = high;
    if (kind == 0 || !known_position) return;
    float *cache = (kind == 1 ? k_cache : v_cache) + (u64)p * kv_heads * 2 * half + at;
    cache[0] = low;
    cache[half] = high;
}
