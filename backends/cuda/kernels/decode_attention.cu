// Attention of few rows with heads of 128 elements: a cluster of eight blocks for each row and query head, in the order of
// docs/numerics.md.
//
// Positions are dealt to the 64 warps of a cluster for the scores, which every warp sends to the shared memory of all eight
// blocks; then each block has sixteen elements of the result. Values are on their way into shared memory meanwhile, and both
// caches are brought nearer before the kernel waits.
#include "common.cuh"
#include "math.cuh"

#define RANKS 8
#define AT_ONCE 4
// Chunks of 64 values that shared memory holds at once, sixteen elements of each, and the floats that one takes: a chunk's sums
// and its neighbour's are read together, from different banks.
#define HELD 16
#define HELD_CHUNK (64 * 16 + 16)

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

// Dynamic shared memory: the scores, `room` of them, a multiple of 64; then the values of up to HELD chunks.
KERNEL __cluster_dims__(RANKS, 1, 1) __launch_bounds__(256)
    attention_cluster(const float *q, u32 heads, u32 kv_heads, const u32 *positions, const u32 *first, u32 capacity,
                      const float *k_cache, const float *v_cache, float *y, u32 room, FAULT) {
    extern __shared__ __align__(16) float scores[];
    __shared__ u32 maxima[64];
    __shared__ float parts[HELD][16], total;
    __shared__ u64 arrived;
    float *values = scores + room;
    u32 rank = blockIdx.x % RANKS, row = blockIdx.x / RANKS / heads, head = blockIdx.x / RANKS % heads;
    u32 kv = head / (heads / kv_heads), t = threadIdx.x, warp = t >> 5, lane = t & 31, slot = rank * 8 + warp;
    u32 stride = kv_heads * 128;
    if (t == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrived)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    // Nothing is sent to a block before it runs and its barrier counts.
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    start_next();
    const float *k = k_cache + kv * 128, *v = v_cache + kv * 128;
    if (head % (heads / kv_heads) == 0) {
        u32 count = min(positions[row], capacity);
        for (u32 j = (first ? first[row] : 0) + slot; j < count; j += 64)
            if (lane < 8) {
                const float *line = (lane < 4 ? k : v) + (u64)j * stride + 32 * (lane & 3);
                asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
            }
    }
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    wait_for_previous();
    u32 p = positions[row], begin = first ? first[row] : 0;
    float a[4], b[AT_ONCE][4];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = q[(u64)(row * heads + head) * 128 + lane + 32 * i];
    if (p >= capacity || begin > p || p - begin >= room) {
        if (rank == 0 && t == 0) raise_fault(FAULT_ARGS, F_INDEX, row);
        return;
    }
    u32 count = p - begin + 1, chunks = (count + 63) / 64;
    k += (u64)begin * stride, v += (u64)begin * stride;
    if (t == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&arrived)),
                     "r"(4 * count + 4 * 64)
                     : "memory");
    auto ask_keys = [&](u32 j0) {
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) {
            bool live = j0 + 64 * c < count;
            const float *from = k + (u64)(j0 + 64 * c) * stride + lane;
#pragma unroll
            for (int i = 0; i < 4; i++) b[c][i] = live ? from[32 * i] : 0.0f;
        }
    };
    ask_keys(slot);
    // Sixteen bytes a thread: four threads a position. Past the last position they are zeros.
    auto ask_values = [&](u32 chunk) {
        u32 from = chunk * 64, end = min((u32)HELD * 64, chunks * 64 - from);
        for (u32 j = t >> 2; j < end; j += 64) {
            float *to = values + (j >> 6) * HELD_CHUNK + (j & 63) * 16 + (t & 3) * 4;
            if (from + j < count) cp_async16(to, v + (u64)(from + j) * stride + rank * 16 + (t & 3) * 4);
            else *(float4 *)to = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        asm volatile("cp.async.commit_group;");
    };
    ask_values(0);
    float factor = __fdiv_rn(1.0f, __fsqrt_rn(128.0f));
    u32 best = 0;
    for (u32 j0 = slot; j0 < count; j0 += 64 * AT_ONCE) {
        if (j0 != slot) ask_keys(j0);
        float found[AT_ONCE];
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) {
            // A lane starts at +0: adding that only matters to the sign of a zero.
            float low = (0.0f + __fmul_rn(a[0], b[c][0])) + __fmul_rn(a[2], b[c][2]);
            float high = (0.0f + __fmul_rn(a[1], b[c][1])) + __fmul_rn(a[3], b[c][3]);
            found[c] = low + high;
        }
        // Four folds at once: each waits for its own shuffles only.
#pragma unroll
        for (int h = 16; h; h >>= 1)
#pragma unroll
            for (int c = 0; c < AT_ONCE; c++) found[c] = found[c] + __shfl_xor_sync(FULL, found[c], h);
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) {
            u32 j = j0 + 64 * c;
            float s = __fmul_rn(found[c], factor);
            if (j >= count) continue;
            if (lane < RANKS) send(&scores[j], &arrived, lane, __float_as_uint(s));
            if (s == s) best = max(best, ordered(s));
        }
    }
    if (lane < RANKS) send(&maxima[slot], &arrived, lane, best);
    u32 done = 0;
    while (!done)
        asm volatile("{ .reg .pred ok; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ok, [%1], 0;"
                     " selp.u32 %0, 1, 0, ok; }"
                     : "=r"(done)
                     : "r"(shared_address(&arrived))
                     : "memory");
    best = warp_max(max(maxima[lane], maxima[lane + 32]));
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);
    // The last chunk is filled up with zeros; +0 added to a sum changes nothing.
    for (u32 j = t; j < chunks * 64; j += 256) scores[j] = j < count ? exp_negative(scores[j] - largest) : 0.0f;
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    // Thread t has element t % 16 of this block's sixteen, in every sixteenth chunk from t / 16 on.
    u32 e = t & 15, mine = t >> 4;
    float out = 0.0f;
    for (u32 c0 = 0; c0 < chunks; c0 += HELD) {
        if (c0 != 0) {
            ask_values(c0);
            asm volatile("cp.async.wait_all;" ::: "memory");
            __syncthreads();
        }
        if (c0 + mine < chunks) {
            const float *weights = scores + (c0 + mine) * 64, *from = values + mine * HELD_CHUNK + e;
            float sum = 0.0f;
#pragma unroll 16
            for (int j = 0; j < 64; j += 4) {
                float4 s = *(const float4 *)(weights + j);
                sum = sum + __fmul_rn(s.x, from[16 * j]);
                sum = sum + __fmul_rn(s.y, from[16 * j + 16]);
                sum = sum + __fmul_rn(s.z, from[16 * j + 32]);
                sum = sum + __fmul_rn(s.w, from[16 * j + 48]);
            }
            parts[mine][e] = sum;
        }
        if (c0 == 0 && warp == 7) {
            float low = 0.0f, high = 0.0f;
#pragma unroll 4
            for (u32 j = lane; j < chunks * 64; j += 64) low = low + scores[j], high = high + scores[j + 32];
            low = fold64(low, high);
            if (lane == 0) total = low;
        }
        __syncthreads();
        if (t < 16)
            for (u32 g = 0; g < min(chunks - c0, (u32)HELD); g++) out = out + parts[g][t];
        __syncthreads();
    }
    if (t < 16) y[(u64)(row * heads + head) * 128 + rank * 16 + t] = __fdiv_rn(out, total);
}
#else
// Clusters came with compute capability 9.0; the host asks nobody else for this.
KERNEL attention_cluster(const float *, u32, u32, const u32 *, const u32 *, u32, const float *, const float *, float *, u32,
                         FAULT) {}
#endif
