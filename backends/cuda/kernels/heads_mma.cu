// Heads in q8_0 and q6_k times several rows of activations ("tokens") on int8 tensor cores, in the order of docs/numerics.md.
//
// One instruction makes the exact sums of a block for 16 weight rows and 8 tokens, each of which stays in one thread for all
// blocks. So a lane of the 64 is a running sum of that thread, and the fold is a tree over lanes that it can go through depth
// first, with as many sums at once as the tree has levels: lanes that meet early are taken one after the other. The lowest
// two levels are a warp's own (warp w has the lanes w, w + 16, w + 32, w + 48), the other four meet in shared memory.
//
// Sixteen weight rows are in shared memory while the next sixteen are on their way.
#include "common.cuh"

#define HEAD_MMA_WARPS 16
#define HEAD_MMA_ROWS 16
// A float of this plus an integer below 2^22 has the integer in its low bits: sums begin here, and need no conversion.
#define SUM_BIAS 0x4b400000
#define SUM_BIAS_VALUE 12582912.0f

// Copies 16 bytes, of which `valid` are there; the rest become zeros.
__device__ __forceinline__ void cp_async16_of(void *shared, const void *global, u32 valid) {
    u32 s = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(global), "r"(valid));
}

// How rows of a format lie in a tile in shared memory, and a block's fragment and sums.
template <bool Q6> struct Tile;
template <> struct Tile<false> {
    // Words of activations that a thread has of a block and a token.
    static const int WORDS = 2;
    u8 *codes, *raw;
    u32 blocks, stride;
    static __device__ __forceinline__ u32 bytes(u32 blocks) { return HEAD_MMA_ROWS * (blocks * 32 + 16 + blocks * 2); }
    __device__ __forceinline__ Tile(u8 *at, u32 blocks)
        : codes(at), raw(at + HEAD_MMA_ROWS * (blocks * 32 + 16)), blocks(blocks), stride(blocks * 32 + 16) {}
    __device__ __forceinline__ void fetch(const u8 *w, u32 n, u32 row0) const {
        for (u32 i = threadIdx.x; i < HEAD_MMA_ROWS * blocks * 2; i += blockDim.x) {
            u32 r = i / (blocks * 2), u = i % (blocks * 2);
            if (row0 + r < n) cp_async16(codes + r * stride + u * 16, w + ((u64)(row0 + r) * blocks * 2 + u) * 16);
        }
        const u8 *scales = w + (u64)n * blocks * 32 + (u64)row0 * blocks * 2;
        u32 there = min(n - row0, HEAD_MMA_ROWS) * blocks * 2;
        for (u32 i = threadIdx.x * 16; i < there; i += blockDim.x * 16)
            cp_async16_of(raw + i, scales + i, min(16u, there - i));
    }
    __device__ __forceinline__ float scale(u32 row, u32 b) const { return half_value(((const u16 *)raw)[row * blocks + b]); }
    __device__ __forceinline__ void fragment(u32 (&a)[4], u32 b, u32 lane) const {
        u32 at = (u32)__cvta_generic_to_shared(codes + (lane & 15) * stride + (lane >> 4) * blocks * 16 + b * 16);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                     : "r"(at));
    }
    static __device__ __forceinline__ void multiply(int (&d)[4], const u32 (&a)[4], const u32 *x) {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%10,%10,%10,%10};"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(x[0]), "r"(x[1]), "r"(SUM_BIAS));
    }
};
template <> struct Tile<true> {
    static const int WORDS = 1;
    u8 *low, *high, *scales, *d;
    u32 blocks, low_stride, high_stride;
    static __device__ __forceinline__ u32 bytes(u32 blocks) {
        return HEAD_MMA_ROWS * (blocks * 8 + 16 + blocks * 4 + 16 + blocks + blocks / 8);
    }
    __device__ __forceinline__ Tile(u8 *at, u32 blocks)
        : low(at), high(low + HEAD_MMA_ROWS * (blocks * 8 + 16)), scales(high + HEAD_MMA_ROWS * (blocks * 4 + 16)),
          d(scales + HEAD_MMA_ROWS * blocks), blocks(blocks), low_stride(blocks * 8 + 16), high_stride(blocks * 4 + 16) {}
    // Units of 16 bytes, `units` a row.
    __device__ __forceinline__ void rows(u8 *to, u32 stride, const u8 *from, u32 units, u32 n, u32 row0) const {
        for (u32 i = threadIdx.x; i < HEAD_MMA_ROWS * units; i += blockDim.x) {
            u32 r = i / units, u = i % units;
            if (row0 + r < n) cp_async16(to + r * stride + u * 16, from + ((u64)(row0 + r) * units + u) * 16);
        }
    }
    __device__ __forceinline__ void fetch(const u8 *w, u32 n, u32 row0) const {
        u64 all = (u64)n * blocks;
        rows(low, low_stride, w, blocks / 2, n, row0);
        rows(high, high_stride, w + all * 8, blocks / 4, n, row0);
        rows(scales, blocks, w + all * 12, blocks / 16, n, row0);
        u32 there = min(n - row0, HEAD_MMA_ROWS) * (blocks / 8);
        const u8 *from = w + all * 13 + (u64)row0 * (blocks / 8);
        for (u32 i = threadIdx.x * 16; i < there; i += blockDim.x * 16) cp_async16_of(d + i, from + i, min(16u, there - i));
    }
    // Exact: at most 19 bits.
    __device__ __forceinline__ float scale(u32 row, u32 b) const {
        return __fmul_rn(half_value(((const u16 *)d)[row * (blocks / 16) + b / 16]), (float)((const i8 *)scales)[row * blocks + b]);
    }
    __device__ __forceinline__ void fragment(u32 (&a)[4], u32 b, u32 lane) const {
        u32 g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 row = g + 8 * i;
            u32 l = *(const u32 *)(low + row * low_stride + b * 8 + (t >> 1) * 4) >> 4 * (t & 1) & 0x0f0f0f0fu;
            u32 h = *(const u32 *)(high + row * high_stride + b * 4) >> 2 * t & 0x03030303u;
            // Bytes do not borrow from each other if bit 7 is set before and flipped after.
            a[i] = ((l | h << 4 | 0x80808080u) - 0x20202020u) ^ 0x80808080u;
        }
    }
    static __device__ __forceinline__ void multiply(int (&d)[4], const u32 (&a)[4], const u32 *x) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(x[0]), "r"(SUM_BIAS));
    }
};

// The activations of 8 NT tokens as fragments: for each block, `VECTOR` words of a thread together.
template <bool Q6, int NT> struct Fragments {
    static const int words = Tile<Q6>::WORDS * NT, VECTOR = words < 4 ? words : 4, planes = words / VECTOR;
    static __device__ __forceinline__ u32 count(u32 blocks) { return blocks * words * 32; }
    // Rows past the last are zeros.
    static __device__ __forceinline__ void fill(u32 *to, const i8 *x, u32 blocks, u32 m0, u32 m) {
        const u32 in_block = Q6 ? 4 : 8;
        u32 a_row = blocks * in_block;
        bool aligned = ((u64)x & 3) == 0;
        for (u32 i = threadIdx.x; i < 8 * NT * a_row; i += blockDim.x) {
            u32 token = i / a_row, w = i % a_row, v = 0;
            if (m0 + token < m) {
                const i8 *from = x + ((u64)(m0 + token) * a_row + w) * 4;
                if (aligned) v = *(const u32 *)from;
                else
                    for (int b = 0; b < 4; b++) v |= (u32)(u8)from[b] << 8 * b;
            }
            u32 b = w / in_block, lane = (token & 7) * 4 + (w & 3), q = Tile<Q6>::WORDS * (token >> 3) + w % in_block / 4;
            to[((b * planes + q / VECTOR) * 32 + lane) * VECTOR + q % VECTOR] = v;
        }
    }
    static __device__ __forceinline__ void load(u32 (&x)[words], const u32 *from, u32 b, u32 lane) {
#pragma unroll
        for (int p = 0; p < planes; p++) {
            const u32 *at = from + ((b * planes + p) * 32 + lane) * VECTOR;
            if (VECTOR == 4) *(uint4 *)(x + p * 4) = *(const uint4 *)at;
            else if (VECTOR == 2) *(uint2 *)x = *(const uint2 *)at;
            else x[0] = at[0];
        }
    }
};

// What a thread has of a lane, or of several that were added: four results of each eight tokens.
template <int NT> struct LaneSum {
    float v[NT][4];
    __device__ __forceinline__ void add(const LaneSum &other) {
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) v[j][c] = __fadd_rn(v[j][c], other.v[j][c]);
    }
};

template <bool Q6, int NT>
__device__ __forceinline__ void head_mma(const u8 *w, const i8 *x, const float *x_scales, float *y, u32 n, u32 blocks, u32 m,
                                         u32 groups, u32 mode) {
    extern __shared__ __align__(16) u8 head_memory[];
    typedef Fragments<Q6, NT> F;
    const u32 OUTPUTS = 128 * NT;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, m0 = blockIdx.x % groups * (8 * NT);
    u32 a_tile = Tile<Q6>::bytes(blocks);
    u32 *fragments = (u32 *)(head_memory + 2 * a_tile);
    float *scales = (float *)(fragments + F::count(blocks));
    float *parts = scales + HEAD_MMA_ROWS * blocks;
    u32 step = gridDim.x / groups * HEAD_MMA_ROWS, row0 = blockIdx.x / groups * HEAD_MMA_ROWS;
    start_next();
    if (row0 < n) Tile<Q6>(head_memory, blocks).fetch(w, n, row0);
    asm volatile("cp.async.commit_group;");
    wait_for_previous();
    F::fill(fragments, x, blocks, m0, m);
    // This thread's result of each tile.
    u32 out_c = threadIdx.x & 3, out_lane = threadIdx.x >> 2 & 31, out_j = threadIdx.x >> 7;
    u32 out_row = (out_lane >> 2) + 8 * (out_c >> 1), out_token = m0 + 8 * out_j + 2 * (out_lane & 3) + (out_c & 1);
    bool has = threadIdx.x < OUTPUTS && out_token < m;
    float x_scale = has ? x_scales[out_token] : 1.0f;
    for (u32 turn = 0; row0 < n; row0 += step, turn ^= 1) {
        asm volatile("cp.async.wait_all;");
        // This tile is there for all, and nobody uses the one before it any more.
        __syncthreads();
        Tile<Q6> tile(head_memory + turn * a_tile, blocks);
        if (row0 + step < n) Tile<Q6>(head_memory + (turn ^ 1) * a_tile, blocks).fetch(w, n, row0 + step);
        asm volatile("cp.async.commit_group;");
        for (u32 i = threadIdx.x; i < HEAD_MMA_ROWS * blocks; i += blockDim.x) {
            u32 r = i % HEAD_MMA_ROWS, b = i / HEAD_MMA_ROWS;
            scales[i] = row0 + r < n ? tile.scale(r, b) : 0.0f;
        }
        __syncthreads();
        // The products of a block, put into sums or added to them.
        auto block = [&](LaneSum<NT> &s, u32 b, bool first) {
            u32 a[4], xs[F::words];
            tile.fragment(a, b, lane);
            F::load(xs, fragments, b, lane);
            float scale[2] = {scales[b * HEAD_MMA_ROWS + (lane >> 2)], scales[b * HEAD_MMA_ROWS + 8 + (lane >> 2)]};
#pragma unroll
            for (int j = 0; j < NT; j++) {
                int d[4];
                Tile<Q6>::multiply(d, a, xs + j * Tile<Q6>::WORDS);
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    float p = __fmul_rn(__int_as_float(d[c]) - SUM_BIAS_VALUE, scale[c >> 1]);
                    s.v[j][c] = first ? p : __fadd_rn(s.v[j][c], p);
                }
            }
        };
        // A lane. That it begins at +0 only matters to the sign of a zero; see below.
        auto sum_lane = [&](LaneSum<NT> &s, u32 l) {
            if (l < blocks) block(s, l, true);
            else
#pragma unroll
                for (int i = 0; i < 4 * NT; i++) s.v[i / 4][i % 4] = 0.0f;
#pragma unroll 1
            for (u32 b = l + 64; b < blocks; b += 64) block(s, b, false);
        };
        LaneSum<NT> s, other, more;
        sum_lane(s, warp);
        sum_lane(other, warp + 32);
        s.add(other);
        sum_lane(other, warp + 16);
        sum_lane(more, warp + 48);
        other.add(more);
        s.add(other);
#pragma unroll
        for (int j = 0; j < NT; j++)
            *(float4 *)(parts + warp * OUTPUTS + (j * 32 + lane) * 4) = make_float4(s.v[j][0], s.v[j][1], s.v[j][2], s.v[j][3]);
        __syncthreads();
        if (has && row0 + out_row < n) {
            float v[HEAD_MMA_WARPS];
#pragma unroll
            for (int i = 0; i < HEAD_MMA_WARPS; i++) v[i] = parts[i * OUTPUTS + threadIdx.x];
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = __fadd_rn(v[i], v[i + 8]);
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] = __fadd_rn(v[i], v[i + 4]);
            v[0] = __fadd_rn(__fadd_rn(v[0], v[2]), __fadd_rn(v[1], v[3]));
            // What lanes that begin at +0 come to is never -0.
            float r = __fdiv_rn(__fadd_rn(v[0], 0.0f), x_scale);
            float *p = y + (u64)out_token * n + row0 + out_row;
            *p = mode & ADD ? *p + r : r;
        }
    }
}
#define HEAD_MMA(NAME, Q6, NT)                                                                                         \
    KERNEL __launch_bounds__(HEAD_MMA_WARPS * 32, 1)                                                                   \
        NAME(const u8 *w, const i8 *x, const float *x_scales, float *y, u32 n, u32 blocks, u32 m, u32 groups,          \
             u32 mode) {                                                                                               \
        head_mma<Q6, NT>(w, x, x_scales, y, n, blocks, m, groups, mode);                                               \
    }
HEAD_MMA(head_mma_q8_0_1, false, 1)
HEAD_MMA(head_mma_q8_0_2, false, 2)
HEAD_MMA(head_mma_q8_0_4, false, 4)
HEAD_MMA(head_mma_q6_k_1, true, 1)
HEAD_MMA(head_mma_q6_k_2, true, 2)
HEAD_MMA(head_mma_q6_k_4, true, 4)
