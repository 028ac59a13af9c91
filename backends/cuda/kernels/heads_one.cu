// Heads in q8_0 and q6_k times one row of activations; the planes are those of heads.cu.
//
// A warp has a row of weights, and thread t the lanes t and t + 32 of its sums, so it takes the blocks of those lanes. What a
// warp needs next is asked for while it multiplies what it asked for before, all at once and plane by plane, so that what lies
// together is read together: asked for one by one as registers come free, a head in q6_k takes a sixth longer (112 us instead
// of 95 on an H100). Scales are read as words, one a thread, and handed to the threads whose they are; with codes that are not
// made signed before they are multiplied, that gained q6_k 3 us.
//
// Weights are asked for before the kernel before is done; `pack` keeps this one from being early (`Driver::fence`).
#include "common.cuh"

// What a warp asks for at once: AHEAD times 32 blocks of a row, from block `first` on.
template <bool Q6> struct Asked;
template <> struct Asked<false> {
    static const int AHEAD = 3, UNITS = 2, WORDS = (AHEAD + 1) / 2;
    uint4 a[AHEAD], b[AHEAD];
    u32 scales[WORDS];
    __device__ __forceinline__ void load(const Planes<false> &p, u32 row, u32 blocks, u32 first, u32 lane) {
        const u64 at = (u64)row * blocks + first;
        const uint4 *codes = p.codes + (u64)row * blocks * 2 + first + lane;
        const u32 left = blocks - first;
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (32 * j + lane < left) a[j] = once16(codes + 32 * j);
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (32 * j + lane < left) b[j] = once16(codes + blocks + 32 * j);
        // Word i has the scales of blocks 2i and 2i + 1; where there is an odd number of blocks, rows may begin inside one.
#pragma unroll
        for (int j = 0; j < WORDS; j++) {
            const u32 i = 64 * j + 2 * lane;
            if (i >= left) continue;
            if (blocks & 1) scales[j] = p.scales[at + i] | (i + 1 < left ? (u32)p.scales[at + i + 1] << 16 : 0);
            else scales[j] = once4(p.scales + at + i);
        }
    }
    // Of all threads at once.
    __device__ __forceinline__ float scale(int j, u32 lane) const {
        u32 word = __shfl_sync(FULL, scales[j / 2], 16 * (j & 1) + (lane >> 1));
        return half_value(lane & 1 ? word >> 16 : word & 0xffff);
    }
    __device__ __forceinline__ int dot(int j, const uint4 *x, u32 blocks) const {
        const u32 c[8] = {a[j].x, a[j].y, a[j].z, a[j].w, b[j].x, b[j].y, b[j].z, b[j].w};
        return Block<false>::dot(c, x, blocks);
    }
};
template <> struct Asked<true> {
    static const int AHEAD = 5, UNITS = 1, WORDS = (AHEAD + 3) / 4;
    uint2 low[AHEAD];
    u32 high[AHEAD], scales[WORDS];
    u16 d;
    __device__ __forceinline__ void load(const Planes<true> &p, u32 row, u32 blocks, u32 first, u32 lane) {
        const u64 at = (u64)row * blocks + first;
        const u32 left = blocks - first;
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (32 * j + lane < left) low[j] = once8(p.low + at + 32 * j + lane);
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (32 * j + lane < left) high[j] = once4(p.high + at + 32 * j + lane);
        // Rows have whole superblocks of 16 blocks, so words of four scales begin where rows do.
#pragma unroll
        for (int j = 0; j < WORDS; j++)
            if (32 * j + lane < 8 * AHEAD && 128 * j + 4 * lane < left) scales[j] = once4(p.scales + at + 128 * j + 4 * lane);
        if (lane < 2 * AHEAD && 16 * lane < left) d = __ldg(p.d + at / 16 + lane);
    }
    __device__ __forceinline__ float scale(int j, u32 lane) const {
        u32 word = __shfl_sync(FULL, scales[j / 4], (8 * j & 31) + (lane >> 2));
        u32 all = __shfl_sync(FULL, (u32)d, 2 * j + (lane >> 4));
        return __fmul_rn(half_value((u16)all), (float)(i8)(word >> 8 * (lane & 3)));
    }
    // Codes as they lie, 0 to 63; 32 times each activation is taken off by itself.
    __device__ __forceinline__ int dot(int j, const uint4 *x, u32) const {
        const uint4 v = x[0];
        const u32 less = 0xe0e0e0e0u, h = high[j];
        int s = __dp4a((int)less, (int)v.x, 0), t = __dp4a((int)less, (int)v.y, 0);
        s = __dp4a((int)less, (int)v.z, s), t = __dp4a((int)less, (int)v.w, t);
        s = __dp4a((int)((low[j].x & 0x0f0f0f0fu) | (h << 4 & 0x30303030u)), (int)v.x, s);
        t = __dp4a((int)((low[j].x >> 4 & 0x0f0f0f0fu) | (h << 2 & 0x30303030u)), (int)v.y, t);
        s = __dp4a((int)((low[j].y & 0x0f0f0f0fu) | (h & 0x30303030u)), (int)v.z, s);
        t = __dp4a((int)((low[j].y >> 4 & 0x0f0f0f0fu) | (h >> 2 & 0x30303030u)), (int)v.w, t);
        return s + t;
    }
};

template <bool Q6>
__device__ __forceinline__ void head_one(const u8 *w, const i8 *x, const float *x_scale, float *y, u32 n, u32 blocks, u32 mode) {
    extern __shared__ uint4 head_tokens[];
    typedef Asked<Q6> P;
    const u32 lane = threadIdx.x & 31, warps = blockDim.x >> 5, step = gridDim.x * warps;
    const Planes<Q6> planes(w, n, blocks);
    u32 row = blockIdx.x * warps + (threadIdx.x >> 5);
    P ahead;
    if (row < n) ahead.load(planes, row, blocks, 0, lane);
    BEGIN;
    const bool aligned = ((u64)x & 15) == 0;
    for (u32 i = threadIdx.x; i < blocks * P::UNITS; i += blockDim.x)
        head_tokens[i % P::UNITS * blocks + i / P::UNITS] = token_unit(x + i * 16, aligned);
    __syncthreads();
    for (; row < n; row += step) {
        float low = 0.0f, high = 0.0f;
        for (u32 first = 0; first < blocks; first += 32 * P::AHEAD) {
            const P now = ahead;
            const u32 next = first + 32 * P::AHEAD;
            if (next < blocks) ahead.load(planes, row, blocks, next, lane);
            else if (row + step < n) ahead.load(planes, row + step, blocks, 0, lane);
            // A missing block would add +0, which changes nothing: lanes start at +0.
#pragma unroll
            for (int j = 0; j < P::AHEAD; j++) {
                const u32 b = first + 32 * j + lane;
                const float scale = now.scale(j, lane);
                if (b < blocks) {
                    const float p = __fmul_rn(__int2float_rn(now.dot(j, head_tokens + b, blocks)), scale);
                    if (j & 1) high = __fadd_rn(high, p);
                    else low = __fadd_rn(low, p);
                }
            }
            // After an odd number of 32 blocks the other half of the lanes is next; the fold adds them in either order.
            if (P::AHEAD & 1) {
                const float other = low;
                low = high, high = other;
            }
        }
        float v = fold64(low, high);
        if (lane == 0) {
            v = __fdiv_rn(v, *x_scale);
            y[row] = mode & ADD ? y[row] + v : v;
        }
    }
}
// Registers for three blocks on a multiprocessor, and none for one of the next kernel, which would take places from its own.
#define HEAD_ONE(NAME, Q6)                                                                                             \
    KERNEL __launch_bounds__(256, 3)                                                                                   \
        NAME(const u8 *w, const i8 *x, const float *x_scale, float *y, u32 n, u32 blocks, u32 mode) {                  \
        head_one<Q6>(w, x, x_scale, y, n, blocks, mode);                                                               \
    }
HEAD_ONE(head_q8_0_1, false)
HEAD_ONE(head_q6_k_1, true)
