// Eight rows of eight floats as columns. AVX2.
#ifndef DENOISED_BACKENDS_KERNELS_TRANSPOSE_H_
#define DENOISED_BACKENDS_KERNELS_TRANSPOSE_H_

#include <immintrin.h>

namespace denoised::kernels {

inline void TransposeEight(__m256 (&x)[8]) {
  __m256 pair[8], four[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
  }
}

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_TRANSPOSE_H_
