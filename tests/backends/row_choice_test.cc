// Choices of one row against the same rule by a plain sort: random rows, rows of few different
// values (ties), rows with what is not a number.
#include "backends/kernels/row_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace denoised::kernels {
namespace {

// Indices by falling value, ties by rising index.
std::vector<int32_t> Falling(const std::vector<float>& row) {
  std::vector<int32_t> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return RankOf(row[a]) > RankOf(row[b]); });
  return order;
}

std::vector<int32_t> Sorted(std::vector<int32_t> indices) {
  std::sort(indices.begin(), indices.end());
  return indices;
}

std::vector<std::vector<float>> Rows() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> rows;
  for (int n : {1, 2, 3, 7, 8, 9, 31, 64, 65, 200, 391}) {
    for (int levels : {0, 1, 3, 20}) {
      std::vector<float> row(n);
      for (float& x : row) {
        x = levels == 0 ? normal(random) : static_cast<float>(static_cast<int>(random() % levels));
      }
      rows.push_back(row);
      for (float& x : row) x = std::exp(std::min(6 * x, 40.0f));  // few hold nearly all
      rows.push_back(row);
    }
  }
  return rows;
}

std::vector<float> Probabilities(std::vector<float> row) {
  double total = 0;
  for (float& x : row) total += x = std::exp(std::min(x, 20.0f));
  for (float& x : row) x = static_cast<float>(x / total);
  return row;
}

TEST(RowChoice, TheLargestAreThoseOfASort) {
  ChoiceScratch scratch;
  for (std::vector<float> row : Rows()) {
    for (int64_t count : {0, 1, 2, 5, 40, 1000}) {
      std::vector<int32_t> got, want = Falling(row);
      want.resize(std::min<size_t>(count, row.size()));
      ChooseLargest(row.data(), static_cast<int64_t>(row.size()), count, &scratch, &got);
      EXPECT_EQ(Sorted(got), Sorted(want)) << row.size() << " " << count;
    }
  }
}

TEST(RowChoice, WhatIsNotANumberRanksFirstAndZerosAreLevel) {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  const std::vector<float> row = {1, -inf, nan, 0.0f, -0.0f, 2, inf};
  ChoiceScratch scratch;
  std::vector<int32_t> got;
  ChooseLargest(row.data(), 7, 2, &scratch, &got);
  EXPECT_EQ(Sorted(got), (std::vector<int32_t>{2, 6}));
  EXPECT_EQ(KeyOf(0.0f), KeyOf(-0.0f));
  EXPECT_EQ(KeyOf(nan), KeyOf(inf));
  EXPECT_LT(KeyOf(-inf), KeyOf(-1.0f));
  EXPECT_LT(KeyOf(-1.0f), KeyOf(-0.5f));
  EXPECT_LT(KeyOf(-1e-30f), KeyOf(0.0f));
}

TEST(RowChoice, AShareIsTheShortestPrefixThatReachesIt) {
  ChoiceScratch scratch;
  for (const std::vector<float>& drawn : Rows()) {
    const int64_t n = static_cast<int64_t>(drawn.size());
    for (double share : {0.0, 0.1, 0.25, 0.6, 0.9, 1.0}) {
      std::vector<float> row = drawn;
      const double total = StretchRow(row.data(), n);
      const int32_t own = static_cast<int32_t>(n / 3);
      std::vector<float> stretched = drawn;
      const auto [low, high] = std::minmax_element(drawn.begin(), drawn.end());
      const float range = *high - *low;
      for (float& x : stretched) x = (x - *low) / (range <= 1e-6f ? 1.0f : range);
      EXPECT_EQ(row, stretched);
      EXPECT_NEAR(total, std::accumulate(row.begin(), row.end(), 0.0), 1e-9);
      std::vector<int32_t> want, got;
      double sum = 0;
      const double need = std::max(0.0, share - row[own] / (total + 1e-6));
      for (int32_t i : Falling(row)) {
        if (i == own) continue;
        want.push_back(i);
        sum += row[i];
        if (sum / (total + 1e-6) >= need) break;
      }
      ChooseShare(row.data(), n, own, total, share, &scratch, &got);
      EXPECT_EQ(Sorted(got), Sorted(want)) << n << " " << share;
    }
  }
}

TEST(RowChoice, ARowWithWhatIsNotFiniteChoosesAll) {
  ChoiceScratch scratch;
  for (float odd : {std::nanf(""), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity()}) {
    for (size_t place : {size_t{0}, size_t{5}, size_t{20}}) {
      std::vector<float> row(21, 0.5f);
      row[3] = 1;
      row[place] = odd;
      const double total = StretchRow(row.data(), 21);
      EXPECT_TRUE(std::isnan(total));
      std::vector<int32_t> got;
      ChooseShare(row.data(), 21, 4, total, 0.1, &scratch, &got);
      EXPECT_EQ(got.size(), 20u);
      EXPECT_EQ(std::count(got.begin(), got.end(), 4), 0);
    }
  }
}

TEST(RowChoice, MassIsKeptFromTheTopAndDroppedFromTheBottom) {
  ChoiceScratch scratch;
  for (const std::vector<float>& drawn : Rows()) {
    const std::vector<float> row = Probabilities(drawn);
    const std::vector<int32_t> falling = Falling(row);
    const int64_t n = static_cast<int64_t>(row.size());
    for (double mass : {0.0, 0.3, 0.7, 0.95}) {
      std::vector<int32_t> want, got;
      float before = 0;
      for (int32_t i : falling) {
        if (before >= mass && want.size() >= 2) break;
        want.push_back(i);
        before += row[i];
      }
      KeepMass(row.data(), n, mass, 2, &scratch, &got);
      EXPECT_EQ(got, Sorted(want)) << n << " " << mass;
      float dropped = 0;
      size_t left = falling.size();
      while (left > 1 && dropped + row[falling[left - 1]] < static_cast<float>(mass)) {
        dropped += row[falling[--left]];
      }
      DropMass(row.data(), n, static_cast<float>(mass), &scratch, &got);
      EXPECT_EQ(got, Sorted({falling.begin(), falling.begin() + left})) << n << " " << mass;
    }
  }
}

}  // namespace
}  // namespace denoised::kernels
