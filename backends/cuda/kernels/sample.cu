// Drawing tokens. Every score gets the key (score, lowest index first), and the largest key wins, so blocks may meet in any
// order.
#include "common.cuh"
#include "math.cuh"

__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ __forceinline__ float gumbel(u64 stream, u32 index) {
    u64 bits = mix(stream + ((u64)index + 1) * 0x9e3779b97f4a7c15ull);
    float u = __fmul_rn(__fadd_rn((float)(u32)(bits >> 41), 0.5f), 1.0f / 8388608.0f);
    return -ln_positive(-ln_positive(u));
}

__device__ __forceinline__ u64 key_of(u32 order, u32 index) { return (u64)order << 32 | (u32)~index; }

// Counts a block that is done. What its thread saw and did before, faults that others of the block raised among it, comes before
// what a thread does that has counted later.
__device__ __forceinline__ u64 count_done(u64 *count) {
    u64 before;
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(count) : "memory");
    return before;
}

// `slots` has two words a row, the best key and the number of blocks done; zero before and after. `threshold` is the
// smallest key that takes part, a row each, or null. Where `published` is not null, which is for one row, the block that is last
// does what `publish` would do after this kernel, with the id.
KERNEL __launch_bounds__(256) sample(const float *logits, u32 vocab, float temperature, u64 seed, const u32 *steps,
                                     const u64 *threshold, u64 *slots, u32 *ids, FAULT, u32 *published, u64 *key) {
    __shared__ u64 shared[8];
    BEGIN;
    u32 row = blockIdx.y;
    const float *l = logits + (u64)row * vocab;
    bool noisy = temperature != 0.0f;
    u64 stream = noisy ? mix(seed + ((u64)steps[row] + 1) * 0x9e3779b97f4a7c15ull) : 0;
    u64 least = threshold ? threshold[row] : 0, best = 0;
    // Four are asked for at once: one alone would wait for what the one before may have to report.
    u32 apart = gridDim.x * blockDim.x;
    for (u32 first = blockIdx.x * blockDim.x + threadIdx.x; first < vocab; first += 4 * apart) {
        float values[4];
#pragma unroll
        for (int j = 0; j < 4; j++) values[j] = first + j * apart < vocab ? l[first + j * apart] : 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 i = first + j * apart;
            float v = values[j];
            if (i >= vocab) break;
            if (v != v) raise_fault(FAULT_ARGS, F_NAN, (u64)row * vocab + i);
            if (key_of(ordered(v), i) < least) continue;
            if (noisy) v = __fdiv_rn(v, temperature) + gumbel(stream, i);
            // The two zeros are equal: adding +0 makes them one.
            best = max(best, key_of(ordered(v + 0.0f), i));
        }
    }
#pragma unroll
    for (int h = 16; h; h >>= 1) best = max(best, __shfl_xor_sync(FULL, best, h));
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = best;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 i = 1; i < 8; i++) best = max(best, shared[i]);
    atomicMax(&slots[2 * row], best);
    if (count_done(&slots[2 * row + 1]) != gridDim.x - 1) return;
    // In this order neither waits for the other.
    u64 fault = published ? atomicExch(fault_word, ~0ull) : 0;
    best = atomicExch(&slots[2 * row], 0ull);
    slots[2 * row + 1] = 0;
    ids[row] = ~(u32)best;
    if (!published) return;
    *published = ~(u32)best;
    *key = fault;
}

// The k-th largest key of a row, by eight passes over its bytes. One block a row.
KERNEL __launch_bounds__(1024) kth_largest(const float *logits, u32 vocab, u32 k, u64 *threshold) {
    __shared__ u32 counts[256];
    __shared__ u64 found;
    __shared__ u32 left;
    BEGIN;
    const float *l = logits + (u64)blockIdx.x * vocab;
    if (threadIdx.x == 0) found = 0, left = k;
    for (int shift = 56; shift >= 0; shift -= 8) {
        if (threadIdx.x < 256) counts[threadIdx.x] = 0;
        __syncthreads();
        u64 prefix = found;
        for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) {
            u64 key = key_of(ordered(l[i]), i);
            if (shift == 56 || key >> (shift + 8) == prefix >> (shift + 8)) atomicAdd(&counts[key >> shift & 255], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 digit = 255, need = left;
            while (digit > 0 && counts[digit] < need) need -= counts[digit--];
            left = need;
            found |= (u64)digit << shift;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) threshold[blockIdx.x] = found;
}
