// NVFP4, value by value, against a quantiser that is written out as a table.
#include "backends/kernels/fp4.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/backends/fp4_oracle.h"

namespace denoised::kernels {
namespace {

// [n] as one row by the table.
std::vector<double> WrittenOut(const std::vector<float>& row) {
  const at::Tensor rounded = Nvfp4ByTable(at::tensor(row, at::kDouble));
  return {rounded.const_data_ptr<double>(), rounded.const_data_ptr<double>() + row.size()};
}

std::vector<double> Rounded(const std::vector<float>& row) {
  std::vector<double> x(row.begin(), row.end());
  RoundToNvfp4(x.data(), static_cast<int64_t>(x.size()), x.data());
  return x;
}

void ExpectWrittenOut(const std::vector<float>& row) {
  const std::vector<double> got = Rounded(row), want = WrittenOut(row);
  for (size_t i = 0; i < row.size(); ++i) {
    EXPECT_EQ(got[i], want[i]) << "element " << i << " of value " << row[i];
  }
}

TEST(Nvfp4, EveryGridPointAndEveryTie) {
  // The 6 makes the group's scale exactly 1.
  ExpectWrittenOut({6, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, -5});
  ExpectWrittenOut({6, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, 0.2500001f, 0.7499999f});
}

TEST(Nvfp4, RandomValuesOfManySizes) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(3);
  for (double size : {1e-4, 1e-2, 1.0, 30.0, 1e3}) {
    const at::Tensor x = at::randn({80}, generator, at::kFloat).mul_(size);
    ExpectWrittenOut({x.const_data_ptr<float>(), x.const_data_ptr<float>() + 80});
  }
}

TEST(Nvfp4, SaturatesAndKeepsZeros) {
  ExpectWrittenOut({1e4, -1e4, 5000, 100, 0});
  ExpectWrittenOut(std::vector<float>(16, 0.0f));
  ExpectWrittenOut({1e-9f, -1e-9f});
}

TEST(Nvfp4, AGroupOfSixteenHasItsOwnScale) {
  std::vector<float> row(40, 1.0f);
  row[17] = 600;
  ExpectWrittenOut(row);
  const std::vector<double> got = Rounded(row);
  EXPECT_EQ(got[0], got[39]);
  EXPECT_EQ(got[16], 0.0);
}

TEST(Nvfp4, WhatIsNotFiniteMakesItsGroupNaN) {
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> row(40, 1.0f);
    row[17] = -bad;
    const std::vector<double> got = Rounded(row);
    for (size_t i = 0; i < row.size(); ++i) {
      EXPECT_EQ(std::isnan(got[i]), i >= 16 && i < 32) << i;
    }
  }
}

}  // namespace
}  // namespace denoised::kernels
