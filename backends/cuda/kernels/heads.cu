// Heads and embeddings in q8_0 and q6_k, whose codes lie in blocks with a scale each. Products of one row of activations are in
// heads_one.cu, those of many in heads_mma.cu.
//
// Packed in planes, each with a row's blocks next to each other, so that neighbouring threads, which take neighbouring
// blocks, read neighbouring bytes; as many bytes as the file has:
//   q8_0: for each row the first 16 codes of all blocks, then the other 16; after all rows the f16 scales.
//   q6_k: 8 bytes a block of low four bits: the low nibbles of word i are codes 8i .. 8i+3, the high ones 8i+4 .. 8i+7; after
//         all rows 4 bytes a block of high two bits, bits 2q of byte i of code 4q + i; int8 scales; f16 scales of 16 blocks.
#include "common.cuh"

// A packed table's planes.
template <bool Q6> struct Planes;
template <> struct Planes<false> {
    const uint4 *codes;
    const u16 *scales;
    __device__ __forceinline__ Planes(const u8 *w, u64 rows, u32 blocks)
        : codes((const uint4 *)w), scales((const u16 *)(w + rows * blocks * 32)) {}
};
template <> struct Planes<true> {
    const uint2 *low;
    const u32 *high;
    const i8 *scales;
    const u16 *d;
    __device__ __forceinline__ Planes(const u8 *w, u64 rows, u32 blocks)
        : low((const uint2 *)w), high((const u32 *)(w + rows * blocks * 8)), scales((const i8 *)w + rows * blocks * 12),
          d((const u16 *)(w + rows * blocks * 13)) {}
};

// A block as it is read, and what it gives with its activations.
template <bool Q6> struct Block;
template <> struct Block<false> {
    static const u32 UNITS = 2;
    uint4 a, b;
    u16 h;
    __device__ __forceinline__ void load(const Planes<false> &p, u64 row, u32 blocks, u32 i) {
        a = __ldg(p.codes + row * blocks * 2 + i);
        b = __ldg(p.codes + row * blocks * 2 + blocks + i);
        h = __ldg(p.scales + row * blocks + i);
    }
    __device__ __forceinline__ float scale() const { return half_value(h); }
    __device__ __forceinline__ void unpack(u32 *c) const {
        c[0] = a.x, c[1] = a.y, c[2] = a.z, c[3] = a.w, c[4] = b.x, c[5] = b.y, c[6] = b.z, c[7] = b.w;
    }
    static __device__ __forceinline__ int dot(const u32 *c, const uint4 *x, u32 blocks) {
        uint4 v = x[0], w = x[blocks];
        int s = __dp4a((int)c[0], (int)v.x, 0), t = __dp4a((int)c[4], (int)w.x, 0);
        s = __dp4a((int)c[1], (int)v.y, s), t = __dp4a((int)c[5], (int)w.y, t);
        s = __dp4a((int)c[2], (int)v.z, s), t = __dp4a((int)c[6], (int)w.z, t);
        return __dp4a((int)c[3], (int)v.w, s) + __dp4a((int)c[7], (int)w.w, t);
    }
};
template <> struct Block<true> {
    static const u32 UNITS = 1;
    uint2 low;
    u32 high;
    i8 sc;
    u16 h;
    __device__ __forceinline__ void load(const Planes<true> &p, u64 row, u32 blocks, u32 i) {
        u64 at = row * blocks + i;
        low = __ldg(p.low + at);
        high = __ldg(p.high + at);
        sc = __ldg(p.scales + at);
        h = __ldg(p.d + at / 16);
    }
    // Exact: at most 19 bits.
    __device__ __forceinline__ float scale() const { return __fmul_rn(half_value(h), (float)sc); }
    // Signed codes: with 32 taken off, bytes do not borrow from each other if bit 7 is set before and flipped after.
    __device__ __forceinline__ void unpack(u32 *c) const {
        c[0] = (low.x & 0x0f0f0f0fu) | (high << 4 & 0x30303030u);
        c[1] = (low.x >> 4 & 0x0f0f0f0fu) | (high << 2 & 0x30303030u);
        c[2] = (low.y & 0x0f0f0f0fu) | (high & 0x30303030u);
        c[3] = (low.y >> 4 & 0x0f0f0f0fu) | (high >> 2 & 0x30303030u);
#pragma unroll
        for (int i = 0; i < 4; i++) c[i] = ((c[i] | 0x80808080u) - 0x20202020u) ^ 0x80808080u;
    }
    static __device__ __forceinline__ int dot(const u32 *c, const uint4 *x, u32) {
        uint4 v = x[0];
        int s = __dp4a((int)c[0], (int)v.x, 0);
        s = __dp4a((int)c[1], (int)v.y, s);
        s = __dp4a((int)c[2], (int)v.z, s);
        return __dp4a((int)c[3], (int)v.w, s);
    }
};

// Sixteen activations.
__device__ __forceinline__ uint4 token_unit(const i8 *from, bool aligned) {
    if (aligned) return *(const uint4 *)from;
    u32 v[4] = {0, 0, 0, 0};
#pragma unroll
    for (int b = 0; b < 16; b++) v[b >> 2] |= (u32)(u8)from[b] << 8 * (b & 3);
    return make_uint4(v[0], v[1], v[2], v[3]);
}

// A warp has a row of weights and M rows of activations ("tokens"); thread t has the lanes t and t + 32 of their sums, so it
// takes the blocks of those lanes. `sharers` warps of a block, a power of two, have the same weights and each its own tokens;
// blocks deal rows and groups of `sharers` times M tokens among themselves. `AHEAD` times 32 blocks are asked for at once.
template <bool Q6, int M, int AHEAD>
__device__ __forceinline__ void head(const u8 *w, const i8 *x, const float *x_scales, float *y, u32 n, u32 blocks, u32 m,
                                     u32 groups, u32 sharers, u32 mode) {
    extern __shared__ uint4 head_tokens[];
    const u32 UNITS = Block<Q6>::UNITS;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, teams = (blockDim.x >> 5) / sharers;
    u32 units = blocks * UNITS, held = sharers * M, m0 = blockIdx.x % groups * held;
    BEGIN;
    bool aligned = ((u64)x & 15) == 0;
    for (u32 i = threadIdx.x; i < held * units; i += blockDim.x) {
        u32 token = m0 + i / units, u = i % units;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (token < m) v = token_unit(x + ((u64)token * units + u) * 16, aligned);
        head_tokens[i / units * units + u % UNITS * blocks + u / UNITS] = v;
    }
    __syncthreads();
    Planes<Q6> planes(w, n, blocks);
    const uint4 *xs = head_tokens + warp % sharers * M * units;
    m0 += warp % sharers * M;
    u32 step = gridDim.x / groups * teams;
    for (u32 row = blockIdx.x / groups * teams + warp / sharers; row < n; row += step) {
        float low[M], high[M];
#pragma unroll
        for (int i = 0; i < M; i++) low[i] = 0.0f, high[i] = 0.0f;
        for (u32 first = 0; first < blocks; first += 32 * AHEAD) {
            Block<Q6> v[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                u32 b = first + 32 * j + lane;
                if (b < blocks) v[j].load(planes, row, blocks, b);
            }
            // A missing block would add +0, which changes nothing: lanes start at +0.
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                u32 b = first + 32 * j + lane;
                if (b < blocks) {
                    u32 c[4 * UNITS];
                    v[j].unpack(c);
                    float scale = v[j].scale();
#pragma unroll
                    for (int i = 0; i < M; i++) {
                        float p = __fmul_rn(__int2float_rn(Block<Q6>::dot(c, xs + i * units + b, blocks)), scale);
                        if (j & 1) high[i] = __fadd_rn(high[i], p);
                        else low[i] = __fadd_rn(low[i], p);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < M; i++) {
            float v = fold64(low[i], high[i]);
            if (lane == i && m0 + i < m) {
                float *p = y + (u64)(m0 + i) * n + row;
                v = __fdiv_rn(v, x_scales[m0 + i]);
                *p = mode & ADD ? *p + v : v;
            }
        }
    }
}
#define HEAD(NAME, Q6, M, AHEAD)                                                                                       \
    KERNEL __launch_bounds__(512, 1)                                                                                   \
        NAME(const u8 *w, const i8 *x, const float *x_scales, float *y, u32 n, u32 blocks, u32 m, u32 groups,          \
             u32 sharers, u32 mode) {                                                                                  \
        head<Q6, M, AHEAD>(w, x, x_scales, y, n, blocks, m, groups, sharers, mode);                                    \
    }
HEAD(head_q8_0_4, false, 4, 4)
HEAD(head_q8_0_8, false, 8, 4)
HEAD(head_q6_k_4, true, 4, 6)
HEAD(head_q6_k_8, true, 8, 6)

// Code of value e of a superblock of q6_k as the file has it.
__device__ __forceinline__ u32 q6_code(const u8 *s, u32 e) {
    u32 h = e / 128, t = e % 128 / 32, i = e % 32;
    return (s[64 * h + 32 * (t % 2) + i] >> t / 2 * 4 & 15) | (s[128 + 32 * h + i] >> 2 * t & 3) << 4;
}

// From the file's bytes to planes; a thread has a block.
KERNEL __launch_bounds__(256) pack_blocks(u32 q6, const u8 *bytes, u32 rows, u32 blocks, u8 *out) {
    BEGIN;
    u64 n = (u64)rows * blocks;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        if (q6) {
            const u8 *s = bytes + i / 16 * 210;
            u32 e = i % 16 * 16, low[2] = {0, 0}, high = 0;
            for (u32 v = 0; v < 16; v++) {
                u32 c = q6_code(s, e + v);
                low[v / 8] |= (c & 15) << (v % 4 * 8 + v / 4 % 2 * 4);
                high |= c >> 4 << (v % 4 * 8 + v / 4 * 2);
            }
            ((u32 *)out)[2 * i] = low[0];
            ((u32 *)out)[2 * i + 1] = low[1];
            ((u32 *)(out + n * 8))[i] = high;
            out[n * 12 + i] = s[192 + i % 16];
            if (i % 16 == 0) ((u16 *)(out + n * 13))[i / 16] = *(const u16 *)(s + 208);
        } else {
            const u16 *s = (const u16 *)(bytes + i * 34);
            u64 row = i / blocks, b = i % blocks;
            for (u32 v = 0; v < 16; v++)
                ((u16 *)out)[(row * blocks * 2 + v / 8 * blocks + b) * 8 + v % 8] = s[1 + v];
            ((u16 *)(out + n * 32))[i] = s[0];
        }
    }
}

// Rows of a packed table.
KERNEL gather_blocks(const u8 *table, u32 q6, u32 entries, u32 cols, const u32 *ids, float *y, FAULT) {
    BEGIN_LATE;
    u32 id = ids[blockIdx.x];
    if (!index_ok(id, entries, blockIdx.x, FAULT_ARGS)) return;
    u32 blocks = cols / (q6 ? 16 : 32);
    for (u32 i = threadIdx.x; i < cols; i += blockDim.x) {
        u32 b = i / (q6 ? 16 : 32), v = i % (q6 ? 16 : 32);
        u64 at = (u64)id * blocks + b;
        float f;
        if (q6) {
            Planes<true> p(table, entries, blocks);
            u32 low = ((const u32 *)p.low)[2 * at + v / 8] >> (v % 4 * 8 + v / 4 % 2 * 4) & 15;
            int c = (int)(low | (p.high[at] >> (v % 4 * 8 + v / 4 * 2) & 3) << 4) - 32;
            f = __fmul_rn((float)c, __fmul_rn(half_value(p.d[at / 16]), (float)p.scales[at]));
        } else {
            Planes<false> p(table, entries, blocks);
            i8 c = ((const i8 *)p.codes)[((u64)id * blocks * 2 + v / 16 * blocks + b) * 16 + v % 16];
            f = __fmul_rn((float)c, half_value(p.scales[at]));
        }
        y[(u64)blockIdx.x * cols + i] = f;
    }
}

// From the file's bytes to values.
KERNEL __launch_bounds__(256) dequantize_blocks(u32 q6, const u8 *bytes, u64 n, u32 type, void *y) {
    BEGIN;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        float f;
        if (q6) {
            const u8 *s = bytes + i / 256 * 210;
            u32 e = i % 256;
            float scale = __fmul_rn(half_value(*(const u16 *)(s + 208)), (float)(i8)s[192 + e / 16]);
            f = __fmul_rn((float)((int)q6_code(s, e) - 32), scale);
        } else {
            const u8 *s = bytes + i / 32 * 34;
            f = __fmul_rn((float)(i8)s[2 + i % 32], half_value(*(const u16 *)s));
        }
        store_as(type, y, i, f);
    }
}
