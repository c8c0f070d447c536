// The softmax over blocks' scores that VSA's coarse branch weighs by, and NABLA and BSA choose by.
#include "backends/kernels/pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace denoised::kernels {
namespace {

constexpr int64_t kColumns = 300, kRows = 40;
constexpr float kLeast = std::numeric_limits<float>::min();

// Scores of deviation 25: most weights are far below the largest.
std::vector<float> WideScores() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 25);
  std::vector<float> scores(kRows * kColumns);
  for (float& score : scores) score = normal(random);
  return scores;
}

TEST(SoftmaxRowsTest, GivesNoWeightThatIsDenormalAndAllOthersAsTheyAre) {
  const std::vector<float> scores = WideScores();
  std::vector<float> weights = scores;
  SoftmaxRows(&weights, kColumns);
  int64_t would_be_denormal = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    const float* const x = scores.data() + row * kColumns;
    const float top = *std::max_element(x, x + kColumns);
    float total = 0;
    for (int64_t j = 0; j < kColumns; ++j) total += std::exp(x[j] - top);
    for (int64_t j = 0; j < kColumns; ++j) {
      const float got = weights[row * kColumns + j], plain = std::exp(x[j] - top) / total;
      would_be_denormal += std::fpclassify(plain) == FP_SUBNORMAL;
      EXPECT_NE(std::fpclassify(got), FP_SUBNORMAL) << got;
      EXPECT_EQ(got, plain < kLeast ? 0.0f : plain) << row << " " << j;
    }
  }
  EXPECT_GT(would_be_denormal, 10);
}

TEST(SoftmaxRowsTest, KeepsWhatIsNotANumber) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const float odd : {std::nanf(""), kInf}) {
    std::vector<float> row = {0, 1, odd, 2};
    SoftmaxRows(&row, 4);
    EXPECT_TRUE(std::isnan(row[2])) << odd;
  }
  std::vector<float> row = {-kInf, -kInf};
  SoftmaxRows(&row, 2);
  EXPECT_TRUE(std::isnan(row[0]) && std::isnan(row[1]));
}

}  // namespace
}  // namespace denoised::kernels
