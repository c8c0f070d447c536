// The norm of the Wan VAE with its activation, one pass over the pixels.
#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "backends/intra_op.h"
#include "runtime/models/rows.h"
#include "runtime/models/vae_layers.h"

namespace denoised {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kGrainElements = 16 * 1024;
constexpr float kSmallestNorm = 1e-12f;

// What x is after a trip through the dtype T.
template <typename T>
[[gnu::always_inline]] inline __m256 Round(__m256 x) {
  if constexpr (std::is_same_v<T, float>) return x;
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7FFF));
  const __m256i rounded =
      _mm256_and_si256(_mm256_add_epi32(bits, bias), _mm256_set1_epi32(0xFFFF0000));
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
  return _mm256_blendv_ps(_mm256_castsi256_ps(rounded), nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

[[gnu::always_inline]] inline void Store(float* p, __m256 x) { _mm256_storeu_ps(p, x); }
// x is already rounded: its low halves are zero.
[[gnu::always_inline]] inline void Store(c10::BFloat16* p, __m256 x) {
  const __m256i words = _mm256_srli_epi32(_mm256_castps_si256(x), 16);
  const __m256i ordered = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
}

// e^x for x in [-88, 88]: x = n ln 2 + r, a degree-6 polynomial in r (Cephes' expf), about 1 ulp.
[[gnu::always_inline]] inline __m256 Exp(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.3f)), _mm256_set1_ps(88.3f));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  for (const float c :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  }
  p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

[[gnu::always_inline]] inline __m256 Silu(__m256 x) {
  const __m256 negated = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), Exp(negated)));
}

template <typename T>
float Length(const T* x, int64_t channels) {
  __m256 sum = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + kLanes <= channels; i += kLanes) {
    const __m256 v = Load8(x + i);
    sum = _mm256_add_ps(sum, _mm256_mul_ps(v, v));
  }
  float lanes[kLanes];
  _mm256_storeu_ps(lanes, sum);
  float total = 0;
  for (float lane : lanes) total += lane;
  for (; i < channels; ++i) total += static_cast<float>(x[i]) * static_cast<float>(x[i]);
  return std::max(std::sqrt(total), kSmallestNorm);
}

template <typename T, bool kSilu>
[[gnu::always_inline]] inline __m256 NormalizeLanes(__m256 x, __m256 length, __m256 scale,
                                                    __m256 gamma) {
  __m256 n = Round<T>(_mm256_div_ps(x, length));
  n = Round<T>(_mm256_mul_ps(n, scale));
  n = Round<T>(_mm256_mul_ps(n, gamma));
  return kSilu ? Round<T>(Silu(n)) : n;
}

// The last channels, through a padded copy, so that every channel takes the same path.
template <typename T, bool kSilu>
void NormalizeTail(const T* x, const float* gamma, T* out, int64_t count, __m256 length,
                   __m256 scale) {
  float values[kLanes] = {0}, gammas[kLanes] = {0};
  for (int64_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(x[i]);
    gammas[i] = gamma[i];
  }
  Store(values, NormalizeLanes<T, kSilu>(Load8(values), length, scale, Load8(gammas)));
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(values[i]);
}

template <typename T, bool kSilu>
void NormalizePixels(const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& out) {
  const int64_t channels = x.size(-1), whole = channels / kLanes * kLanes;
  const T* from = x.const_data_ptr<T>();
  const float* g = gamma.const_data_ptr<float>();
  T* to = out.mutable_data_ptr<T>();
  const __m256 scale = _mm256_set1_ps(static_cast<float>(std::sqrt(static_cast<double>(channels))));
  const int64_t grain = std::max<int64_t>(1, kGrainElements / channels);
  ParallelFor(x.numel() / channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const T* in = from + pixel * channels;
      T* result = to + pixel * channels;
      const __m256 length = _mm256_set1_ps(Length(in, channels));
      for (int64_t i = 0; i < whole; i += kLanes) {
        Store(result + i, NormalizeLanes<T, kSilu>(Load8(in + i), length, scale, Load8(g + i)));
      }
      if (whole < channels) {
        NormalizeTail<T, kSilu>(in + whole, g + whole, result + whole, channels - whole, length,
                                scale);
      }
    }
  });
}

// The same as a chain of ATen ops, for other devices and dtypes.
at::Tensor NormalizeChain(const at::Tensor& x, const at::Tensor& gamma, bool silu) {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor length = at::linalg_vector_norm(wide, 2, {-1}, /*keepdim=*/true);
  const at::Tensor n = (wide / length.clamp_min(kSmallestNorm)).to(x.scalar_type());
  const double scale = std::sqrt(static_cast<double>(x.size(-1)));
  const at::Tensor scaled = n * scale * gamma.to(x.scalar_type());
  return silu ? at::silu(scaled) : scaled;
}

template <typename T>
void NormalizeOnCpu(const at::Tensor& x, const at::Tensor& gamma, bool silu,
                    const at::Tensor& out) {
  if (silu) {
    NormalizePixels<T, true>(x, gamma, out);
  } else {
    NormalizePixels<T, false>(x, gamma, out);
  }
}

}  // namespace

void RmsNormInto(const at::Tensor& x, const at::Tensor& gamma, bool silu, const at::Tensor& out) {
  if (x.is_cpu() && x.scalar_type() == at::kFloat) {
    NormalizeOnCpu<float>(x, gamma, silu, out);
  } else if (x.is_cpu() && x.scalar_type() == at::kBFloat16) {
    NormalizeOnCpu<c10::BFloat16>(x, gamma, silu, out);
  } else {
    out.copy_(NormalizeChain(x, gamma, silu));
  }
}

}  // namespace denoised
