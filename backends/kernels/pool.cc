#include "backends/kernels/pool.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/kernels/rounding.h"

namespace denoised::kernels {
namespace {

__m256 LoadEight(const HeadRows& rows, int64_t at) {
  if (rows.element == Element::kFloat32) {
    return _mm256_loadu_ps(static_cast<const float*>(rows.data) + at);
  }
  return kernels::LoadEight(static_cast<const uint16_t*>(rows.data) + at);
}

float LoadOne(const HeadRows& rows, int64_t at) {
  if (rows.element == Element::kFloat32) return static_cast<const float*>(rows.data)[at];
  return kernels::LoadOne(static_cast<const uint16_t*>(rows.data) + at);
}

// Sums of kVectors * 8 columns from d on, one token after the other, kept in registers.
template <int kVectors>
void SumColumns(const HeadRows& rows, const int32_t* tokens, int64_t count, int64_t d, float* sum) {
  __m256 acc[kVectors];
  for (__m256& x : acc) x = _mm256_setzero_ps();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = tokens[i] * rows.stride + d;
    for (int v = 0; v < kVectors; ++v) acc[v] = _mm256_add_ps(acc[v], LoadEight(rows, at + 8 * v));
  }
  for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(sum + d + 8 * v, acc[v]);
}

float Sum(__m256 x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// Sums of four vectors, each in the order of Sum.
__m128 Sums(__m256 (&x)[4]) {
  __m128 four[4];
  for (int i = 0; i < 4; ++i) {
    four[i] = _mm_add_ps(_mm256_castps256_ps128(x[i]), _mm256_extractf128_ps(x[i], 1));
  }
  _MM_TRANSPOSE4_PS(four[0], four[1], four[2], four[3]);
  return _mm_add_ps(_mm_add_ps(four[0], four[2]), _mm_add_ps(four[1], four[3]));
}

// kRows rows of a against four of b, with the bits of Dot.
template <int kRows>
void FourProducts(const float* a, const float* b, int64_t m, int64_t k, float* out) {
  __m256 sum[kRows][4];
  for (auto& row : sum) {
    for (auto& x : row) x = _mm256_setzero_ps();
  }
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    __m256 column[4];
    for (int c = 0; c < 4; ++c) column[c] = _mm256_loadu_ps(b + c * k + i);
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = _mm256_loadu_ps(a + r * k + i);
      for (int c = 0; c < 4; ++c) sum[r][c] = _mm256_fmadd_ps(x, column[c], sum[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    alignas(16) float total[4];
    _mm_store_ps(total, Sums(sum[r]));
    for (int c = 0; c < 4; ++c) {
      for (int64_t j = i; j < k; ++j) total[c] = std::fma(a[r * k + j], b[c * k + j], total[c]);
      out[r * m + c] = total[c];
    }
  }
}

template <int kRows>
void RowProducts(const float* a, const float* b, int64_t m, int64_t k, float* out) {
  int64_t j = 0;
  for (; j + 4 <= m; j += 4) FourProducts<kRows>(a, b + j * k, m, k, out + j);
  for (; j < m; ++j) {
    for (int r = 0; r < kRows; ++r) out[r * m + j] = Dot(a + r * k, b + j * k, k);
  }
}

}  // namespace

HeadRows HeadOf(const View& view, Element element, int64_t head_size, int64_t batch, int64_t head) {
  const int64_t offset = batch * view.batch_stride + head * view.head_stride;
  const int64_t size = ElementBytes(element);
  return {static_cast<const char*>(view.data) + offset * size, view.token_stride, element,
          head_size};
}

void LoadRow(const HeadRows& rows, int64_t token, float* out) {
  const int64_t at = token * rows.stride;
  int64_t d = 0;
  for (; d + 8 <= rows.head_size; d += 8) _mm256_storeu_ps(out + d, LoadEight(rows, at + d));
  for (; d < rows.head_size; ++d) out[d] = LoadOne(rows, at + d);
}

void PrefetchRow(const HeadRows& rows, int64_t token) {
  const int64_t bytes = ElementBytes(rows.element);
  const char* row = static_cast<const char*>(rows.data) + token * rows.stride * bytes;
  for (int64_t at = 0; at < rows.head_size * bytes; at += 64) __builtin_prefetch(row + at);
}

void BlockMean(const HeadRows& rows, const int32_t* tokens, int64_t count, float* mean) {
  int64_t d = 0;
  for (; d + 64 <= rows.head_size; d += 64) SumColumns<8>(rows, tokens, count, d, mean);
  for (; d + 8 <= rows.head_size; d += 8) SumColumns<1>(rows, tokens, count, d, mean);
  for (; d < rows.head_size; ++d) {
    mean[d] = 0;
    for (int64_t i = 0; i < count; ++i) mean[d] += LoadOne(rows, tokens[i] * rows.stride + d);
  }
  for (d = 0; d < rows.head_size; ++d) mean[d] /= static_cast<float>(count);
}

std::vector<float> BlockMeans(const HeadRows& rows, const std::vector<int32_t>& order,
                              const std::vector<int32_t>& lengths) {
  std::vector<float> means(lengths.size() * rows.head_size);
  const int32_t* tokens = order.data();
  for (size_t block = 0; block < lengths.size(); tokens += lengths[block++]) {
    BlockMean(rows, tokens, lengths[block], means.data() + block * rows.head_size);
  }
  return means;
}

float Dot(const float* a, const float* b, int64_t k) {
  __m256 sum = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), sum);
  }
  float total = Sum(sum);
  for (; i < k; ++i) total = std::fma(a[i], b[i], total);
  return total;
}

void Products(const float* a, int64_t n, const float* b, int64_t m, int64_t k, float* out) {
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) RowProducts<2>(a + i * k, b, m, k, out + i * m);
  if (i < n) RowProducts<1>(a + i * k, b, m, k, out + i * m);
}

std::vector<float> Products(const std::vector<float>& a, const std::vector<float>& b, int64_t k) {
  const int64_t n = static_cast<int64_t>(a.size()) / k, m = static_cast<int64_t>(b.size()) / k;
  std::vector<float> products(n * m);
  Products(a.data(), n, b.data(), m, k, products.data());
  return products;
}

std::vector<float> WeightedSums(const std::vector<float>& weights, const std::vector<float>& values,
                                int64_t m, int64_t k) {
  const int64_t n = static_cast<int64_t>(weights.size()) / m;
  std::vector<float> sums(n * k, 0.0f);
  for (int64_t i = 0; i < n; ++i) {
    float* sum = sums.data() + i * k;
    for (int64_t j = 0; j < m; ++j) {
      const float weight = weights[i * m + j];
      const float* value = values.data() + j * k;
      for (int64_t d = 0; d < k; ++d) sum[d] += weight * value[d];
    }
  }
  return sums;
}

void SoftmaxRows(std::vector<float>* rows, int64_t columns) {
  constexpr float kLeast = std::numeric_limits<float>::min();  // 2^-126
  constexpr float kLeastExponent = -87.33654f;                 // its logarithm
  for (auto row = rows->begin(); row != rows->end(); row += columns) {
    const float top = *std::max_element(row, row + columns);
    float total = 0;  // one at least
    for (int64_t j = 0; j < columns; ++j) {
      const float exponent = row[j] - top;
      row[j] = exponent < kLeastExponent ? 0.0f : std::exp(exponent);  // NaN stays
      total += row[j];
    }
    for (int64_t j = 0; j < columns; ++j) row[j] = row[j] < kLeast * total ? 0.0f : row[j] / total;
  }
}

float RoundToBFloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return x;
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  std::memcpy(&x, &bits, 4);
  return x;
}

void RoundAllToBFloat16(std::vector<float>* values) {
  for (float& x : *values) x = RoundToBFloat16(x);
}

}  // namespace denoised::kernels
