// Gates of many queries at once, under every instruction set that this machine has: the bits of one
// product and the choice of one row, as pool.h and row_choice.h have them.
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

TEST(Gates, HaveTheBitsOfDot) {
  for (const GateKernels* kernels : AllKernels()) {
    for (const int64_t size : {1, 7, 8, 9, 40, 64, 128, 131}) {
      for (const int64_t chunks : {1, 3, 4, 65}) {
        for (const int count : {1, 5, 63, 64}) {
          const int64_t stride = (size + 7) / 8 * 8;
          const Row means = Drawn(chunks * size, 1), queries = Drawn(count * stride, 2);
          Row packed_means(PaddedChunks(chunks) * size), packed_queries(size * kGateLanes),
              gates(PaddedChunks(chunks) * kGateLanes);
          PackMeans(means.data(), chunks, size, packed_means.data());
          PackQueries(queries.data(), stride, count, size, packed_queries.data());
          kernels->multiply(packed_means.data(), packed_queries.data(), chunks, size, gates.data());
          int different = 0;
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            for (int lane = 0; lane < kGateLanes; ++lane) {
              const float* query = queries.data() + (lane < count ? lane : 0) * stride;
              const float want = Dot(query, means.data() + chunk * size, size);
              different += std::bit_cast<uint32_t>(gates[chunk * kGateLanes + lane]) !=
                           std::bit_cast<uint32_t>(want);
            }
          }
          EXPECT_EQ(different, 0) << size << " " << chunks << " " << count;
        }
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
