// Attention with rows of several sequences: a few rows that see many positions each, of which none sees what another does.
#include "common.cuh"
#include "math.cuh"

// Attention of a row's four query heads that share a key/value head of 128 elements, a block: keys and values are read once
// for all four. In the order of docs/numerics.md. Both caches are brought nearer before the kernel waits: but for the last
// row, nothing that runs before it writes them.
#define GROUP_THREADS 512
// 128 floats, aligned to 16 bytes or not brought nearer.
__device__ __forceinline__ void prefetch_head(const float *from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (((u64)from & 15) == 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "n"(512));
#else
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + 32 * i));
#endif
}
// Half of 2 N values go to the thread that adds them to its own, the other half come from it.
template <int N> __device__ __forceinline__ void share(float (&s)[16], bool upper) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        float given = upper ? s[i] : s[i + N], kept = upper ? s[i + N] : s[i];
        s[i] = kept + __shfl_xor_sync(FULL, given, 2 * N);
    }
}
// Sixteen values of one element, `bytes` apart, times the weights of their positions, added to the sums of four heads.
__device__ __forceinline__ void weigh(float (&sum)[4], const float4 *weights, const char *v, u64 bytes, u32 live) {
    float values[16];
#pragma unroll
    for (u32 j = 0; j < 16; j++) {
        values[j] = j < live ? *(const float *)v : 0.0f;
        v += bytes;
    }
#pragma unroll
    for (u32 j = 0; j < 16; j++) {
        float4 w = weights[j];
        sum[0] = sum[0] + __fmul_rn(w.x, values[j]);
        sum[1] = sum[1] + __fmul_rn(w.y, values[j]);
        sum[2] = sum[2] + __fmul_rn(w.z, values[j]);
        sum[3] = sum[3] + __fmul_rn(w.w, values[j]);
    }
}

// The same for the positions of a chunk, of which `live` are there.
__device__ __forceinline__ void chunk_sum(float (&sum)[4], const float4 *weights, const float *v, u32 stride, u32 live) {
    u64 bytes = (u64)stride * 4;
    const char *from = (const char *)v;
    if (live == 64) {
#pragma unroll
        for (u32 j = 0; j < 64; j += 16) weigh(sum, weights + j, from + j * bytes, bytes, 16);
    } else {
        // Past the last position weights are zeros, and sixteen of them add nothing.
        for (u32 j = 0; j < live; j += 16) weigh(sum, weights + j, from + j * bytes, bytes, live - j);
    }
}

KERNEL __launch_bounds__(GROUP_THREADS, 2)
    attention_group(const float *q, u32 heads, u32 kv_heads, const u32 *positions, const u32 *first, u32 capacity,
                    const float *k_cache, const float *v_cache, float *y, u32 room, FAULT) {
    // The scores of a position, one for each head; `room` of them, a multiple of 64.
    extern __shared__ float4 group_scores[];
    __shared__ u32 maxima[4];
    __shared__ float lanes[4][64], parts[4][4][128], total[4];
    u32 row = blockIdx.x / kv_heads, kv = blockIdx.x % kv_heads, stride = kv_heads * 128;
    u32 t = threadIdx.x, warp = t >> 5, lane = t & 31;
    start_next();
    {
        // All keys before the first values: scores are what is computed first.
        u32 begin = (first ? first[row] : 0) + t, end = min(positions[row], capacity);
#pragma unroll
        for (int c = 0; c < 2; c++)
            for (u32 j = begin; j < end; j += GROUP_THREADS) prefetch_head((c ? v_cache : k_cache) + (u64)j * stride + kv * 128);
    }
    if (t < 4) maxima[t] = 0;
    wait_for_previous();
    __syncthreads();
    u32 p = positions[row], from = first ? first[row] : 0;
    if (p >= capacity || from > p || p - from >= room) {
        if (t == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
    u32 count = p - from + 1, chunks = (count + 63) / 64;
    const float *k = k_cache + (u64)from * stride + kv * 128, *v = v_cache + (u64)from * stride + kv * 128;
    const float *mine = q + ((u64)row * heads + kv * 4) * 128;
    float a[4][4];
#pragma unroll
    for (int h = 0; h < 4; h++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[h][i] = mine[h * 128 + lane + 32 * i];
    float factor = __fdiv_rn(1.0f, __fsqrt_rn(128.0f));
    // Four positions of four heads at once; thread t ends with head t / 2 % 4 of position t / 8.
    u32 best = 0, c = lane >> 3, h = lane >> 1 & 3;
    for (u32 j0 = warp * 4; j0 < count; j0 += GROUP_THREADS / 8) {
        float b[4][4], s[16];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *key = k + (u64)min(j0 + i, count - 1) * stride + lane;
#pragma unroll
            for (int e = 0; e < 4; e++) b[i][e] = key[32 * e];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float *qh = a[i & 3], *key = b[i >> 2];
            // A lane starts at +0, which only matters to the sign of a zero, and that to no exponential: left out.
            float low = __fmul_rn(qh[0], key[0]) + __fmul_rn(qh[2], key[2]);
            float high = __fmul_rn(qh[1], key[1]) + __fmul_rn(qh[3], key[3]);
            s[i] = low + high;
        }
        share<8>(s, lane & 16);
        share<4>(s, lane & 8);
        share<2>(s, lane & 4);
        share<1>(s, lane & 2);
        float score = __fmul_rn(s[0] + __shfl_xor_sync(FULL, s[0], 1), factor);
        if (j0 + c < count) {
            if ((lane & 1) == 0) ((float *)group_scores)[(j0 + c) * 4 + h] = score;
            if (score == score) best = max(best, ordered(score));
        }
    }
    best = max(best, __shfl_xor_sync(FULL, best, 8));
    best = max(best, __shfl_xor_sync(FULL, best, 16));
    if (lane < 8 && (lane & 1) == 0) atomicMax(&maxima[h], best);
    __syncthreads();
    best = maxima[t & 3];
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);
    // The last chunk is filled up with zeros; +0 added to a sum changes nothing.
    for (u32 i = t; i < chunks * 256; i += GROUP_THREADS) {
        float *score = (float *)group_scores + i;
        *score = i < count * 4 ? exp_negative(*score - largest) : 0.0f;
    }
    __syncthreads();
    if (t < 256) {
        float sum = 0.0f;
        for (u32 j = t & 63; j < count; j += 64) sum = sum + ((const float *)group_scores)[j * 4 + (t >> 6)];
        lanes[t >> 6][t & 63] = sum;
    }
    __syncthreads();
    if (warp < 4) {
        float sum = fold64(lanes[warp][lane], lanes[warp][lane + 32]);
        if (lane == 0) total[warp] = sum;
    }
    // Each 128 threads take a chunk of 64 positions, a thread one element for all four heads; then the chunk sums of a head
    // are added in ascending order by the threads of that head.
    u32 part = t >> 7, e = t & 127;
    float out = 0.0f;
    for (u32 c0 = 0; c0 < chunks; c0 += 4) {
        u32 chunk = c0 + part;
        if (chunk < chunks) {
            float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            chunk_sum(sum, group_scores + chunk * 64, v + (u64)chunk * 64 * stride + e, stride,
                      min(count - chunk * 64, 64u));
#pragma unroll
            for (int i = 0; i < 4; i++) parts[part][i][e] = sum[i];
        }
        __syncthreads();
        for (u32 g = 0; g < 4 && c0 + g < chunks; g++) out = out + parts[g][part][e];
        __syncthreads();
    }
    y[((u64)row * heads + kv * 4 + part) * 128 + e] = __fdiv_rn(out, total[part]);
}

// The same by two blocks: each has half of the scores, which it sends to the other, and then half of the elements. So there
// are twice as many blocks, which 132 multiprocessors share out better than one or two each.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define PAIR_THREADS 256
// The address of something of this block's shared memory in the block of that rank.
__device__ __forceinline__ u32 in_block(const void *mine, u32 rank) {
    u32 at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(mine)), "r"(rank));
    return at;
}
KERNEL __cluster_dims__(2, 1, 1) __launch_bounds__(PAIR_THREADS, 3)
    attention_pair(const float *q, u32 heads, u32 kv_heads, const u32 *positions, const u32 *first, u32 capacity,
                   const float *k_cache, const float *v_cache, float *y, u32 room, FAULT) {
    extern __shared__ float4 group_scores[];
    __shared__ u32 maxima[4];
    __shared__ float lanes[4][64], parts[4][4][64], total[4];
    u32 rank = blockIdx.x & 1, row = (blockIdx.x >> 1) / kv_heads, kv = (blockIdx.x >> 1) % kv_heads;
    u32 t = threadIdx.x, warp = t >> 5, lane = t & 31, stride = kv_heads * 128;
    start_next();
    if (t < 4) maxima[t] = 0;
    // Nothing is sent to a block before it runs and its maxima are zero.
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    {
        // All keys before the first values: scores are what is computed first.
        u32 begin = (first ? first[row] : 0) + 2 * t + rank, end = min(positions[row], capacity);
#pragma unroll
        for (int c = 0; c < 2; c++)
            for (u32 j = begin; j < end; j += 2 * PAIR_THREADS)
                prefetch_head((c ? v_cache : k_cache) + (u64)j * stride + kv * 128);
    }
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    wait_for_previous();
    u32 p = positions[row], from = first ? first[row] : 0;
    if (p >= capacity || from > p || p - from >= room) {
        if (rank == 0 && t == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
    u32 count = p - from + 1, chunks = (count + 63) / 64;
    const float *k = k_cache + (u64)from * stride + kv * 128, *v = v_cache + (u64)from * stride + kv * 128;
    const float *mine = q + ((u64)row * heads + kv * 4) * 128;
    u32 best = 0, c = lane >> 3, h = lane >> 1 & 3;
    u32 j0 = (rank * (PAIR_THREADS / 32) + warp) * 4;
    float b[4][4];
    auto ask = [&]() {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *key = k + (u64)min(j0 + i, count - 1) * stride + lane;
#pragma unroll
            for (int e = 0; e < 4; e++) b[i][e] = key[32 * e];
        }
    };
    ask();
    float a[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) a[i][e] = mine[i * 128 + lane + 32 * e];
    float factor = __fdiv_rn(1.0f, __fsqrt_rn(128.0f));
    // Both threads of two have a score: one stores it here, the other sends it.
    u32 to = in_block(group_scores, rank ^ (lane & 1));
    while (j0 < count) {
        float s[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float *qh = a[i & 3], *key = b[i >> 2];
            // A lane starts at +0, which only matters to the sign of a zero, and that to no exponential: left out.
            float low = __fmul_rn(qh[0], key[0]) + __fmul_rn(qh[2], key[2]);
            float high = __fmul_rn(qh[1], key[1]) + __fmul_rn(qh[3], key[3]);
            s[i] = low + high;
        }
        u32 j = j0 + c;
        j0 += PAIR_THREADS / 4;
        if (j0 < count) ask();
        share<8>(s, lane & 16);
        share<4>(s, lane & 8);
        share<2>(s, lane & 4);
        share<1>(s, lane & 2);
        float score = __fmul_rn(s[0] + __shfl_xor_sync(FULL, s[0], 1), factor);
        if (j < count) {
            asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to + (j * 4 + h) * 4), "f"(score) : "memory");
            if (score == score) best = max(best, ordered(score));
        }
    }
    best = max(best, __shfl_xor_sync(FULL, best, 8));
    best = max(best, __shfl_xor_sync(FULL, best, 16));
    if (lane < 8)
        asm volatile("red.relaxed.cluster.shared::cluster.max.u32 [%0], %1;" ::"r"(in_block(&maxima[h], rank ^ (lane & 1))),
                     "r"(best)
                     : "memory");
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    best = maxima[t & 3];
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);
    // The last chunk is filled up with zeros; +0 added to a sum changes nothing.
    for (u32 i = t; i < chunks * 256; i += PAIR_THREADS) {
        float *score = (float *)group_scores + i;
        *score = i < count * 4 ? exp_negative(*score - largest) : 0.0f;
    }
    __syncthreads();
    float sum = 0.0f;
    for (u32 j = t & 63; j < count; j += 64) sum = sum + ((const float *)group_scores)[j * 4 + (t >> 6)];
    lanes[t >> 6][t & 63] = sum;
    __syncthreads();
    if (warp < 4) {
        float sum = fold64(lanes[warp][lane], lanes[warp][lane + 32]);
        if (lane == 0) total[warp] = sum;
    }
    // Each 64 threads take a chunk of 64 positions, a thread one element for all four heads; then the chunk sums of a head are
    // added in ascending order by the threads of that head.
    u32 part = t >> 6, e = t & 63;
    float out = 0.0f;
    for (u32 c0 = 0; c0 < chunks; c0 += 4) {
        u32 chunk = c0 + part;
        if (chunk < chunks) {
            float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            chunk_sum(sum, group_scores + chunk * 64, v + (u64)chunk * 64 * stride + rank * 64 + e, stride,
                      min(count - chunk * 64, 64u));
#pragma unroll
            for (int i = 0; i < 4; i++) parts[part][i][e] = sum[i];
        }
        __syncthreads();
        for (u32 g = 0; g < 4 && c0 + g < chunks; g++) out = out + parts[g][part][e];
        __syncthreads();
    }
    y[((u64)row * heads + kv * 4 + part) * 128 + rank * 64 + e] = __fdiv_rn(out, total[part]);
}
#else
// Clusters came with compute capability 9.0; the host asks nobody else for this.
KERNEL attention_pair(const float *, u32, u32, const u32 *, const u32 *, u32, const float *, const float *, float *, u32,
                      FAULT) {}
#endif
