// Attention of one row and one query head a block, in the order of docs/numerics.md.
#include "common.cuh"
#include "math.cuh"

// Scores lie in dynamic shared memory, followed by one row of partial sums for each group of threads.
KERNEL attention(const float *q, u32 heads, u32 kv_heads, u32 dim, const u32 *positions, u32 capacity,
                 const float *k_cache, const float *v_cache, float *y, u32 room, FAULT) {
    extern __shared__ float scores[];
    __shared__ u32 maxima[32];
    __shared__ float lanes[64], total;
    u32 row = blockIdx.x / heads, head = blockIdx.x % heads, kv = head / (heads / kv_heads);
    u32 p = positions[row];
    if (p >= capacity || p >= room) {
        if (threadIdx.x == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
    u32 count = p + 1, stride = kv_heads * dim;
    const float *qr = q + (u64)(row * heads + head) * dim;
    const float *kr = k_cache + kv * dim, *vr = v_cache + kv * dim;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    float scale = __fdiv_rn(1.0f, __fsqrt_rn((float)dim));

    // Scores: a warp a position, thread t with lanes t and t + 32. Maxima are compared as ordered integers.
    u32 best = 0;
    for (u32 j = warp; j < count; j += warps) {
        const float *kj = kr + (u64)j * stride;
        float low = 0.0f, high = 0.0f;
        for (u32 i = lane; i < dim; i += 64) {
            low = low + __fmul_rn(qr[i], kj[i]);
            if (i + 32 < dim) high = high + __fmul_rn(qr[i + 32], kj[i + 32]);
        }
        float s = __fmul_rn(fold64(low, high), scale);
        if (lane == 0) scores[j] = s;
        if (s == s) best = max(best, ordered(s));
    }
    best = block_max(best, maxima);
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);

    for (u32 j = threadIdx.x; j < count; j += blockDim.x) scores[j] = exp_negative(scores[j] - largest);
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
    float *parts = scores + room;
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
                float sum = 0.0f;
                u32 end = min(count, c * 64 + 64);
#pragma unroll 8
                for (u32 j = c * 64; j < end; j++) sum = sum + __fmul_rn(scores[j], vr[(u64)j * stride + e]);
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
