// Several rows of activations at once: products of up to 64 rows, dense heads, and attention with rows of several sequences.
#include "common.cuh"
#include "math.cuh"

// A weight of a product: packed rows, where its results go, how many rows, its scale.
struct Factor {
    const uint4 *w;
    void *y;
    u32 n;
    float scale;
};

// Up to 8 NT rows of activations times up to three weights. A block has 32 weight rows; its warps deal the tiles of columns
// among themselves, and their sums, which have no order in integers, meet in shared memory. Activations come from the cache;
// x is aligned to 16 bytes and its rows are whole tiles. Codes are unsigned: the sum of the activations is subtracted once.
template <int NT>
__device__ __forceinline__ void gemm_rows(const i8 *x, const float *x_scales, u32 m, u32 tiles, u32 mode, Factor a, Factor b,
                                          Factor c) {
    __shared__ int results[32][NT * 8 + 1];
    __shared__ int x_sums[NT * 8];
    u32 block = blockIdx.x, end0 = (a.n + 31) / 32, end1 = end0 + (b.n + 31) / 32;
    if (block >= end1) block -= end1, a = c;
    else if (block >= end0) block -= end0, a = b;
    u32 warp = threadIdx.x >> 5, warps = blockDim.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    u32 row0 = block * 32;
    start_next();
    uint4 v[4];
    auto ask = [&](u32 tile) {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = __ldg(a.w + ((u64)min(row0 + g + 8 * i, a.n - 1) * tiles + tile) * 4 + t);
    };
    if (warp < tiles) ask(warp);
    for (u32 i = threadIdx.x; i < 32 * (NT * 8 + 1); i += blockDim.x) (&results[0][0])[i] = 0;
    for (u32 i = threadIdx.x; i < NT * 8; i += blockDim.x) x_sums[i] = 0;
    int d[2][NT][4], sums[NT];
#pragma unroll
    for (int j = 0; j < NT; j++) {
        sums[j] = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) d[0][j][i] = 0, d[1][j][i] = 0;
    }
    wait_for_previous();
    __syncthreads();
    u32 from[NT];
#pragma unroll
    for (int j = 0; j < NT; j++) from[j] = min(8 * j + g, m - 1) * tiles * (TILE / 16) + t;
    for (u32 tile = warp; tile < tiles; tile += warps) {
        if (tile != warp) ask(tile);
#pragma unroll
        for (int q = 0; q < 4; q++) {
            uint4 units[NT];
#pragma unroll
            for (int j = 0; j < NT; j++) units[j] = ((const uint4 *)x)[from[j] + tile * 16 + 4 * q];
#pragma unroll
            for (int j = 0; j < NT; j++) {
                mma_word(d[0][j], pick(v[0], q), pick(v[1], q), units[j]);
                mma_word(d[1][j], pick(v[2], q), pick(v[3], q), units[j]);
                sums[j] = sum16(units[j], sums[j]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++) {
        sums[j] += __shfl_xor_sync(FULL, sums[j], 1);
        sums[j] += __shfl_xor_sync(FULL, sums[j], 2);
        if (t == 0) atomicAdd(&x_sums[8 * j + g], sums[j]);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) atomicAdd(&results[16 * i + g + 8 * (e >> 1)][8 * j + 2 * t + (e & 1)], d[i][j][e]);
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e < 32 * NT * 8; e += blockDim.x) {
        u32 r = e & 31, token = e >> 5, row = row0 + r;
        if (row < a.n && token < m)
            store_sum(a.y, (u64)token * a.n + row, results[r][token] - x_sums[token], a.scale, x_scales[token], mode);
    }
}
#define GEMM_ROWS(NT, BLOCKS)                                                                                          \
    KERNEL __launch_bounds__(320, BLOCKS)                                                                              \
        gemm_rows_##NT(const i8 *x, const float *x_scales, u32 m, u32 tiles, u32 mode, const uint4 *w0, void *y0,      \
                       u32 n0, float s0, const uint4 *w1, void *y1, u32 n1, float s1, const uint4 *w2, void *y2,       \
                       u32 n2, float s2) {                                                                             \
        gemm_rows<NT>(x, x_scales, m, tiles, mode, {w0, y0, n0, s0}, {w1, y1, n1, s1}, {w2, y2, n2, s2});              \
    }
GEMM_ROWS(1, 2)
GEMM_ROWS(2, 2)
GEMM_ROWS(4, 2)
GEMM_ROWS(8, 1)

// A step of folding 2 N results, two lanes each, at once: a thread keeps one half of the results and gives the other to the
// thread whose lanes are added to its own. Sums commute, so it does not matter who adds.
template <int N> __device__ __forceinline__ void fold_step(float (&low)[N * 2], float (&high)[N * 2], bool upper) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        float given = upper ? low[i] : low[i + N], kept = upper ? low[i + N] : low[i];
        low[i] = kept + __shfl_xor_sync(FULL, given, N);
        given = upper ? high[i] : high[i + N], kept = upper ? high[i + N] : high[i];
        high[i] = kept + __shfl_xor_sync(FULL, given, N);
    }
}

// Two weights of a row, in the lanes 2t and 2t + 1.
template <int T> struct Pair;
template <> struct Pair<T_F32> {
    float2 v;
    __device__ __forceinline__ void load(const void *w, u64 at) { v = __ldg((const float2 *)((const float *)w + at)); }
    __device__ __forceinline__ float low() const { return v.x; }
    __device__ __forceinline__ float high() const { return v.y; }
};
template <int T> struct Pair {
    u32 v;
    __device__ __forceinline__ void load(const void *w, u64 at) { v = __ldg((const u32 *)((const u16 *)w + at)); }
    __device__ __forceinline__ float low() const { return T == T_F16 ? half_value(v & 0xffff) : __uint_as_float(v << 16); }
    __device__ __forceinline__ float high() const {
        return T == T_F16 ? half_value(v >> 16) : __uint_as_float(v & 0xffff0000u);
    }
};

// Dense weights times several rows of f32 activations, by lanes. There are 64 sums for each result, which is what bounds
// this: a warp keeps those of four weight rows and eight tokens, two lanes a thread, and takes the next four rows when it is
// done. A block keeps its tokens, up to sixteen, in shared memory: whole rows, filled up with zeros to `stride`. Its warps
// come in twos where there are more than eight, with the same weights. Blocks deal the tokens (`groups` times sixteen) and
// the weight rows among themselves.
#define DENSE_ROWS_WARPS 16
template <int T>
__device__ __forceinline__ void dense_rows(const void *w, const float *x, float *y, u32 n, u32 k, u32 stride, u32 m,
                                           u32 groups, u32 mode) {
    extern __shared__ __align__(16) float tokens[];
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    u32 m0 = blockIdx.x % groups * 16, held = min(m - m0, 16u), halves = (held + 7) / 8;
    u32 chunks = stride / 64, step = gridDim.x / groups * (DENSE_ROWS_WARPS / halves) * 4;
    u32 row0 = (blockIdx.x / groups * (DENSE_ROWS_WARPS / halves) + warp / halves) * 4;
    start_next();
    auto at = [&](u32 row, u32 r, u32 c) { return (u64)min(row + r, n - 1) * stride + c * 64 + 2 * lane; };
    // Two chunks of the four rows are on their way while one is multiplied.
    Pair<T> ahead[2][4];
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
        for (int r = 0; r < 4; r++) ahead[c][r].load(w, at(row0, r, min((u32)c, chunks - 1)));
    wait_for_previous();
    for (u32 i = threadIdx.x; i < halves * 8 * stride; i += blockDim.x) {
        u32 token = i / stride, c = i % stride;
        tokens[i] = token < held && c < k ? x[(u64)(m0 + token) * k + c] : 0.0f;
    }
    __syncthreads();
    m0 += warp % halves * 8;
    const float2 *xs = (const float2 *)(tokens + warp % halves * 8 * stride) + lane;
    for (; row0 < n; row0 += step) {
        float low[32], high[32];
#pragma unroll
        for (int i = 0; i < 32; i++) low[i] = 0.0f, high[i] = 0.0f;
#pragma unroll 2
        for (u32 c = 0; c < chunks; c++) {
            float a[4], b[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                a[r] = ahead[0][r].low(), b[r] = ahead[0][r].high();
                ahead[0][r] = ahead[1][r];
                u32 next = c + 2;
                ahead[1][r].load(w, next < chunks ? at(row0, r, next) : at(row0 + step, r, min(next - chunks, chunks - 1)));
            }
#pragma unroll
            for (int t = 0; t < 8; t++) {
                float2 v = xs[(t * stride + c * 64) / 2];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    low[4 * t + r] = __fadd_rn(low[4 * t + r], __fmul_rn(a[r], v.x));
                    high[4 * t + r] = __fadd_rn(high[4 * t + r], __fmul_rn(b[r], v.y));
                }
            }
        }
        // Lane j + 32 is sixteen threads further on, and so on; the last two lanes are one thread's. Thread t ends with
        // result t.
        fold_step<16>(low, high, lane & 16);
        float low16[16], high16[16], low8[8], high8[8], low4[4], high4[4], low2[2], high2[2];
#pragma unroll
        for (int i = 0; i < 16; i++) low16[i] = low[i], high16[i] = high[i];
        fold_step<8>(low16, high16, lane & 8);
#pragma unroll
        for (int i = 0; i < 8; i++) low8[i] = low16[i], high8[i] = high16[i];
        fold_step<4>(low8, high8, lane & 4);
#pragma unroll
        for (int i = 0; i < 4; i++) low4[i] = low8[i], high4[i] = high8[i];
        fold_step<2>(low4, high4, lane & 2);
#pragma unroll
        for (int i = 0; i < 2; i++) low2[i] = low4[i], high2[i] = high4[i];
        fold_step<1>(low2, high2, lane & 1);
        float v = low2[0] + high2[0];
        u32 row = row0 + (lane & 3), token = m0 + (lane >> 2);
        if (row < n && token < m) {
            float *p = y + (u64)token * n + row;
            *p = mode & ADD ? *p + v : v;
        }
    }
}
#define DENSE_ROWS_OF(NAME, T)                                                                                         \
    KERNEL __launch_bounds__(DENSE_ROWS_WARPS * 32)                                                                    \
        dense_rows_##NAME(const void *w, const float *x, float *y, u32 n, u32 k, u32 stride, u32 m, u32 groups,        \
                          u32 mode) {                                                                                  \
        dense_rows<T>(w, x, y, n, k, stride, m, groups, mode);                                                         \
    }
DENSE_ROWS_OF(f32, T_F32)
DENSE_ROWS_OF(f16, T_F16)
DENSE_ROWS_OF(bf16, T_BF16)

// Attention of a row's four query heads that share a key/value head of 128 elements, a block: keys and values are read once
// for all four. In the order of docs/numerics.md. Both caches are brought nearer before the kernel waits: but for the last
// row, nothing that runs before it writes them.
#define GROUP_THREADS 512
KERNEL __launch_bounds__(GROUP_THREADS)
    attention_group(const float *q, u32 heads, u32 kv_heads, const u32 *positions, const u32 *first, u32 capacity,
                    const float *k_cache, const float *v_cache, float *y, u32 room, FAULT) {
    // The scores of a position, one for each head; `room` of them, a multiple of 64.
    extern __shared__ float4 group_scores[];
    __shared__ u32 maxima[4];
    __shared__ float lanes[4][64], parts[4][4][128], total[4];
    u32 row = blockIdx.x / kv_heads, kv = blockIdx.x % kv_heads, stride = kv_heads * 128;
    u32 t = threadIdx.x, warp = t >> 5, lane = t & 31;
    start_next();
    {
        u32 end = min(positions[row], capacity);
        for (u32 j = (first ? first[row] : 0) + warp; j < end; j += GROUP_THREADS / 32)
            if (lane < 8) {
                const float *line = (lane < 4 ? k_cache : v_cache) + (u64)j * stride + kv * 128 + 32 * (lane & 3);
                asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
            }
    }
    if (t < 4) maxima[t] = 0;
    wait_for_previous();
    __syncthreads();
    u32 p = positions[row], from = first ? first[row] : 0;
    if (p >= capacity || from > p || p - from >= room) {
        if (t == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
    u32 count = p - from + 1, chunks = (count + 63) / 64;
    const float *k = k_cache + (u64)from * stride + kv * 128, *v = v_cache + (u64)from * stride + kv * 128;
    const float *mine = q + ((u64)row * heads + kv * 4) * 128;
    float a[4][4];
#pragma unroll
    for (int h = 0; h < 4; h++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[h][i] = mine[h * 128 + lane + 32 * i];
    float factor = __fdiv_rn(1.0f, __fsqrt_rn(128.0f));
    // Four positions of four heads at once; thread t ends with head t / 2 % 4 of position t / 8.
    u32 best = 0, c = lane >> 3, h = lane >> 1 & 3;
    for (u32 j0 = warp * 4; j0 < count; j0 += GROUP_THREADS / 8) {
        float b[4][4], s[16];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *key = k + (u64)min(j0 + i, count - 1) * stride + lane;
#pragma unroll
            for (int e = 0; e < 4; e++) b[i][e] = key[32 * e];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float *qh = a[i & 3], *key = b[i >> 2];
            // A lane starts at +0: adding that only matters to the sign of a zero.
            float low = (0.0f + __fmul_rn(qh[0], key[0])) + __fmul_rn(qh[2], key[2]);
            float high = (0.0f + __fmul_rn(qh[1], key[1])) + __fmul_rn(qh[3], key[3]);
            s[i] = low + high;
        }
#pragma unroll
        for (int half = 8; half; half >>= 1) {
            bool upper = lane & 2 * half;
#pragma unroll
            for (int i = 0; i < half; i++) {
                float given = upper ? s[i] : s[i + half], kept = upper ? s[i + half] : s[i];
                s[i] = kept + __shfl_xor_sync(FULL, given, 2 * half);
            }
        }
        float score = __fmul_rn(s[0] + __shfl_xor_sync(FULL, s[0], 1), factor);
        if (j0 + c < count) {
            if ((lane & 1) == 0) ((float *)group_scores)[(j0 + c) * 4 + h] = score;
            if (score == score) best = max(best, ordered(score));
        }
    }
    best = max(best, __shfl_xor_sync(FULL, best, 8));
    best = max(best, __shfl_xor_sync(FULL, best, 16));
    if (lane < 8 && (lane & 1) == 0) atomicMax(&maxima[h], best);
    __syncthreads();
    best = maxima[t & 3];
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);
    // The last chunk is filled up with zeros; +0 added to a sum changes nothing.
    for (u32 i = t; i < chunks * 256; i += GROUP_THREADS) {
        float *score = (float *)group_scores + i;
        *score = i < count * 4 ? exp_negative(*score - largest) : 0.0f;
    }
    __syncthreads();
    if (t < 256) {
        float sum = 0.0f;
        for (u32 j = t & 63; j < count; j += 64) sum = sum + ((const float *)group_scores)[j * 4 + (t >> 6)];
        lanes[t >> 6][t & 63] = sum;
    }
    __syncthreads();
    if (warp < 4) {
        float sum = fold64(lanes[warp][lane], lanes[warp][lane + 32]);
        if (lane == 0) total[warp] = sum;
    }
    // Each 128 threads take a chunk of 64 positions, a thread one element for all four heads; then the chunk sums of a head
    // are added in ascending order by the threads of that head.
    u32 part = t >> 7, e = t & 127;
    float out = 0.0f;
    for (u32 c0 = 0; c0 < chunks; c0 += 4) {
        u32 chunk = c0 + part;
        if (chunk < chunks) {
            float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            const float *vc = v + (u64)chunk * 64 * stride + e;
            u32 live = min(count - chunk * 64, 64u);
#pragma unroll
            for (u32 j0 = 0; j0 < 64; j0 += 16) {
                float values[16];
#pragma unroll
                for (u32 j = 0; j < 16; j++) values[j] = j0 + j < live ? vc[(u64)(j0 + j) * stride] : 0.0f;
#pragma unroll
                for (u32 j = 0; j < 16; j++) {
                    float4 w = group_scores[chunk * 64 + j0 + j];
                    sum[0] = sum[0] + __fmul_rn(w.x, values[j]);
                    sum[1] = sum[1] + __fmul_rn(w.y, values[j]);
                    sum[2] = sum[2] + __fmul_rn(w.z, values[j]);
                    sum[3] = sum[3] + __fmul_rn(w.w, values[j]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) parts[part][i][e] = sum[i];
        }
        __syncthreads();
        for (u32 g = 0; g < 4 && c0 + g < chunks; g++) out = out + parts[g][part][e];
        __syncthreads();
    }
    y[((u64)row * heads + kv * 4 + part) * 128 + e] = __fdiv_rn(out, total[part]);
}
