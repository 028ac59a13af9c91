// Attention of few rows with heads of 128 elements: a cluster of eight blocks for each row and query head, in the order of
// docs/numerics.md.
//
// Positions are dealt to the 64 warps of a cluster for the scores, which every warp writes to the shared memory of all eight
// blocks; then each block has sixteen elements of the result. Keys and values are asked for together, so that one latency
// covers both, and brought nearer before the kernel waits.
#include "common.cuh"
#include "math.cuh"

#define RANKS 8
#define AT_ONCE 4

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void store_at_rank(void *shared, u32 rank, u32 value) {
    u32 local = (u32)__cvta_generic_to_shared(shared), remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(value) : "memory");
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Dynamic shared memory: the scores, `room` of them rounded up to 64.
KERNEL __cluster_dims__(RANKS, 1, 1) __launch_bounds__(256)
    attention_cluster(const float *q, u32 heads, u32 kv_heads, const u32 *positions, u32 capacity, const float *k_cache,
                      const float *v_cache, float *y, FAULT) {
    extern __shared__ float scores[];
    __shared__ u32 maxima[64];
    __shared__ float parts[16][16], total;
    u32 rank = blockIdx.x % RANKS, row = blockIdx.x / RANKS / heads, head = blockIdx.x / RANKS % heads;
    u32 kv = head / (heads / kv_heads), t = threadIdx.x, warp = t >> 5, lane = t & 31, slot = rank * 8 + warp;
    u32 stride = kv_heads * 128;
    // Shared memory of a block may be written to once the block runs.
    cluster_arrive();
    start_next();
    const float *k = k_cache + kv * 128, *v = v_cache + kv * 128;
    if (head % (heads / kv_heads) == 0) {
        u32 count = min(positions[row], capacity);
        for (u32 j = slot; j < count; j += 64)
            if (lane < 8) {
                const float *line = (lane < 4 ? k : v) + (u64)j * stride + 32 * (lane & 3);
                asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
            }
    }
    cluster_wait();
    wait_for_previous();
    u32 p = positions[row];
    if (p >= capacity) {
        if (rank == 0 && t == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
    u32 count = p + 1, chunks = (count + 63) / 64;
    float a[4], b[AT_ONCE][4];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = q[(u64)(row * heads + head) * 128 + lane + 32 * i];
    auto ask_keys = [&](u32 j0) {
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                b[c][i] = j0 + 64 * c < count ? k[(u64)(j0 + 64 * c) * stride + lane + 32 * i] : 0.0f;
    };
    ask_keys(slot);
    // Thread t has element t % 16 of this block's sixteen, in every sixteenth chunk from t / 16 on.
    u32 e = rank * 16 + (t & 15), chunk0 = t >> 4;
    float values[64];
    auto ask_values = [&](u32 chunk) {
#pragma unroll
        for (int j = 0; j < 64; j++)
            values[j] = chunk * 64 + j < count ? v[(u64)(chunk * 64 + j) * stride + e] : 0.0f;
    };
    ask_values(chunk0);
    float factor = __fdiv_rn(1.0f, __fsqrt_rn(128.0f));
    u32 best = 0;
    for (u32 j0 = slot; j0 < count; j0 += 64 * AT_ONCE) {
        if (j0 != slot) ask_keys(j0);
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) {
            u32 j = j0 + 64 * c;
            if (j >= count) continue;
            // A lane starts at +0: adding that only matters to the sign of a zero.
            float low = (0.0f + __fmul_rn(a[0], b[c][0])) + __fmul_rn(a[2], b[c][2]);
            float high = (0.0f + __fmul_rn(a[1], b[c][1])) + __fmul_rn(a[3], b[c][3]);
            float s = __fmul_rn(fold64(low, high), factor);
            if (lane < RANKS) store_at_rank(&scores[j], lane, __float_as_uint(s));
            if (s == s) best = max(best, ordered(s));
        }
    }
    if (lane < RANKS) store_at_rank(&maxima[slot], lane, best);
    cluster_arrive();
    cluster_wait();
    best = warp_max(max(maxima[lane], maxima[lane + 32]));
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);
    // The last chunk is filled up with zeros; +0 added to a sum changes nothing.
    for (u32 j = t; j < chunks * 64; j += 256) scores[j] = j < count ? exp_negative(scores[j] - largest) : 0.0f;
    __syncthreads();
    float out = 0.0f;
    for (u32 c0 = 0; c0 < chunks; c0 += 16) {
        u32 c = c0 + chunk0;
        if (c < chunks) {
            if (c0 != 0) ask_values(c);
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < 64; j += 4) {
                float4 s = *(const float4 *)(scores + c * 64 + j);
                sum = sum + __fmul_rn(s.x, values[j]);
                sum = sum + __fmul_rn(s.y, values[j + 1]);
                sum = sum + __fmul_rn(s.z, values[j + 2]);
                sum = sum + __fmul_rn(s.w, values[j + 3]);
            }
            parts[chunk0][t & 15] = sum;
        }
        if (c0 == 0 && warp == 7) {
            float low = 0.0f, high = 0.0f;
            for (u32 j = lane; j < chunks * 64; j += 64) low = low + scores[j], high = high + scores[j + 32];
            low = fold64(low, high);
            if (lane == 0) total = low;
        }
        __syncthreads();
        if (t < 16)
            for (u32 g = 0; g < min(chunks - c0, 16u); g++) out = out + parts[g][t];
        __syncthreads();
    }
    if (t < 16) y[(u64)(row * heads + head) * 128 + e] = __fdiv_rn(out, total);
}
#else
// Clusters came with compute capability 9.0; the host asks nobody else for this.
KERNEL attention_cluster(const float *, u32, u32, const u32 *, u32, const float *, const float *, float *, FAULT) {}
#endif
