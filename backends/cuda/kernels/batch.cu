// Several rows of activations at once: products of up to 64 rows, norms, and dense heads.
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
//
// What the warps of a block found, in dynamic shared memory. Rows of 40 or 72 words keep the stores free of conflicts.
template <int NT> struct Found {
    static const int stride = NT <= 4 ? 40 : 72;
    int *at;
    __device__ __forceinline__ void store(const int (&d)[2][NT][4], u32 warp, u32 lane) const {
        int *mine = at + warp * 32 * stride + (lane >> 2) * stride + 2 * (lane & 3);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < NT; j++) {
                *(int2 *)(mine + 16 * i * stride + 8 * j) = make_int2(d[i][j][0], d[i][j][1]);
                *(int2 *)(mine + (16 * i + 8) * stride + 8 * j) = make_int2(d[i][j][2], d[i][j][3]);
            }
    }
    template <int WARPS> __device__ __forceinline__ int sum(u32 row, u32 token) const {
        int acc = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) acc += at[(w * 32 + row) * stride + token];
        return acc;
    }
};

// The sums of this thread's parts of its tokens, put together in shared memory that is zero.
template <int NT> __device__ __forceinline__ void add_sums(int (&sums)[NT], int *x_sums, u32 lane) {
#pragma unroll
    for (int j = 0; j < NT; j++) {
        sums[j] += __shfl_xor_sync(FULL, sums[j], 1);
        sums[j] += __shfl_xor_sync(FULL, sums[j], 2);
        if ((lane & 3) == 0) atomicAdd(&x_sums[8 * j + (lane >> 2)], sums[j]);
    }
}

// The results of a thread, and what the output holds before something is added to it, asked for early. A warp has four rows of
// eight tokens at a time, which is what reads the sums without conflicts.
template <int NT, int WARPS> struct Results {
    static const int count = (8 * NT + WARPS - 1) / WARPS;
    u32 row, token;
    float before[count];
    __device__ __forceinline__ Results(u32 warp, u32 lane) : row((lane >> 3) + 4 * warp), token(lane & 7) {}
    // Row and token of the i-th result; past the last token where there are no more.
    __device__ __forceinline__ u32 row_of(int i) const { return (row + 4 * i * WARPS) & 31; }
    __device__ __forceinline__ u32 token_of(int i) const { return token + (row + 4 * i * WARPS) / 32 * 8; }
    __device__ __forceinline__ void ask(const Factor &a, u32 row0, u32 m, u32 mode) {
#pragma unroll
        for (int i = 0; i < count; i++) {
            u32 r = row0 + row_of(i), t = token_of(i);
            before[i] = mode == ADD && r < a.n && t < m ? ((const float *)a.y)[(u64)t * a.n + r] : 0.0f;
        }
    }
    __device__ __forceinline__ void store(const Factor &a, const Found<NT> &found, const int *x_sums, const float *x_scales,
                                          u32 row0, u32 m, u32 mode) const {
#pragma unroll
        for (int i = 0; i < count; i++) {
            u32 r = row0 + row_of(i), t = token_of(i);
            if (r >= a.n || t >= m) continue;
            int acc = found.template sum<WARPS>(row_of(i), t) - x_sums[t];
            u64 at = (u64)t * a.n + r;
            if (mode == ADD)
                ((float *)a.y)[at] = before[i] + __fdiv_rn(__fmul_rn(__int2float_rn(acc), a.scale), x_scales[t]);
            else store_sum(a.y, at, acc, a.scale, x_scales[t], mode);
        }
    }
};

__device__ __forceinline__ Factor factor_of(u32 &block, const Factor &a, const Factor &b, const Factor &c) {
    u32 end0 = (a.n + 31) / 32, end1 = end0 + (b.n + 31) / 32;
    if (block >= end1) {
        block -= end1;
        return c;
    }
    if (block < end0) return a;
    block -= end0;
    return b;
}

// Rows of any length.
template <int NT, int WARPS>
__device__ __forceinline__ void gemm_rows(const i8 *x, const float *x_scales, u32 m, u32 tiles, u32 mode, Factor a, Factor b,
                                          Factor c) {
    extern __shared__ __align__(16) int found_sums[];
    __shared__ int x_sums[NT * 8];
    u32 block = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    a = factor_of(block, a, b, c);
    u32 row0 = block * 32;
    start_next();
    uint4 v[4], next[4];
    auto ask = [&](uint4(&v)[4], u32 tile) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = tile < tiles ? __ldg(a.w + ((u64)min(row0 + g + 8 * i, a.n - 1) * tiles + tile) * 4 + t)
                                : make_uint4(0, 0, 0, 0);
    };
    ask(v, warp);
    ask(next, warp + WARPS);
    for (u32 i = threadIdx.x; i < NT * 8; i += WARPS * 32) x_sums[i] = 0;
    int d[2][NT][4], sums[NT];
    u32 from[NT];
#pragma unroll
    for (int j = 0; j < NT; j++) {
        from[j] = min(8 * j + g, m - 1) * tiles * (TILE / 16) + t;
        sums[j] = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) d[0][j][i] = 0, d[1][j][i] = 0;
    }
    wait_for_previous();
    __syncthreads();
    Results<NT, WARPS> results(warp, lane);
    results.ask(a, row0, m, mode);
    for (u32 tile = warp; tile < tiles; tile += WARPS) {
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
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = next[i];
        if (tile + WARPS < tiles) ask(next, tile + 2 * WARPS);
    }
    Found<NT> found = {found_sums};
    add_sums(sums, x_sums, lane);
    found.store(d, warp, lane);
    __syncthreads();
    results.store(a, found, x_sums, x_scales, row0, m, mode);
}

// Rows of at most ten tiles: a warp has one, whose activations it keeps in registers while the block goes through groups of
// 32 weight rows; the next group's weights are on their way meanwhile.
#define SHORT_WARPS 10
template <int NT>
__device__ __forceinline__ void gemm_rows_short(const i8 *x, const float *x_scales, u32 m, u32 tiles, u32 mode, Factor a,
                                                Factor b, Factor c) {
    extern __shared__ __align__(16) int found_sums[];
    __shared__ int x_sums[NT * 8];
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    u32 blocks = (a.n + 31) / 32 + (b.n + 31) / 32 + (c.n + 31) / 32;
    bool live = warp < tiles;
    start_next();
    uint4 next[4];
    Factor now = a, then = a;
    u32 row0 = 0, next_row0 = 0;
    auto ask = [&](u32 block) {
        if (block >= blocks) return;
        then = factor_of(block, a, b, c);
        next_row0 = block * 32;
#pragma unroll
        for (int i = 0; i < 4; i++)
            next[i] = live ? __ldg(then.w + ((u64)min(next_row0 + g + 8 * i, then.n - 1) * tiles + warp) * 4 + t)
                           : make_uint4(0, 0, 0, 0);
    };
    ask(blockIdx.x);
    for (u32 i = threadIdx.x; i < NT * 8; i += SHORT_WARPS * 32) x_sums[i] = 0;
    wait_for_previous();
    uint4 units[4][NT];
#pragma unroll
    for (int j = 0; j < NT; j++) {
        const uint4 *from = (const uint4 *)x + (u64)min(8 * j + g, m - 1) * tiles * (TILE / 16) + warp * 16 + t;
#pragma unroll
        for (int q = 0; q < 4; q++) units[q][j] = live ? from[4 * q] : make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
    for (u32 block = blockIdx.x, turn = 0; block < blocks; block += gridDim.x, turn ^= 1) {
        uint4 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = next[i];
        now = then, row0 = next_row0;
        ask(block + gridDim.x);
        Results<NT, SHORT_WARPS> results(warp, lane);
        results.ask(now, row0, m, mode);
        int d[2][NT][4];
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) d[0][j][i] = 0, d[1][j][i] = 0;
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int j = 0; j < NT; j++) {
                mma_word(d[0][j], pick(v[0], q), pick(v[1], q), units[q][j]);
                mma_word(d[1][j], pick(v[2], q), pick(v[3], q), units[q][j]);
            }
        if (block == blockIdx.x) {
            int sums[NT];
#pragma unroll
            for (int j = 0; j < NT; j++) {
                sums[j] = 0;
#pragma unroll
                for (int q = 0; q < 4; q++) sums[j] = sum16(units[q][j], sums[j]);
            }
            add_sums(sums, x_sums, lane);
        }
        // Two places in turn: who writes one again has seen everybody leave it at the barrier in between.
        Found<NT> found = {found_sums + turn * SHORT_WARPS * 32 * Found<NT>::stride};
        found.store(d, warp, lane);
        __syncthreads();
        results.store(now, found, x_sums, x_scales, row0, m, mode);
    }
}
#define GEMM_ROWS_PARAMETERS                                                                                           \
    const i8 *x, const float *x_scales, u32 m, u32 tiles, u32 mode, const uint4 *w0, void *y0, u32 n0, float s0,       \
        const uint4 *w1, void *y1, u32 n1, float s1, const uint4 *w2, void *y2, u32 n2, float s2
#define GEMM_ROWS(NT, WARPS)                                                                                           \
    KERNEL __launch_bounds__(WARPS * 32) gemm_rows_##NT(GEMM_ROWS_PARAMETERS) {                                        \
        gemm_rows<NT, WARPS>(x, x_scales, m, tiles, mode, {w0, y0, n0, s0}, {w1, y1, n1, s1}, {w2, y2, n2, s2});       \
    }
GEMM_ROWS(1, 14)
GEMM_ROWS(2, 14)
GEMM_ROWS(4, 14)
GEMM_ROWS(8, 8)
#define GEMM_ROWS_SHORT(NT)                                                                                            \
    KERNEL __launch_bounds__(SHORT_WARPS * 32, 1) gemm_rows_short_##NT(GEMM_ROWS_PARAMETERS) {                         \
        gemm_rows_short<NT>(x, x_scales, m, tiles, mode, {w0, y0, n0, s0}, {w1, y1, n1, s1}, {w2, y2, n2, s2});        \
    }
GEMM_ROWS_SHORT(1)
GEMM_ROWS_SHORT(2)
GEMM_ROWS_SHORT(4)

// rms_norm_quantize of several rows, a block each, or relu_squared_mul and that: a row stays in the registers of its block,
// VECS times four elements a thread. Columns are a multiple of 64, at most THREADS * VECS * 4; all is aligned to 16 bytes.
template <int THREADS, int VECS, bool GATED>
__device__ __forceinline__ void norm_rows(const float *x, const float *up, float *gated, const float *w, float eps, u32 cols,
                                          i8 *q, float *scales, FAULT) {
    __shared__ float row[THREADS * VECS * 4 + ZERO_ROWS * 64];
    __shared__ u32 maxima[32];
    __shared__ float factor;
    u32 t = threadIdx.x, vectors = cols / 4;
    u64 first = (u64)blockIdx.x * vectors;
    float4 v[VECS], g[VECS];
    start_next();
    prefetch_row(w, cols);
    for (u32 i = t; i < ZERO_ROWS * 16; i += THREADS) ((float4 *)row)[vectors + i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    wait_for_previous();
    float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * THREADS;
        v[j] = at < vectors ? ((const float4 *)x)[first + at] : none;
        if (GATED) g[j] = at < vectors ? ((const float4 *)up)[first + at] : none;
    }
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * THREADS;
        if (GATED) {
            float4 r = make_float4(fmaxf(v[j].x, 0.0f), fmaxf(v[j].y, 0.0f), fmaxf(v[j].z, 0.0f), fmaxf(v[j].w, 0.0f));
            v[j].x = __fmul_rn(__fmul_rn(r.x, r.x), g[j].x), v[j].y = __fmul_rn(__fmul_rn(r.y, r.y), g[j].y);
            v[j].z = __fmul_rn(__fmul_rn(r.z, r.z), g[j].z), v[j].w = __fmul_rn(__fmul_rn(r.w, r.w), g[j].w);
            if (at < vectors) ((float4 *)gated)[first + at] = v[j];
        }
        g[j] = at < vectors ? __ldg((const float4 *)w + at) : none;
        if (at < vectors) ((float4 *)row)[at] = v[j];
    }
    __syncthreads();
    if (t < 32) {
        float sum = lane_sum(row, cols / 64);
        if (t == 0) factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sum, (float)cols) + eps));
    }
    __syncthreads();
    float r = factor;
    u32 largest = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        v[j] = times(times(v[j], r), g[j]);
        // Past the row both are zero.
        largest = max(largest, largest_bits(v[j]));
    }
    largest = block_max(largest, maxima);
    if (largest >= INF_BITS) {
#pragma unroll
        for (int j = 0; j < VECS; j++) {
            u32 at = t + j * THREADS;
            float e[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
            for (int i = 0; i < 4; i++)
                if (at < vectors && abs_bits(e[i]) >= INF_BITS) raise_element(FAULT_ARGS, e[i], (first + at) * 4 + i);
        }
        return;
    }
    float scale = __fdiv_rn(127.0f, fmaxf(__uint_as_float(largest), 1e-5f));
    if (t == 0) scales[blockIdx.x] = scale;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * THREADS;
        if (at < vectors) ((u32 *)q)[first + at] = bytes_of(rounded(times(v[j], scale), 1.0f));
    }
}
#define NORM_ROWS(NAME, THREADS, VECS)                                                                                 \
    KERNEL __launch_bounds__(THREADS) NAME(const float *x, const float *w, float eps, u32 cols, i8 *q, float *scales,  \
                                           FAULT) {                                                                    \
        norm_rows<THREADS, VECS, false>(x, 0, 0, w, eps, cols, q, scales, FAULT_ARGS);                                 \
    }
NORM_ROWS(norm_rows, 640, 1)
NORM_ROWS(norm_rows_wide, 896, 2)
KERNEL __launch_bounds__(896) gate_norm_rows(const float *gate, const float *up, float *y, const float *w, float eps,
                                             u32 cols, i8 *q, float *scales, FAULT) {
    norm_rows<896, 2, true>(gate, up, y, w, eps, cols, q, scales, FAULT_ARGS);
}

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
    // Where this thread's first pair of a row is.
    auto row_at = [&](u32 row) { return (const char *)w + ((u64)min(row, n - 1) * stride + 2 * lane) * Pair<T>::bytes; };
    const char *rows[4];
#pragma unroll
    for (int r = 0; r < 4; r++) rows[r] = row_at(row0 + r);
    // Two chunks of the four rows are on their way while one is multiplied; there are two at least.
    Pair<T> ahead[2][4];
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
        for (int r = 0; r < 4; r++) ahead[c][r].load(rows[r] + c * 64 * Pair<T>::bytes);
    wait_for_previous();
    // Chunk after chunk, in each the 64 columns of one token after those of another.
    for (u32 i = threadIdx.x; i < halves * 8 * stride; i += blockDim.x) {
        u32 token = i / stride, c = i % stride;
        float v = token < held && c < k ? x[(u64)(m0 + token) * k + c] : 0.0f;
        tokens[(token >> 3) * 8 * stride + (c >> 6) * 512 + (token & 7) * 64 + (c & 63)] = v;
    }
    __syncthreads();
    m0 += warp % halves * 8;
    for (; row0 < n; row0 += step) {
        const float2 *xs = (const float2 *)(tokens + warp % halves * 8 * stride) + lane;
        float low[32], high[32];
#pragma unroll
        for (int i = 0; i < 32; i++) low[i] = 0.0f, high[i] = 0.0f;
        auto multiply = [&](const Pair<T>(&p)[4]) {
            float a[4], b[4];
#pragma unroll
            for (int r = 0; r < 4; r++) a[r] = p[r].low(), b[r] = p[r].high();
#pragma unroll
            for (int t = 0; t < 8; t++) {
                float2 v = xs[32 * t];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    low[4 * t + r] = __fadd_rn(low[4 * t + r], __fmul_rn(a[r], v.x));
                    high[4 * t + r] = __fadd_rn(high[4 * t + r], __fmul_rn(b[r], v.y));
                }
            }
            xs += 256;
        };
#pragma unroll 2
        for (u32 c = 2; c < chunks; c++) {
            Pair<T> now[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                now[r] = ahead[0][r], ahead[0][r] = ahead[1][r];
                ahead[1][r].load(rows[r] + 2 * 64 * Pair<T>::bytes);
                rows[r] += 64 * Pair<T>::bytes;
            }
            multiply(now);
        }
#pragma unroll
        for (int r = 0; r < 4; r++) rows[r] = row_at(row0 + step + r);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            Pair<T> now[4];
#pragma unroll
            for (int r = 0; r < 4; r++) now[r] = ahead[c][r], ahead[c][r].load(rows[r] + c * 64 * Pair<T>::bytes);
            multiply(now);
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
