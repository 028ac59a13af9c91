// exp and ln as tersor_core::reference::math defines them, and an order of floats as integers.
#pragma once
#include "common.cuh"

#define ROUND 12582912.0f

// e^x for x <= 0; 0 below -87; NaN stays NaN.
__device__ __forceinline__ float exp_negative(float x) {
    float rounded = __fadd_rn(__fmul_rn(x, 1.44269504088896340736f), ROUND);
    float n = rounded - ROUND;
    float r = (x - __fmul_rn(n, 0.6933594f)) - __fmul_rn(n, -2.1219444e-4f);
    float p = 1.9875691e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3982e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 5.0000001e-1f);
    float y = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
    u32 exponent = __float_as_uint(rounded) - __float_as_uint(ROUND) + 127u;
    float scaled = __fmul_rn(y, __uint_as_float(exponent << 23));
    return x < -87.0f ? 0.0f : scaled;
}

// Natural logarithm of a positive normal f32.
__device__ __forceinline__ float ln_positive(float x) {
    u32 bits = __float_as_uint(x);
    float h = __uint_as_float((bits & 0x007fffffu) | 0x3f000000u);
    bool low = h < 0.70710678118654752440f;
    float e = (float)((int)(bits >> 23) - 126 - (low ? 1 : 0));
    float m = low ? __fadd_rn(h, h) - 1.0f : h - 1.0f;
    float z = __fmul_rn(m, m);
    float p = 7.0376836e-2f;
    p = __fadd_rn(__fmul_rn(p, m), -1.151461e-1f);
    p = __fadd_rn(__fmul_rn(p, m), 1.1676999e-1f);
    p = __fadd_rn(__fmul_rn(p, m), -1.2420141e-1f);
    p = __fadd_rn(__fmul_rn(p, m), 1.4249323e-1f);
    p = __fadd_rn(__fmul_rn(p, m), -1.6668058e-1f);
    p = __fadd_rn(__fmul_rn(p, m), 2.0000715e-1f);
    p = __fadd_rn(__fmul_rn(p, m), -2.4999994e-1f);
    p = __fadd_rn(__fmul_rn(p, m), 3.3333331e-1f);
    float y = __fadd_rn(__fmul_rn(__fmul_rn(p, m), z), __fmul_rn(e, -2.1219444e-4f));
    return __fadd_rn(__fadd_rn(m, y - __fmul_rn(0.5f, z)), __fmul_rn(e, 0.6933594f));
}

// IEEE total order as unsigned order.
__device__ __forceinline__ u32 ordered(float v) {
    u32 b = __float_as_uint(v);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(u32 o) {
    return __uint_as_float(o & 0x80000000u ? o & 0x7fffffffu : ~o);
}
