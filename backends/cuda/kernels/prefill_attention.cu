// Attention of many rows with heads of 128 elements, in the order of docs/numerics.md: scores, their weights, and values, each a
// kernel of its own, with the scores in device memory between them.
//
// Query heads that share a key/value head are rows of one matrix, `line` token * group + head of it. So a tile of keys or values
// in shared memory serves all of a tile of lines. Every thread computes whole dot products: the fold of 64 lanes is a fixed tree of
// additions, which one thread can go through depth first, with six sums held at most.
#include "common.cuh"
#include "math.cuh"

#define SCORE_LINES 64
#define CHUNK_POSITIONS 64
// 16-byte units of a line of 128 floats in shared memory, with one of padding: lines next to each other are in other banks.
#define LINE_UNITS 33

// How many positions a line sees; none if its token's position is out of range, or the line is past the end.
__device__ __forceinline__ u32 seen_by(u32 line, u32 lines, u32 group, const u32 *positions, u32 capacity) {
    if (line >= lines) return 0;
    u32 p = positions[line / group];
    return p < capacity ? p + 1 : 0;
}

// 16 dot products at once: their nodes of the fold at depth DEPTH, from 2^DEPTH units on. A unit has what lanes a and a + 32 sum.
template <int DEPTH> __device__ __forceinline__ void fold_tree(float (&out)[4][4], const float4 *q, const float4 *k) {
    if constexpr (DEPTH == 0) {
        float4 a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = q[16 * i * LINE_UNITS];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float4 b = k[16 * j * LINE_UNITS];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // Lanes start at +0, which matters to the sign of a zero alone; and that to no weight.
                float low = __fmul_rn(a[i].x, b.x) + __fmul_rn(a[i].y, b.y);
                float high = __fmul_rn(a[i].z, b.z) + __fmul_rn(a[i].w, b.w);
                out[i][j] = low + high;
            }
        }
    } else {
        float other[4][4];
        fold_tree<DEPTH - 1>(out, q, k);
        fold_tree<DEPTH - 1>(other, q + (1 << (DEPTH - 1)), k + (1 << (DEPTH - 1)));
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) out[i][j] = out[i][j] + other[i][j];
    }
}

// A line of 128 floats into shared memory, by a warp: unit u has elements a, a + 64, a + 32 and a + 96, where a has the bits of u in
// reverse order, so that neighbours are what the fold adds first.
__device__ __forceinline__ void stage_line(float4 *to, const float *from) {
    u32 lane = threadIdx.x & 31, a = __brev(lane) >> 27;
    to[lane] = make_float4(from[a], from[a + 64], from[a + 32], from[a + 96]);
}

// Scores of 64 lines and 64 positions a block; `room` is how far lines of scores are apart, a multiple of 64.
KERNEL __launch_bounds__(256, 2)
    prefill_scores(const float *q, u32 heads, u32 kv_heads, const u32 *positions, u32 capacity, const float *k_cache, u32 rows,
                   float *scores, u32 room) {
    extern __shared__ float4 units[];
    BEGIN;
    u32 group = heads / kv_heads, lines = rows * group, kv = blockIdx.x % kv_heads;
    u32 first_line = blockIdx.x / kv_heads * SCORE_LINES, first = blockIdx.y * CHUNK_POSITIONS, t = threadIdx.x;
    // Nothing to do where no line sees the chunk.
    if (!__syncthreads_or(t < SCORE_LINES && seen_by(first_line + t, lines, group, positions, capacity) > first)) return;
    float4 *qs = units, *ks = units + SCORE_LINES * LINE_UNITS;
    u32 warp = t >> 5, lane = t & 31;
#pragma unroll 4
    for (u32 i = warp; i < 64; i += 8) {
        u32 line = min(first_line + i, lines - 1), row = line / group, head = kv * group + line % group;
        stage_line(qs + i * LINE_UNITS, q + ((u64)row * heads + head) * 128);
        u32 position = min(first + i, capacity - 1);
        stage_line(ks + i * LINE_UNITS, k_cache + ((u64)position * kv_heads + kv) * 128);
    }
    __syncthreads();
    u32 tx = (warp & 1) * 8 + (lane & 7), ty = (warp >> 1) * 4 + (lane >> 3);
    float sum[4][4], left[4][4], before[4][4];
    // Four quarters of the tree, (0 + 1) + (2 + 3): unrolled in whole, the code would not stay in the instruction cache.
#pragma unroll 1
    for (u32 part = 0; part < 4; part++) {
        fold_tree<3>(sum, qs + ty * LINE_UNITS + 8 * part, ks + tx * LINE_UNITS + 8 * part);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (part & 1) sum[i][j] = before[i][j] + sum[i][j];
                if (part == 1) left[i][j] = sum[i][j];
                if (part == 3) sum[i][j] = left[i][j] + sum[i][j];
                before[i][j] = sum[i][j];
            }
    }
    float scale = __fdiv_rn(1.0f, __fsqrt_rn(128.0f));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 line = first_line + ty + 16 * i;
        if (line >= lines) continue;
        float *to = scores + ((u64)kv * lines + line) * room + first + tx;
#pragma unroll
        for (int j = 0; j < 4; j++) to[16 * j] = __fmul_rn(sum[i][j], scale);
    }
}

// Scores to weights, in place, of a line that sees `count` positions: their sum by lanes. The last chunk is filled up with zeros.
// KEPT: all scores of the line lie in the registers of its warp, which asks for them at once. Otherwise they are read twice.
template <int KEPT> __device__ __forceinline__ float weigh(float *s, u32 count, u32 lane) {
    float v[KEPT ? KEPT : 1];
    u32 best = 0;
    if (KEPT) {
#pragma unroll
        for (int i = 0; i < KEPT; i++) v[i] = lane + 32 * i < count ? s[lane + 32 * i] : __uint_as_float(0x7fc00000u);
#pragma unroll
        for (int i = 0; i < KEPT; i++)
            if (v[i] == v[i]) best = max(best, ordered(v[i]));
    } else {
#pragma unroll 8
        for (u32 j = lane; j < count; j += 32) {
            float one = s[j];
            if (one == one) best = max(best, ordered(one));
        }
    }
    best = warp_max(best);
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u), low = 0.0f, high = 0.0f;
    auto both = [&](u32 j, float first, float second) {
        float a = j < count ? exp_negative(first - largest) : 0.0f, b = j + 32 < count ? exp_negative(second - largest) : 0.0f;
        s[j] = a, s[j + 32] = b;
        low = low + a, high = high + b;
    };
    if (KEPT) {
#pragma unroll
        for (int i = 0; i < KEPT; i += 2)
            if (32 * i < count) both(lane + 32 * i, v[i], v[i + 1]);
    } else {
#pragma unroll 4
        for (u32 j = lane; j < ((count + 63) & ~63u); j += 64) both(j, j < count ? s[j] : 0.0f, j + 32 < count ? s[j + 32] : 0.0f);
    }
    return fold64(low, high);
}

// A warp a line.
KERNEL __launch_bounds__(256) prefill_weights(u32 heads, u32 kv_heads, const u32 *positions, u32 capacity, u32 rows, u32 first_row,
                                              float *scores, u32 room, float *totals, FAULT) {
    BEGIN;
    u32 group = heads / kv_heads, lines = rows * group, at = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (at >= lines * kv_heads) return;
    u32 line = at % lines, count = seen_by(line, lines, group, positions, capacity);
    if (count == 0) {
        if (lane == 0) raise_fault(FAULT_ARGS, F_INDEX, first_row + line / group);
        return;
    }
    float *s = scores + (u64)at * room;
    float total = count <= 256 ? weigh<8>(s, count, lane) : count <= 512 ? weigh<16>(s, count, lane) : weigh<0>(s, count, lane);
    if (lane == 0) totals[at] = total;
}

#define VALUE_LINES 32
// Units of 16 bytes: 64 weights of a line with one of padding, 64 of the 128 elements of a value, and both of a chunk.
#define WEIGHT_UNITS 17
#define VALUE_UNITS 16
#define STAGE_UNITS (VALUE_LINES * WEIGHT_UNITS + CHUNK_POSITIONS * VALUE_UNITS)

// Sums of a chunk: four lines and four elements a thread. MASKED: some lines do not see all of it, and what a line does not see may
// be anything.
template <bool MASKED>
__device__ __forceinline__ void add_chunk(float (&sum)[4][4], const float4 *weights, const float4 *values, const u32 (&left)[4]) {
#pragma unroll 2
    for (u32 j = 0; j < CHUNK_POSITIONS; j += 4) {
        float e[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 w = weights[8 * i * WEIGHT_UNITS + j / 4];
            e[i][0] = w.x, e[i][1] = w.y, e[i][2] = w.z, e[i][3] = w.w;
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float4 v = values[(j + c) * VALUE_UNITS];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (MASKED && j + c >= left[i]) continue;
                sum[i][0] = sum[i][0] + __fmul_rn(e[i][c], v.x);
                sum[i][1] = sum[i][1] + __fmul_rn(e[i][c], v.y);
                sum[i][2] = sum[i][2] + __fmul_rn(e[i][c], v.z);
                sum[i][3] = sum[i][3] + __fmul_rn(e[i][c], v.w);
            }
        }
    }
}

// Weights times values: 32 lines and half of the elements a block, a chunk of positions at a time, the next one on its way. The
// tokens that see most come first.
KERNEL __launch_bounds__(128, 4)
    prefill_values(u32 heads, u32 kv_heads, const u32 *positions, u32 capacity, const float *v_cache, u32 rows,
                   const float *scores, u32 room, const float *totals, float *y) {
    extern __shared__ float4 units[];
    __shared__ u32 counts[VALUE_LINES], most, least;
    BEGIN;
    u32 group = heads / kv_heads, lines = rows * group, t = threadIdx.x, warp = t >> 5, lane = t & 31;
    u32 half = blockIdx.x & 1, kv = blockIdx.x / 2 % kv_heads;
    u32 tiles = (lines + VALUE_LINES - 1) / VALUE_LINES, first_line = (tiles - 1 - blockIdx.x / 2 / kv_heads) * VALUE_LINES;
    if (t < 32) {
        u32 count = seen_by(first_line + t, lines, group, positions, capacity);
        counts[t] = count;
        u32 all = warp_max(count), fewest = __reduce_min_sync(FULL, first_line + t < lines ? count : FULL);
        if (t == 0) most = all, least = fewest;
    }
    __syncthreads();
    u32 chunks = (most + CHUNK_POSITIONS - 1) / CHUNK_POSITIONS, tx = (warp & 1) * 8 + (lane & 7), ty = (warp >> 1) * 4 + (lane >> 3);
    auto fetch = [&](u32 chunk) {
        float4 *weights = units + (chunk & 1) * STAGE_UNITS, *values = weights + VALUE_LINES * WEIGHT_UNITS;
        u32 unit = t & 15;
#pragma unroll
        for (u32 i = t >> 4; i < VALUE_LINES; i += 8) {
            u32 line = min(first_line + i, lines - 1);
            cp_async16(weights + i * WEIGHT_UNITS + unit,
                       scores + ((u64)kv * lines + line) * room + chunk * CHUNK_POSITIONS + 4 * unit);
        }
#pragma unroll
        for (u32 i = t >> 4; i < CHUNK_POSITIONS; i += 8) {
            u32 position = min(chunk * CHUNK_POSITIONS + i, capacity - 1);
            cp_async16(values + i * VALUE_UNITS + unit, v_cache + ((u64)position * kv_heads + kv) * 128 + half * 64 + 4 * unit);
        }
    };
    float out[4][4] = {};
    if (chunks) fetch(0);
    asm volatile("cp.async.commit_group;");
    for (u32 chunk = 0; chunk < chunks; chunk++) {
        if (chunk + 1 < chunks) fetch(chunk + 1);
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        const float4 *weights = units + (chunk & 1) * STAGE_UNITS, *values = weights + VALUE_LINES * WEIGHT_UNITS + tx;
        weights += ty * WEIGHT_UNITS;
        float sum[4][4] = {};
        u32 left[4], before = chunk * CHUNK_POSITIONS;
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = counts[ty + 8 * i] - min(counts[ty + 8 * i], before);
        if (before + CHUNK_POSITIONS <= least) add_chunk<false>(sum, weights, values, left);
        else add_chunk<true>(sum, weights, values, left);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) out[i][c] = out[i][c] + sum[i][c];
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 line = first_line + ty + 8 * i;
        if (counts[ty + 8 * i] == 0) continue;
        float total = totals[(u64)kv * lines + line];
        float *to = y + ((u64)(line / group) * heads + kv * group + line % group) * 128 + half * 64 + 4 * tx;
        *(float4 *)to = make_float4(__fdiv_rn(out[i][0], total), __fdiv_rn(out[i][1], total), __fdiv_rn(out[i][2], total),
                                    __fdiv_rn(out[i][3], total));
    }
}
