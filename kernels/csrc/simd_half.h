// Half-precision floats in memory: they become float32 on the way into a vector, and are rounded to the nearest on the way out.
#pragma once

#include "simd.h"

namespace {

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

typedef uint16_t HalfBits __attribute__((vector_size(2 * VSSM_LANES)));
typedef uint32_t UintVec __attribute__((vector_size(4 * VSSM_LANES)));

VSSM_INLINE UintVec as_uint(Vec v) {
    UintVec i;
    memcpy(&i, &v, sizeof i);
    return i;
}

VSSM_INLINE Vec from_uint(UintVec i) {
    Vec v;
    memcpy(&v, &i, sizeof v);
    return v;
}

VSSM_INLINE Vec to_floats(HalfBits half, BFloat16) { return from_uint(__builtin_convertvector(half, UintVec) << 16); }

VSSM_INLINE HalfBits to_halves(Vec v, BFloat16) {
    const UintVec bits = as_uint(v);
    const UintVec rounded = (bits + (0x7fff + ((bits >> 16) & 1))) >> 16;
    return __builtin_convertvector(v == v ? rounded : (bits >> 16 | 0x40), HalfBits);
}

#if defined(__AVX512F__)
VSSM_INLINE Vec to_floats(HalfBits half, Float16) { return (Vec)_mm512_cvtph_ps((__m256i)half); }
VSSM_INLINE HalfBits to_halves(Vec v, Float16) { return (HalfBits)_mm512_cvtps_ph((__m512)v, 0); }
#elif defined(__F16C__) && defined(__AVX2__)
VSSM_INLINE Vec to_floats(HalfBits half, Float16) { return (Vec)_mm256_cvtph_ps((__m128i)half); }
VSSM_INLINE HalfBits to_halves(Vec v, Float16) { return (HalfBits)_mm256_cvtps_ph((__m256)v, 0); }
#else
VSSM_INLINE Vec to_floats(HalfBits half, Float16) {
    const UintVec bits = __builtin_convertvector(half, UintVec);
    const UintVec sign = (bits & 0x8000) << 16, size = bits & 0x7fff;
    // Subnormals as whole numbers: as floats they would be subnormal too, which are zero while a kernel runs.
    const Vec small = __builtin_convertvector((IntVec)size, Vec) * 5.9604644775390625e-8f;  // 2^-24
    const UintVec normal = (size << 13) + (112u << 23), special = (size << 13) | 0x7f800000;
    UintVec out = size < 0x400 ? as_uint(small) : normal;
    out = size < 0x7c00 ? out : special;
    return from_uint(out | sign);
}

VSSM_INLINE HalfBits to_halves(Vec v, Float16) {
    const UintVec bits = as_uint(v), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    // The last place of 0.5 is that of half's subnormals, so that the addition rounds to them.
    const UintVec small = as_uint(from_uint(size) + 0.5f) - (126u << 23);
    const UintVec normal = (size + (0xfff + ((size >> 13) & 1)) - (112u << 23)) >> 13;
    UintVec out = size < (113u << 23) ? small : normal;
    out = size < 0x477ff000 ? out : UintVec{} + 0x7c00;  // 65520 and above
    out = size > 0x7f800000 ? UintVec{} + 0x7e00 : out;
    return __builtin_convertvector(out | sign, HalfBits);
}
#endif

// The same names as for floats.
template <class Half>
VSSM_INLINE Vec load(const Half *p) {
    HalfBits bits;
    memcpy(&bits, p, sizeof bits);
    return to_floats(bits, Half());
}

#if defined(__AVX512F__)
// The first `lanes` lanes. A memcpy of a length that is not known becomes a slow string instruction.
VSSM_INLINE __mmask16 first_lanes(int lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }
#endif

// `lanes` values, the other lanes zero; zeros for null. No value past the last is read.
VSSM_INLINE Vec load_lanes(const float *p, int lanes) {
    Vec v = Vec{};
#if defined(__AVX512F__)
    if (p) v = (Vec)_mm512_maskz_loadu_ps(first_lanes(lanes), p);
#else
    if (p && lanes == kLanes) return load(p);
    if (p) memcpy(&v, p, lanes * sizeof(float));
#endif
    return v;
}

template <class Half>
VSSM_INLINE Vec load_lanes(const Half *p, int lanes) {
    HalfBits bits = {};
#if defined(__AVX512F__)
    bits = (HalfBits)_mm256_maskz_loadu_epi16(first_lanes(lanes), p);
#else
    if (lanes == kLanes) return load(p);
    for (int i = 0; i < lanes; ++i) bits[i] = p[i].bits;
#endif
    return to_floats(bits, Half());
}

VSSM_INLINE void store_lanes(float *p, int lanes, Vec v) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, first_lanes(lanes), (__m512)v);
#else
    if (lanes == kLanes)
        store(p, v);
    else
        memcpy(p, &v, lanes * sizeof(float));
#endif
}

template <class Half>
VSSM_INLINE void store_lanes(Half *p, int lanes, Vec v) {
    const HalfBits bits = to_halves(v, Half());
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(p, first_lanes(lanes), (__m256i)bits);
#else
    if (lanes == kLanes)
        memcpy(p, &bits, sizeof bits);
    else
        memcpy(p, &bits, lanes * sizeof(Half));
#endif
}

// `count` values side by side to floats.
VSSM_INLINE void copy_floats(const float *from, int64_t count, float *to) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

template <class Half>
VSSM_INLINE void copy_floats(const Half *from, int64_t count, float *to) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i < count) store_lanes(to + i, static_cast<int>(count - i), load_lanes(from + i, static_cast<int>(count - i)));
}

// Calls body(T()) for the type that a number of `vssm::Dtype` stands for.
template <class Body>
VSSM_INLINE void with_type(int64_t dtype, const Body &body) {
    if (dtype == vssm::kBFloat16)
        body(BFloat16());
    else if (dtype == vssm::kFloat16)
        body(Float16());
    else
        body(float());
}

}  // namespace
