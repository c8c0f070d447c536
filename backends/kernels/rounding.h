// Eight floats to memory of float32 and bfloat16, and units of the packed products from it. AVX2.
#ifndef DENOISED_BACKENDS_KERNELS_ROUNDING_H_
#define DENOISED_BACKENDS_KERNELS_ROUNDING_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace denoised::kernels {

inline __m256 LoadEight(const float* x) { return _mm256_loadu_ps(x); }
inline __m256 LoadEight(const uint16_t* x) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline float LoadOne(const float* x) { return *x; }
inline float LoadOne(const uint16_t* x) {
  const uint32_t bits = static_cast<uint32_t>(*x) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline void StoreEight(float* y, __m256 x) { _mm256_storeu_ps(y, x); }

// Round to nearest even; NaN stays NaN.
inline void StoreEight(uint16_t* y, __m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i words =
      _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(packed));
}

// The first `count` of eight, or all where there are more; what is not there is zero.
template <typename T>
inline __m256 LoadSome(const T* x, int64_t count) {
  if (count >= 8) return LoadEight(x);
  T some[8] = {};
  std::memcpy(some, x, static_cast<size_t>(count) * sizeof(T));
  return LoadEight(some);
}

template <typename T>
inline void StoreSome(T* y, int64_t count, __m256 x) {
  if (count >= 8) return StoreEight(y, x);
  T some[8];
  StoreEight(some, x);
  std::memcpy(y, some, static_cast<size_t>(count) * sizeof(T));
}

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_ROUNDING_H_
