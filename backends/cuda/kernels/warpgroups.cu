// Products of many rows of activations on the tensor cores' instructions for warpgroups, which compute capability 9.0 alone has;
// `gemm_large` in matmul.cu does the same everywhere else.
//
// D (64 weight rows x T tokens) += A (64 x 32 columns, in registers) * B (32 x T, in shared memory), exact in i32. A thread decodes
// its part of A from the packed 2-bit words as they are: two shifts and four masks for 16 codes. The columns of a step are then in
// the order of the packing, so the activations are put into that order once (`stage_rows`), for all the weights that meet them.
//
// What bounds it: 4,096 multiply-adds a cycle and multiprocessor, of which 64 x 128 x 32 take 64 cycles; but one that adds to the sums of
// the one before it comes 300 cycles after it (T = 128; 200 with 64), however they are issued. Four that are independent of each other
// reach 85 % of the limit: 256 x 128 a block.
#include "common.cuh"
#include "staged_norm.cu"

#define TILE 256
#define CODES 0x03030303u
// Columns of a stage: a row of 128 bytes, the width of the swizzle.
#define STAGE_COLS 128

enum Mode { ADD = 1, I32 = 2 };

// Activations as the tensor cores read them: for each 128 columns, each token's 128 bytes, of which 16-byte unit u lies at
// u ^ (token & 7). In each 64 columns the 4x4 words are transposed: word t of unit s has columns 16 t + 4 s .. + 3. Columns past the
// end are zeros. One block a row; `padded` is how many tokens there is room for.
KERNEL __launch_bounds__(256) stage_rows(const i8 *x, u32 k, u32 tiles, u32 padded, u8 *out, int *sums) {
    __shared__ int total;
    start_next();
    if (threadIdx.x == 0) total = 0;
    wait_for_previous();
    __syncthreads();
    u32 token = blockIdx.x;
    const i8 *xr = x + (u64)token * k;
    bool aligned = ((u64)xr & 3) == 0;
    int sum = 0;
    for (u32 i = threadIdx.x; i < tiles * (TILE / 16); i += blockDim.x) {
        u32 chunk = i >> 3, unit = i & 7, words[4];
#pragma unroll
        for (u32 t = 0; t < 4; t++) {
            u32 at = chunk * STAGE_COLS + (unit >> 2) * 64 + 16 * t + 4 * (unit & 3), v = 0;
            if (at + 4 <= k && aligned) v = *(const u32 *)(xr + at);
            else
                for (u32 b = 0; b < 4; b++)
                    if (at + b < k) v |= (u32)(u8)xr[at + b] << 8 * b;
            words[t] = v;
            sum = __dp4a(0x01010101, (int)v, sum);
        }
        uint4 *to = (uint4 *)(out + ((u64)chunk * padded + token) * STAGE_COLS) + (unit ^ (token & 7));
        *to = make_uint4(words[0], words[1], words[2], words[3]);
    }
    sum = __reduce_add_sync(FULL, sum);
    if ((threadIdx.x & 31) == 0) atomicAdd(&total, sum);
    __syncthreads();
    if (threadIdx.x == 0) sums[token] = total;
}

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(u32 to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

#define REGS8(d, i)                                                                                                    \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])
// D (64 x T) += A (64 x 32) * B (32 x T), asynchronously; `b` describes where B is.
template <int T> struct Mma;
template <> struct Mma<64> {
    static __device__ __forceinline__ void run(int (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                     "{%32, %33, %34, %35}, %36, 1;"
                     : REGS8(d, 0),
                       REGS8(d, 8),
                       REGS8(d, 16),
                       REGS8(d, 24)
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
    }
};
template <> struct Mma<128> {
    static __device__ __forceinline__ void run(int (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                     "{%64, %65, %66, %67}, %68, 1;"
                     : REGS8(d, 0),
                       REGS8(d, 8),
                       REGS8(d, 16),
                       REGS8(d, 24),
                       REGS8(d, 32),
                       REGS8(d, 40),
                       REGS8(d, 48),
                       REGS8(d, 56)
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
    }
};

// Rows of 128 bytes from `at` on, eight of them (1,024 bytes) a swizzled group, the groups one after the other.
__device__ __forceinline__ u64 describe(u32 at) { return (u64)(at >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

__device__ __forceinline__ u32 pick(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// A weight of a product: packed rows, where its results go, how many rows, its scale.
struct Factor {
    const uint4 *w;
    void *y;
    u32 n;
    float scale;
};

// What a token's results are divided by, and what is subtracted from them before.
struct __align__(16) Token {
    int sum;
    float scale, reciprocal;
};

// v / t.scale, correctly rounded: with the correctly rounded reciprocal, two corrections of a quotient by its exact remainder (the
// first makes it one of the two neighbours, the second the right one). v is zero or between 2^-60 and 2^61, the scale between 2^-60 and
// 2^60: nothing here overflows or underflows.
__device__ __forceinline__ float divide(float v, const Token &t) {
    float q = __fmul_rn(v, t.reciprocal);
    q = __fmaf_rn(__fmaf_rn(-q, t.scale, v), t.reciprocal, q);
    return __fmaf_rn(__fmaf_rn(-q, t.scale, v), t.reciprocal, q);
}

// Where a thread's results go: rows row0, row0 + 8, and the same 64 further for each block; tokens 8 j + 2 t and the next.
template <int MB, int T> struct Results {
    Factor f;
    u32 m0, m, row0, t;
    const Token *tokens;
    __device__ __forceinline__ u32 row(int i) const { return row0 + (i >> 1) * 64 + (i & 1) * 8; }

    // Many results are read, computed and written together: to what ADDED adds takes long to come.
    template <bool ADDED> __device__ __forceinline__ void store(const int (&d)[MB][T / 2]) const {
        constexpr int EACH = ADDED && MB == 1 ? 4 : 1;
#pragma unroll
        for (int j0 = 0; j0 < T / 8; j0 += EACH) {
            float before[EACH][2][2 * MB];
#pragma unroll
            for (int j = 0; j < EACH; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    u32 token = m0 + 8 * (j0 + j) + 2 * t + c;
                    const float *at = (const float *)f.y + (u64)token * f.n + row0;
#pragma unroll
                    for (int i = 0; ADDED && i < 2 * MB; i++) before[j][c][i] = token < m && row(i) < f.n ? at[row(i) - row0] : 0.0f;
                }
#pragma unroll
            for (int j = 0; j < EACH; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    u32 token = 8 * (j0 + j) + 2 * t + c;
                    Token to = tokens[token];
                    float *at = (float *)f.y + (u64)(m0 + token) * f.n + row0;
#pragma unroll
                    for (int i = 0; i < 2 * MB; i++) {
                        float v = divide(__fmul_rn(__int2float_rn(d[i >> 1][4 * (j0 + j) + 2 * (i & 1) + c] - to.sum), f.scale), to);
                        if (ADDED) v = before[j][c][i] + v;
                        if (m0 + token < m && row(i) < f.n) at[row(i) - row0] = v;
                    }
                }
        }
    }

    // Sums as they are, or scales that the quick division is not for. Registers have no indices, so the sums go through `held`.
    __device__ __forceinline__ void store_slowly(const int (&d)[MB][T / 2], int *held, u32 mode) const {
#pragma unroll
        for (int e = 0; e < MB * T / 2; e++) held[e * blockDim.x + threadIdx.x] = d[e / (T / 2)][e % (T / 2)];
#pragma unroll 1
        for (int e = 0; e < MB * T / 2; e++) {
            u32 in_block = e % (T / 2), token = 8 * (in_block / 4) + 2 * t + e % 2, r = row(2 * (e / (T / 2)) + e / 2 % 2);
            if (m0 + token >= m || r >= f.n) continue;
            int acc = held[e * blockDim.x + threadIdx.x] - tokens[token].sum;
            u64 at = (u64)(m0 + token) * f.n + r;
            if (mode & I32) {
                int *p = (int *)f.y + at;
                *p = mode & ADD ? (int)((u32)*p + (u32)acc) : acc;
            } else {
                float *p = (float *)f.y + at, v = __fdiv_rn(__fmul_rn(__int2float_rn(acc), f.scale), tokens[token].scale);
                *p = mode & ADD ? *p + v : v;
            }
        }
    }
};

// WGS warpgroups have MB times 64 weight rows each, and T tokens. STEPS of 32 columns are multiplied together.
template <int WGS, int MB, int T, int STAGES, int STEPS>
__device__ __forceinline__ void gemm_warpgroups(const u8 *x, u32 padded, const int *x_sums, const float *x_scales, u32 m, u32 tiles,
                                                u32 mode, Factor f0, Factor f1, Factor f2) {
    constexpr u32 ROWS = WGS * MB * 64, STAGE_BYTES = T * STAGE_COLS;
    extern __shared__ u8 dynamic[];
    __shared__ Token tokens[T];
    u32 stages = (shared_address(dynamic) + 1023) & ~1023u;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    u32 token_tiles = (m + T - 1) / T, m0 = blockIdx.x % token_tiles * T, block = blockIdx.x / token_tiles;
    u32 end0 = (f0.n + ROWS - 1) / ROWS, end1 = end0 + (f1.n + ROWS - 1) / ROWS;
    Factor f = f0;
    if (block >= end0) f = block < end1 ? f1 : f2, block -= block < end1 ? end0 : end1;
    start_next();
    u32 g = lane >> 2, t = lane & 3, row0 = block * ROWS + (warp >> 2) * MB * 64 + (warp & 3) * 16 + g;
    const uint4 *w[2 * MB];
    uint4 next[2 * MB];
#pragma unroll
    for (int i = 0; i < 2 * MB; i++) {
        w[i] = f.w + (u64)min(row0 + (i >> 1) * 64 + (i & 1) * 8, f.n - 1) * tiles * 4 + t;
        next[i] = __ldg(w[i]);
    }
    int d[MB][T / 2];
#pragma unroll
    for (int b = 0; b < MB; b++)
#pragma unroll
        for (int i = 0; i < T / 2; i++) d[b][i] = 0;
    wait_for_previous();
    // All threads bring the activations of a chunk of columns, STAGES - 2 chunks ahead.
    const u8 *from = x + (u64)m0 * STAGE_COLS;
    u32 chunks = 2 * tiles;
    auto bring = [&](u32 chunk) {
        u32 to = stages + chunk % STAGES * STAGE_BYTES;
        const u8 *at = from + (u64)chunk * padded * STAGE_COLS;
        if (chunk < chunks)
            for (u32 i = threadIdx.x; i < STAGE_BYTES / 16; i += WGS * 128) copy16(to + 16 * i, at + 16 * i);
        asm volatile("cp.async.commit_group;");
    };
    for (u32 c = 0; c < STAGES - 2; c++) bring(c);
    bool quick = f.scale >= 0x1p-60f && f.scale <= 0x1p30f;
    if (threadIdx.x < T) {
        u32 token = min(m0 + threadIdx.x, m - 1);
        float s = mode & I32 ? 1.0f : x_scales[token];
        tokens[threadIdx.x] = Token{x_sums[token], s, __fdiv_rn(1.0f, s)};
        quick = quick && s >= 0x1p-60f && s <= 0x1p60f;
    }
    quick = __syncthreads_and(quick);
    for (u32 tile = 0; tile < tiles; tile++) {
        uint4 v[2 * MB];
#pragma unroll
        for (int i = 0; i < 2 * MB; i++) {
            v[i] = next[i];
            if (tile + 1 < tiles) next[i] = __ldg(w[i] + (tile + 1) * 4);
        }
        // A group of steps is decoded while the one before it is multiplied. A step is half a word of 64 columns.
#pragma unroll
        for (int group = 0; group < 8 / STEPS; group++) {
            u32 a[STEPS][MB][4];
#pragma unroll
            for (int step = 0; step < STEPS; step++)
#pragma unroll
                for (int b = 0; b < MB; b++) {
                    int at = group * STEPS + step, shift = 4 * (at & 1);
                    u32 top = pick(v[2 * b], at >> 1), bottom = pick(v[2 * b + 1], at >> 1);
                    a[step][b][0] = top >> shift & CODES, a[step][b][1] = bottom >> shift & CODES;
                    a[step][b][2] = top >> shift + 2 & CODES, a[step][b][3] = bottom >> shift + 2 & CODES;
                }
            // All of it now, and none of it between the multiplications.
#pragma unroll
            for (int step = 0; step < STEPS; step++)
#pragma unroll
                for (int b = 0; b < MB; b++)
                    asm volatile("" : "+r"(a[step][b][0]), "+r"(a[step][b][1]), "+r"(a[step][b][2]), "+r"(a[step][b][3]));
            u32 chunk = 2 * tile + group * STEPS / 4, stage = stages + chunk % STAGES * STAGE_BYTES;
            if (group * STEPS % 4 == 0) {
                // This thread's part is there, and seen by the tensor cores; then everybody's. What was multiplied two chunks ago is
                // done, in all warps, and makes room.
                asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 3) : "memory");
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                __syncthreads();
                bring(chunk + STAGES - 2);
            }
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int step = 0; step < STEPS; step++)
#pragma unroll
                for (int b = 0; b < MB; b++) {
                    u32 *c = a[step][b];
                    u64 at = describe(stage + 32 * ((group * STEPS + step) % 4));
                    Mma<T>::run(d[b], c[0], c[1], c[2], c[3], at);
                }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            // The group before is done, and its registers are free.
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        }
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int b = 0; b < MB; b++)
#pragma unroll
        for (int i = 0; i < T / 2; i += 8) asm volatile("" : REGS8(d[b], i));
    Results<MB, T> to{f, m0, m, row0, t, tokens};
    if (mode & I32 || !quick) {
        // Nobody reads activations any more.
        __syncthreads();
        to.store_slowly(d, (int *)(dynamic + (stages - shared_address(dynamic))), mode);
    } else if (mode & ADD) to.template store<true>(d);
    else to.template store<false>(d);
}

#define GEMM_WARPGROUPS(NAME, WGS, MB, T, STAGES, STEPS, BLOCKS)                                                              \
    KERNEL __launch_bounds__(WGS * 128, BLOCKS)                                                                   \
        NAME(const u8 *x, u32 padded, const int *x_sums, const float *x_scales, u32 m, u32 tiles, u32 mode, const uint4 *w0,       \
             void *y0, u32 n0, float s0, const uint4 *w1, void *y1, u32 n1, float s1, const uint4 *w2, void *y2, u32 n2, float s2) { \
        gemm_warpgroups<WGS, MB, T, STAGES, STEPS>(x, padded, x_sums, x_scales, m, tiles, mode, Factor{w0, y0, n0, s0},       \
                                            Factor{w1, y1, n1, s1}, Factor{w2, y2, n2, s2});                           \
    }
GEMM_WARPGROUPS(gemm_256x128, 2, 2, 128, 8, 2, 1)
GEMM_WARPGROUPS(gemm_128x128, 2, 1, 128, 6, 4, 2)
GEMM_WARPGROUPS(gemm_192x64, 3, 1, 64, 8, 4, 1)
GEMM_WARPGROUPS(gemm_128x64, 2, 1, 64, 8, 4, 2)
