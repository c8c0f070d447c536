#include "backends/kernels/int8_rows.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/kernels/int8_rule.h"

namespace denoised::kernels {
namespace {

// Largest magnitude of row[count], NaN where one of them is.
float MostOf(const float* row, int count) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 largest = _mm256_setzero_ps(), unordered = _mm256_setzero_ps();
  for (int d = 0; d < count; d += 8) {
    const __m256 x = _mm256_load_ps(row + d);
    largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, x));
    unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  if (_mm256_movemask_ps(unordered) != 0) return std::numeric_limits<float>::quiet_NaN();
  alignas(32) float lane[8];
  _mm256_store_ps(lane, largest);
  return *std::max_element(lane, lane + 8);
}

}  // namespace

float QuantiseRow(const float* row, int count, uint32_t* out) {
  const float scale = Int8Scale(MostOf(row, count));
  if (std::isnan(scale)) {
    std::memset(out, 0, static_cast<size_t>(count));
    return scale;
  }
  const __m256 inverse = _mm256_set1_ps(1.0f / scale);
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const auto whole = [&](int d) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(row + d), inverse));
  };
  for (int d = 0; d < count; d += 32) {
    const __m256i low = _mm256_packs_epi32(whole(d), whole(d + 8));
    const __m256i high = _mm256_packs_epi32(whole(d + 16), whole(d + 24));
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d / 4), bytes);
  }
  return scale;
}

int32_t SumOfBytes(const uint32_t* bytes, int count) {
  const __m256i flip = _mm256_set1_epi8(-128);
  __m256i sums = _mm256_setzero_si256();
  for (int d = 0; d < count; d += 32) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + d / 4));
    sums =
        _mm256_add_epi64(sums, _mm256_sad_epu8(_mm256_xor_si256(x, flip), _mm256_setzero_si256()));
  }
  alignas(32) int64_t lane[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), sums);
  return static_cast<int32_t>(lane[0] + lane[1] + lane[2] + lane[3] - int64_t{128} * count);
}

void StoreQuantised(const UnitFormat& format, const uint32_t* bytes, bool key, uint32_t* out) {
  if (format.scores == Scores::kBytes) {
    const uint32_t flip = key ? 0x80808080u : 0;
    for (int u = 0; u < format.score_units(); ++u) out[u] = bytes[u] ^ flip;
    return;
  }
  for (int u = 0; u < format.score_units(); u += 8) {  // eight units are sixteen bytes
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + u / 2));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + u), _mm256_cvtepi8_epi16(sixteen));
  }
}

}  // namespace denoised::kernels
