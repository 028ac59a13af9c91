// What all kernels share: types, the fault word, and the 64 lanes of every float sum.
//
// Everything is compiled with -fmad=false, so a * b + c is two roundings, and with IEEE division, square roots and
// denormals, so that each line below means what docs/numerics.md says.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void
#define FULL 0xffffffffu

// A kernel is launched while the one before it still runs: it may read weights at once, but waits here before it touches
// anything that earlier work writes or reads. Every kernel waits, so a kernel that is done implies that all before it are.
// Letting the next one start at once costs nothing: its blocks only get what ours leave over.
__device__ __forceinline__ void start_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#define BEGIN                                                                                                          \
    start_next();                                                                                                      \
    wait_for_previous()

// For a kernel after which another reads early what earlier ones wrote: it is there once this one has waited.
#define BEGIN_LATE                                                                                                     \
    wait_for_previous();                                                                                               \
    start_next()

// Where a kernel reports data that it cannot round: the smallest key wins, which is the first element of the first op that
// failed. `raised` is host memory, read by the host without a copy; it is written only after a fault.
#define FAULT u64 *fault_word, u32 *fault_raised, u64 fault_seq
#define FAULT_ARGS fault_word, fault_raised, fault_seq

enum FaultKind { F_NAN = 0, F_INF = 1, F_NEG_INF = 2, F_SCALE = 3, F_MEAN = 4, F_INDEX = 5 };

__device__ __forceinline__ void raise_fault(FAULT, u32 kind, u64 payload) {
    atomicMin(fault_word, fault_seq << 44 | (payload & 0x1ffffffffffull) << 3 | kind);
    *(volatile u32 *)fault_raised = 1;
    __threadfence_system();
}

// For an element that is NaN or infinite.
__device__ __forceinline__ void raise_element(FAULT, float v, u64 index) {
    u32 kind = v != v ? F_NAN : v > 0.0f ? F_INF : F_NEG_INF;
    raise_fault(FAULT_ARGS, kind, index);
}

__device__ __forceinline__ u32 abs_bits(float v) { return __float_as_uint(v) & 0x7fffffffu; }
#define INF_BITS 0x7f800000u

__device__ __forceinline__ float half_value(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
__device__ __forceinline__ u16 half_bits(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
__device__ __forceinline__ float bf16_value(u16 h) { return __uint_as_float((u32)h << 16); }
__device__ __forceinline__ u16 bf16_bits(float f) {
    u32 b = __float_as_uint(f);
    if ((b & 0x7fffffffu) > INF_BITS) return (u16)(b >> 16 | 0x40);
    return (u16)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}

// Element types, as the host numbers them.
enum Type { T_F32 = 0, T_F16 = 1, T_BF16 = 2 };

template <int T> __device__ __forceinline__ float load(const void *p, u64 i) {
    if (T == T_F32) return ((const float *)p)[i];
    u16 h = ((const u16 *)p)[i];
    return T == T_F16 ? half_value(h) : bf16_value(h);
}
__device__ __forceinline__ float load_as(u32 type, const void *p, u64 i) {
    return type == T_F32 ? load<T_F32>(p, i) : type == T_F16 ? load<T_F16>(p, i) : load<T_BF16>(p, i);
}
// Four elements at once; p is aligned to four of them.
template <int T> __device__ __forceinline__ float4 load4(const void *p, u64 i) {
    if (T == T_F32) return *(const float4 *)((const float *)p + i);
    uint2 v = *(const uint2 *)((const u16 *)p + i);
    u16 a = v.x & 0xffff, b = v.x >> 16, c = v.y & 0xffff, d = v.y >> 16;
    if (T == T_F16) return make_float4(half_value(a), half_value(b), half_value(c), half_value(d));
    return make_float4(bf16_value(a), bf16_value(b), bf16_value(c), bf16_value(d));
}

// Weights that a kernel reads once: they have no place in the first-level cache, and lines come to the second-level cache in
// pairs. `volatile` keeps loads where they are asked for, in the order of their addresses.
#ifndef READ_ONCE
#define READ_ONCE "ld.global.nc.L1::no_allocate.L2::256B"
#endif
__device__ __forceinline__ u32 once4(const void *at) {
    u32 v;
    asm volatile(READ_ONCE ".u32 %0, [%1];" : "=r"(v) : "l"(at));
    return v;
}
__device__ __forceinline__ uint2 once8(const void *at) {
    uint2 v;
    asm volatile(READ_ONCE ".v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
    return v;
}
__device__ __forceinline__ uint4 once16(const void *at) {
    uint4 v;
    asm volatile(READ_ONCE ".v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

// Two weights of a dense row, in the lanes 2t and 2t + 1.
template <int T> struct Pair {
    u32 v;
    static const int bytes = 2;
    __device__ __forceinline__ void load(const char *at) { v = __ldg((const u32 *)at); }
    __device__ __forceinline__ void load_once(const char *at) { v = once4(at); }
    __device__ __forceinline__ float low() const { return T == T_F16 ? half_value(v & 0xffff) : __uint_as_float(v << 16); }
    __device__ __forceinline__ float high() const {
        return T == T_F16 ? half_value(v >> 16) : __uint_as_float(v & 0xffff0000u);
    }
};
template <> struct Pair<T_F32> {
    float2 v;
    static const int bytes = 4;
    __device__ __forceinline__ void load(const char *at) { v = __ldg((const float2 *)at); }
    __device__ __forceinline__ void load_once(const char *at) {
        uint2 u = once8(at);
        v = make_float2(__uint_as_float(u.x), __uint_as_float(u.y));
    }
    __device__ __forceinline__ float low() const { return v.x; }
    __device__ __forceinline__ float high() const { return v.y; }
};

// The last five halvings of the lanes: thread t of a warp holds lane t. Addition commutes, so every thread ends with the
// same bits.
__device__ __forceinline__ float fold32(float a) {
#pragma unroll
    for (int h = 16; h; h >>= 1) a = a + __shfl_xor_sync(FULL, a, h);
    return a;
}
// All six, for thread t holding lanes t and t + 32.
__device__ __forceinline__ float fold64(float low, float high) { return fold32(low + high); }

__device__ __forceinline__ u32 warp_max(u32 v) { return __reduce_max_sync(FULL, v); }

// Block-wide maximum; `shared` has room for 32 values. Ends with a barrier.
__device__ __forceinline__ u32 block_max(u32 v, u32 *shared) {
    v = warp_max(v);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
    __syncthreads();
    u32 warps = blockDim.x >> 5;
    v = warp_max((threadIdx.x & 31) < warps ? shared[threadIdx.x & 31] : 0);
    __syncthreads();
    return v;
}
