// What the row loops of the models share: eight floats at a time from and to float32 and bfloat16
// memory, rows of companion tensors, the rotation of pairs. AVX2; CPU only.
#ifndef DENOISED_RUNTIME_MODELS_ROWS_H_
#define DENOISED_RUNTIME_MODELS_ROWS_H_

#include <ATen/ATen.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "backends/kernels/rounding.h"

namespace denoised {

// Rows of [B, S, D] whose companion tensors (float32 [B, 1 or S, D]) have one row per batch or one
// per token; with an index (int32 [B, 1 or S], dense) that of [U, 1, D] which it names.
struct PerRow {
  const float* data;
  int64_t batch_stride;
  int64_t token_stride;
  const int32_t* index = nullptr;
  int64_t index_tokens = 1;

  explicit PerRow(const at::Tensor& t, const at::Tensor& which = {})
      : data(t.const_data_ptr<float>()),
        batch_stride(t.stride(0)),
        token_stride(t.size(1) == 1 ? 0 : t.stride(1)) {
    if (!which.defined()) return;
    index = which.const_data_ptr<int32_t>();
    index_tokens = which.size(1);
  }
  const float* Row(int64_t b, int64_t s) const {
    if (index == nullptr) return data + b * batch_stride + s * token_stride;
    return data + index[index_tokens == 1 ? b : b * index_tokens + s] * batch_stride;
  }
};

// Rows that are worth a part of a loop of their own.
inline int64_t RowGrain(int64_t width) {
  constexpr int64_t kElements = 16 * 1024;
  return std::max<int64_t>(1, kElements / width);
}

inline __m256 Load8(const float* p) { return kernels::LoadEight(p); }
inline __m256 Load8(const c10::BFloat16* p) {
  return kernels::LoadEight(reinterpret_cast<const uint16_t*>(p));
}

inline void Store8(float* p, __m256 x) { kernels::StoreEight(p, x); }
// Rounds as c10::BFloat16 does.
inline void Store8(c10::BFloat16* p, __m256 x) {
  kernels::StoreEight(reinterpret_cast<uint16_t*>(p), x);
}

// Four pairs at a time: x = [a0 b0 a1 b1 ..] becomes [a c - b s, a s + b c] per pair; `out` may be
// x. Float multiplication and addition commute bit for bit, so the odd lanes may add in either
// order. cos and sin [d / 2].
template <typename T>
void RotatePairs(const T* x, const float* cos, const float* sin, T* out, int64_t d) {
  const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  int64_t i = 0;
  for (; i + 8 <= d; i += 8) {
    const __m256 v = Load8(x + i);
    const __m256 swapped = _mm256_permute_ps(v, 0xB1);
    const __m256 c =
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cos + i / 2)), twice);
    const __m256 s =
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(sin + i / 2)), twice);
    Store8(out + i, _mm256_addsub_ps(_mm256_mul_ps(v, c), _mm256_mul_ps(swapped, s)));
  }
  for (; i < d; i += 2) {
    const float a = static_cast<float>(x[i]), b = static_cast<float>(x[i + 1]);
    const float c = cos[i / 2], s = sin[i / 2];
    out[i] = static_cast<T>(a * c - b * s);
    out[i + 1] = static_cast<T>(a * s + b * c);
  }
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_ROWS_H_
