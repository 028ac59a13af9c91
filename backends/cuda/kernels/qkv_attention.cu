// norm_qkv and the attention of its row in one kernel: for each key/value head a cluster of sixteen blocks, four for each of its
// four query heads. What a block makes goes to those that need it through their shared memory, so one wait for a kernel is
// saved, and the rows between.
//
// Block 4h + r of a cluster has the rows of q that rank r of head h's attention would have an element of (16 pairs that turn with
// each other), and a sixteenth of k and v. Attention follows as in decode_attention.cu: scores are dealt to the warps that have
// no rows of weights, which asked for keys and values before the wait. The host sees to it that neither positions nor the caches
// are written by the kernel before.
//
// For caches whose chunks are all held, heads of 128, four query heads to a key/value head; 512 threads, and begins with the
// parameters of norm_qkv.
#include "fused_norm.cuh"

#define JOINT_WORKERS 192
#define JOINT_PAIRS 24
// Warps of a block that have scores, and positions that a head's blocks take at once.
#define JOINT_WARPS 8
#define JOINT_SLOTS (4 * JOINT_WARPS * RANKS)
#define JOINT_AT_ONCE 2

#define JOINT_PARAMETERS                                                                                               \
    const float *x, const float *norm, float eps, u32 cols, i8 *q8, float *x_scale, u32 tiles, const uint4 *wq, float sq,  \
        float *q, const uint4 *wk, float sk, float *k, const uint4 *wv, float sv, float *v, u32, u32 kv_heads, u32,        \
        const u32 *positions, u32 known, const float *cos, const float *sin, u32 capacity, float *k_cache, float *v_cache, \
        FAULT, u64 position_seq, float *y, u32 room, u32 held, u64 attention_seq, const u8 *ahead0, const u8 *ahead1, u32 ahead
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
KERNEL __cluster_dims__(16, 1, 1) __maxnreg__(80) norm_qkv_attention(JOINT_PARAMETERS) {
    extern __shared__ __align__(128) u8 joint_memory[];
    __shared__ u32 maxima[4 * JOINT_WARPS];
    __shared__ float parts[HELD][RANK_ELEMENTS], total, new_q[128], new_k[128], new_v[RANK_ELEMENTS];
    __shared__ u64 arrived, ready;
    float *scores = (float *)(joint_memory + STAGED_BYTES(JOINT_WORKERS, 10) + 2 * JOINT_PAIRS * tiles * 64), *values = scores + room;
    u32 t = threadIdx.x, warp = t >> 5, lane = t & 31, kv = blockIdx.x / 16, block = blockIdx.x % 16, head = kv * 4 + block / 4;
    u32 rank = block % 4, stride = kv_heads * 128;
    if (t == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrived)) : "memory");
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&ready)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    // Nothing is sent to a block before it runs and its barriers count.
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    // Positions were written before the kernel ahead: the host sees to it.
    u32 p = positions[0], count = p + 1, chunks = (count + 63) / 64;
    bool valid = p < min(known, capacity) && p < room;
    if (t == 0 && valid) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&arrived)),
                     "r"(4 * count + 4 * 4 * JOINT_WARPS)
                     : "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&ready)),
                     "r"(4 * (128 + 128 + RANK_ELEMENTS))
                     : "memory");
    }
    const float *kc = k_cache + kv * 128, *vc = v_cache + kv * 128;
    u32 slot = (rank * JOINT_WARPS + warp - 8) * 4 + lane / 8;
    float b[JOINT_AT_ONCE][16];
    if (t < JOINT_WORKERS + 64) {
        struct Pair {
            u32 kind, row, e;
        };
        auto place = [&](u32 i) {
            u32 kind = i < 16 ? 0 : i < 20 ? 1 : 2, e = kind == 0 ? 16 * rank + i : 4 * block + (i & 3);
            return Pair{kind, (kind == 0 ? head : kv) * 128 + e, e};
        };
        Pair mine = place(min(t / 8, JOINT_PAIRS - 1));
        u32 which = t % 8;
        bool known_position = p < min(known, capacity);
        float c = 1.0f, turn = 0.0f;
        // The warp after the keeper has nothing to do until there are scores.
        if (t < JOINT_WORKERS + 32) norm_products<true, JOINT_WORKERS, 8, 2, 5, 4, 10>(
            {x, norm, eps, cols, q8, x_scale}, tiles, 6, 2 * JOINT_PAIRS * tiles * 64,
            [&](u32 i, uint4 *to) {
                u32 kind = i % 3, first = kind == 0 ? 0 : 12 + 4 * kind, rows = kind == 0 ? 16 : 4;
                const uint4 *w = kind == 0 ? wq : kind == 1 ? wk : wv;
                u64 row = place(first).row + i / 3 * 64;
                return Copy{to + (first + i / 3 * JOINT_PAIRS) * tiles * 4, w + row * tiles * 4, rows * tiles * 64};
            },
            t / 8, JOINT_PAIRS,
            []() {},
            [&]() {
                if (known_position && mine.kind < 2) c = cos[(u64)p * 64 + mine.e], turn = sin[(u64)p * 64 + mine.e];
            },
            [&](int (&acc)[2], float scale) {
                float out = result(which == 1 ? acc[1] : acc[0], mine.kind == 0 ? sq : mine.kind == 1 ? sk : sv, scale);
                float other = __shfl_xor_sync(FULL, out, 1);
                if (__builtin_expect(!known_position && blockIdx.x == 0 && t == 0, 0))
                    raise_fault(fault_word, fault_raised, position_seq, F_INDEX, 0);
                if (known_position && mine.kind < 2) out = __fmul_rn(out, c) + __fmul_rn(other, which == 0 ? -turn : turn);
                // Eight threads send the two: to the head's four blocks, to all, or to those that have the element.
                u32 half = t & 1, d = mine.e + half * 64, part = t % 8 / 2;
                float sent = __shfl_sync(FULL, out, (lane & ~7u) + half);
                if (valid) {
                    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
                    u32 bits = __float_as_uint(sent);
                    if (mine.kind == 0) send(&new_q[d], &ready, block / 4 * 4 + part, bits);
                    else if (mine.kind == 2) send(&new_v[d % RANK_ELEMENTS], &ready, part * 4 + d / RANK_ELEMENTS, bits);
                    else
#pragma unroll
                        for (u32 j = 0; j < 4; j++) send(&new_k[d], &ready, part * 4 + j, bits);
                }
                if (which >= 2) return;
                u32 row = mine.row + which * 64;
                // Each key/value head's cluster stores its own; so does each block, of q.
                (mine.kind == 0 ? q : mine.kind == 1 ? k : v)[row] = out;
                if (mine.kind != 0 && known_position) (mine.kind == 1 ? k_cache : v_cache)[(u64)p * stride + row] = out;
            },
            FAULT_ARGS);
        // The keeper, and all where nothing is sent.
        if (t >= JOINT_WORKERS || !valid) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    } else {
        if (t == JOINT_WORKERS + 64 && ahead) bring_nearer(ahead0, ahead1, ahead);
        u32 there = valid ? p : 0;
#pragma unroll
        for (int c = 0; c < JOINT_AT_ONCE; c++) {
            u32 j = slot + JOINT_SLOTS * c;
            keys(b[c], kc + (u64)j * stride, j < there);
        }
        if (valid) {
            u32 e = (t - 256) % (RANK_ELEMENTS / 4) * 4;
            for (u32 j = (t - 256) / (RANK_ELEMENTS / 4); j < chunks * 64; j += 256 / (RANK_ELEMENTS / 4)) {
                float *to = values + (j >> 6) * HELD_CHUNK + (j & 63) * RANK_ELEMENTS + e;
                if (j < there) cp_async16(to, vc + (u64)j * stride + rank * RANK_ELEMENTS + e);
                else if (j >= count) *(float4 *)to = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
            asm volatile("cp.async.commit_group;");
        }
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
    if (!valid) {
        if (block == 0 && t == 0 && kv == 0) raise_fault(fault_word, fault_raised, attention_seq, F_INDEX, 0);
        return;
    }
    // compute-sanitizer's racecheck takes a read for ordered if its thread has waited at more barriers than the writer had: so those
    // that have no rows wait at as many as those that have.
    if (t >= JOINT_WORKERS + 32)
#pragma unroll
        for (int i = 0; i < 5; i++) meet(UNNEEDED, 512 - JOINT_WORKERS - 32);
    if (warp >= 8) {
        wait_cluster(&ready);
        float a[16];
#pragma unroll
        for (int i = 0; i < 16; i++) a[i] = new_q[(lane & 7) + 8 * i];
        if (warp == 15) values[(p >> 6) * HELD_CHUNK + (p & 63) * RANK_ELEMENTS + lane] = new_v[lane];
        float factor = __fdiv_rn(1.0f, __fsqrt_rn(128.0f));
        u32 best = 0;
        auto score = [&](float (&key)[16], u32 j) {
            if (j == p)
#pragma unroll
                for (int i = 0; i < 16; i++) key[i] = new_k[(lane & 7) + 8 * i];
            float s = __fmul_rn(eighth_dot(a, key), factor);
            if (j < count) {
                if ((lane & 7) < RANKS) send(&scores[j], &arrived, block / 4 * 4 + (lane & 7), __float_as_uint(s));
                if (s == s) best = max(best, ordered(s));
            }
        };
#pragma unroll
        for (int c = 0; c < JOINT_AT_ONCE; c++)
            if (JOINT_SLOTS * c < count) score(b[c], slot + JOINT_SLOTS * c);
#pragma unroll 1
        for (u32 j = slot + JOINT_SLOTS * JOINT_AT_ONCE; j - (lane >> 3) < count; j += JOINT_SLOTS) {
            keys(b[0], kc + (u64)j * stride, j < p);
            score(b[0], j);
        }
        best = warp_max(best);
        if (lane < RANKS) send(&maxima[slot / 4], &arrived, block / 4 * 4 + lane, best);
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
    wait_cluster(&arrived);
    u32 best = warp_max(maxima[lane]);
    float largest = best ? from_ordered(best) : __uint_as_float(0xff800000u);
    // The last chunk is filled up with zeros; +0 added to a sum changes nothing.
    for (u32 j = t; j < chunks * 64; j += ATTENTION_THREADS) scores[j] = j < count ? exp_negative(scores[j] - largest) : 0.0f;
    __syncthreads();
    u32 e = t % RANK_ELEMENTS, mine = t / RANK_ELEMENTS;
    if (mine < chunks) {
        parts[mine][e] = chunk_sum(scores + mine * 64, values + mine * HELD_CHUNK + e);
    }
    if (warp == ATTENTION_THREADS / 32 - 1) {
        float sum = weight_sum(scores, chunks * 64, lane);
        if (lane == 0) total = sum;
    }
    __syncthreads();
    if (t < RANK_ELEMENTS) {
        float out = 0.0f;
        for (u32 g = 0; g < chunks; g++) out = out + parts[g][t];
        y[(u64)head * 128 + rank * RANK_ELEMENTS + t] = __fdiv_rn(out, total);
    }
}
#else
// Clusters came with compute capability 9.0; the host asks nobody else for this.
KERNEL norm_qkv_attention(JOINT_PARAMETERS) {}
#endif
