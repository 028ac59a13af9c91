// Dense weights times one row of f32 activations, by lanes; several rows are in batch.cu and dense_mma.cu.
//
// What bounds it is how weights are asked for. A warp has one row of weights and thread t its lanes 2t and 2t + 1, so each
// load of a warp is 64 neighbouring elements, and the loads of a block are sixteen rows next to each other. Registers that
// have been multiplied take the chunk DENSE_AHEAD further on, which may be the next row's, so that a warp never waits with
// nothing asked for. A head of 128256 x 2560 in bf16 takes 215 us on an H100; with eight threads a row and 16 bytes a load, which is
// four rows in each load of a warp, the same loop takes 259.
//
// Rows are padded with zeros to whole chunks of 64. Weights are asked for before the kernel before is done; `pack` keeps this one
// from being early (`Driver::fence`).
#include "common.cuh"

// Chunks of a row that are asked for at once, and whose activations a block keeps: of rows of up to 5,120 columns it reads them once.
#define DENSE_AHEAD 10
#define DENSE_HELD 80
#define DENSE_THREADS 512
template <int T>
__device__ __forceinline__ void dense(const void *w, const float *x, float *y, u32 n, u32 k, u32 stride, u32 mode) {
    __shared__ float2 xs[DENSE_HELD * 32];
    constexpr u32 WARPS = DENSE_THREADS / 32;
    const u32 t = threadIdx.x, lane = t & 31, chunks = stride / 64, step = gridDim.x * WARPS;
    u32 row = blockIdx.x * WARPS + (t >> 5);
    Pair<T> v[DENSE_AHEAD];
    // Chunks from `chunk` on that a row has, and where they are.
    auto left = [&](u32 row, u32 chunk) { return row < n ? chunks - chunk : 0; };
    auto place = [&](u32 row, u32 chunk) {
        return (const char *)w + ((u64)row * stride + 64 * chunk + 2 * lane) * Pair<T>::bytes;
    };
#pragma unroll
    for (int i = 0; i < DENSE_AHEAD; i++)
        if (i < left(row, 0)) v[i].load_once(place(row, i));
    BEGIN;
    const float *xr = x + (u64)blockIdx.y * k;
    bool held = false;
    // The block's warps go together, as they stage activations together; a row that is not there is not multiplied.
    for (u32 first = blockIdx.x * WARPS; first < n; first += step, row += step) {
        float even = 0.0f, odd = 0.0f;
        for (u32 chunk = 0; chunk < chunks; chunk += DENSE_AHEAD) {
            if (!held && chunk % DENSE_HELD == 0) {
                __syncthreads();
                const u32 from = 64 * chunk, cols = min(stride - from, (u32)DENSE_HELD * 64);
                for (u32 i = t; i < cols; i += DENSE_THREADS) ((float *)xs)[i] = from + i < k ? xr[from + i] : 0.0f;
                __syncthreads();
            }
            const float2 *at = xs + 32 * (chunk % DENSE_HELD) + lane;
            const u32 here = left(row, chunk), further = chunk + DENSE_AHEAD;
            const bool same = further < chunks;
            const u32 next_row = same ? row : row + step, next = same ? further : 0;
            const u32 there = left(next_row, next);
            const char *ahead = place(next_row, next);
#pragma unroll
            for (int i = 0; i < DENSE_AHEAD; i++) {
                if (i < here) {
                    float2 p = at[32 * i];
                    even = __fadd_rn(even, __fmul_rn(v[i].low(), p.x));
                    odd = __fadd_rn(odd, __fmul_rn(v[i].high(), p.y));
                }
                if (i < there) v[i].load_once(ahead + 64 * Pair<T>::bytes * i);
            }
        }
        held = chunks <= DENSE_HELD;
#pragma unroll
        for (int h = 16; h; h >>= 1) {
            even = even + __shfl_xor_sync(FULL, even, h);
            odd = odd + __shfl_xor_sync(FULL, odd, h);
        }
        if (lane == 0 && row < n) {
            float *p = y + (u64)blockIdx.y * n + row;
            const float v = even + odd;
            *p = mode & ADD ? *p + v : v;
        }
    }
}
// Registers for two blocks on a multiprocessor, and none for a third: with 42 or fewer, of which the next kernel's blocks can have
// some early, a row of launches takes 240 us each instead of 215.
#define DENSE(NAME, T)                                                                                                 \
    KERNEL __launch_bounds__(DENSE_THREADS, 2)                                                                         \
        dense_##NAME(const void *w, const float *x, float *y, u32 n, u32 k, u32 stride, u32 mode) {                    \
        dense<T>(w, x, y, n, k, stride, mode);                                                                         \
    }
DENSE(f32, T_F32)
DENSE(f16, T_F16)
DENSE(bf16, T_BF16)
