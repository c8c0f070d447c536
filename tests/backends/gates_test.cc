// Gates of many queries at once, under every instruction set that this machine has: products as a
// chain of multiply-adds, and the choice of one row as row_choice.h has it.
#include "backends/kernels/gates.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "backends/cpu_isa.h"
#include "backends/kernels/pool.h"
#include "backends/kernels/row_choice.h"
#include "backends/kernels/share_choice.h"

namespace denoised::kernels {
namespace {

using Row = std::vector<float>;

std::vector<const GateKernels*> AllKernels() {
  std::vector<const GateKernels*> kernels = {&kGatesAvx2};
  if (QueryCpu().avx512) kernels.push_back(&kGatesAvx512);
  return kernels;
}

Row Drawn(int64_t n, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Row row(n);
  for (float& x : row) x = normal(random);
  return row;
}

float Chain(const float* a, const float* b, int64_t size) {
  float sum = 0;
  for (int64_t d = 0; d < size; ++d) sum = std::fma(a[d], b[d], sum);
  return sum;
}

int Different(const Row& a, const Row& b) {
  int different = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    different += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
  }
  return different;
}

TEST(Gates, AreAChainOfMultiplyAddsInTheOrderOfTheNumbers) {
  for (const GateKernels* kernels : AllKernels()) {
    for (const int64_t size : {1, 7, 8, 9, 40, 64, 128, 131}) {
      for (const int64_t chunks : {1, 3, 4, 65}) {
        for (const int count : {1, 5, 63, 64}) {
          const int64_t stride = size + 3;
          const Row means = Drawn(chunks * size, 1), queries = Drawn(2 * count * stride, 2);
          Row packed_means(PaddedChunks(chunks) * size), packed_queries(size * kGateLanes),
              gates(PaddedChunks(chunks) * kGateLanes), want(chunks * kGateLanes);
          std::vector<int32_t> tokens;  // from the last one to the first, every other one
          for (int i = 0; i < count; ++i) tokens.push_back(2 * (count - i) - 1);
          PackMeans(means.data(), chunks, size, packed_means.data());
          PackQueries({queries.data(), stride, Element::kFloat32, size}, tokens.data(), count,
                      packed_queries.data());
          kernels->multiply(packed_means.data(), packed_queries.data(), chunks, size, gates.data());
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            for (int lane = 0; lane < kGateLanes; ++lane) {
              const float* query = queries.data() + tokens[lane < count ? lane : 0] * stride;
              want[chunk * kGateLanes + lane] = Chain(query, means.data() + chunk * size, size);
            }
          }
          gates.resize(want.size());
          EXPECT_EQ(Different(gates, want), 0) << size << " " << chunks << " " << count;
        }
      }
    }
  }
}

TEST(Gates, QueriesOfBfloat16ArePackedAsTheFloatsThatTheyAre) {
  for (const int64_t size : {1, 8, 24, 131}) {
    const int64_t stride = size + 5;
    std::vector<uint16_t> halves(kGateLanes * stride);
    Row floats;
    for (const float x : Drawn(kGateLanes * stride, 3)) {
      floats.push_back(RoundToBFloat16(x));
      halves[floats.size() - 1] = std::bit_cast<uint32_t>(floats.back()) >> 16;
    }
    std::vector<int32_t> tokens(kGateLanes);
    for (int i = 0; i < kGateLanes; ++i) tokens[i] = i * 5 % kGateLanes;
    Row wide(size * kGateLanes), narrow(size * kGateLanes);
    PackQueries({floats.data(), stride, Element::kFloat32, size}, tokens.data(), 37, wide.data());
    PackQueries({halves.data(), stride, Element::kBFloat16, size}, tokens.data(), 37,
                narrow.data());
    EXPECT_EQ(Different(wide, narrow), 0) << size;
  }
}

// Ranges of all sizes, near zero and far from it.
TEST(Gates, AreStretchedToTheBitsOfStretchRow) {
  const std::vector<float> sizes = {1,     1e-6f, 3e-6f, 1e-24f, 1e-30f, 1e-42f,
                                    3e-3f, 1e3f,  2e7f,  1e20f,  1e37f};
  for (const GateKernels* kernels : AllKernels()) {
    for (const int64_t chunks : {1, 2, 5, 64, 391, 4001}) {
      for (const float size : sizes) {
        for (const float offset : {0.0f, 1.0f, -77.0f}) {
          Row gates(chunks * kGateLanes), want = gates;
          std::vector<double> totals(kGateLanes);
          for (int lane = 0; lane < kGateLanes; ++lane) {
            Row row = Drawn(chunks, 200 + lane);
            for (float& x : row) x = x * size + offset;
            for (int64_t i = 0; i < chunks; ++i) gates[i * kGateLanes + lane] = row[i];
            totals[lane] = StretchRow(row.data(), chunks);
            for (int64_t i = 0; i < chunks; ++i) want[i * kGateLanes + lane] = row[i];
          }
          std::vector<double> got(kGateLanes);
          kernels->stretch(gates.data(), chunks, got.data());
          EXPECT_EQ(Different(gates, want), 0) << chunks << " " << size << " " << offset;
          EXPECT_EQ(got, totals) << chunks << " " << size << " " << offset;
        }
      }
    }
  }
}

// Where the reciprocal's steps would leave the numbers that are exact: the least value on both
// sides of the bound, others close to it, and ranges on both sides of theirs.
TEST(Gates, AreStretchedToTheBitsOfStretchRowAtTheirBounds) {
  for (const GateKernels* kernels : AllKernels()) {
    for (const float low : {0.0f, 0x1p-149f, 0x1p-120f, 0x1p-77f, 0x1p-55f, 0x1p-54f, 0x1p-53f,
                            -0x1p-120f, -0x1p-77f, -0x1p-54f, -0x1p-30f}) {
      for (const float range : {0x1p-19f, 0x1.8p-3f, 0x1.fffffep0f, 0x1.fffffep23f, 0x1p24f,
                                0x1.555556p25f, 0x1p100f, 0x1.fffffep127f}) {
        constexpr int64_t kChunks = 60;
        Row row = {low, range};
        for (float x = low; std::ssize(row) < kChunks;) {
          x = std::nextafter(x, range);
          row.push_back(x);
          row.push_back(std::abs(low) * static_cast<float>(row.size()));
          row.push_back(range / static_cast<float>(row.size()));
        }
        row.resize(kChunks);
        Row gates(kChunks * kGateLanes), want = gates;
        for (size_t i = 0; i < gates.size(); ++i) gates[i] = row[i / kGateLanes];
        std::vector<double> totals(kGateLanes, StretchRow(row.data(), kChunks)), got(kGateLanes);
        for (size_t i = 0; i < want.size(); ++i) want[i] = row[i / kGateLanes];
        kernels->stretch(gates.data(), kChunks, got.data());
        EXPECT_EQ(Different(gates, want), 0) << low << " " << range;
        EXPECT_EQ(got, totals) << low << " " << range;
      }
    }
  }
}

// Of 64 queries: drawn, with values that are level, with a few that hold nearly all, not finite.
std::vector<Row> Rows(int64_t chunks) {
  std::vector<Row> rows;
  for (int i = 0; i < kGateLanes; ++i) {
    Row row = Drawn(chunks, 100 + i);
    for (float& x : row) {
      if (i % 4 == 1) x = std::round(2 * x);
      if (i % 4 == 2) x = std::exp(std::min(6 * x, 40.0f));
      if (i % 16 == 3) x = 1;
    }
    if (i % 16 == 4) row[i % chunks] = std::nanf("");
    if (i % 16 == 5) row[i % chunks] = std::numeric_limits<float>::infinity();
    if (i % 16 == 6) row[i % chunks] = -std::numeric_limits<float>::infinity();
    rows.push_back(row);
  }
  return rows;
}

std::vector<uint64_t> RowByRow(std::vector<Row> rows, int count, const int32_t* own, double share) {
  const int64_t chunks = static_cast<int64_t>(rows[0].size());
  std::vector<uint64_t> chosen(chunks, 0);
  ChoiceScratch scratch;
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> row = {own[i]};
    const double total = StretchRow(rows[i].data(), chunks);
    ChooseShare(rows[i].data(), chunks, own[i], total, share, &scratch, &row);
    for (const int32_t chunk : row) chosen[chunk] |= uint64_t{1} << i;
  }
  return chosen;
}

TEST(ShareChoice, ChoosesForManyQueriesWhatChooseShareChoosesForEach) {
  for (const GateKernels* kernels : AllKernels()) {
    for (const int64_t chunks : {1, 2, 3, 5, 11, 64, 65, 130, 391, 2100}) {
      const std::vector<Row> rows = Rows(chunks);
      ShareChoice choice(*kernels, chunks);
      for (const double share : {0.0, 0.05, 0.25, 0.9, 1.0}) {
        for (const int count : {1, 17, 64}) {
          std::vector<int32_t> own(kGateLanes);
          for (int i = 0; i < kGateLanes; ++i) own[i] = static_cast<int32_t>(i * 7 % chunks);
          Row gates(PaddedChunks(chunks) * kGateLanes);
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            for (int i = 0; i < kGateLanes; ++i) {
              gates[chunk * kGateLanes + i] = rows[i < count ? i : 0][chunk];
            }
          }
          constexpr int64_t kStride = 3;
          std::vector<uint64_t> spread(chunks * kStride, 0), got;
          choice.Run(gates.data(), count, own.data(), share, spread.data(), kStride);
          for (int64_t chunk = 0; chunk < chunks; ++chunk) got.push_back(spread[chunk * kStride]);
          EXPECT_EQ(got, RowByRow(rows, count, own.data(), share)) << chunks << " " << share;
        }
      }
    }
  }
}

}  // namespace
}  // namespace denoised::kernels
