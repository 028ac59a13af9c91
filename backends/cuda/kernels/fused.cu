// The decode step: one row of activations, and as few kernels in a row as its dependences allow.
//
// A norm that ran on its own would keep 131 multiprocessors waiting for one. So each block of a product makes the norm of the
// whole row for itself, straight into its shared memory (fused_norm.cuh), while its weights are on their way: the row is ten
// kilobytes, and comes from the cache. The first block also stores what the separate operations would have stored.
//
// A block starts the next kernel only after its own wait. So a block that runs knows that all kernels but the one before it
// are done, and blocks of two kernels at most lie on a multiprocessor; of more, those of one kernel crowd on few of them.
#include "fused_norm.cuh"

// Unsigned codes in the bits of `mask` of each byte, times int8.
__device__ __forceinline__ int dot_masked(u32 word, u32 mask, u32 x, int acc) {
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(acc) : "r"(word & mask), "r"(x));
    return acc;
}

// The sum of one row's codes times activations. Codes stay where they are in their bytes: each of the four places has a sum of
// its own, which is that many times too large, and an int8 row of 7,168 is far from too long for it.
struct Sums {
    int at[4] = {0, 0, 0, 0};
    __device__ __forceinline__ void add(u32 word, uint4 x) {
        at[0] = dot_masked(word, CODES, x.x, at[0]);
        at[1] = dot_masked(word, CODES << 2, x.y, at[1]);
        at[2] = dot_masked(word, CODES << 4, x.z, at[2]);
        at[3] = dot_masked(word, CODES << 6, x.w, at[3]);
    }
    template <int LANES> __device__ __forceinline__ int all() const {
        int acc = at[0] + (at[1] >> 2) + (at[2] >> 4) + (at[3] >> 6);
#pragma unroll
        for (int h = LANES / 2; h; h >>= 1) acc += __shfl_xor_sync(FULL, acc, h);
        return acc;
    }
};

// Products of ROWS of the block's rows, from `first` on and `apart` from each other, with the staged one, less the sum of that;
// in all LANES threads, of which each has LOADS times 16 bytes of a row. Past the row's tiles activations are zeros, and weights
// whatever lies there. So nothing is asked before it is read, and reads run ahead of the products.
template <int LANES, int ROWS, int LOADS, int WORKERS, int TILES>
__device__ __forceinline__ void products(u32 first, u32 apart, const Staged<WORKERS, TILES> &s, u32 tiles, int (&out)[ROWS]) {
    static_assert(LANES % 4 == 0 && LANES * (LOADS - 1) < TILES * 4 && TILES * 4 <= LANES * LOADS, "no more loads than needed");
    Sums sums[ROWS];
    u32 sub = threadIdx.x % LANES, lane = threadIdx.x & 31;
    const uint4 *w = weights_of(s) + first * tiles * 4 + sub, *xs = s.xs + (sub >> 2) * 20 + (sub & 3);
    int part = lane < WORKERS / 32 ? s.sums[lane] : 0;
    auto load = [&](int j, bool room) {
        const uint4 *x = room ? xs + LANES * 5 * j : s.zeros, *from = room ? w + LANES * j : w;
        uint4 v[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) v[r] = from[r * apart * tiles * 4];
#pragma unroll
        for (int q = 0; q < 4; q++) {
            uint4 a = x[4 * q];
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[r].add(pick(v[r], q), a);
        }
    };
    if (__builtin_expect(tiles * 4 > LANES * (LOADS - 1), 1)) {
        // The room for a row ends before the last load does, where threads have more than it holds.
#pragma unroll
        for (int j = 0; j < LOADS; j++) load(j, LANES * (j + 1) <= TILES * 4 || sub + LANES * j < TILES * 4);
    } else {
#pragma unroll 1
        for (int j = 0; LANES * j < tiles * 4; j++) load(j, true);
    }
    int staged = __reduce_add_sync(FULL, part);
#pragma unroll
    for (int r = 0; r < ROWS; r++) out[r] = sums[r].template all<LANES>() - staged;
}

__device__ __forceinline__ float result(int acc, float weight_scale, float x_scale) {
    return __fdiv_rn(__fmul_rn(__int2float_rn(acc), weight_scale), x_scale);
}

// Registers of a thread at most. A quarter of a multiprocessor has 16,384, and warps of a block go to the quarters in turn: with
// what follows, blocks of two kernels that follow each other lie side by side. Threads past the keeper leave at once, and
// give their registers back: they keep a second block of the same kernel from a multiprocessor that has room for one of the
// next kernel; see src/placement.rs.
#define QKV_REGISTERS 80
#define GEMV_REGISTERS 64
#define GATE_UP_REGISTERS 96
#define WIDE_REGISTERS 64

// A block of WORKERS threads and the keeper: the norm of a row, and products of ROWS rows for each LANES threads. `copies` says
// where the block's `bytes` of weights are, in `count` pieces, and where they go; a thread's rows are `first` and those `apart`
// from it; `early` asks for what is needed last, and `later` for what that says; `done` takes the products and the row's scale.
// With LATE set the next kernel is started last, not first.
template <bool LATE, int WORKERS, int LANES, int ROWS, int LOADS, int VECS, int TILES, typename Copies, typename Early, typename Later, typename Done>
__device__ __forceinline__ void norm_products(const NormRow &row, u32 tiles, u32 count, u32 bytes, Copies copies, u32 first,
                                              u32 apart, Early early, Later later, Done done, FAULT) {
    extern __shared__ __align__(128) u8 block_memory[];
    Staged<WORKERS, TILES> &s = *(Staged<WORKERS, TILES> *)block_memory;
    if (threadIdx.x >= WORKERS) {
        u32 lane = threadIdx.x & 31, most = 0;
        expect(&s.norm_arrived, row.cols * 4);
        expect(&s.arrived, bytes);
        bring(1, [&](u32) { return Copy{s.w, row.w, row.cols * 4}; }, &s.norm_arrived);
        bring(count, [&](u32 i) { return copies(i, weights_of(s)); }, &s.arrived);
        for (u32 i = lane; i < ZERO_ROWS * 16; i += 32) ((float4 *)s.x)[row.cols / 4 + i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (lane < 16) s.zeros[lane] = make_uint4(0, 0, 0, 0);
        // From here on workers may look at what counts arrivals.
        meet(READY, WORKERS + 32);
        wait_for(&s.norm_arrived);
        for (u32 i = lane; i < row.cols / 4; i += 32) most = max(most, largest_bits(((const float4 *)s.w)[i]));
        bool heavy = warp_max(most) > 0x53800000;
        // One warp waits for all. It was faster in the places where blocks lie, for a reason that we have not found.
        wait_for_previous();
        meet(RELEASED, WORKERS + 32);
        if (!LATE) start_next();
        bool same = keep<WORKERS, VECS>(s, row, heavy);
        if (LATE) start_next();
        meet(MULTIPLIED, WORKERS + 32);
        // Each block stores a part of the row: one that stored all of it would be the last of its kernel.
        if (same) store_row(s, row, threadIdx.x - WORKERS, 32);
        return;
    }
    u32 places[VECS];
#pragma unroll
    for (int j = 0; j < VECS; j++) places[j] = ready_now(in_shared((u32 *)s.xs + place_of(threadIdx.x + j * WORKERS)));
    meet(READY, WORKERS + 32);
    meet(RELEASED, WORKERS + 32);
    stage_guess<WORKERS, VECS>(s, row, places, early, later);
    int acc[ROWS];
    bool finite = true;
#pragma unroll 1
    for (bool again = false;; again = true) {
        products<LANES, ROWS, LOADS>(first, apart, s, tiles, acc);
        if (__builtin_expect(again, 0)) break;
        meet(MULTIPLIED, WORKERS + 32);
        if (__builtin_expect(s.kept, 1)) break;
        finite = stage_again<WORKERS, VECS>(s, row);
    }
    float scale = s.scale;
    done(acc, scale);
    if (__builtin_expect(s.kept, 1)) return;
    if (finite) {
        if (blockIdx.x == 0 && threadIdx.x == 0) *row.scale = scale;
        store_row(s, row, threadIdx.x, WORKERS);
    } else if (blockIdx.x == 0) {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < row.cols; i += WORKERS) {
            float y = __fmul_rn(__fmul_rn(s.x[i], s.factor), s.w[i]);
            if (abs_bits(y) >= INF_BITS) raise_element(FAULT_ARGS, y, i);
        }
    }
}

// The kernels below have at most 128 blocks at the shapes of the 2B-4T model: one on a multiprocessor, so that none waits for
// two, and no norm is made twice on one.

// rms_norm_quantize and a product, stored or added.
#define GEMV_ROWS 20
template <int WORKERS, int LANES, int ROWS, int LOADS, int VECS, int TILES>
__device__ __forceinline__ void norm_gemv_of(const NormRow &row, u32 tiles, const uint4 *w, float *y, u32 n, float scale,
                                             u32 mode, FAULT) {
    static_assert(WORKERS / LANES * ROWS == GEMV_ROWS && ROWS <= 2, "the workers have all rows");
    u32 block = blockIdx.x * GEMV_ROWS, first = threadIdx.x / LANES * ROWS, at = block + first;
    u32 bytes = min((u32)GEMV_ROWS, n - block) * tiles * 64;
    // A thread of its own divides for each row.
    u32 lane = threadIdx.x % LANES, mine = at + lane;
    bool last = lane < ROWS && mine < n;
    float before = 0.0f;
    if (threadIdx.x >= WORKERS + 32) return;
    norm_products<false, WORKERS, LANES, ROWS, LOADS, VECS, TILES>(
        row, tiles, 1, bytes, [&](u32, uint4 *to) { return Copy{to, w + (u64)block * tiles * 4, bytes}; }, first, 1,
        [&]() {
            if (last && mode & ADD) before = y[mine];
        },
        []() {},
        [&](int (&acc)[ROWS], float x_scale) {
            float out = result(ROWS == 2 && lane & 1 ? acc[ROWS - 1] : acc[0], scale, x_scale);
            if (last) y[mine] = mode & ADD ? before + out : out;
        },
        FAULT_ARGS);
}
#define NORM_GEMV(REGISTERS, NAME, WORKERS, LANES, ROWS, LOADS, VECS, TILES)                                              \
    KERNEL __maxnreg__(REGISTERS)                                                                     \
        NAME(const float *x, const float *norm, float eps, u32 cols, i8 *q, float *x_scale, u32 tiles,                 \
             const uint4 *w, float *y, u32 n, float scale, u32 mode, FAULT) {                                          \
        norm_gemv_of<WORKERS, LANES, ROWS, LOADS, VECS, TILES>({x, norm, eps, cols, q, x_scale}, tiles, w, y, n, scale, mode, FAULT_ARGS); \
    }
NORM_GEMV(GEMV_REGISTERS, norm_gemv, 160, 8, 1, 5, 4, 10)
NORM_GEMV(WIDE_REGISTERS, norm_gemv_wide, 320, 32, 2, 4, 6, 28)

// rms_norm_quantize, two products of n rows, and relu_squared_mul of theirs. Eight threads have two rows of both, so that what
// they read of the activations serves four.
#define PAIR_ROWS 56
#define PAIR_WORKERS (PAIR_ROWS / 2 * 8)
KERNEL __maxnreg__(GATE_UP_REGISTERS)
    norm_gate_up(const float *x, const float *norm, float eps, u32 cols, i8 *q, float *x_scale, u32 tiles, const uint4 *w0,
                 float *y0, float s0, const uint4 *w1, float *y1, float s1, float *y, u32 n, FAULT) {
    // A thread's rows are `first` and `first + PAIR_ROWS / 2` of one weight, and then of the other.
    u32 block = blockIdx.x * PAIR_ROWS, first = threadIdx.x / 8, bytes = min((u32)PAIR_ROWS, n - block) * tiles * 64;
    if (threadIdx.x >= PAIR_WORKERS + 32) return;
    norm_products<false, PAIR_WORKERS, 8, 4, 5, 3, 10>(
        {x, norm, eps, cols, q, x_scale}, tiles, 2, 2 * bytes,
        [&](u32 i, uint4 *to) { return Copy{to + i * PAIR_ROWS * tiles * 4, (i ? w1 : w0) + (u64)block * tiles * 4, bytes}; },
        first, PAIR_ROWS / 2, []() {}, []() {},
        [&](int (&acc)[4], float scale) {
            // Four threads divide: the gates of two rows, and what goes up.
            bool second = threadIdx.x & 1, goes_up = threadIdx.x & 2;
            u32 at = block + first + second * (PAIR_ROWS / 2);
            int sum = goes_up ? second ? acc[3] : acc[2] : second ? acc[1] : acc[0];
            float out = result(sum, goes_up ? s1 : s0, scale), up = __shfl_xor_sync(FULL, out, 2), r = fmaxf(out, 0.0f);
            if (threadIdx.x % 8 >= 4 || at >= n) return;
            (goes_up ? y1 : y0)[at] = out;
            if (!goes_up) y[at] = __fmul_rn(__fmul_rn(r, r), up);
        },
        FAULT_ARGS);
}

// rms_norm_quantize, the products q, k and v, the rotation of q and k, and kv_write. Rows come in pairs that turn with each
// other, one from each half of a head: eight threads have one. Values are paired too, though they stay as they are.
#define TURNED_PAIRS 16
#define TURNED_LANES 8
#define TURNED_WORKERS (TURNED_PAIRS * TURNED_LANES)
KERNEL __maxnreg__(QKV_REGISTERS)
    norm_qkv(const float *x, const float *norm, float eps, u32 cols, i8 *q8, float *x_scale, u32 tiles, const uint4 *wq,
             float sq, float *q, const uint4 *wk, float sk, float *k, const uint4 *wv, float sv, float *v, u32 heads,
             u32 kv_heads, u32 half, const u32 *positions, u32 known, const float *cos, const float *sin, u32 capacity,
             float *k_cache, float *v_cache, FAULT, u64 position_seq) {
    u32 pairs = (heads + 2 * kv_heads) * half, block = blockIdx.x * TURNED_PAIRS;
    // Where a pair is: 0, 1 and 2 for q, k and v, the row of its first, and which of the head's it is.
    struct Pair {
        u32 kind, row, e;
    };
    auto place = [&](u32 i) {
        u32 pair = min(block + i, pairs - 1), head = pair / half, e = pair % half;
        u32 kind = head < heads ? 0 : head < heads + kv_heads ? 1 : 2;
        head -= kind == 0 ? 0 : kind == 1 ? heads : heads + kv_heads;
        return Pair{kind, head * 2 * half + e, e};
    };
    Pair mine = place(threadIdx.x / TURNED_LANES);
    // The first thread of a pair's has its first row in the end, the second its second.
    u32 which = threadIdx.x % TURNED_LANES, p = 0;
    bool last = block + threadIdx.x / TURNED_LANES < pairs && which < 2, known_position = false;
    float c = 1.0f, turn = 0.0f;
    // Where a head's half is a whole number of blocks' pairs, the rows of either half lie together.
    bool together = half % TURNED_PAIRS == 0;
    u32 pieces = together ? 2 : 2 * TURNED_PAIRS, piece = 2 * TURNED_PAIRS / pieces;
    if (threadIdx.x >= TURNED_WORKERS + 32) return;
    norm_products<false, TURNED_WORKERS, TURNED_LANES, 2, 5, 5, 10>(
        {x, norm, eps, cols, q8, x_scale}, tiles, pieces, 2 * TURNED_PAIRS * tiles * 64,
        [&](u32 i, uint4 *to) {
            Pair of = place(i * piece % TURNED_PAIRS);
            const uint4 *w = of.kind == 0 ? wq : of.kind == 1 ? wk : wv;
            u64 row = of.row + i * piece / TURNED_PAIRS * half;
            return Copy{to + i * piece * tiles * 4, w + row * tiles * 4, piece * tiles * 64};
        },
        threadIdx.x / TURNED_LANES, TURNED_PAIRS,
        [&]() { p = positions[0]; },
        [&]() {
            known_position = p < min(known, capacity);
            if (known_position && mine.kind < 2) {
                c = cos[(u64)p * half + mine.e], turn = sin[(u64)p * half + mine.e];
            }
        },
        [&](int (&acc)[2], float scale) {
            float out = result(which == 1 ? acc[1] : acc[0], mine.kind == 0 ? sq : mine.kind == 1 ? sk : sv, scale);
            float other = __shfl_xor_sync(FULL, out, 1);
            if (__builtin_expect(!known_position && blockIdx.x == 0 && threadIdx.x == 0, 0))
                raise_fault(fault_word, fault_raised, position_seq, F_INDEX, 0);
            if (!last) return;
            // a * c - b * s and b * c + a * s.
            if (known_position && mine.kind < 2) out = __fmul_rn(out, c) + __fmul_rn(other, which == 0 ? -turn : turn);
            (mine.kind == 0 ? q : mine.kind == 1 ? k : v)[mine.row + which * half] = out;
            if (mine.kind == 0 || !known_position) return;
            (mine.kind == 1 ? k_cache : v_cache)[(u64)p * kv_heads * 2 * half + mine.row + which * half] = out;
        },
        FAULT_ARGS);
}
