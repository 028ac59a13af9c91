// The norm and the int8 row that every block of a fused product makes for itself, at the price of little more than reading
// the row.
//
// The order of docs/numerics.md is a chain: a sum gives the factor, factor and weights give the values, the largest of them
// the scale, and the scale the int8 row. But up to roundings the factor cancels: a value over the largest is x * w over the
// largest x * w. So the workers of a block round that at once and multiply, while one more warp, the keeper, makes the sum in
// its order. Roundings move a value by less than DOUBT of it. A value that rounds to the same integer when it is moved that
// far up and down is the definition's; vectors with one that does not, and those near the largest magnitude, the keeper looks
// at with the true factor. Where it finds another integer, or a row out of the ordinary, the workers begin again as the
// definition says. So the bits are always those of the definition.
#pragma once
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

// Rows of 64 values that are filled up with zeros past the end, so that the sum needs no ends: +0 changes no sum of squares.
#define ZERO_ROWS 16

// In dynamic shared memory, before the block's weights.
template <int WORKERS, int TILES> struct Staged {
    // The int8 row, with 64 bytes of padding after each tile, which makes the reads free of conflicts.
    uint4 xs[TILES * 20];
    float x[TILES * TILE + ZERO_ROWS * 64], w[TILES * TILE];
    // A bit for each of a worker's vectors that the keeper has to look at.
    u8 doubtful[WORKERS];
    u32 maxima[32];
    int sums[32];
    float factor, scale;
    bool kept;
    // Count the bytes of the block's weights that have arrived, and of the norm's.
    u64 arrived, norm_arrived;
};
// The host knows it too: `staged` in src/placement.rs.
#define STAGED_BYTES(WORKERS, TILES) ((2368 * (TILES) + 4096 + (WORKERS) + 320 + 127) / 128 * 128)

template <int WORKERS, int TILES> __device__ __forceinline__ uint4 *weights_of(Staged<WORKERS, TILES> &s) {
    static_assert(sizeof(s) <= STAGED_BYTES(WORKERS, TILES), "the host asks for too little shared memory");
    return (uint4 *)((u8 *)&s + STAGED_BYTES(WORKERS, TILES));
}

// Barriers beside __syncthreads, which is for all.
enum Meeting { READY = 1, ROW_HERE = 2, STAGED = 3, LISTED = 4, RELEASED = 5 };
__device__ __forceinline__ void meet(int meeting, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(meeting), "r"(threads) : "memory");
}
__device__ __forceinline__ void pass_by(int meeting, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(meeting), "r"(threads) : "memory");
}

// Weights on their way into shared memory, asked for by a warp. Registers would not do: loads into them are put off by the
// compiler until after the wait for the kernel before, and leave no room for its blocks.
struct Copy {
    void *to;
    const void *from;
    u32 bytes;
};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ u32 in_shared(const void *p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void expect(u64 *arrived, u32 bytes) {
    bool first = threadIdx.x % 32 == 0;
    if (first) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(in_shared(arrived)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    // The compiler has the warp do what one thread asked for.
    __syncwarp();
    if (first)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(in_shared(arrived)), "r"(bytes) : "memory");
    __syncwarp();
}
template <typename Copies> __device__ __forceinline__ void bring(u32 count, Copies copies, u64 *arrived) {
    if (threadIdx.x % 32 != 0) return;
    for (u32 i = 0; i < count; i++) {
        Copy c = copies(i);
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(in_shared(c.to)),
                     "l"(c.from), "r"(c.bytes), "r"(in_shared(arrived))
                     : "memory");
    }
}
__device__ __forceinline__ void wait_for(u64 *arrived) {
    u32 done = 0;
    while (!done)
        asm volatile("{ .reg .pred ok; mbarrier.try_wait.parity.shared::cta.b64 ok, [%1], 0; selp.u32 %0, 1, 0, ok; }"
                     : "=r"(done)
                     : "r"(in_shared(arrived))
                     : "memory");
}
#else
// Without bulk copies the warp brings everything before it meets the workers.
__device__ __forceinline__ void expect(u64 *, u32) {}
template <typename Copies> __device__ __forceinline__ void bring(u32 count, Copies copies, u64 *) {
    for (u32 i = 0; i < count; i++) {
        Copy c = copies(i);
        for (u32 at = threadIdx.x % 32 * 16; at < c.bytes; at += 512) cp_async16((u8 *)c.to + at, (const u8 *)c.from + at);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}
__device__ __forceinline__ void wait_for(u64 *) {}
#endif

__device__ __forceinline__ float4 times(float4 a, float4 b) {
    return make_float4(__fmul_rn(a.x, b.x), __fmul_rn(a.y, b.y), __fmul_rn(a.z, b.z), __fmul_rn(a.w, b.w));
}
__device__ __forceinline__ float4 times(float4 a, float b) { return times(a, make_float4(b, b, b, b)); }
// NaNs go unseen.
__device__ __forceinline__ float largest(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}
// As integers: NaNs are above all.
__device__ __forceinline__ u32 largest_bits(float4 v) {
    return max(max(abs_bits(v.x), abs_bits(v.y)), max(abs_bits(v.z), abs_bits(v.w)));
}

// Products below 2^22, rounded once, to the nearest integer, ties to even; it is in the low bits.
__device__ __forceinline__ float4 rounded(float4 v, float by) {
    return make_float4(__fmaf_rn(v.x, by, ROUND), __fmaf_rn(v.y, by, ROUND), __fmaf_rn(v.z, by, ROUND), __fmaf_rn(v.w, by, ROUND));
}
__device__ __forceinline__ u32 bits_differ(float a, float b) { return __float_as_uint(a) ^ __float_as_uint(b); }
__device__ __forceinline__ u32 bytes_of(float4 v) {
    u32 low = __byte_perm(__float_as_uint(v.x), __float_as_uint(v.y), 0x0040);
    u32 high = __byte_perm(__float_as_uint(v.z), __float_as_uint(v.w), 0x0040);
    return __byte_perm(low, high, 0x5410);
}
// Where the int8 of vector `at` lie in xs, in words.
__device__ __forceinline__ u32 place_of(u32 at) { return ((at >> 6) * 20 + (at >> 2 & 15)) * 4 + (at & 3); }

// Within a unit in the last place.
__device__ __forceinline__ float reciprocal(float v) {
    float r;
    asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// The sum of squares of rows of 64 values by lanes, by one warp: a thread has lanes 2t and 2t + 1, whose additions wait for
// each other and for nothing else. Reads up to fifteen rows too many, which are zeros. In all threads.
__device__ __forceinline__ float lane_sum(const float *values, u32 rows) {
    const float2 *at = (const float2 *)values + threadIdx.x % 32;
    float low = 0.0f, high = 0.0f;
    // Eight in flight: what was added makes room for the one eight further on.
    float2 ahead[8];
#pragma unroll
    for (int j = 0; j < 8; j++) ahead[j] = at[32 * j];
#pragma unroll 1
    for (u32 i = 0; i < rows; i += 8) {
        at += 256;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            low = low + __fmul_rn(ahead[j].x, ahead[j].x), high = high + __fmul_rn(ahead[j].y, ahead[j].y);
            ahead[j] = at[32 * j];
        }
    }
    // The halvings by 32, 16, 8, 4 and 2, and the last.
#pragma unroll
    for (int h = 16; h; h >>= 1) low = low + __shfl_xor_sync(FULL, low, h), high = high + __shfl_xor_sync(FULL, high, h);
    return low + high;
}

// 2^-20. In units of 2^-24, to first order: the definition's value over the true quotient has six roundings (two of the value,
// two of the largest, the scale, the product), the guess's has six (two products, two of the reciprocal, times 127, times what
// it is moved by); all of them are below 16. That holds while nothing on the way is subnormal: see `keep`.
#define DOUBT 9.5367431640625e-7f

// The workers' guess: the row without its factor, into s.xs and s.sums. Ends with a meeting of workers, with the block's
// weights there. WORKERS * VECS vectors cover all tiles of the row.
template <int WORKERS, int VECS, int TILES>
__device__ __forceinline__ void stage_guess(Staged<WORKERS, TILES> &s, const NormRow &row, u32 tiles) {
    static_assert(VECS <= 8, "a byte has a bit for each vector of a worker");
    u32 vectors = row.cols / 4, t = threadIdx.x, lane = t & 31;
    float4 x[VECS], p[VECS];
    float mine[VECS], most = 0.0f;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * WORKERS;
        x[j] = at < vectors ? ((const float4 *)row.x)[at] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    wait_for(&s.norm_arrived);
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * WORKERS;
        p[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (at < vectors) {
            ((float4 *)s.x)[at] = x[j];
            p[j] = times(x[j], ((const float4 *)s.w)[at]);
        }
        // A NaN goes unseen here, and not in the keeper's sum.
        mine[j] = largest(p[j]);
        most = fmaxf(most, mine[j]);
    }
    u32 bits = warp_max(__float_as_uint(most));
    if (lane == 0) s.maxima[t >> 5] = bits;
    meet(ROW_HERE, WORKERS + 32);
    most = __uint_as_float(warp_max(lane < WORKERS / 32 ? s.maxima[lane] : 0));
    float inverse = __fmul_rn(127.0f, reciprocal(most)), limit = __fmul_rn(most, 1.0f - DOUBT);
    float down = __fmul_rn(inverse, 1.0f - DOUBT), up = __fmul_rn(inverse, 1.0f + DOUBT);
    int sum = 0;
    u32 doubtful = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * WORKERS;
        float4 a = rounded(p[j], down), b = rounded(p[j], up);
        u32 differ = bits_differ(a.x, b.x) | bits_differ(a.y, b.y) | bits_differ(a.z, b.z) | bits_differ(a.w, b.w);
        doubtful |= at < vectors && (differ || mine[j] >= limit) ? 1u << j : 0;
        u32 four = at < vectors ? bytes_of(a) : 0;
        if (at < tiles * (TILE / 4)) ((u32 *)s.xs)[place_of(at)] = four;
        sum = __dp4a(0x01010101, (int)four, sum);
    }
    s.doubtful[t] = (u8)doubtful;
    sum = __reduce_add_sync(FULL, sum);
    if (lane == 0) s.sums[t >> 5] = sum;
    pass_by(LISTED, WORKERS + 32);
    wait_for(&s.arrived);
    meet(STAGED, WORKERS);
}

// The definition's row, where the guess was not it: with the keeper's factor. False where it is not finite; then it is zeros.
// Ends with a meeting of workers.
template <int WORKERS, int VECS, int TILES>
__device__ __forceinline__ bool stage_again(Staged<WORKERS, TILES> &s, const NormRow &row, u32 tiles) {
    u32 vectors = row.cols / 4, t = threadIdx.x, lane = t & 31, most = 0;
    auto value = [&](u32 at) {
        return at < vectors ? times(times(((const float4 *)s.x)[at], s.factor), ((const float4 *)s.w)[at])
                            : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    };
#pragma unroll 1
    for (int j = 0; j < VECS; j++) most = max(most, largest_bits(value(t + j * WORKERS)));
    most = warp_max(most);
    if (lane == 0) s.maxima[t >> 5] = most;
    meet(STAGED, WORKERS);
    most = warp_max(lane < WORKERS / 32 ? s.maxima[lane] : 0);
    bool finite = most < INF_BITS;
    float scale = __fdiv_rn(127.0f, fmaxf(__uint_as_float(most), 1e-5f));
    int sum = 0;
#pragma unroll 1
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * WORKERS;
        // The product is rounded to f32 first, as the definition has it.
        u32 four = finite ? bytes_of(rounded(times(value(at), scale), 1.0f)) : 0;
        if (at < tiles * (TILE / 4)) ((u32 *)s.xs)[place_of(at)] = four;
        sum = __dp4a(0x01010101, (int)four, sum);
    }
    sum = __reduce_add_sync(FULL, sum);
    if (lane == 0) s.sums[t >> 5] = sum;
    if (t == 0) s.scale = scale;
    meet(STAGED, WORKERS);
    return finite;
}

// The keeper: the sum in its order, and what the doubtful are by it; whether the guess was the definition's row. `heavy` says that a weight of the norm is above 2^40.
//
// Its bounds keep what DOUBT asks for: a value that could round to another integer than 0 is above 1/508 of the largest, which
// is above 2e-5; so with weights below 2^40 the row times the factor is above 2^-65, and the row times the weights is normal
// whatever the factor. Sums below 2^80 are of rows below 2^40. The clamp of the scale is at 1e-5.
template <int WORKERS, int VECS, int TILES>
__device__ __forceinline__ bool keep(Staged<WORKERS, TILES> &s, const NormRow &row, bool heavy) {
    u32 lane = threadIdx.x & 31;
    meet(ROW_HERE, WORKERS + 32);
    float sum = lane_sum(s.x, row.cols / 64);
    float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sum, (float)row.cols) + row.eps));
    meet(LISTED, WORKERS + 32);
    // Four workers' flags a word. A lane looks at one vector; where it finds more, which is rare, all begin again.
    u32 at = 0, found = 0;
#pragma unroll
    for (int i = 0; i < (WORKERS / 4 + 31) / 32; i++) {
        u32 place = lane + 32 * i, word = place < WORKERS / 4 ? ((const u32 *)s.doubtful)[place] : 0;
        found += __popc(word);
        if (word) {
            u32 bit = __ffs(word) - 1;
            at = place * 4 + bit / 8 + bit % 8 * WORKERS;
        }
    }
    float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (found) y = times(times(((const float4 *)s.x)[at], factor), ((const float4 *)s.w)[at]);
    float most = __uint_as_float(warp_max(__float_as_uint(largest(y)))), scale = __fdiv_rn(127.0f, fmaxf(most, 1e-5f));
    bool same = !found || bytes_of(rounded(times(y, scale), 1.0f)) == ((const u32 *)s.xs)[place_of(at)];
    bool plain = sum < 1.2e24f && most > 2e-5f && most < 1e12f && !heavy;
    same = __all_sync(FULL, same && found <= 1) && plain;
    if (lane == 0) {
        s.factor = factor, s.scale = scale, s.kept = same;
        if (blockIdx.x == 0 && same) *row.scale = scale;
    }
    return same;
}

// The block's part of the int8 row, by `threads` threads.
template <int WORKERS, int TILES>
__device__ __forceinline__ void store_row(const Staged<WORKERS, TILES> &s, const NormRow &row, u32 thread, u32 threads) {
    for (u32 at = thread * gridDim.x + blockIdx.x; at < row.cols / 4; at += threads * gridDim.x)
        ((u32 *)row.q)[at] = ((const u32 *)s.xs)[place_of(at)];
}
