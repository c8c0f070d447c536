// Rows of eight floats as columns. AVX2.
#ifndef DENOISED_BACKENDS_KERNELS_TRANSPOSE_H_
#define DENOISED_BACKENDS_KERNELS_TRANSPOSE_H_

#include <immintrin.h>

namespace denoised::kernels {

// Four rows: x[i] becomes columns i and i + 4.
inline void TransposeFour(__m256 (&x)[4]) {
  const __m256 a = _mm256_unpacklo_ps(x[0], x[1]), b = _mm256_unpacklo_ps(x[2], x[3]);
  const __m256 c = _mm256_unpackhi_ps(x[0], x[1]), d = _mm256_unpackhi_ps(x[2], x[3]);
  x[0] = _mm256_shuffle_ps(a, b, 0x44);
  x[1] = _mm256_shuffle_ps(a, b, 0xee);
  x[2] = _mm256_shuffle_ps(c, d, 0x44);
  x[3] = _mm256_shuffle_ps(c, d, 0xee);
}

// Eight rows.
inline void TransposeEight(__m256 (&x)[8]) {
  __m256 low[4], high[4];
  for (int i = 0; i < 4; ++i) {
    low[i] = x[i];
    high[i] = x[i + 4];
  }
  TransposeFour(low);
  TransposeFour(high);
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(low[i], high[i], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(low[i], high[i], 0x31);
  }
}

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_TRANSPOSE_H_
