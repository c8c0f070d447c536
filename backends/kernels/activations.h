// Activations of eight floats at a time, with the same bits wherever an element stands. AVX2.
#ifndef DENOISED_BACKENDS_KERNELS_ACTIVATIONS_H_
#define DENOISED_BACKENDS_KERNELS_ACTIVATIONS_H_

#include <immintrin.h>

namespace denoised::kernels {

// e^x for |x| <= 88, below 2e-7 relative.
inline __m256 Exp8(__m256 x) {
  const __m256 whole = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 part = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), x);
  part = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), part);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, part, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, part, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, part, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, part, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, part, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_fmadd_ps(_mm256_mul_ps(part, part), y, _mm256_add_ps(part, _mm256_set1_ps(1.0f)));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(y, _mm256_castsi256_ps(exponent));
}

// x / (1 + e^y); NaN in either stays NaN. Where e^y would be infinite, a zero of x's sign.
inline __m256 OverOnePlusExp8(__m256 x, __m256 y) {
  const __m256 most = _mm256_set1_ps(87.0f);
  const __m256 vanishes = _mm256_cmp_ps(y, most, _CMP_GT_OQ);
  y = _mm256_min_ps(most, _mm256_max_ps(_mm256_set1_ps(-87.0f), y));
  const __m256 ratio = _mm256_div_ps(x, _mm256_add_ps(Exp8(y), _mm256_set1_ps(1.0f)));
  return _mm256_blendv_ps(ratio, _mm256_and_ps(x, _mm256_set1_ps(-0.0f)), vanishes);
}

inline __m256 Silu8(__m256 x) { return OverOnePlusExp8(x, _mm256_sub_ps(_mm256_setzero_ps(), x)); }

// x / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): half of x (1 + tanh u), without its
// cancellation.
inline __m256 GeluTanh8(__m256 x) {
  const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
  const __m256 u = _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), x);
  return OverOnePlusExp8(x, _mm256_mul_ps(u, _mm256_set1_ps(-1.5957691216057308f)));
}

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_ACTIVATIONS_H_
