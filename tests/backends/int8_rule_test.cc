// The rule by which CUDA makes int8 rows, against the bytes and scales that the CPU packs.
#include "backends/kernels/int8_rule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "backends/kernels/pack.h"

namespace denoised::kernels {
namespace {

constexpr int kHeadSize = 72, kRows = 8;  // not a multiple of 32

struct QuantisedRow {
  float scale;
  std::vector<int> bytes;
};

QuantisedRow ByTheRule(const std::vector<float>& row) {
  float most = 0;
  for (float x : row) most = std::max(most, std::fabs(x));
  QuantisedRow out{Int8Scale(most), {}};
  for (float x : row) out.bytes.push_back(Int8Of(x, 1.0f / out.scale));
  return out;
}

// Ordinary rows, a row of ties, a row of zeros.
std::vector<float> DrawRows() {
  std::mt19937 generator(5);
  std::normal_distribution<float> normal;
  std::vector<float> rows(kRows * kHeadSize);
  for (float& x : rows) x = normal(generator);
  for (int d = 0; d < kHeadSize; ++d) {
    rows[kHeadSize + d] = d == 0 ? 127.0f : static_cast<float>(d) - 36.5f;
    rows[2 * kHeadSize + d] = 0;
  }
  return rows;
}

std::vector<float> RowOf(const std::vector<float>& rows, int i, const std::vector<float>& mean) {
  std::vector<float> row(rows.begin() + i * kHeadSize, rows.begin() + (i + 1) * kHeadSize);
  for (int d = 0; d < kHeadSize; ++d) row[d] -= mean[d];
  return row;
}

UnitFormat Int8Format(Scores scores = Scores::kBytes) {
  UnitFormat format;
  format.scores = scores;
  format.head_size = kHeadSize;
  return format;
}

int ByteOf(uint32_t unit, int d) { return static_cast<int8_t>(unit >> (d % 4 * 8)); }

TEST(Int8Rule, TiesGoToEvenAndZerosHaveScaleOne) {
  EXPECT_EQ(Int8Scale(0), 1.0f);
  EXPECT_EQ(Int8Scale(254), 2.0f);
  EXPECT_EQ(Int8Of(0.5f, 1), 0);
  EXPECT_EQ(Int8Of(1.5f, 1), 2);
  EXPECT_EQ(Int8Of(-2.5f, 1), -2);
  EXPECT_EQ(Int8Of(1e30f, 1), 127);
  EXPECT_EQ(Int8Of(-1e30f, 1), -127);
}

TEST(Int8Rule, ARowWithSomethingNotFiniteHasNoScale) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  EXPECT_TRUE(std::isnan(Int8Scale(inf)));
  EXPECT_TRUE(std::isnan(Int8Scale(nan)));
  EXPECT_TRUE(std::isnan(Int8Larger(nan, 1)));
  EXPECT_TRUE(std::isnan(Int8Larger(1, nan)));
  EXPECT_EQ(Int8Larger(1, 2), 2);
  EXPECT_EQ(Int8Larger(2, 1), 2);
}

TEST(Int8Rule, QueriesAreThoseOfTheCpu) {
  const std::vector<float> rows = DrawRows(), nothing(kHeadSize, 0.0f);
  const UnitFormat format = Int8Format();
  std::vector<uint32_t> units(format.score_units() * kRows);
  std::vector<float> scale(kRows);
  std::vector<int32_t> offset(kRows);
  PackQueryInt8(format, {rows.data(), kHeadSize, nullptr, {0, kRows}}, kRows, units.data(),
                scale.data(), offset.data());
  for (int i = 0; i < kRows; ++i) {
    const QuantisedRow want = ByTheRule(RowOf(rows, i, nothing));
    EXPECT_EQ(scale[i], want.scale) << i;
    for (int d = 0; d < kHeadSize; ++d) {
      EXPECT_EQ(ByteOf(units[d / 4 * kRows + i], d), want.bytes[d]) << i << " " << d;
    }
  }
}

TEST(Int8Rule, WordsAreTheBytes) {
  const std::vector<float> rows = DrawRows();
  const UnitFormat bytes = Int8Format(), words = Int8Format(Scores::kWords);
  const Rows query{rows.data(), kHeadSize, nullptr, {0, kRows}};
  std::vector<uint32_t> in_bytes(bytes.score_units() * kRows);
  std::vector<uint32_t> in_words(words.score_units() * kRows);
  std::vector<float> scale(kRows), other_scale(kRows);
  std::vector<int32_t> offset(kRows);
  PackQueryInt8(bytes, query, kRows, in_bytes.data(), scale.data(), offset.data());
  PackQueryInt8(words, query, kRows, in_words.data(), other_scale.data(), offset.data());
  EXPECT_EQ(scale, other_scale);
  EXPECT_EQ(offset, std::vector<int32_t>(kRows, 0));
  for (int i = 0; i < kRows; ++i) {
    for (int d = 0; d < kHeadSize; ++d) {
      const auto word = static_cast<int16_t>(in_words[d / 2 * kRows + i] >> (d % 2 * 16));
      EXPECT_EQ(word, ByteOf(in_bytes[d / 4 * kRows + i], d)) << i << " " << d;
    }
  }
}

TEST(Int8Rule, KeysLessTheirMeanAreThoseOfTheCpu) {
  const std::vector<float> rows = DrawRows();
  const UnitFormat format = Int8Format();
  const Rows keys{rows.data(), kHeadSize, nullptr, {0, kRows}};
  std::vector<float> mean(format.padded_size()), scale(kRows);
  MeanOfRows(format, keys, mean.data());
  const int units = format.score_units();
  std::vector<uint32_t> packed(units * kRows);
  PackKeysInt8(format, keys, mean.data(), packed.data(), scale.data());
  for (int i = 0; i < kRows; ++i) {
    const QuantisedRow want = ByTheRule(RowOf(rows, i, mean));
    EXPECT_EQ(scale[i], want.scale) << i;
    for (int d = 0; d < kHeadSize; ++d) {
      const uint32_t unit = packed[(i / 4 * units + d / 4) * 4 + i % 4] ^ 0x80808080u;
      EXPECT_EQ(ByteOf(unit, d), want.bytes[d]) << i << " " << d;
    }
  }
}

}  // namespace
}  // namespace denoised::kernels
