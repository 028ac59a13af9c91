// Attention of one row and one query head a block, in the order of docs/numerics.md.
#include "common.cuh"
#include "math.cuh"

// Scores of heads of 128 elements, eight positions a warp at once: 32 loads in flight a thread. Returns the largest of this
// thread's as an ordered integer.
__device__ __forceinline__ u32 scores_of_128(const float *q, const float *k, u32 stride, u32 count, float scale,
                                             float *scores) {
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, best = 0;
    float a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = q[lane + 32 * i];
    for (u32 j0 = warp * 8; j0 < count; j0 += warps * 8) {
        float v[8][4];
#pragma unroll
        for (int c = 0; c < 8; c++) {
            const float *kj = k + (u64)min(j0 + c, count - 1) * stride + lane;
#pragma unroll
            for (int i = 0; i < 4; i++) v[c][i] = kj[32 * i];
        }
#pragma unroll
        for (int c = 0; c < 8; c++) {
            // A lane starts at +0: adding that only matters to the sign of a zero.
            float low = (0.0f + __fmul_rn(a[0], v[c][0])) + __fmul_rn(a[2], v[c][2]);
            float high = (0.0f + __fmul_rn(a[1], v[c][1])) + __fmul_rn(a[3], v[c][3]);
            v[c][0] = __fmul_rn(fold64(low, high), scale);
        }
#pragma unroll
        for (int c = 0; c < 8; c++) {
            if (j0 + c >= count) continue;
            if (lane == 0) scores[j0 + c] = v[c][0];
            if (v[c][0] == v[c][0]) best = max(best, ordered(v[c][0]));
        }
    }
    return best;
}

// Scores lie in dynamic shared memory, followed by one row of partial sums for each group of threads.
KERNEL __launch_bounds__(512) attention(const float *q, u32 heads, u32 kv_heads, u32 dim, const u32 *positions, const u32 *first, u32 capacity,
                 const float *k_cache, const float *v_cache, float *y, u32 room, FAULT) {
    extern __shared__ float scores[];
    __shared__ u32 maxima[32];
    __shared__ float lanes[64], total;
    BEGIN;
    u32 row = blockIdx.x / heads, head = blockIdx.x % heads, kv = head / (heads / kv_heads);
    u32 p = positions[row], from = first ? first[row] : 0;
    if (p >= capacity || from > p || p - from >= room) {
        if (threadIdx.x == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
    u32 count = p - from + 1, stride = kv_heads * dim;
    const float *qr = q + (u64)(row * heads + head) * dim;
    const float *kr = k_cache + (u64)from * stride + kv * dim, *vr = v_cache + (u64)from * stride + kv * dim;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    float scale = __fdiv_rn(1.0f, __fsqrt_rn((float)dim));

    // Scores: a warp a position, thread t with lanes t and t + 32; four positions at once, so that their loads overlap.
    // Maxima are compared as ordered integers.
    u32 best = 0;
    if (dim == 128) best = scores_of_128(qr, kr, stride, count, scale, scores);
    for (u32 j0 = warp * 4; dim != 128 && j0 < count; j0 += warps * 4) {
        float low[4] = {0.0f, 0.0f, 0.0f, 0.0f}, high[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 2
        for (u32 i = lane; i < dim; i += 64) {
            float a = qr[i], b = i + 32 < dim ? qr[i + 32] : 0.0f;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float *kj = kr + (u64)min(j0 + c, count - 1) * stride;
                low[c] = low[c] + __fmul_rn(a, kj[i]);
                if (i + 32 < dim) high[c] = high[c] + __fmul_rn(b, kj[i + 32]);
            }
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float s = __fmul_rn(fold64(low[c], high[c]), scale);
            if (j0 + c >= count) continue;
            if (lane == 0) scores[j0 + c] = s;
            if (s == s) best = max(best, ordered(s));
        }
    }
    best = block_max(best, maxima);
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);

    // The last chunk is filled up with zeros; +0 added to a sum changes nothing.
    for (u32 j = threadIdx.x; j < ((count + 63) & ~63u); j += blockDim.x)
        scores[j] = j < count ? exp_negative(scores[j] - largest) : 0.0f;
    __syncthreads();
    if (threadIdx.x < 64) {
        float sum = 0.0f;
        for (u32 j = threadIdx.x; j < count; j += 64) sum = sum + scores[j];
        lanes[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        float sum = fold64(lanes[threadIdx.x], lanes[threadIdx.x + 32]);
        if (threadIdx.x == 0) total = sum;
    }

    // e * v: each group of threads takes a chunk of 64 positions, a thread its elements of it; then the chunk sums are
    // added in ascending order by the first group.
    float *parts = scores + ((room + 63) & ~63u);
    u32 width = min((dim + 31) & ~31u, blockDim.x), groups = blockDim.x / width;
    u32 group = threadIdx.x / width, e0 = threadIdx.x % width, chunks = (count + 63) / 64;
    for (u32 base = 0; base < dim; base += width) {
        u32 e = base + e0;
        bool live = e < dim && group < groups;
        float out = 0.0f;
        for (u32 c0 = 0; c0 < chunks; c0 += groups) {
            u32 c = c0 + group;
            __syncthreads();
            if (live && c < chunks) {
                // All loads of a chunk are independent; only the additions wait for each other.
                float sum = 0.0f;
                const float *vc = vr + (u64)c * 64 * stride + e;
                u32 live_rows = min(count - c * 64, 64u);
#pragma unroll
                for (u32 part = 0; part < 64; part += 32) {
                    float values[32];
#pragma unroll
                    for (u32 j = 0; j < 32; j++)
                        values[j] = part + j < live_rows ? vc[(u64)(part + j) * stride] : 0.0f;
#pragma unroll
                    for (u32 j = 0; j < 32; j++) sum = sum + __fmul_rn(scores[c * 64 + part + j], values[j]);
                }
                parts[group * width + e0] = sum;
            }
            __syncthreads();
            if (live && group == 0)
                for (u32 g = 0; g < groups && c0 + g < chunks; g++) out = out + parts[g * width + e0];
        }
        __syncthreads();
        if (live && group == 0) y[(u64)(row * heads + head) * dim + e] = __fdiv_rn(out, total);
    }
}
