// Dense heads of several rows on tensor cores. Not in the order of docs/numerics.md, which has no room for them: used where
// the host has not asked for reproducible results.
//
// Weights in f16 or bf16 are exact as they are. Activations are f32: a row is multiplied by a power of two, so that its
// largest magnitude has a known exponent, and each element split into parts of the weights' type: three bf16, which hold all
// 24 bits, or two f16, which hold 22 and miss at most the rounding that a product has anyway. Products of parts are exact in
// f32. 256 columns are summed by the tensor cores, which cut off what they shift out; such sums are added by ordinary
// additions, so errors do not grow with the row. The order is fixed and the same for any number of rows.
#include "common.cuh"

#define MMA_WARPS 8
#define MMA_BLOCK_ROWS 256
// Stages of 64 columns of activations on their way.
#define MMA_STAGES 4

template <int T> struct Split;
template <> struct Split<T_BF16> {
    static const int parts = 3, exponent = 0;
    // What is left over is exact. The value is finite.
    static __device__ __forceinline__ u16 take(float &v) {
        u32 b = __float_as_uint(v) & 0xffff0000u;
        v = v - __uint_as_float(b);
        return (u16)(b >> 16);
    }
};
template <> struct Split<T_F16> {
    static const int parts = 2, exponent = 14;
    static __device__ __forceinline__ u16 take(float &v) {
        u16 h = half_bits(v);
        v = v - half_value(h);
        return h;
    }
};

// The parts of a row, a block: for each chunk of 32 columns, part and eight tokens the 32 units of 16 bytes that the threads
// of a warp multiply with. Rows past the last are zeros. `tiles` times eight tokens lie together.
template <int T>
__device__ __forceinline__ void split_rows(const float *x, u32 m, u32 k, u32 stride, u32 tiles, uint4 *parts,
                                           float *factors) {
    const int P = Split<T>::parts;
    __shared__ u32 shared[32];
    BEGIN;
    u32 token = blockIdx.x, together = 8 * tiles;
    const float *row = x + (u64)token * k;
    bool live = token < m;
    u32 largest = 0;
    for (u32 i = threadIdx.x; live && i < k; i += blockDim.x) largest = max(largest, abs_bits(row[i]));
    largest = block_max(largest, shared);
    float up = 1.0f, down = 1.0f;
    if (largest != 0 && largest < INF_BITS) {
        int shift = max(-126, min(126, Split<T>::exponent + 127 - (int)(largest >> 23)));
        up = __uint_as_float((u32)(127 + shift) << 23), down = __uint_as_float((u32)(127 - shift) << 23);
    }
    if (threadIdx.x == 0) factors[token] = down;
    uint4 *to = parts + (u64)(token / together) * (stride / 32) * P * tiles * 32 + token % together * 4;
    for (u32 unit = threadIdx.x; unit < stride / 8; unit += blockDim.x) {
        u32 words[P][4];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 at = unit * 8 + i;
            float v = live && at < k ? row[at] : 0.0f;
            // Neither splits a NaN or an infinity: they go to the first part, and on to every result of the row.
            bool whole = abs_bits(v) < INF_BITS;
            float rest = whole ? __fmul_rn(v, up) : 0.0f;
#pragma unroll
            for (int p = 0; p < P; p++) {
                u32 part = Split<T>::take(rest);
                if (p == 0 && !whole) part = T == T_F16 ? 0x7e00u : 0x7fc0u;
                words[p][i / 2] = i % 2 ? words[p][i / 2] | part << 16 : part;
            }
        }
#pragma unroll
        for (int p = 0; p < P; p++)
            to[((u64)(unit >> 2) * P + p) * tiles * 32 + (unit & 3)] =
                make_uint4(words[p][0], words[p][1], words[p][2], words[p][3]);
    }
}
#define SPLIT_ROWS(NAME, T)                                                                                            \
    KERNEL __launch_bounds__(320)                                                                                      \
        split_rows_##NAME(const float *x, u32 m, u32 k, u32 stride, u32 tiles, uint4 *parts, float *factors) {         \
        split_rows<T>(x, m, k, stride, tiles, parts, factors);                                                         \
    }
SPLIT_ROWS(f16, T_F16)
SPLIT_ROWS(bf16, T_BF16)

// D (16 x 8) += A (16 weight rows x 16) * B (16 x 8 tokens).
template <int T>
__device__ __forceinline__ void mma_float(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    if (T == T_F16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Weights are read once, and what lies next to them soon.
__device__ __forceinline__ uint4 load_once(const char *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

// A warp has 32 weight rows and 8 NT tokens. Thread t of a quad reads sixteen bytes of a row, columns 8t .. 8t+7 of a chunk
// of 32: that these are not the columns which the instruction numbers so does not matter, as activations are the same.
// Blocks deal tiles of 256 rows and `groups` of tokens among themselves.
template <int T, int NT>
__device__ __forceinline__ void dense_mma(const void *w, const uint4 *parts, const float *factors, float *y, u32 n,
                                          u32 stride, u32 m, u32 groups, u32 mode) {
    // Chunks of 32 columns of weights in a thread's registers: what there is room for.
    const int P = Split<T>::parts, UNITS = 2 * P * NT * 32, AHEAD = NT == 4 ? 6 : 4;
    extern __shared__ uint4 ring[];
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    u32 stages = stride / 64, tile = blockIdx.x / groups, step = gridDim.x / groups, m0 = blockIdx.x % groups * (8 * NT);
    u32 tiles = (n + MMA_BLOCK_ROWS - 1) / MMA_BLOCK_ROWS;
    u32 total = tile < tiles ? (tiles - tile + step - 1) / step * stages : 0;
    start_next();
    const char *rows[4];
    u32 next_tile = tile, next_chunk = 0, left = 2 * total;
    auto aim = [&]() {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 row = min(next_tile * MMA_BLOCK_ROWS + warp * 32 + g + 8 * i, n - 1);
            rows[i] = (const char *)w + (u64)row * stride * 2 + 16 * t;
        }
    };
    aim();
    uint4 held[AHEAD][4];
    auto ask = [&](uint4(&v)[4]) {
        if (left == 0) return;
        left--;
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = load_once(rows[i]), rows[i] += 64;
        if (++next_chunk == 2 * stages) next_chunk = 0, next_tile += step, aim();
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) ask(held[i]);
    wait_for_previous();
    const uint4 *from = parts + (u64)(blockIdx.x % groups) * stages * UNITS;
    u32 fetched = 0, fetched_stage = 0;
    auto fetch = [&]() {
        if (fetched < total) {
            uint4 *to = ring + fetched % MMA_STAGES * UNITS;
            for (u32 i = threadIdx.x; i < UNITS; i += MMA_WARPS * 32) cp_async16(to + i, from + fetched_stage * UNITS + i);
            fetched++;
            if (++fetched_stage == stages) fetched_stage = 0;
        }
        asm volatile("cp.async.commit_group;");
    };
#pragma unroll
    for (int i = 0; i < MMA_STAGES - 1; i++) fetch();
    float d[2][NT][4], sum[2][NT][4];
#pragma unroll
    for (int i = 0; i < 2 * NT * 4; i++) (&d[0][0][0])[i] = 0.0f, (&sum[0][0][0])[i] = 0.0f;
    u32 stage = 0;
    for (u32 s = 0; s < total; s += AHEAD / 2) {
#pragma unroll
        for (int h = 0; h < AHEAD / 2; h++) {
            if (s + h >= total) break;
            asm volatile("cp.async.wait_group %0;" ::"n"(MMA_STAGES - 2));
            // The stage is there for all, and what the next one replaces is used by none.
            __syncthreads();
            fetch();
            const uint4 *units = ring + (s + h) % MMA_STAGES * UNITS + lane;
#pragma unroll
            for (int c = 0; c < 2; c++) {
                uint4(&a)[4] = held[2 * h + c];
                // The smallest first.
#pragma unroll
                for (int p = P - 1; p >= 0; p--) {
                    uint4 b[NT];
#pragma unroll
                    for (int j = 0; j < NT; j++) b[j] = units[((c * P + p) * NT + j) * 32];
#pragma unroll
                    for (int j = 0; j < NT; j++) {
                        mma_float<T>(d[0][j], a[0].x, a[1].x, a[0].y, a[1].y, b[j].x, b[j].y);
                        mma_float<T>(d[1][j], a[2].x, a[3].x, a[2].y, a[3].y, b[j].x, b[j].y);
                    }
#pragma unroll
                    for (int j = 0; j < NT; j++) {
                        mma_float<T>(d[0][j], a[0].z, a[1].z, a[0].w, a[1].w, b[j].z, b[j].w);
                        mma_float<T>(d[1][j], a[2].z, a[3].z, a[2].w, a[3].w, b[j].z, b[j].w);
                    }
                }
                ask(a);
            }
            stage++;
            if (stage % 4 == 0 || stage == stages) {
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < NT; j++)
#pragma unroll
                        for (int c = 0; c < 4; c++) sum[i][j][c] = sum[i][j][c] + d[i][j][c], d[i][j][c] = 0.0f;
            }
            if (stage == stages) {
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < NT; j++)
#pragma unroll
                        for (int c = 0; c < 4; c++) {
                            u32 row = tile * MMA_BLOCK_ROWS + warp * 32 + 16 * i + g + 8 * (c >> 1);
                            u32 token = m0 + 8 * j + 2 * t + (c & 1);
                            if (row < n && token < m) {
                                float v = __fmul_rn(sum[i][j][c], factors[token]);
                                float *p = y + (u64)token * n + row;
                                *p = mode & ADD ? *p + v : v;
                            }
                            sum[i][j][c] = 0.0f;
                        }
                stage = 0, tile += step;
            }
        }
    }
}
#define DENSE_MMA(NAME, T, NT, RESIDENT)                                                                               \
    KERNEL __launch_bounds__(MMA_WARPS * 32, RESIDENT)                                                                 \
        dense_mma_##NAME##_##NT(const void *w, const uint4 *parts, const float *factors, float *y, u32 n, u32 stride,  \
                                u32 m, u32 groups, u32 mode) {                                                         \
        dense_mma<T, NT>(w, parts, factors, y, n, stride, m, groups, mode);                                            \
    }
// Registers for two blocks on a multiprocessor where they suffice: one multiplies while the other begins or ends a tile.
DENSE_MMA(f16, T_F16, 1, 2)
DENSE_MMA(f16, T_F16, 2, 2)
DENSE_MMA(f16, T_F16, 4, 1)
DENSE_MMA(bf16, T_BF16, 1, 2)
DENSE_MMA(bf16, T_BF16, 2, 2)
DENSE_MMA(bf16, T_BF16, 4, 1)
