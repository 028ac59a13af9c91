// Attention of few rows with heads of 128 elements: a cluster of four blocks for each row and query head, in the order of
// docs/numerics.md.
//
// For the scores, eight of a cluster's 2,048 threads have a position at a time, and send its score to the shared memory of all
// four blocks; then each block has 32 elements of the result. Four blocks of 512 threads, not eight of 256: the 20 heads of the
// 2B-4T model then have 80 blocks, none of which shares a multiprocessor with another.
#include "common.cuh"
#include "math.cuh"

#define RANKS 4
#define ATTENTION_THREADS (2048 / RANKS)
#define RANK_ELEMENTS (128 / RANKS)
#define AT_ONCE 2
// Positions that a cluster takes at once: eight threads have one.
#define SLOTS (2048 / 8)
// Chunks of 64 values that shared memory holds at once, at most, and the floats that the block's elements of one take.
#define HELD 16
#define HELD_CHUNK (64 * RANK_ELEMENTS + 16)

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Stores to the shared memory of another block of the cluster, whose barrier counts the bytes when they are there.
__device__ __forceinline__ void send(const void *shared, u64 *barrier, u32 rank, u32 value) {
    u32 to, counted;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(shared)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(shared_address(barrier)), "r"(rank));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(value),
                 "r"(counted)
                 : "memory");
}

// Waits until all bytes that a barrier expects, from blocks of the cluster, are there.
__device__ __forceinline__ void wait_cluster(u64 *barrier) {
    u32 done = 0;
    while (!done)
        asm volatile("{ .reg .pred ok; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ok, [%1], 0;"
                     " selp.u32 %0, 1, 0, ok; }"
                     : "=r"(done)
                     : "r"(shared_address(barrier))
                     : "memory");
}

// Brings the block's part of `bytes` from each of two places to the second-level cache.
__device__ __forceinline__ void bring_nearer(const u8 *place0, const u8 *place1, u32 bytes) {
    u32 part = (bytes / gridDim.x + 15) / 16 * 16, from = blockIdx.x * part;
    if (from < bytes) {
        u32 mine = min(part, bytes - from);
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(place0 + from), "r"(mine));
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(place1 + from), "r"(mine));
    }
}

// Eight threads have a position: thread m the elements m, m + 8, and so on, which are the lanes that the first three halvings
// of a sum add to each other.
__device__ __forceinline__ void keys(float (&b)[16], const float *position, bool there) {
    const float *from = position + (threadIdx.x & 7);
#pragma unroll
    for (int i = 0; i < 16; i++) b[i] = there ? from[8 * i] : 0.0f;
}
__device__ __forceinline__ float eighth_dot(const float (&a)[16], const float (&b)[16]) {
    float v[8];
    // A lane starts at +0: adding that only matters to the sign of a zero.
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = (0.0f + __fmul_rn(a[i], b[i])) + __fmul_rn(a[i + 8], b[i + 8]);
#pragma unroll
    for (int h = 4; h; h >>= 1)
#pragma unroll
        for (int i = 0; i < h; i++) v[i] = v[i] + v[i + h];
#pragma unroll
    for (int h = 4; h; h >>= 1) v[0] = v[0] + __shfl_xor_sync(FULL, v[0], h);
    return v[0];
}

// One element of a chunk of 64 values that is held, weighted.
__device__ __forceinline__ float chunk_sum(const float *weights, const float *from) {
    float sum = 0.0f;
#pragma unroll 16
    for (int j = 0; j < 64; j += 4) {
        float4 s = *(const float4 *)(weights + j);
        sum = sum + __fmul_rn(s.x, from[RANK_ELEMENTS * j]);
        sum = sum + __fmul_rn(s.y, from[RANK_ELEMENTS * j + RANK_ELEMENTS]);
        sum = sum + __fmul_rn(s.z, from[RANK_ELEMENTS * j + 2 * RANK_ELEMENTS]);
        sum = sum + __fmul_rn(s.w, from[RANK_ELEMENTS * j + 3 * RANK_ELEMENTS]);
    }
    return sum;
}
// The sum of all weights, by one warp.
__device__ __forceinline__ float weight_sum(const float *weights, u32 count, u32 lane) {
    float low = 0.0f, high = 0.0f;
#pragma unroll 4
    for (u32 j = lane; j < count; j += 64) low = low + weights[j], high = high + weights[j + 32];
    return fold64(low, high);
}

// Dynamic shared memory: the scores, `room` of them, a multiple of 64; then the values of up to `held` chunks.
//
// With `newest` set, which is for one row, the kernel before this one is norm_qkv, which wrote q and the last position of the
// caches and nothing else that is read here; norm_qkv starts this kernel after its own wait, so what it did not write is there.
// Then all but the last position is asked for before the wait. `ahead` bytes from each of two places are what a later kernel
// reads: they are brought nearer while memory has nothing to do.
KERNEL __cluster_dims__(RANKS, 1, 1) __maxnreg__(80)
    attention_cluster(const float *q, u32 heads, u32 kv_heads, const u32 *positions, const u32 *first, u32 capacity,
                      const float *k_cache, const float *v_cache, float *y, u32 room, u32 held, u32 newest, const u8 *ahead0,
                      const u8 *ahead1, u32 ahead, FAULT) {
    extern __shared__ __align__(16) float scores[];
    __shared__ u32 maxima[64];
    __shared__ float parts[HELD][RANK_ELEMENTS], total;
    __shared__ u64 arrived;
    float *values = scores + room;
    u32 rank = blockIdx.x % RANKS, row = blockIdx.x / RANKS / heads, head = blockIdx.x / RANKS % heads;
    u32 kv = head / (heads / kv_heads), t = threadIdx.x, warp = t >> 5, lane = t & 31;
    u32 slot = (rank * ATTENTION_THREADS + t) / 8;
    u32 stride = kv_heads * 128;
    if (t == 32 && ahead) bring_nearer(ahead0, ahead1, ahead);
    if (t == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrived)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    // Nothing is sent to a block before it runs and its barrier counts.
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    if (!newest) {
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        wait_for_previous();
        start_next();
    }
    u32 p = positions[row], begin = first ? first[row] : 0, count = p - begin + 1, chunks = (count + 63) / 64;
    bool valid = p < capacity && begin <= p && p - begin < room;
    u32 there = !valid ? 0 : newest ? count - 1 : count;
    const float *k = k_cache + kv * 128 + (u64)begin * stride, *v = v_cache + kv * 128 + (u64)begin * stride;
    float a[16], b[AT_ONCE][16];
    auto ask_keys = [&](u32 j0, u32 there) {
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) keys(b[c], k + (u64)(j0 + SLOTS * c) * stride, j0 + SLOTS * c < there);
    };
    // Sixteen bytes a thread; zeros past the last position.
    auto ask_values = [&](u32 chunk, u32 there) {
        u32 from = chunk * 64, end = min(held * 64, chunks * 64 - from), e = t % (RANK_ELEMENTS / 4) * 4;
        for (u32 j = t / (RANK_ELEMENTS / 4); j < end; j += 64) {
            float *to = values + (j >> 6) * HELD_CHUNK + (j & 63) * RANK_ELEMENTS + e;
            if (from + j < there) cp_async16(to, v + (u64)(from + j) * stride + rank * RANK_ELEMENTS + e);
            else if (from + j >= count) *(float4 *)to = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        asm volatile("cp.async.commit_group;");
    };
    if (valid) {
        ask_keys(slot, there);
        ask_values(0, there);
        if (t == 0)
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&arrived)),
                         "r"(4 * count + 4 * 64)
                         : "memory");
    }
    if (newest) {
        // What comes later than the first keys, nearer.
        if (head % (heads / kv_heads) == 0)
            for (u32 j = slot / 4 + SLOTS * AT_ONCE; j < there; j += 64)
                if (lane < 8) {
                    const float *line = (lane < 4 ? k : v) + (u64)j * stride + 32 * (lane & 3);
                    asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
                }
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        // One warp for all, as in fused.cu.
        if (warp == 0) {
            wait_for_previous();
            start_next();
        }
        __syncthreads();
    }
    if (!valid) {
        if (rank == 0 && t == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
#pragma unroll
    for (int i = 0; i < 16; i++) a[i] = q[(u64)(row * heads + head) * 128 + (lane & 7) + 8 * i];
    if (newest) {
        u32 j = count - 1;
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++)
            if (slot + SLOTS * c == j) keys(b[c], k + (u64)j * stride, true);
        if (j < held * 64 && t < RANK_ELEMENTS / 4)
            cp_async16(values + (j >> 6) * HELD_CHUNK + (j & 63) * RANK_ELEMENTS + t * 4, v + (u64)j * stride + rank * RANK_ELEMENTS + t * 4);
    }
    float factor = __fdiv_rn(1.0f, __fsqrt_rn(128.0f));
    u32 best = 0;
    auto score = [&](const float (&key)[16], u32 j) {
        float s = __fmul_rn(eighth_dot(a, key), factor);
        if (j < count) {
            if ((lane & 7) < RANKS) send(&scores[j], &arrived, lane & 7, __float_as_uint(s));
            if (s == s) best = max(best, ordered(s));
        }
    };
#pragma unroll
    for (int c = 0; c < AT_ONCE; c++)
        if (SLOTS * c < count) score(b[c], slot + SLOTS * c);
#pragma unroll 1
    for (u32 j0 = slot + SLOTS * AT_ONCE; j0 - (lane >> 3) < count; j0 += SLOTS * AT_ONCE) {
        ask_keys(j0, count);
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) score(b[c], j0 + SLOTS * c);
    }
    best = warp_max(best);
    if (lane < RANKS) send(&maxima[slot / 4], &arrived, lane, best);
    wait_cluster(&arrived);
    best = warp_max(max(maxima[lane], maxima[lane + 32]));
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);
    // The last chunk is filled up with zeros; +0 added to a sum changes nothing.
    for (u32 j = t; j < chunks * 64; j += ATTENTION_THREADS) scores[j] = j < count ? exp_negative(scores[j] - largest) : 0.0f;
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    // A thread has one of this block's elements in one of the chunks that are held.
    u32 e = t % RANK_ELEMENTS, mine = t / RANK_ELEMENTS;
    float out = 0.0f;
    for (u32 c0 = 0; c0 < chunks; c0 += held) {
        if (c0 != 0) {
            ask_values(c0, count);
            asm volatile("cp.async.wait_all;" ::: "memory");
            __syncthreads();
        }
        if (mine < held && c0 + mine < chunks) {
            parts[mine][e] = chunk_sum(scores + (c0 + mine) * 64, values + mine * HELD_CHUNK + e);
        }
        if (c0 == 0 && warp == ATTENTION_THREADS / 32 - 1) {
            float sum = weight_sum(scores, chunks * 64, lane);
            if (lane == 0) total = sum;
        }
        __syncthreads();
        if (t < RANK_ELEMENTS)
            for (u32 g = 0; g < min(chunks - c0, held); g++) out = out + parts[g][t];
        __syncthreads();
    }
    if (t < RANK_ELEMENTS) y[(u64)(row * heads + head) * 128 + rank * RANK_ELEMENTS + t] = __fdiv_rn(out, total);
}
#else
// Clusters came with compute capability 9.0; the host asks nobody else for this.
KERNEL attention_cluster(const float *, u32, u32, const u32 *, const u32 *, u32, const float *, const float *, float *, u32, u32,
                         u32, const u8 *, const u8 *, u32, FAULT) {}
#endif
