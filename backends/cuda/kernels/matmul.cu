// Products.
//
// Ternary weights are packed in tiles of 256 weights of one row, 64 bytes, rows padded to whole tiles with zeros. Chunk t of
// a tile (t = 0..3, 16 bytes) has words w = 0..3; bits 2s, 2s+1 of byte b of word w are the code (t + 1, so 0, 1, 2) of
// column 64 w + 16 t + 4 s + b. So (word >> 2s) & 0x03030303 meets four consecutive activations in one dp4a, and the four
// threads of an mma fragment row read one tile in 16-byte loads with no shuffle. Codes are unsigned: the sum of the
// activations is subtracted once.
#include "common.cuh"

#define TILE 256
#define CODES 0x03030303u

enum Mode { ADD = 1, I32 = 2 };

// Result of one element, in the fixed order of roundings.
__device__ __forceinline__ void store_sum(void *y, u64 at, int acc, float scale, float x_scale, u32 mode) {
    if (mode & I32) {
        int *p = (int *)y + at;
        *p = mode & ADD ? (int)((u32)*p + (u32)acc) : acc;
    } else {
        float *p = (float *)y + at;
        float v = __fdiv_rn(__fmul_rn(__int2float_rn(acc), scale), x_scale);
        *p = mode & ADD ? *p + v : v;
    }
}

__device__ __forceinline__ int dot_word(u32 word, uint4 x, int acc) {
    acc = __dp4a((int)(word & CODES), (int)x.x, acc);
    acc = __dp4a((int)(word >> 2 & CODES), (int)x.y, acc);
    acc = __dp4a((int)(word >> 4 & CODES), (int)x.z, acc);
    return __dp4a((int)(word >> 6 & CODES), (int)x.w, acc);
}
__device__ __forceinline__ int sum16(uint4 x, int acc) {
    acc = __dp4a(0x01010101, (int)x.x, acc);
    acc = __dp4a(0x01010101, (int)x.y, acc);
    acc = __dp4a(0x01010101, (int)x.z, acc);
    return __dp4a(0x01010101, (int)x.w, acc);
}
__device__ __forceinline__ u32 pick(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// One to four rows of activations. Eight threads share a row of weights; a warp has four rows, a block sixteen.
// Activations lie in shared memory with 64 bytes of padding after each tile, which makes the reads free of conflicts.
// x is aligned to 16 bytes, as is x_stride; k is a multiple of 16.
// `GEMV_TILES` tiles are asked for at once: all of a row where it has no more.
template <int M, int GEMV_TILES>
__device__ __forceinline__ void gemv(u32 block, const uint4 *w, const i8 *x, u32 x_stride, const float *x_scales,
                                     void *y, u32 n, u32 tiles, u32 k, u32 m, float scale, u32 mode) {
    __shared__ uint4 xs[M][GEMV_TILES * 20];
    __shared__ int sums[M];
    u32 sub = threadIdx.x & 7, row = block * (blockDim.x >> 3) + (threadIdx.x >> 3);
    const uint4 *wr = w + (u64)min(row, n - 1) * tiles * 4 + sub;
    int acc[M], part[M];
#pragma unroll
    for (int i = 0; i < M; i++) acc[i] = 0, part[i] = 0;
    if (threadIdx.x < M) sums[threadIdx.x] = 0;
    start_next();
    for (u32 base = 0; base < tiles; base += GEMV_TILES) {
        // The weights do not depend on what ran before: ask for them first.
        uint4 v[GEMV_TILES / 2];
#pragma unroll
        for (int j = 0; j < GEMV_TILES / 2; j++) {
            u32 tile = base + 2 * j + (sub >> 2);
            v[j] = tile < tiles ? __ldg(wr + (base + 2 * j) * 4) : make_uint4(0, 0, 0, 0);
        }
        if (base == 0) wait_for_previous();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < M; i++) {
            for (u32 u = threadIdx.x; u < GEMV_TILES * 16; u += blockDim.x) {
                u32 at = base * TILE + u * 16;
                uint4 a = make_uint4(0, 0, 0, 0);
                if (at < k && i < m) a = *(const uint4 *)(x + (u64)i * x_stride + at);
                xs[i][(u >> 4) * 20 + (u & 15)] = a;
                part[i] = sum16(a, part[i]);
            }
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < GEMV_TILES / 2; j++) {
            if (base + 2 * j < tiles) {
#pragma unroll
                for (int i = 0; i < M; i++) {
                    const uint4 *xt = xs[i] + (2 * j + (sub >> 2)) * 20 + (sub & 3);
                    acc[i] = dot_word(v[j].x, xt[0], acc[i]);
                    acc[i] = dot_word(v[j].y, xt[4], acc[i]);
                    acc[i] = dot_word(v[j].z, xt[8], acc[i]);
                    acc[i] = dot_word(v[j].w, xt[12], acc[i]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        int s = __reduce_add_sync(FULL, part[i]);
        if ((threadIdx.x & 31) == 0) atomicAdd(&sums[i], s);
        acc[i] += __shfl_xor_sync(FULL, acc[i], 4);
        acc[i] += __shfl_xor_sync(FULL, acc[i], 2);
        acc[i] += __shfl_xor_sync(FULL, acc[i], 1);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < M; i++)
        if (sub == i && i < m && row < n) store_sum(y, (u64)i * n + row, acc[i] - sums[i], scale, x_scales[i], mode);
}

#define GEMV(M)                                                                                                        \
    KERNEL __launch_bounds__(128) gemv_##M(const uint4 *w, const i8 *x, u32 x_stride, const float *x_scales, void *y,  \
                                           u32 n, u32 tiles, u32 k, u32 m, float scale, u32 mode) {                   \
        gemv<M, 16>(blockIdx.x, w, x, x_stride, x_scales, y, n, tiles, k, m, scale, mode);                                             \
    }
// Rows of more than 32 tiles. A kernel of its own, as its loads take registers.
KERNEL __launch_bounds__(128) gemv_1_any(const uint4 *w, const i8 *x, u32 x_stride, const float *x_scales, void *y, u32 n,
                                         u32 tiles, u32 k, u32 m, float scale, u32 mode) {
    gemv<1, 28>(blockIdx.x, w, x, x_stride, x_scales, y, n, tiles, k, m, scale, mode);
}
GEMV(2)
GEMV(4)

// One row of activations, of up to LANES * LOADS / 4 tiles. LANES threads share a row of weights, of which each asks for LOADS
// words of sixteen bytes at once, before it waits for what ran before. Where there are more rows than threads, a block asks for
// its next rows while it multiplies these, and reads the activations once.
template <int LANES, int LOADS, int THREADS, bool LOOP>
__device__ __forceinline__ void gemv_rows(const uint4 *w, const i8 *x, const float *x_scale, void *y, u32 n, u32 tiles, u32 k,
                                          float scale, u32 mode) {
    constexpr int TILES = LANES * LOADS / 4, ROWS = THREADS / LANES;
    __shared__ uint4 xs[TILES * 20];
    __shared__ int sums[THREADS / 32];
    const u32 t = threadIdx.x, sub = t % LANES, in = t / LANES, lane = t & 31, words = tiles * 4, groups = (n + ROWS - 1) / ROWS;
    uint4 v[LOADS];
    auto ask = [&](u32 group) {
        const uint4 *row = w + (u64)min(group * ROWS + in, n - 1) * words + sub;
#pragma unroll
        for (int j = 0; j < LOADS; j++) v[j] = sub + LANES * j < words ? __ldg(row + LANES * j) : make_uint4(0, 0, 0, 0);
    };
    ask(blockIdx.x);
    start_next();
    wait_for_previous();
    int part = 0;
    for (u32 u = t; u < TILES * 16; u += THREADS) {
        uint4 a = u * 16 < k ? *(const uint4 *)(x + u * 16) : make_uint4(0, 0, 0, 0);
        xs[(u >> 4) * 20 + (u & 15)] = a;
        part = sum16(a, part);
    }
    const float divisor = mode & I32 ? 0.0f : *x_scale;
    part = __reduce_add_sync(FULL, part);
    if (lane == 0) sums[t >> 5] = part;
    __syncthreads();
    const int less = __reduce_add_sync(FULL, lane < THREADS / 32 ? sums[lane] : 0);
    for (u32 group = blockIdx.x; group < groups; group += gridDim.x) {
        uint4 now[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++) now[j] = v[j];
        if (LOOP && group + gridDim.x < groups) ask(group + gridDim.x);
        int acc = 0;
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            const u32 i = sub + LANES * j;
            if (LANES * j >= words) continue;
            const uint4 *at = xs + (i >> 2) * 20 + (i & 3);
#pragma unroll
            for (int q = 0; q < 4; q++) acc = dot_word(pick(now[j], q), at[4 * q], acc);
        }
#pragma unroll
        for (int h = LANES / 2; h; h >>= 1) acc += __shfl_xor_sync(FULL, acc, h);
        const u32 row = group * ROWS + in;
        if (sub == 0 && row < n) store_sum(y, row, acc - less, scale, divisor, mode);
        if (!LOOP) break;
    }
}
#define GEMV_ROWS_1(NAME, LANES, LOADS, THREADS, BLOCKS, LOOP)                                                         \
    KERNEL __launch_bounds__(THREADS, BLOCKS) NAME(const uint4 *w, const i8 *x, const float *x_scale, void *y, u32 n,  \
                                                   u32 tiles, u32 k, float scale, u32 mode) {                         \
        gemv_rows<LANES, LOADS, THREADS, LOOP>(w, x, x_scale, y, n, tiles, k, scale, mode);                            \
    }
GEMV_ROWS_1(gemv_1, 16, 3, 512, 2, true)
GEMV_ROWS_1(gemv_1_long, 16, 5, 512, 2, true)
GEMV_ROWS_1(gemv_1_wide, 32, 4, 256, 4, false)

// Up to three weights that meet the same row of activations (q, k and v; gate and up) in one launch.
KERNEL __launch_bounds__(128) gemv_1_of_3(const i8 *x, const float *x_scales, u32 tiles, u32 k, const uint4 *w0,
                                          void *y0, u32 n0, float s0, const uint4 *w1, void *y1, u32 n1, float s1,
                                          const uint4 *w2, void *y2, u32 n2, float s2) {
    u32 block = blockIdx.x, end0 = (n0 + 15) / 16, end1 = end0 + (n1 + 15) / 16;
    if (block >= end1) block -= end1, w0 = w2, y0 = y2, n0 = n2, s0 = s2;
    else if (block >= end0) block -= end0, w0 = w1, y0 = y1, n0 = n1, s0 = s1;
    gemv<1, 16>(block, w0, x, k, x_scales, y0, n0, tiles, k, 1, s0, 0);
}

// Copies rows of activations to rows of whole tiles, padded with zeros, and sums them. One block a row.
KERNEL __launch_bounds__(256) pad_rows(const i8 *x, u32 k, u32 tiles, i8 *out, int *sums) {
    __shared__ int total;
    BEGIN;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    const i8 *xr = x + (u64)blockIdx.x * k;
    u32 *o = (u32 *)(out + (u64)blockIdx.x * tiles * TILE);
    bool aligned = ((u64)xr & 3) == 0;
    int sum = 0;
    for (u32 i = threadIdx.x; i < tiles * (TILE / 4); i += blockDim.x) {
        u32 v = 0, at = i * 4;
        if (at + 4 <= k && aligned) v = *(const u32 *)(xr + at);
        else
            for (u32 b = 0; b < 4; b++)
                if (at + b < k) v |= (u32)(u8)xr[at + b] << 8 * b;
        o[i] = v;
        sum = __dp4a(0x01010101, (int)v, sum);
    }
    sum = __reduce_add_sync(FULL, sum);
    if ((threadIdx.x & 31) == 0) atomicAdd(&total, sum);
    __syncthreads();
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// Int8 tensor cores: D (16 x 8) += A (16 weight rows x 32) * B (32 x 8 tokens).
__device__ __forceinline__ void mma(int *d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// One word of each of two weight rows against one 16-byte unit of activations: two steps of 32 columns. Which columns they
// are is the same permutation for weights and activations, and a sum has no order in integers.
__device__ __forceinline__ void mma_word(int *d, u32 top, u32 bottom, uint4 x) {
    mma(d, top & CODES, bottom & CODES, top >> 2 & CODES, bottom >> 2 & CODES, x.x, x.y);
    mma(d, top >> 4 & CODES, bottom >> 4 & CODES, top >> 6 & CODES, bottom >> 6 & CODES, x.z, x.w);
}

__device__ __forceinline__ void cp_async16(void *shared, const void *global) {
    u32 s = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s), "l"(global));
}

// Many rows: a block has 128 weight rows, 32 a warp, and 64 tokens, whose activations pass through shared memory one tile
// of columns at a time, two tiles ahead. Rows of 320 bytes keep the 16-byte reads free of conflicts.
#define GEMM_TOKENS 64
#define GEMM_STAGES 2
KERNEL __launch_bounds__(128) gemm_large(const uint4 *w, const i8 *x, const int *x_sums, const float *x_scales, void *y,
                                         u32 n, u32 tiles, u32 m, float scale, u32 mode) {
    __shared__ uint4 xs[GEMM_STAGES][GEMM_TOKENS][20];
    BEGIN;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    u32 row0 = blockIdx.x * 128 + warp * 32, m0 = blockIdx.y * GEMM_TOKENS;
    int d[2][8][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) d[i][j][c] = 0;
    const uint4 *wr[4];
#pragma unroll
    for (int i = 0; i < 4; i++) wr[i] = w + (u64)min(row0 + g + 8 * i, n - 1) * tiles * 4 + t;
    // Sixteen threads bring a row of 256 bytes; 128 threads bring eight rows a turn.
    u32 unit = threadIdx.x & 15, token0 = threadIdx.x >> 4;
    auto fetch = [&](u32 tile) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 token = token0 + 8 * i;
            const i8 *src = x + ((u64)min(m0 + token, m - 1) * tiles + tile) * TILE + unit * 16;
            cp_async16(&xs[tile % GEMM_STAGES][token][unit], src);
        }
    };
    fetch(0);
    asm volatile("cp.async.commit_group;");
    uint4 next[4];
#pragma unroll
    for (int i = 0; i < 4; i++) next[i] = __ldg(wr[i]);
    for (u32 tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) fetch(tile + 1);
        asm volatile("cp.async.commit_group;");
        uint4 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = next[i];
            if (tile + 1 < tiles) next[i] = __ldg(wr[i] + (tile + 1) * 4);
        }
        asm volatile("cp.async.wait_group 1;");
        __syncthreads();
        const uint4(*xt)[20] = xs[tile % GEMM_STAGES];
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                uint4 a = xt[8 * j + g][4 * q + t];
                mma_word(d[0][j], pick(v[0], q), pick(v[1], q), a);
                mma_word(d[1][j], pick(v[2], q), pick(v[3], q), a);
            }
        __syncthreads();
    }
    asm volatile("cp.async.wait_all;");
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                u32 row = row0 + 16 * i + g + 8 * (c >> 1), token = m0 + 8 * j + 2 * t + (c & 1);
                if (row < n && token < m)
                    store_sum(y, (u64)token * n + row, d[i][j][c] - x_sums[token], scale, x_scales[token], mode);
            }
}
