// Products of ternary weights whose rows have several scales, in the order of docs/numerics.md: one token by dp4a, more on int8
// tensor cores.
//
// A block of a row, which has a scale, is WORDS words of 64 columns. Its exact sum times its scale is a term of lane b mod 64,
// and the fold of the lanes is a tree: lanes whose numbers differ in the highest bit alone are added first. A warp goes through
// its lanes in the order of their bit-reversed numbers, in which those that are added are neighbours, and so are their sums: it
// needs as many sums at once as the tree has levels, whatever the row's length.
//
// Codes are unsigned: the sum of the block's activations is subtracted.
#include "common.cuh"

// Bytes of shared memory of a block of gemm_scales_many, as the host has it.
#define MANY_MEMORY 96256

// What a warp has of 16 weight rows and 8 NT tokens.
template <int NT> struct Terms {
    float v[NT][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 4 * NT; i++) v[i / 4][i % 4] = 0.0f;
    }
    // Addition commutes: who is added to whom does not matter.
    __device__ __forceinline__ void add(const Terms &other) {
#pragma unroll
        for (int i = 0; i < 4 * NT; i++) v[i / 4][i % 4] = __fadd_rn(v[i / 4][i % 4], other.v[i / 4][i % 4]);
    }
};

// The lanes `first`, `first + STEP`, ... of a row's blocks, in the order in which they are added, and the blocks of each.
template <int STEP> struct Visits {
    u32 blocks, lanes, first, height, turns, turn, b;
    __device__ __forceinline__ Visits(u32 blocks, u32 first) : blocks(blocks), lanes(min(blocks, 64u)), first(first), turn(0) {
        u32 mine = lanes > first ? (lanes - first + STEP - 1) / STEP : 0;
        height = mine > 1 ? 32 - __clz(mine - 1) : 0;
        turns = mine ? 1u << height : 0;
        b = mine ? first : blocks;
    }
    // Past the last where that is missing, which only lanes of odd turns can be.
    __device__ __forceinline__ u32 lane() const { return first + STEP * (height ? __brev(turn) >> (32 - height) : 0); }
    __device__ __forceinline__ bool more() const { return b < blocks; }
    __device__ __forceinline__ void next() {
        b += 64;
        if (b < blocks) return;
        turn++;
        if (turn < turns && lane() >= lanes) turn++;
        b = turn < turns ? lane() : blocks;
    }
};

// Copies 4, 8 or 16 bytes.
template <int BYTES> __device__ __forceinline__ void cp_async_small(void *shared, const void *global) {
    u32 s = (u32)__cvta_generic_to_shared(shared);
    if (BYTES == 16) cp_async16(shared, global);
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(s), "l"(global), "n"(BYTES));
}

// A block of the weight rows g and g + 8 of every warp's sixteen. A thread has a quarter of each of the block's words, and reads
// what it has copied itself.
template <int WORDS, int THREADS> struct ScaledBlock {
    u32 codes[2][THREADS][WORDS];
    float scale[2][THREADS];
    __device__ __forceinline__ void fetch(const uint4 *const (&rows)[2], const float *const (&scales)[2], u32 b) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 *at = (const u32 *)(rows[i] + b * WORDS / 4 * 4) + b * WORDS % 4;
            cp_async_small<4 * WORDS>(codes[i][threadIdx.x], at);
            cp_async_small<4>(&scale[i][threadIdx.x], scales[i] + b);
        }
    }
    __device__ __forceinline__ void take(u32 (&to)[2][WORDS], float (&s)[2]) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 *at = codes[i][threadIdx.x];
            if (WORDS == 4) *(uint4 *)to[i] = *(const uint4 *)at;
            else if (WORDS == 2) *(uint2 *)to[i] = *(const uint2 *)at;
            else to[i][0] = *at;
            s[i] = scale[i][threadIdx.x];
        }
    }
};

struct Scaled {
    const uint4 *w;
    const float *scales;
    // Rows of `stride` units of 16 bytes.
    const i8 *x;
    u32 stride;
    // SUM_BIAS less the sum of a block's activations, `padded` tokens a block; only for many tokens.
    const int *begin;
    u32 padded;
    const float *x_scales;
    float *y;
    u32 n, tiles, blocks, m, mode;
    __device__ __forceinline__ void store(u32 row, u32 token, float v) const {
        if (row >= n || token >= m) return;
        float *p = y + (u64)token * n + row;
        // What lanes that begin at +0 come to is never -0.
        v = __fdiv_rn(__fadd_rn(v, 0.0f), x_scales[token]);
        *p = mode & ADD ? *p + v : v;
    }
};

// This thread's two weight rows and their scales.
struct ScaledRows {
    const uint4 *w[2];
    const float *scales[2];
    __device__ __forceinline__ ScaledRows(const Scaled &p, u32 row0) {
        u32 lane = threadIdx.x & 31;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u64 row = min(row0 + (lane >> 2) + 8 * i, p.n - 1);
            w[i] = p.w + row * p.tiles * 4 + (lane & 3);
            scales[i] = p.scales + row * p.blocks;
        }
    }
};

// Goes through the lanes of `visits`: `visit(sums, first)` puts the next block's terms into sums or adds them to these. Sums of
// lanes are folded as they come; `LEVELS` suffice.
template <int LEVELS, int NT, int STEP, class Visit>
__device__ __forceinline__ void fold_lanes(Terms<NT> &s, Visits<STEP> visits, Visit visit) {
    Terms<NT> left[LEVELS];
    s.clear();
#pragma unroll 1
    for (; visits.turn < visits.turns; visits.turn++) {
        u32 l = visits.lane();
        if (l >= visits.lanes) s.clear();
#pragma unroll 1
        for (u32 b = l; b < visits.blocks; b += 64) visit(s, b == l);
        bool up = true;
#pragma unroll
        for (int i = 0; i < LEVELS; i++) {
            if (!up) continue;
            if (visits.turn >> i & 1) s.add(left[i]);
            else left[i] = s, up = false;
        }
    }
}

// A block's terms, put into sums or added to them. `units(q, j)` are the activations of word q of this thread's token of the j-th
// eight. Of the two tokens that its results are of, sums of products begin with `begin(j)`, and `less(j)` is subtracted.
template <int WORDS, int NT, class Begin, class Units, class Less>
__device__ __forceinline__ void add_terms(Terms<NT> &s, bool first, const u32 (&codes)[2][WORDS], const float (&scale)[2],
                                          Begin begin, Units units, Less less) {
    int d[NT][4];
#pragma unroll
    for (int j = 0; j < NT; j++) {
        int2 with = begin(j);
        d[j][0] = d[j][2] = with.x, d[j][1] = d[j][3] = with.y;
    }
#pragma unroll
    for (int q = 0; q < WORDS; q++)
#pragma unroll
        for (int j = 0; j < NT; j++) mma_word(d[j], codes[0][q], codes[1][q], units(q, j));
#pragma unroll
    for (int j = 0; j < NT; j++) {
        int2 sum = less(j);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float acc = __int_as_float(d[j][c] - (c & 1 ? sum.y : sum.x)) - SUM_BIAS_VALUE;
            float term = __fmul_rn(acc, scale[c >> 1]);
            s.v[j][c] = first ? term : __fadd_rn(s.v[j][c], term);
        }
    }
}

#define SCALED_PARAMETERS                                                                                              \
    const uint4 *w, const float *scales, const i8 *x, u32 stride, const int *begin, u32 padded, const float *x_scales, \
        float *y, u32 n, u32 tiles, u32 blocks, u32 words, u32 m, u32 mode
#define SCALED {w, scales, x, stride, begin, padded, x_scales, y, n, tiles, blocks, m, mode}

// One token. A warp has a weight row at a time, whose tiles go round its eight quads of threads: so a thread's blocks are in few
// of the 64 lanes, which it keeps apart in registers, and those of a warp's threads are the others.
#define ONE_THREADS 256
template <int WORDS, int LOADS> __device__ __forceinline__ void gemv_scales(const Scaled &p, uint4 *xs) {
    // Blocks of a tile; lanes of a thread, and of those as many as it has blocks in.
    constexpr int BLOCKS = 4 / WORDS, LANES = 64 / (8 * BLOCKS), USED = LANES < LOADS ? LANES : LOADS;
    u32 lane = threadIdx.x & 31, quad = lane >> 2, t = lane & 3, first = quad * BLOCKS + t / WORDS;
    u32 row = blockIdx.x * (ONE_THREADS / 32) + (threadIdx.x >> 5), step = gridDim.x * (ONE_THREADS / 32);
    uint4 v[LOADS];
    float scale[LOADS];
    auto ask = [&](u32 row) {
        if (row >= p.n) return;
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            u32 tile = quad + 8 * j, b = first + 8 * BLOCKS * j;
            v[j] = tile < p.tiles ? __ldg(p.w + ((u64)row * p.tiles + tile) * 4 + t) : make_uint4(0, 0, 0, 0);
            scale[j] = b < p.blocks ? __ldg(p.scales + (u64)row * p.blocks + b) : 0.0f;
        }
    };
    // The sum of a block, of which four threads have parts for each of four words.
    auto whole = [&](int (&part)[4]) {
        if (WORDS == 1) {
            bool upper = t & 2, odd = t & 1;
            int a = upper ? part[2] : part[0], b = upper ? part[3] : part[1];
            a += __shfl_xor_sync(FULL, upper ? part[0] : part[2], 2);
            b += __shfl_xor_sync(FULL, upper ? part[1] : part[3], 2);
            return (odd ? b : a) + __shfl_xor_sync(FULL, odd ? a : b, 1);
        }
        int a = part[0] + part[1], b = part[2] + part[3];
        if (WORDS == 2) a = (t & 2 ? b : a) + __shfl_xor_sync(FULL, t & 2 ? a : b, 2);
        else a += b, a += __shfl_xor_sync(FULL, a, 2);
        return a + __shfl_xor_sync(FULL, a, 1);
    };
    ask(row);
    start_next();
    wait_for_previous();
    u32 units = p.blocks * WORDS * 4;
    for (u32 u = threadIdx.x; u < 8 * LOADS * 16; u += ONE_THREADS)
        xs[(u >> 4) * 20 + (u & 15)] = u < units ? ((const uint4 *)p.x)[u] : make_uint4(0, 0, 0, 0);
    __syncthreads();
    int less[LOADS];
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        int part[4];
#pragma unroll
        for (int q = 0; q < 4; q++) part[q] = sum16(xs[(quad + 8 * j) * 20 + 4 * q + t], 0);
        less[j] = whole(part);
    }
    for (; row < p.n; row += step) {
        uint4 now[LOADS];
        float lanes[USED], by[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++) now[j] = v[j], by[j] = scale[j];
        ask(row + step);
#pragma unroll
        for (int i = 0; i < USED; i++) lanes[i] = 0.0f;
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            int part[4];
#pragma unroll
            for (int q = 0; q < 4; q++) part[q] = dot_word(pick(now[j], q), xs[(quad + 8 * j) * 20 + 4 * q + t], 0);
            // What is not there adds +0, which changes nothing: lanes begin at +0.
            float term = __fmul_rn(__int2float_rn(whole(part) - less[j]), by[j]);
            lanes[j % LANES] = __fadd_rn(lanes[j % LANES], term);
        }
#pragma unroll
        for (int h = LANES / 2; h; h >>= 1)
#pragma unroll
            for (int i = 0; i < h; i++)
                if (i + h < USED) lanes[i] = __fadd_rn(lanes[i], lanes[i + h]);
#pragma unroll
        for (int h = 16; h >= WORDS; h >>= 1) lanes[0] = __fadd_rn(lanes[0], __shfl_xor_sync(FULL, lanes[0], h));
        if (lane == 0) p.store(row, 0, lanes[0]);
    }
}
#define GEMV_SCALES(NAME, LOADS, BLOCKS)                                                                               \
    KERNEL __launch_bounds__(ONE_THREADS, BLOCKS) NAME(SCALED_PARAMETERS) {                                            \
        __shared__ uint4 xs[8 * LOADS * 20];                                                                           \
        Scaled p = SCALED;                                                                                             \
        if (words == 4) gemv_scales<4, LOADS>(p, xs);                                                                  \
        else if (words == 2) gemv_scales<2, LOADS>(p, xs);                                                             \
        else gemv_scales<1, LOADS>(p, xs);                                                                             \
    }
GEMV_SCALES(gemv_scales, 2, 4)
GEMV_SCALES(gemv_scales_long, 4, 3)

// Up to 8 NT tokens: eight warps deal the lanes of 16 rows among themselves, and meet in shared memory.
#define FEW_THREADS 256
template <int WORDS, int NT>
__device__ __forceinline__ void sum_lanes(Terms<NT> &s, const Scaled &p, u8 *memory, u32 row0, u32 m0, u32 warp) {
    // Blocks on their way: 40 kB at most.
    constexpr int AHEAD = WORDS == 4 ? 4 : WORDS == 2 ? 6 : 8;
    auto *ring = (ScaledBlock<WORDS, FEW_THREADS> *)memory;
    u32 lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    ScaledRows rows(p, row0);
    Visits<8> visits(p.blocks, warp), fetched = visits;
    auto fetch = [&](u32 slot) {
        if (fetched.more()) {
            ring[slot].fetch(rows.w, rows.scales, fetched.b);
            fetched.next();
        }
        asm volatile("cp.async.commit_group;");
    };
    for (int i = 0; i < AHEAD - 1; i++) fetch(i);
    wait_for_previous();
    const uint4 *from[NT];
#pragma unroll
    for (int j = 0; j < NT; j++) from[j] = (const uint4 *)p.x + (u64)min(m0 + 8 * j + g, p.m - 1) * p.stride + t;
    u32 slot = 0;
    Visits<8> now = visits;
    fold_lanes<3>(s, visits, [&](Terms<NT> &s, bool first) {
        fetch((slot + AHEAD - 1) % AHEAD);
        uint4 units[WORDS][NT];
        int part[NT];
#pragma unroll
        for (int j = 0; j < NT; j++) part[j] = 0;
#pragma unroll
        for (int q = 0; q < WORDS; q++)
#pragma unroll
            for (int j = 0; j < NT; j++) units[q][j] = from[j][(now.b * WORDS + q) * 4];
        now.next();
        asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD - 1) : "memory");
        u32 codes[2][WORDS];
        float scale[2];
        ring[slot].take(codes, scale);
        slot = slot + 1 == AHEAD ? 0 : slot + 1;
        add_terms<WORDS, NT>(
            s, first, codes, scale, [](int) { return make_int2(SUM_BIAS, SUM_BIAS); },
            [&](int q, int j) {
                part[j] = sum16(units[q][j], part[j]);
                return units[q][j];
            },
            [&](int j) {
                part[j] += __shfl_xor_sync(FULL, part[j], 1);
                part[j] += __shfl_xor_sync(FULL, part[j], 2);
                return make_int2(__shfl_sync(FULL, part[j], 8 * t), __shfl_sync(FULL, part[j], 8 * t + 4));
            });
    });
}
template <int NT> __device__ __forceinline__ void gemm_scales(const Scaled &p, u32 words) {
    __shared__ __align__(16) u8 memory[4 * sizeof(ScaledBlock<4, FEW_THREADS>)];
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row0 = blockIdx.x * 16, m0 = blockIdx.y * 8 * NT;
    start_next();
    Terms<NT> s;
    if (words == 4) sum_lanes<4, NT>(s, p, memory, row0, m0, warp);
    else if (words == 2) sum_lanes<2, NT>(s, p, memory, row0, m0, warp);
    else sum_lanes<1, NT>(s, p, memory, row0, m0, warp);
    // Nobody needs the blocks any more.
    __syncthreads();
    auto *parts = (float(*)[128 * NT])memory;
#pragma unroll
    for (int j = 0; j < NT; j++)
        *(float4 *)(parts[warp] + (j * 32 + lane) * 4) = make_float4(s.v[j][0], s.v[j][1], s.v[j][2], s.v[j][3]);
    __syncthreads();
    for (u32 i = threadIdx.x; i < 128 * NT; i += FEW_THREADS) {
        float v[8];
#pragma unroll
        for (int l = 0; l < 8; l++) v[l] = parts[l][i];
#pragma unroll
        for (int h = 4; h; h >>= 1)
#pragma unroll
            for (int l = 0; l < h; l++) v[l] = __fadd_rn(v[l], v[l + h]);
        u32 c = i & 3, of = i >> 2 & 31;
        p.store(row0 + (of >> 2) + 8 * (c >> 1), m0 + 8 * (i >> 7) + 2 * (of & 3) + (c & 1), v[0]);
    }
}
#define GEMM_SCALES(NT)                                                                                                \
    KERNEL __launch_bounds__(FEW_THREADS) gemm_scales_##NT(SCALED_PARAMETERS) { gemm_scales<NT>(SCALED, words); }
GEMM_SCALES(1)
GEMM_SCALES(2)
GEMM_SCALES(4)

// Many tokens: a block has 64 rows and 64 tokens, a warp 16 rows and 8 MANY tokens, and all lanes of them. All warps are at the
// same block of columns, whose activations they share.
#define MANY 4
#define MANY_THREADS (1024 / MANY)
template <int WORDS> struct Columns {
    // Rows of so many units keep the 16-byte reads free of conflicts.
    static const int UNITS = 4 * WORDS, ROW = WORDS == 1 ? UNITS : UNITS + 4, COPIES = 64 * UNITS / MANY_THREADS;
    uint4 x[64][ROW];
    ScaledBlock<WORDS, MANY_THREADS> w;
    // What sums of products begin with.
    int begin[64];
};
template <int WORDS> __device__ __forceinline__ void sum_all(Terms<MANY> &s, const Scaled &p, u8 *memory, u32 row0, u32 m0) {
    typedef Columns<WORDS> Stage;
    constexpr int STAGES = MANY_MEMORY / sizeof(Stage) < 8 ? MANY_MEMORY / sizeof(Stage) : 8;
    auto *stages = (Stage *)memory;
    u32 lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, mine = threadIdx.x / 128 * (8 * MANY);
    ScaledRows rows(p, row0 + threadIdx.x / 32 % 4 * 16);
    Visits<1> visits(p.blocks, 0), fetched = visits;
    // A thread brings the same unit of every so many tokens.
    u32 unit = threadIdx.x % Stage::UNITS, token = threadIdx.x / Stage::UNITS, from[Stage::COPIES];
#pragma unroll
    for (int i = 0; i < Stage::COPIES; i++) from[i] = min(m0 + token + i * (64 / Stage::COPIES), p.m - 1) * p.stride + unit;
    auto fetch = [&](u32 stage) {
        if (fetched.more()) {
            Stage &to = stages[stage];
            u32 b = fetched.b;
            to.w.fetch(rows.w, rows.scales, b);
            if (threadIdx.x < 16) cp_async16(to.begin + 4 * threadIdx.x, p.begin + b * p.padded + m0 + 4 * threadIdx.x);
#pragma unroll
            for (int i = 0; i < Stage::COPIES; i++)
                cp_async16(&to.x[token + i * (64 / Stage::COPIES)][unit], (const uint4 *)p.x + (from[i] + b * Stage::UNITS));
            fetched.next();
        }
        asm volatile("cp.async.commit_group;");
    };
    for (int i = 0; i < STAGES - 1; i++) fetch(i);
    u32 stage = 0;
    fold_lanes<6>(s, visits, [&](Terms<MANY> &s, bool first) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        // These columns are there for all, and nobody uses those before them any more.
        __syncthreads();
        const Stage &now = stages[stage];
        fetch(stage == 0 ? STAGES - 1 : stage - 1);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        u32 codes[2][WORDS];
        float scale[2];
        now.w.take(codes, scale);
        add_terms<WORDS, MANY>(
            s, first, codes, scale, [&](int j) { return *(const int2 *)(now.begin + mine + 8 * j + 2 * t); },
            [&](int q, int j) { return now.x[mine + 8 * j + g][4 * q + t]; }, [](int) { return make_int2(0, 0); });
    });
}
KERNEL __launch_bounds__(MANY_THREADS) gemm_scales_many(SCALED_PARAMETERS) {
    extern __shared__ __align__(16) u8 scales_memory[];
    u32 lane = threadIdx.x & 31, row0 = blockIdx.x * 64, m0 = blockIdx.y * 64;
    BEGIN;
    Scaled p = SCALED;
    Terms<MANY> s;
    if (words == 4) sum_all<4>(s, p, scales_memory, row0, m0);
    else if (words == 2) sum_all<2>(s, p, scales_memory, row0, m0);
    else sum_all<1>(s, p, scales_memory, row0, m0);
    row0 += threadIdx.x / 32 % 4 * 16 + (lane >> 2), m0 += threadIdx.x / 128 * (8 * MANY) + 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < MANY; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) p.store(row0 + 8 * (c >> 1), m0 + 8 * j + (c & 1), s.v[j][c]);
}

// What sums of products begin with: SUM_BIAS less the sum of the activations of each block, `padded` tokens a block. A block of
// threads has a token; x is aligned to 16 bytes.
KERNEL __launch_bounds__(256) sum_blocks(const i8 *x, u32 stride, u32 blocks, u32 words, u32 padded, int *begin) {
    BEGIN;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, token = blockIdx.x;
    const uint4 *row = (const uint4 *)x + (u64)token * stride;
    u32 units = words * 4;
    for (u32 first = warp * (32 / units); first < blocks; first += 8 * (32 / units)) {
        // As many blocks at once as a warp has units of 16 bytes for.
        u32 b = first + lane / units;
        int sum = b < blocks ? sum16(row[first * units + lane], 0) : 0;
        for (u32 h = units / 2; h; h >>= 1) sum += __shfl_xor_sync(FULL, sum, h);
        if (lane % units == 0 && b < blocks) begin[b * padded + token] = SUM_BIAS - sum;
    }
}
