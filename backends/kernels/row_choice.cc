#include "backends/kernels/row_choice.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <functional>

namespace denoised::kernels {
namespace {

constexpr int kBuckets = 64;

void FillKeys(const float* scores, int64_t n, std::vector<uint64_t>* keys) {
  keys->resize(n);
  for (int64_t i = 0; i < n; ++i) (*keys)[i] = Sortable(KeyOf(scores[i]), i);
}

// The bucket of each value, the highest for the largest.
void FillBuckets(const float* values, int64_t n, std::vector<int32_t>* buckets) {
  buckets->resize(n);
  int64_t i = 0;
  const __m256 scale = _mm256_set1_ps(kBuckets);
  const __m256i last = _mm256_set1_epi32(kBuckets - 1);
  for (; i + 8 <= n; i += 8) {
    const __m256i bucket = _mm256_cvttps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + i), scale));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(buckets->data() + i),
                        _mm256_min_epi32(bucket, last));
  }
  for (; i < n; ++i) {
    (*buckets)[i] = std::min(static_cast<int32_t>(values[i] * kBuckets), kBuckets - 1);
  }
}

// Entries whose bucket lies above `bucket` and below kBuckets.
void TakeAbove(const std::vector<int32_t>& buckets, int32_t bucket, std::vector<int32_t>* chosen) {
  const int64_t n = static_cast<int64_t>(buckets.size());
  int64_t i = 0;
  const __m256i low = _mm256_set1_epi32(bucket), high = _mm256_set1_epi32(kBuckets);
  for (; i + 8 <= n; i += 8) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(buckets.data() + i));
    const __m256i inside =
        _mm256_and_si256(_mm256_cmpgt_epi32(x, low), _mm256_cmpgt_epi32(high, x));
    uint32_t bits = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(inside)));
    for (; bits != 0; bits &= bits - 1) {
      chosen->push_back(static_cast<int32_t>(i) + std::countr_zero(bits));
    }
  }
  for (; i < n; ++i) {
    if (buckets[i] > bucket && buckets[i] < kBuckets) chosen->push_back(static_cast<int32_t>(i));
  }
}

void TakeAllBut(int64_t n, int64_t own, std::vector<int32_t>* chosen) {
  for (int64_t i = 0; i < n; ++i) {
    if (i != own) chosen->push_back(static_cast<int32_t>(i));
  }
}

void TakeLargestBut(const float* values, int64_t n, int64_t own, std::vector<int32_t>* chosen) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (i != own && (best < 0 || values[i] > values[best])) best = i;
  }
  if (best >= 0) chosen->push_back(static_cast<int32_t>(best));
}

}  // namespace

uint32_t KeyOf(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(RankOf(score) + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

void ChooseLargest(const float* scores, int64_t n, int64_t count, ChoiceScratch* scratch,
                   std::vector<int32_t>* chosen) {
  count = std::min(count, n);
  FillKeys(scores, n, &scratch->keys);
  auto& keys = scratch->keys;
  if (count * 16 < n) {
    std::partial_sort(keys.begin(), keys.begin() + count, keys.end(), std::greater<>());
  } else {
    std::nth_element(keys.begin(), keys.begin() + count, keys.end(), std::greater<>());
  }
  for (int64_t i = 0; i < count; ++i) chosen->push_back(IndexOf(keys[i]));
}

double StretchRow(float* scores, int64_t n) {
  float low = scores[0], high = scores[0];
  int64_t i = 0;
  if (n >= 8) {
    __m256 least = _mm256_loadu_ps(scores), most = least;
    for (; i + 8 <= n; i += 8) {
      const __m256 x = _mm256_loadu_ps(scores + i);
      least = _mm256_min_ps(least, x);
      most = _mm256_max_ps(most, x);
    }
    alignas(32) float lanes[16];
    _mm256_store_ps(lanes, least);
    _mm256_store_ps(lanes + 8, most);
    low = *std::min_element(lanes, lanes + 8);
    high = *std::max_element(lanes + 8, lanes + 16);
  }
  for (; i < n; ++i) {
    low = std::min(low, scores[i]);
    high = std::max(high, scores[i]);
  }
  const float range = high - low, spread = range <= 1e-6f ? 1.0f : range;
  __m256d sums = _mm256_setzero_pd();
  for (i = 0; i + 4 <= n; i += 4) {
    const __m128 x =
        _mm_div_ps(_mm_sub_ps(_mm_loadu_ps(scores + i), _mm_set1_ps(low)), _mm_set1_ps(spread));
    _mm_storeu_ps(scores + i, x);
    sums = _mm256_add_pd(sums, _mm256_cvtps_pd(x));
  }
  alignas(32) double lane[4];
  _mm256_store_pd(lane, sums);
  double total = lane[0] + lane[1] + lane[2] + lane[3];
  for (; i < n; ++i) total += scores[i] = (scores[i] - low) / spread;
  return total;
}

void ChooseShare(const float* values, int64_t n, int64_t own, double total, double share,
                 ChoiceScratch* scratch, std::vector<int32_t>* chosen) {
  if (std::isnan(total)) return TakeAllBut(n, own, chosen);
  const double whole = total + 1e-6, need = share - values[own] / whole;
  if (need <= 0) return TakeLargestBut(values, n, own, chosen);
  FillBuckets(values, n, &scratch->buckets);
  scratch->buckets[own] = kBuckets;
  double sums[kBuckets + 1] = {};
  for (int64_t i = 0; i < n; ++i) sums[scratch->buckets[i]] += values[i];
  double sum = 0;
  int32_t bucket = kBuckets - 1;
  for (; bucket >= 0 && (sum + sums[bucket]) / whole < need; --bucket) sum += sums[bucket];
  TakeAbove(scratch->buckets, bucket, chosen);
  auto& keys = scratch->keys;  // of the bucket in which the share is reached
  keys.clear();
  for (int64_t i = 0; i < n; ++i) {
    if (scratch->buckets[i] == bucket) keys.push_back(Sortable(KeyOf(values[i]), i));
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  for (size_t i = 0; i < keys.size(); ++i) {
    chosen->push_back(IndexOf(keys[i]));
    sum += values[chosen->back()];
    if (sum / whole >= need) break;
  }
}

void KeepMass(const float* probabilities, int64_t n, double mass, int64_t least,
              ChoiceScratch* scratch, std::vector<int32_t>* kept) {
  FillKeys(probabilities, n, &scratch->keys);
  std::sort(scratch->keys.begin(), scratch->keys.end(), std::greater<>());
  kept->clear();
  float before = 0;
  for (const uint64_t key : scratch->keys) {
    if (before >= mass && static_cast<int64_t>(kept->size()) >= least) break;
    kept->push_back(IndexOf(key));
    before += probabilities[kept->back()];
  }
  std::sort(kept->begin(), kept->end());
}

void DropMass(const float* probabilities, int64_t n, float mass, ChoiceScratch* scratch,
              std::vector<int32_t>* kept) {
  FillKeys(probabilities, n, &scratch->keys);
  auto& keys = scratch->keys;
  std::sort(keys.begin(), keys.end());
  float sum = 0;
  size_t first = 0;
  for (; first + 1 < keys.size(); ++first) {  // the largest stays, whatever rounding does
    sum += probabilities[IndexOf(keys[first])];
    if (!(sum < mass)) break;  // from the first NaN on as well
  }
  kept->clear();
  for (; first < keys.size(); ++first) kept->push_back(IndexOf(keys[first]));
  std::sort(kept->begin(), kept->end());
}

}  // namespace denoised::kernels
