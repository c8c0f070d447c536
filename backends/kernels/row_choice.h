// Which entries of one row of scores are chosen: the largest, or those that hold a share of the
// row's mass. Torch-free, one thread's work; no entry is looked at twice as often as it must.
#ifndef DENOISED_BACKENDS_KERNELS_ROW_CHOICE_H_
#define DENOISED_BACKENDS_KERNELS_ROW_CHOICE_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace denoised::kernels {

// Where a score stands among others. NaN stands above all: what is not a number is attended, so
// that it shows, and is never a reason to look away.
inline float RankOf(float score) {
  return std::isnan(score) ? std::numeric_limits<float>::infinity() : score;
}

// A number that is the larger the higher the score ranks; equal for 0 and -0.
uint32_t KeyOf(float score);

// Larger for a larger key, then for a lower index; and the index again.
inline uint64_t Sortable(uint32_t key, int64_t index) {
  return (uint64_t{key} << 32) | ~static_cast<uint32_t>(index);
}
inline int32_t IndexOf(uint64_t sortable) {
  return static_cast<int32_t>(~static_cast<uint32_t>(sortable));
}

// What a thread keeps from row to row.
struct ChoiceScratch {
  std::vector<uint64_t> keys;
  std::vector<int32_t> buckets;
};

// The `count` largest of scores[n] by rank, ties to the lowest index: appended to `chosen`, in no
// order.
void ChooseLargest(const float* scores, int64_t n, int64_t count, ChoiceScratch* scratch,
                   std::vector<int32_t>* chosen);

// Stretches scores[n] to [0, 1] in place, (x - least) / (most - least), the divisor 1 where the
// range is at most 1e-6, and returns their sum; NaN where one of them is not finite.
double StretchRow(float* scores, int64_t n);

// Entries of stretched values[n] in falling order (ties to the lowest index), without `own`, until
// they and values[own] hold `share` of total + 1e-6; one at least, all where they never do or where
// `total` is NaN. Appended to `chosen`, in no order.
void ChooseShare(const float* values, int64_t n, int64_t own, double total, double share,
                 ChoiceScratch* scratch, std::vector<int32_t>* chosen);

// Entries of probabilities[n] in falling order while the sum before them is below `mass`, and at
// least `least` of them; ascending indices, in place of what `kept` had.
void KeepMass(const float* probabilities, int64_t n, double mass, int64_t least,
              ChoiceScratch* scratch, std::vector<int32_t>* kept);

// Drops the smallest entries that together stay below `mass` (the one that crosses stays, among
// equals the higher index goes first); the rest as ascending indices, one at least.
void DropMass(const float* probabilities, int64_t n, float mass, ChoiceScratch* scratch,
              std::vector<int32_t>* kept);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_ROW_CHOICE_H_
