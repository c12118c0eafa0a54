// A vector of kLanes floats in the compiler's portable vector extension, and the few operations the scan needs on it.
//
// Included once per instruction-set variant, in a translation unit of its own compiled with that variant's flags. Everything
// here is static and no C++ standard header is included: an inline function of the standard library compiled with AVX-512
// could otherwise be the copy that the linker keeps for the baseline too.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VSSM_LANES 16
#elif defined(__AVX2__)
#define VSSM_LANES 8
#else
#define VSSM_LANES 4
#endif

#define VSSM_INLINE static inline __attribute__((always_inline))
#define VSSM_MEMBER inline __attribute__((always_inline))

namespace {

constexpr int kLanes = VSSM_LANES;
typedef float Vec __attribute__((vector_size(4 * VSSM_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * VSSM_LANES)));

VSSM_INLINE Vec load(const float *p) {
    Vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

VSSM_INLINE void store(float *p, Vec v) { memcpy(p, &v, sizeof v); }

VSSM_INLINE Vec splat(float x) { return Vec{} + x; }

VSSM_INLINE IntVec as_int(Vec v) {
    IntVec i;
    memcpy(&i, &v, sizeof i);
    return i;
}

VSSM_INLINE Vec as_float(IntVec i) {
    Vec v;
    memcpy(&v, &i, sizeof v);
    return v;
}

// A NaN in `v` comes out as NaN: x86 gives the second operand when the operands do not compare.
VSSM_INLINE Vec at_least(Vec v, Vec low) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)low, (__m512)v);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)low, (__m256)v);
#elif defined(__x86_64__)
    return (Vec)_mm_max_ps((__m128)low, (__m128)v);
#else
    return low > v ? low : v;
#endif
}

VSSM_INLINE Vec at_most(Vec v, Vec high) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)high, (__m512)v);
#elif defined(__AVX2__)
    return (Vec)_mm256_min_ps((__m256)high, (__m256)v);
#elif defined(__x86_64__)
    return (Vec)_mm_min_ps((__m128)high, (__m128)v);
#else
    return high < v ? high : v;
#endif
}

VSSM_INLINE Vec absolute(Vec v) { return as_float(as_int(v) & 0x7fffffff); }

VSSM_INLINE Vec shift_left_23(Vec v) { return as_float(as_int(v) << 23); }

VSSM_INLINE Vec negative_first(Vec x, Vec negative, Vec other) { return x < 0.0f ? negative : other; }

// Several vectors that go through the same arithmetic side by side. The polynomials below are chains of dependent
// instructions; one chain at a time fills the processor's scheduler with waiting work and leaves the units idle.
template <int Count>
struct Wide {
    Vec v[Count];
};

#define VSSM_EACH(expression)                     \
    Wide<Count> out;                              \
    for (int i = 0; i < Count; ++i) out.v[i] = expression; \
    return out

// clang-format off
template <int Count> VSSM_INLINE Wide<Count> operator+(Wide<Count> a, Wide<Count> b) { VSSM_EACH(a.v[i] + b.v[i]); }
template <int Count> VSSM_INLINE Wide<Count> operator-(Wide<Count> a, Wide<Count> b) { VSSM_EACH(a.v[i] - b.v[i]); }
template <int Count> VSSM_INLINE Wide<Count> operator*(Wide<Count> a, Wide<Count> b) { VSSM_EACH(a.v[i] * b.v[i]); }
template <int Count> VSSM_INLINE Wide<Count> operator/(Wide<Count> a, Wide<Count> b) { VSSM_EACH(a.v[i] / b.v[i]); }
template <int Count> VSSM_INLINE Wide<Count> operator+(Wide<Count> a, float b) { VSSM_EACH(a.v[i] + b); }
template <int Count> VSSM_INLINE Wide<Count> operator-(Wide<Count> a, float b) { VSSM_EACH(a.v[i] - b); }
template <int Count> VSSM_INLINE Wide<Count> operator*(Wide<Count> a, float b) { VSSM_EACH(a.v[i] * b); }
template <int Count> VSSM_INLINE Wide<Count> at_least(Wide<Count> a, float b) { VSSM_EACH(at_least(a.v[i], splat(b))); }
template <int Count> VSSM_INLINE Wide<Count> at_most(Wide<Count> a, float b) { VSSM_EACH(at_most(a.v[i], splat(b))); }
template <int Count> VSSM_INLINE Wide<Count> absolute(Wide<Count> a) { VSSM_EACH(absolute(a.v[i])); }
template <int Count> VSSM_INLINE Wide<Count> shift_left_23(Wide<Count> a) { VSSM_EACH(shift_left_23(a.v[i])); }
template <int Count> VSSM_INLINE Wide<Count> negative_first(Wide<Count> x, Wide<Count> negative, Wide<Count> other) {
    VSSM_EACH(negative_first(x.v[i], negative.v[i], other.v[i]));
}
// clang-format on

#undef VSSM_EACH

// ---- exp2, exp, softplus ---------------------------------------------------------------------------------------------

constexpr float kLog2e = 1.44269504088896341f;

// Adding it rounds n to an integer and leaves n + 127, the exponent field of 2^n, in the low bits of the float: a shift
// makes it a power of two. -127 gives 0 and 128 gives infinity, which is how underflow and overflow come out.
constexpr float kRound = 12582912.0f + 127.0f;

#if defined(__AVX512F__)
// p * 2^n with underflow and overflow seen to; NaN in either stays NaN.
template <int Count>
VSSM_INLINE Wide<Count> scale(Wide<Count> p, Wide<Count> n) {
    Wide<Count> out;
    for (int i = 0; i < Count; ++i) out.v[i] = (Vec)_mm512_scalef_ps((__m512)p.v[i], (__m512)n.v[i]);
    return out;
}
#endif

// 2^f on [-0.5, 0.5]: minimax in relative error (1e-7) with the constant and the linear term fixed at their true values, so
// that a decay close to 1, the one a long memory multiplies up thousands of times, has no systematic error.
template <int Count>
VSSM_INLINE Wide<Count> exp2_fraction(Wide<Count> f) {
    Wide<Count> p = f * 0.0013300264115584702f + 0.009669708416936948f;
    p = p * f + 0.05550559994391106f;
    p = p * f + 0.2402228160750728f;
    p = p * f + 0.6931471805599453f;
    return p * f + 1.0f;
}

// exp2(a * b). The power of two multiplies (rather than being added to the exponent bits) so that NaN stays NaN.
template <int Count>
VSSM_INLINE Wide<Count> exp2_product(Wide<Count> a, Wide<Count> b) {
#if defined(__AVX512F__)
    const Wide<Count> n = (a * b + kRound) - kRound;
    Wide<Count> f = a * b - n;
    // Infinite or beyond what kRound rounds: the scaling alone decides, and f (or NaN) becomes 0.5 in magnitude.
    for (int i = 0; i < Count; ++i) f.v[i] = (Vec)_mm512_range_ps((__m512)f.v[i], _mm512_set1_ps(0.5f), 2);
    return scale(exp2_fraction(f), n);
#else
    const Wide<Count> x = at_most(at_least(a * b, -127.0f), 128.0f);
    const Wide<Count> biased = x + kRound;
    return exp2_fraction(x - (biased - kRound)) * shift_left_23(biased);
#endif
}

// exp(-|x|), relatively accurate out to the underflow.
template <int Count>
VSSM_INLINE Wide<Count> exp_minus_abs(Wide<Count> x) {
#if defined(__AVX512F__)
    // The fused multiplication takes all of n * log(2), whose float32 value is close enough for every n there is.
    x = at_most(absolute(x), 104.0f);
    const Wide<Count> n = (x * -kLog2e + kRound) - kRound;
    const Wide<Count> r = n * -0.6931471805599453f - x;
    Wide<Count> p = r * 0.008290315046906471f + 0.04189793020486832f;
    p = p * r + 0.1666763573884964f;
    p = p * r + 0.4999915063381195f;
    p = p * r + 0.9999997019767761f;
    return scale(p * r + 1.0f, n);
#else
    // log(2) is subtracted in two parts, the first with so few bits that its product with n is exact.
    x = at_most(absolute(x), 88.0f);
    const Wide<Count> biased = x * -kLog2e + kRound;
    const Wide<Count> n = biased - kRound;
    const Wide<Count> r = n * 2.12194440e-4f - (n * 0.693359375f + x);
    Wide<Count> p = r * 0.001384364441037178f + 0.008374163880944252f;
    p = p * r + 0.04166800156235695f;
    p = p * r + 0.16666431725025177f;
    p = p * r + 0.4999999403953552f;
    p = p * r + 1.0f;
    return (p * r + 1.0f) * shift_left_23(biased);
#endif
}

// softplus(x) given w = exp(-|x|), as max(x, 0) + log(1 + w). The logarithm, on [0, 1], is w * P(w): relatively accurate
// however small w is (minimax error of P: 3e-8). Above 20 it is less than half a unit in the last place of x: linear.
template <int Count>
VSSM_INLINE Wide<Count> softplus(Wide<Count> x, Wide<Count> w) {
    Wide<Count> p = w * 0.005364818964153528f - 0.03006577305495739f;
    p = p * w + 0.0792045071721077f;
    p = p * w - 0.13753800094127655f;
    p = p * w + 0.191536545753479f;
    p = p * w - 0.24857163429260254f;
    p = p * w + 0.3332132399082184f;
    p = p * w - 0.49999648332595825f;
    p = p * w + 1.0f;
    return p * w + at_least(x, 0.0f);
}

template <int Count>
VSSM_INLINE Wide<Count> sigmoid(Wide<Count> x, Wide<Count> w) {
    Wide<Count> one;
    for (int i = 0; i < Count; ++i) one.v[i] = splat(1.0f);
    return negative_first(x, w, one) / (w + 1.0f);
}

// ---- shuffles --------------------------------------------------------------------------------------------------------

template <int... I>
struct Indices {};

template <int Count, int... I>
struct MakeIndices : MakeIndices<Count - 1, Count - 1, I...> {};

template <int... I>
struct MakeIndices<0, I...> {
    typedef Indices<I...> type;
};

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define VSSM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#if !defined(VSSM_SHUFFLE)
#define VSSM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// A Pattern maps each output lane to a lane of the pair (a, b); b's lanes follow a's.
template <class Pattern, int... I>
VSSM_INLINE Vec shuffle(Vec a, Vec b, Indices<I...>) {
    return VSSM_SHUFFLE(a, b, Pattern::lane(I)...);
}

template <class Pattern>
VSSM_INLINE Vec shuffle(Vec a, Vec b) {
    return shuffle<Pattern>(a, b, typename MakeIndices<kLanes>::type());
}

// Interleaves the lower or the upper halves of every 128-bit part: one unpack instruction at any vector width.
template <int Upper>
struct Zip {
    static constexpr int lane(int i) { return (i & ~3) + (i & 3) / 2 + 2 * Upper + (i & 1) * kLanes; }
};

// One of the two rows after exchanging, between rows `Step` apart, the elements off the diagonal of each 2 x 2 block.
template <int Step, int Second>
struct Exchange {
    static constexpr int lane(int i) {
        return Second ? ((i & Step) ? kLanes + i : i + Step) : ((i & Step) ? kLanes + i - Step : i);
    }
};

template <int Step>
VSSM_INLINE void exchange(Vec (&v)[kLanes]) {
    for (int r = 0; r < kLanes; ++r) {
        if (r & Step) continue;
        const Vec a = v[r], b = v[r + Step];
        v[r] = shuffle<Exchange<Step, 0>>(a, b);
        v[r + Step] = shuffle<Exchange<Step, 1>>(a, b);
    }
}

// Exchanging the elements between the halves of a vector: what is left of a transpose after transpose_parts, or is left to
// it, and what moving halves to and from memory does without a shuffle. Vectors of one part have none.
constexpr int kHalf = kLanes > 4 ? kLanes / 2 : kLanes;

// A vector of two halves of kHalf floats.
VSSM_INLINE Vec load_halves(const float *lower, const float *upper) {
#if defined(__AVX512F__)
    return (Vec)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(lower)), _mm256_loadu_ps(upper), 1);
#elif defined(__AVX2__)
    return (Vec)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(lower)), _mm_loadu_ps(upper), 1);
#else
    (void)upper;
    return load(lower);
#endif
}

// kHalf floats. As a vector: a compiler takes a call or 64-bit moves for some sizes of memcpy.
VSSM_INLINE void copy_half(float *to, const float *from) {
    typedef float Half __attribute__((vector_size(4 * kHalf)));
    Half half;
    memcpy(&half, from, sizeof half);
    memcpy(to, &half, sizeof half);
}

// 4 x 4 transposes inside the 128-bit parts, then the parts of each half of the vectors among themselves.
VSSM_INLINE void transpose_parts(Vec (&v)[kLanes]) {
    for (int r = 0; r < kLanes; r += 4) {
        const Vec a = shuffle<Zip<0>>(v[r], v[r + 2]), b = shuffle<Zip<1>>(v[r], v[r + 2]);
        const Vec c = shuffle<Zip<0>>(v[r + 1], v[r + 3]), d = shuffle<Zip<1>>(v[r + 1], v[r + 3]);
        v[r] = shuffle<Zip<0>>(a, c);
        v[r + 1] = shuffle<Zip<1>>(a, c);
        v[r + 2] = shuffle<Zip<0>>(b, d);
        v[r + 3] = shuffle<Zip<1>>(b, d);
    }
#if VSSM_LANES >= 16
    exchange<4>(v);
#endif
}

VSSM_INLINE void transpose(Vec (&v)[kLanes]) {
    transpose_parts(v);
    if constexpr (kHalf < kLanes) exchange<kHalf>(v);
}

// Lane i of the result is the sum of the lanes of v[i], added pairwise: a transpose folded into its own reduction.
VSSM_INLINE Vec sum_each(Vec (&v)[kLanes]) {
#if VSSM_LANES >= 16
    for (int r = 0; r < 8; ++r)
        v[r] = shuffle<Exchange<8, 0>>(v[r], v[r + 8]) + shuffle<Exchange<8, 1>>(v[r], v[r + 8]);
#endif
#if VSSM_LANES >= 8
    for (int r = 0; r < 4; ++r)
        v[r] = shuffle<Exchange<4, 0>>(v[r], v[r + 4]) + shuffle<Exchange<4, 1>>(v[r], v[r + 4]);
#endif
    for (int r = 0; r < 2; ++r) v[r] = shuffle<Zip<0>>(v[r], v[r + 2]) + shuffle<Zip<1>>(v[r], v[r + 2]);
    return shuffle<Zip<0>>(v[0], v[1]) + shuffle<Zip<1>>(v[0], v[1]);
}

VSSM_INLINE float sum_lanes(Vec v) {
    typedef float Four __attribute__((vector_size(16)));
    Four parts[kLanes / 4];
    memcpy(parts, &v, sizeof v);
    for (int step = kLanes / 8; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) parts[i] += parts[i + step];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

}  // namespace
