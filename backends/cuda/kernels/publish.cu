// What a step leaves for the host, at the end of its own launches: no copy engine is waited for.
#include "common.cuh"

// Copies a few bytes to host memory that the host reads once an event after this kernel has happened, and with them the key of
// the first fault so far, which is forgotten here: what comes later counts for the next such copy. `sample` does so by itself.
KERNEL __launch_bounds__(128) publish(const u8 *from, u32 bytes, u8 *to, u64 *key, u64 *fault_word) {
    BEGIN;
    for (u32 i = threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
    if (threadIdx.x == 0) *key = atomicExch(fault_word, ~0ull);
}
