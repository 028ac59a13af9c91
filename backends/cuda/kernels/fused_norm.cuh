// The norm and the int8 row that every block of a fused product makes for itself, at the price of little more than reading
// the row.
//
// The order of docs/numerics.md is a chain: a sum gives the factor, factor and weights give the values, the largest of them
// the scale, and the scale the int8 row. But up to roundings the factor cancels: a value over the largest is x * w over the
// largest x * w. So the workers of a block round that at once and multiply, while one more warp, the keeper, makes the sum in
// its order. Roundings move a value by less than DOUBT of it. A value that rounds to the same integer when it is moved that
// far up and down is the definition's; vectors with one that does not, and those near the largest magnitude, the keeper looks
// at with the true factor. Where it finds another integer, or a row is out of the ordinary, the workers begin again as the
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
    uint4 xs[TILES * 20], zeros[16];
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
#define STAGED_BYTES(WORKERS, TILES) ((2368 * (TILES) + 4096 + (WORKERS) + 704 + 127) / 128 * 128)

template <int WORKERS, int TILES> __device__ __forceinline__ uint4 *weights_of(const Staged<WORKERS, TILES> &s) {
    static_assert(sizeof(s) <= STAGED_BYTES(WORKERS, TILES), "the host asks for too little shared memory");
    return (uint4 *)((u8 *)&s + STAGED_BYTES(WORKERS, TILES));
}

// Barriers beside __syncthreads, which is for all.
enum Meeting { READY = 1, ROW_HERE = 2, STAGED = 3, LISTED = 4, RELEASED = 5, MULTIPLIED = 6, UNNEEDED = 7 };
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
__device__ __forceinline__ u32 in_shared(const void *p) { return (u32)__cvta_generic_to_shared(p); }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
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
__device__ __forceinline__ void store_shared(u32 address, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
// A value that is computed here and stays in a register: what is needed after the wait is ready before it.
__device__ __forceinline__ u32 ready_now(u32 value) {
    asm volatile("" : "+r"(value));
    return value;
}
// Where the int8 of vector `at` lie in xs, in words.
__device__ __forceinline__ u32 place_of(u32 at) { return ((at >> 6) * 20 + (at >> 2 & 15)) * 4 + (at & 3); }

// Within a unit in the last place.
__device__ __forceinline__ float reciprocal(float v) {
    float r;
    asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// LANES values of one row of 64, kept in order: what is asked for is not put off.
template <int LANES> __device__ __forceinline__ void load_row(float (&v)[LANES], u32 address) {
    if constexpr (LANES == 1) asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v[0]) : "r"(address) : "memory");
    else asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v[0]), "=f"(v[1]) : "r"(address) : "memory");
}
// The sums of squares of rows of 64 values in LANES lanes, whose additions wait for each other and for nothing else. Reads up to
// fifteen rows too many, which are zeros.
template <int LANES> __device__ __forceinline__ void lane_sums(float (&sum)[LANES], const float *values, u32 rows) {
    u32 at = in_shared(values);
    float now[8][LANES], next[8][LANES];
#pragma unroll
    for (int l = 0; l < LANES; l++) sum[l] = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) load_row(now[j], at + 256 * j);
#pragma unroll 2
    for (u32 i = 0; i < rows; i += 8) {
        at += 2048;
#pragma unroll
        for (int j = 0; j < 8; j++) load_row(next[j], at + 256 * j);
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int l = 0; l < LANES; l++) sum[l] = sum[l] + __fmul_rn(now[j][l], now[j][l]);
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int l = 0; l < LANES; l++) now[j][l] = next[j][l];
    }
}

// Their sum by one warp, in all its threads: a thread has lanes 2t and 2t + 1.
__device__ __forceinline__ float lane_sum(const float *values, u32 rows) {
    float sum[2];
    lane_sums(sum, values + 2 * (threadIdx.x % 32), rows);
    // The halvings by 32, 16, 8, 4 and 2, and the last.
#pragma unroll
    for (int h = 16; h; h >>= 1) sum[0] = sum[0] + __shfl_xor_sync(FULL, sum[0], h), sum[1] = sum[1] + __shfl_xor_sync(FULL, sum[1], h);
    return sum[0] + sum[1];
}

// 2^-20. In units of 2^-24, to first order: the definition's value over the true quotient has six roundings (two of the value,
// two of the largest, the scale, the product), the guess's has six (two products, two of the reciprocal, times 127, times what
// it is moved by); all of them are below 16. That holds while nothing on the way is subnormal: see `keep`.
#define DOUBT 9.5367431640625e-7f

// The workers' guess: the row without its factor, into s.xs and s.sums. Ends with a meeting of workers, with the block's
// weights there. WORKERS * VECS vectors cover all tiles that there is room for: those that the row does not have are zeros.
// `early` asks for what is needed last, and `later` for what that says; neither may look at what it asks for.
template <int WORKERS, int VECS, int TILES, typename Early, typename Later>
__device__ __forceinline__ void stage_guess(Staged<WORKERS, TILES> &s, const NormRow &row, const u32 (&places)[VECS], Early early,
                                            Later later) {
    static_assert(VECS <= 8, "a byte has a bit for each vector of a worker");
    static_assert(WORKERS * VECS >= TILES * (TILE / 4), "the workers have all vectors");
    u32 vectors = row.cols / 4, t = threadIdx.x, lane = t & 31;
    float4 x[VECS], p[VECS];
    float mine[VECS], most = 0.0f;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        u32 at = t + j * WORKERS;
        x[j] = at < vectors ? ((const float4 *)row.x)[at] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    early();
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
    later();
    most = __uint_as_float(warp_max(lane < WORKERS / 32 ? s.maxima[lane] : 0));
    // Zeros past the row's end are not near the largest.
    float inverse = __fmul_rn(127.0f, reciprocal(most)), limit = fmaxf(__fmul_rn(most, 1.0f - DOUBT), 1e-38f);
    float down = __fmul_rn(inverse, 1.0f - DOUBT), up = __fmul_rn(inverse, 1.0f + DOUBT);
    int sum = 0;
    u32 doubtful = 0;
#pragma unroll
    for (int j = 0; j < VECS; j++) {
        float4 a = rounded(p[j], down), b = rounded(p[j], up);
        u32 differ = bits_differ(a.x, b.x) | bits_differ(a.y, b.y) | bits_differ(a.z, b.z) | bits_differ(a.w, b.w);
        doubtful |= differ || mine[j] >= limit ? 1u << j : 0;
        u32 four = bytes_of(a);
        if ((j + 1) * WORKERS <= TILES * (TILE / 4) || t + j * WORKERS < TILES * (TILE / 4)) store_shared(places[j], four);
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
__device__ __forceinline__ bool stage_again(Staged<WORKERS, TILES> &s, const NormRow &row) {
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
        if (at < TILES * (TILE / 4)) ((u32 *)s.xs)[place_of(at)] = four;
        sum = __dp4a(0x01010101, (int)four, sum);
    }
    sum = __reduce_add_sync(FULL, sum);
    if (lane == 0) s.sums[t >> 5] = sum;
    if (t == 0) s.scale = scale;
    meet(STAGED, WORKERS);
    return finite;
}

// The keeper: the sum in its order, and what the doubtful are by it; whether the guess was the definition's row. `heavy` says that
// a weight of the norm is above 2^40.
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
    bool ordinary = sum < 1.2e24f && !heavy;
    if (lane == 0) s.factor = factor;
    meet(LISTED, WORKERS + 32);
    // Four workers' flags a word. A lane looks at two vectors; where it finds more, which is rare, all begin again.
    const int WORDS = (WORKERS / 4 + 31) / 32;
    u32 at[2] = {0, 0}, found = 0;
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        u32 place = lane + 32 * i, word = place < WORKERS / 4 ? ((const u32 *)s.doubtful)[place] : 0;
        if (word) {
            u32 low = __ffs(word) - 1, high = 31 - __clz(word), before = found;
            u32 first = place * 4 + low / 8 + low % 8 * WORKERS;
            found += __popc(word);
            if (before == 0) at[0] = first, at[1] = place * 4 + high / 8 + high % 8 * WORKERS;
            else if (before == 1) at[1] = first;
        }
    }
    float4 x[2], w[2];
    u32 guess[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        x[i] = w[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f), guess[i] = 0;
        if (i < found) x[i] = ((const float4 *)s.x)[at[i]], w[i] = ((const float4 *)s.w)[at[i]], guess[i] = ((const u32 *)s.xs)[place_of(at[i])];
    }
    float4 y[2] = {times(times(x[0], factor), w[0]), times(times(x[1], factor), w[1])};
    float most = __uint_as_float(warp_max(__float_as_uint(fmaxf(largest(y[0]), largest(y[1])))));
    float scale = __fdiv_rn(127.0f, fmaxf(most, 1e-5f));
    // Where there is none, zeros round to zeros.
    bool same = found <= 2 && bytes_of(rounded(times(y[0], scale), 1.0f)) == guess[0] && bytes_of(rounded(times(y[1], scale), 1.0f)) == guess[1];
    same = __all_sync(FULL, same) && ordinary && most > 2e-5f && most < 1e12f;
    if (lane == 0) {
        s.scale = scale, s.kept = same;
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
