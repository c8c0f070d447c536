// Activations of eight floats at a time, with the same bits wherever an element stands. AVX2.
#ifndef DENOISED_BACKENDS_KERNELS_ACTIVATIONS_H_
#define DENOISED_BACKENDS_KERNELS_ACTIVATIONS_H_

#include <immintrin.h>

#include "backends/kernels/exp2_part.h"

namespace denoised::kernels {

// Eight floats.
struct Floats8 {
  using F = __m256;
  static constexpr int kLanes = 8;
  static F Set1(float x) { return _mm256_set1_ps(x); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }  // of a NaN: b
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F FusedMulAdd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // x times two to the power of the whole number, signed, in the nine lowest bits of `whole`. Both
  // x and what comes of it are normal numbers.
  static F AddToExponent(F x, F whole) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
  }
  // `ratio`, and where y is above `most` a zero of x's sign.
  static F ZeroWhereAbove(F y, F most, F ratio, F x) {
    const F zero = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
    return _mm256_blendv_ps(ratio, zero, _mm256_cmp_ps(y, most, _CMP_GT_OQ));
  }
};

#include "backends/kernels/activations_impl.h"

inline __m256 Silu8(__m256 x) { return Silu<Floats8>(x); }

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_ACTIVATIONS_H_
