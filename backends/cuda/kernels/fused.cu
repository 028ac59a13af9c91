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

// Rows of 64 squares that are filled up with zeros past the end, so that the sum needs no ends: +0 changes no sum of squares.
#define ZERO_ROWS 16

template <int TILES> struct Staged {
    uint4 xs[TILES * 20];
    float squares[TILES * TILE + ZERO_ROWS * 64];
    float results[32];
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

// Zeros past the row. Before the kernel waits, and before a barrier.
template <int THREADS, int TILES> __device__ __forceinline__ void clear(Staged<TILES> &s, u32 cols) {
    for (u32 i = threadIdx.x; i < ZERO_ROWS * 16; i += THREADS)
        ((float4 *)s.squares)[cols / 4 + i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (threadIdx.x == 0) s.sum = 0;
}

// The sum of rows of 64 values by lanes, by one warp: a thread has lanes 2t and 2t + 1, whose additions wait for each other
// and for nothing else. Reads up to fifteen rows too many, which are zeros. In all threads.
__device__ __forceinline__ float lane_sum(const float *values, u32 rows) {
    const float2 *at = (const float2 *)values + threadIdx.x % 32;
    float low = 0.0f, high = 0.0f;
    // Eight in flight: what was added makes room for the one eight further on.
    float2 ahead[8];
#pragma unroll
    for (int j = 0; j < 8; j++) ahead[j] = at[32 * j];
    for (u32 i = 0; i < rows; i += 8) {
        at += 256;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            low = low + ahead[j].x, high = high + ahead[j].y;
            ahead[j] = at[32 * j];
        }
    }
    // The halvings by 32, 16, 8, 4 and 2, and the last.
#pragma unroll
    for (int h = 16; h; h >>= 1) low = low + __shfl_xor_sync(FULL, low, h), high = high + __shfl_xor_sync(FULL, high, h);
    return low + high;
}

// Four values to int8; they are in range.
__device__ __forceinline__ u32 pack4(float4 v, float scale) {
    int x = __float2int_rn(__fmul_rn(v.x, scale)), y = __float2int_rn(__fmul_rn(v.y, scale));
    int z = __float2int_rn(__fmul_rn(v.z, scale)), w = __float2int_rn(__fmul_rn(v.w, scale));
    u32 high, all;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(w), "r"(z));
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(all) : "r"(y), "r"(x), "r"(high));
    return all;
}

// Out of the way of what runs.
__device__ __noinline__ void raise_row(FAULT, float4 v, u32 at) {
    float e[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; i++)
        if (abs_bits(e[i]) >= INF_BITS) raise_element(FAULT_ARGS, e[i], at * 4 + i);
}

// rms_norm and quantize_row of one row by a block, into `s.xs` as `gemv` lays it out and `s.sum`. Returns the row's scale.
// TILES * TILE <= THREADS * VECS * 4, and cols is a multiple of 64. `clear` was called. Ends with a barrier.
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
    __syncthreads();
    if (t < 32) {
        float sum = lane_sum(s.squares, row.cols / 64);
        if (t == 0) s.factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sum, (float)row.cols) + row.eps));
    }
    __syncthreads();
    float r = s.factor;
    u32 largest = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        // Past the row both are zero.
        v[j].x = __fmul_rn(__fmul_rn(v[j].x, r), g[j].x), v[j].y = __fmul_rn(__fmul_rn(v[j].y, r), g[j].y);
        v[j].z = __fmul_rn(__fmul_rn(v[j].z, r), g[j].z), v[j].w = __fmul_rn(__fmul_rn(v[j].w, r), g[j].w);
        u32 most = max(max(abs_bits(v[j].x), abs_bits(v[j].y)), max(abs_bits(v[j].z), abs_bits(v[j].w)));
        if (t + j * THREADS < vectors) largest = max(largest, most);
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
        u32 at = t + j * THREADS, four = at < vectors && finite ? pack4(v[j], scale) : 0;
        if (at < tiles * (TILE / 4)) ((u32 *)s.xs)[((at >> 6) * 20 + (at >> 2 & 15)) * 4 + (at & 3)] = four;
        if (first && finite && at < vectors) ((u32 *)row.q)[at] = four;
        part = __dp4a(0x01010101, (int)four, part);
    }
    if (first && !finite)
#pragma unroll
        for (int j = 0; j < VECS; j++)
            if (t + j * THREADS < vectors) raise_row(FAULT_ARGS, v[j], t + j * THREADS);
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

// Unsigned codes in the bits of `mask` of each byte, times int8.
__device__ __forceinline__ int dot_masked(u32 word, u32 mask, u32 x, int acc) {
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(acc) : "r"(word & mask), "r"(x));
    return acc;
}

// The sum of one row's codes times activations. Codes stay where they are in their bytes: each of the four places has a sum of
// its own, which is that many times too large, and an int8 row of 7,168 is far from too long for it.
struct Sums {
    int at[4] = {0, 0, 0, 0};
    __device__ __forceinline__ void add(u32 word, uint4 x) {
        at[0] = dot_masked(word, CODES, x.x, at[0]);
        at[1] = dot_masked(word, CODES << 2, x.y, at[1]);
        at[2] = dot_masked(word, CODES << 4, x.z, at[2]);
        at[3] = dot_masked(word, CODES << 6, x.w, at[3]);
    }
    template <int LANES> __device__ __forceinline__ int all() const {
        int acc = at[0] + (at[1] >> 2) + (at[2] >> 4) + (at[3] >> 6);
#pragma unroll
        for (int h = LANES / 2; h; h >>= 1) acc += __shfl_xor_sync(FULL, acc, h);
        return acc;
    }
};

// Products of ROWS rows with the staged one, less the sum of that; in all LANES threads.
template <int LANES, int ROWS, int LOADS, int TILES>
__device__ __forceinline__ void products(const uint4 (&v)[ROWS][LOADS], const Staged<TILES> &s, u32 sub, u32 tiles,
                                         int (&out)[ROWS]) {
    Sums sums[ROWS];
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        u32 at = sub + LANES * j;
        if (at < tiles * 4) {
            const uint4 *x = s.xs + (at >> 2) * 20 + (at & 3);
#pragma unroll
            for (int q = 0; q < 4; q++) {
                uint4 a = x[4 * q];
#pragma unroll
                for (int r = 0; r < ROWS; r++) sums[r].add(pick(v[r][j], q), a);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) out[r] = sums[r].template all<LANES>() - s.sum;
}

__device__ __forceinline__ float result(int acc, float weight_scale, float x_scale) {
    return __fdiv_rn(__fmul_rn(__int2float_rn(acc), weight_scale), x_scale);
}

// The kernels below have at most 128 blocks at the shapes of the 2B-4T model: one on a multiprocessor, so that none waits for
// two, and no norm is made twice on one.

// rms_norm_quantize and a product, stored or added: a warp a row.
#define GEMV_ROWS 20
template <int LOADS, int VECS, int TILES>
__device__ __forceinline__ void norm_gemv(const NormRow &row, u32 tiles, const uint4 *w, float *y, u32 n, float scale,
                                          u32 mode, FAULT) {
    const int threads = GEMV_ROWS * 32;
    __shared__ Staged<TILES> s;
    u32 sub = threadIdx.x & 31, at = blockIdx.x * GEMV_ROWS + (threadIdx.x >> 5);
    uint4 v[1][LOADS];
    int acc[1];
    start_next();
    ask<32>(v[0], w + (u64)min(at, n - 1) * tiles * 4, sub, tiles);
    prefetch_row(row.w, row.cols);
    clear<threads>(s, row.cols);
    wait_for_previous();
    Part<VECS> part;
    load_row<threads>(part, row);
    // Read early: it is needed last.
    float before = mode & ADD && sub == 0 && at < n ? y[at] : 0.0f;
    float x_scale = stage_norm<threads>(s, part, row, tiles, FAULT_ARGS);
    products<32>(v, s, sub, tiles, acc);
    float out = result(acc[0], scale, x_scale);
    if (sub == 0 && at < n) y[at] = mode & ADD ? before + out : out;
}
#define NORM_GEMV(NAME, LOADS, VECS, TILES)                                                                            \
    KERNEL __launch_bounds__(GEMV_ROWS * 32)                                                                           \
        NAME(const float *x, const float *norm, float eps, u32 cols, i8 *q, float *x_scale, u32 tiles,                 \
             const uint4 *w, float *y, u32 n, float scale, u32 mode, FAULT) {                                          \
        norm_gemv<LOADS, VECS, TILES>({x, norm, eps, cols, q, x_scale}, tiles, w, y, n, scale, mode, FAULT_ARGS);      \
    }
NORM_GEMV(norm_gemv, 2, 1, 10)
NORM_GEMV(norm_gemv_wide, 4, 3, 28)

// rms_norm_quantize, two products of n rows, and relu_squared_mul of theirs: 54 rows of each a block. Sixteen threads share a row
// of both, so that what they read of the activations serves two.
#define PAIR_ROWS 54
KERNEL __launch_bounds__(PAIR_ROWS * 16) norm_gate_up(const float *x, const float *norm, float eps, u32 cols, i8 *q,
                                                      float *x_scale, u32 tiles, const uint4 *w0, float *y0, float s0,
                                                      const uint4 *w1, float *y1, float s1, float *y, u32 n, FAULT) {
    const int threads = PAIR_ROWS * 16;
    __shared__ Staged<10> s;
    u32 sub = threadIdx.x & 15, at = blockIdx.x * PAIR_ROWS + (threadIdx.x >> 4);
    u64 from = (u64)min(at, n - 1) * tiles * 4;
    uint4 v[2][3];
    int acc[2];
    start_next();
    ask<16>(v[0], w0 + from, sub, tiles);
    ask<16>(v[1], w1 + from, sub, tiles);
    prefetch_row(norm, cols);
    clear<threads>(s, cols);
    wait_for_previous();
    NormRow row = {x, norm, eps, cols, q, x_scale};
    Part<1> part;
    load_row<threads>(part, row);
    float scale = stage_norm<threads>(s, part, row, tiles, FAULT_ARGS);
    products<16>(v, s, sub, tiles, acc);
    float gate = result(acc[0], s0, scale), up = result(acc[1], s1, scale), r = fmaxf(gate, 0.0f);
    if (sub == 0 && at < n) {
        y0[at] = gate;
        y1[at] = up;
        y[at] = __fmul_rn(__fmul_rn(r, r), up);
    }
}

// rms_norm_quantize, the products q, k and v, the rotation of q and k, and kv_write. Rows come in pairs that turn with each
// other, one from each half of a head: fifteen pairs a block, sixteen threads a row. Values are paired too, though they stay
// as they are.
#define TURNED_ROWS 15
KERNEL __launch_bounds__(TURNED_ROWS * 32)
    norm_qkv(const float *x, const float *norm, float eps, u32 cols, i8 *q8, float *x_scale, u32 tiles, const uint4 *wq,
             float sq, float *q, const uint4 *wk, float sk, float *k, const uint4 *wv, float sv, float *v, u32 heads,
             u32 kv_heads, u32 half, const u32 *positions, u32 known, const float *cos, const float *sin, u32 capacity,
             float *k_cache, float *v_cache, FAULT, u64 position_seq) {
    const int threads = TURNED_ROWS * 32;
    __shared__ Staged<10> s;
    u32 pairs = (heads + 2 * kv_heads) * half, first = blockIdx.x * TURNED_ROWS;
    u32 sub = threadIdx.x & 15, slot = threadIdx.x >> 4;
    // Where a pair is: 0, 1 and 2 for q, k and v, and the row of its first.
    struct Pair {
        u32 kind, row, e;
    };
    auto place = [&](u32 pair) {
        u32 head = pair / half, e = pair % half;
        u32 kind = head < heads ? 0 : head < heads + kv_heads ? 1 : 2;
        head -= kind == 0 ? 0 : kind == 1 ? heads : heads + kv_heads;
        return Pair{kind, head * 2 * half + e, e};
    };
    Pair mine = place(min(first + slot % TURNED_ROWS, pairs - 1));
    uint4 a[1][3];
    int acc[1];
    start_next();
    ask<16>(a[0], (mine.kind == 0 ? wq : mine.kind == 1 ? wk : wv) + (u64)(mine.row + slot / TURNED_ROWS * half) * tiles * 4,
            sub, tiles);
    prefetch_row(norm, cols);
    clear<threads>(s, cols);
    wait_for_previous();
    NormRow row = {x, norm, eps, cols, q8, x_scale};
    Part<2> part;
    load_row<threads>(part, row);
    u32 p = positions[0], pair = first + threadIdx.x;
    bool known_position = p < min(known, capacity), last = threadIdx.x < TURNED_ROWS && pair < pairs;
    Pair turned = place(min(pair, pairs - 1));
    float c = 1.0f, turn = 0.0f;
    if (known_position && last) c = cos[(u64)p * half + turned.e], turn = sin[(u64)p * half + turned.e];
    float scale = stage_norm<threads>(s, part, row, tiles, FAULT_ARGS);
    products<16>(a, s, sub, tiles, acc);
    float out = result(acc[0], mine.kind == 0 ? sq : mine.kind == 1 ? sk : sv, scale);
    if (sub == 0) s.results[slot] = out;
    __syncthreads();
    if (!known_position && blockIdx.x == 0 && threadIdx.x == 0)
        raise_fault(fault_word, fault_raised, position_seq, F_INDEX, 0);
    if (!last) return;
    float low = s.results[threadIdx.x], high = s.results[threadIdx.x + TURNED_ROWS];
    if (known_position && turned.kind < 2) {
        float l = __fmul_rn(low, c) - __fmul_rn(high, turn), h = __fmul_rn(high, c) + __fmul_rn(low, turn);
        low = l, high = h;
    }
    float *to = (turned.kind == 0 ? q : turned.kind == 1 ? k : v) + turned.row;
    to[0] = low;
    to[half] = high;
    if (turned.kind == 0 || !known_position) return;
    float *cache = (turned.kind == 1 ? k_cache : v_cache) + (u64)p * kv_heads * 2 * half + turned.row;
    cache[0] = low;
    cache[half] = high;
}
