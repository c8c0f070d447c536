// The kernels of a DiT block on the first CUDA device against float64, each written out. Skipped
// with the reason where there is no device.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "backends/attention_spec.h"
#include "backends/error.h"
#include "runtime/models/fused.h"
#include "runtime/models/row_kernels.h"
#include "runtime/models/row_kernels_cuda.h"

namespace denoised {
namespace {

// Widths of whole vectors of four and of two, shorter and longer than a thread block's reach.
constexpr int64_t kWidths[] = {6, 64, 1536, 5120};
constexpr int64_t kBatch = 2, kTokens = 37;
constexpr double kEps = 1e-6;

class RowsOnCuda : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    try {
      QueryCuda(0);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }

  at::Tensor Draw(std::vector<int64_t> shape, at::ScalarType dtype) {
    return at::randn(shape, generator_, at::kFloat).to(dtype);
  }

  static void ExpectClose(const at::Tensor& got, const at::Tensor& want) {
    ASSERT_EQ(got.sizes(), want.sizes());
    const at::Tensor difference = got.cpu().to(at::kDouble) - want;
    const double error = (difference.norm() / want.norm()).item<double>();
    EXPECT_LE(error, got.scalar_type() == at::kFloat ? 1e-6 : 4e-3);
  }

  at::Generator generator_ = at::make_generator<at::CPUGeneratorImpl>(9);
};

at::Tensor Wide(const at::Tensor& x) { return x.to(at::kDouble); }

TEST_P(RowsOnCuda, ANormIsModulatedByWhatBelongsToItsBatchRowOrToken) {
  for (int64_t width : kWidths) {
    for (int64_t rows : {int64_t{1}, kTokens}) {
      const at::Tensor x = Draw({kBatch, kTokens, width}, at::kFloat) * 3 + 5;
      const at::Tensor six = Draw({kBatch, rows, 6, width}, at::kFloat);
      const at::Tensor scale = six.select(2, 1), shift = six.select(2, 4);
      const at::Tensor mean = Wide(x).mean(-1, true), centred = Wide(x) - mean;
      const at::Tensor norm = centred / (centred.square().mean(-1, true) + kEps).sqrt();
      const at::Tensor six_there = six.to(at::kCUDA);
      ExpectClose(NormModulate(x.to(at::kCUDA), six_there.select(2, 1), six_there.select(2, 4),
                               kEps, GetParam())
                      .Whole(),
                  norm * Wide(scale) + Wide(shift));
    }
  }
}

TEST_P(RowsOnCuda, ARootMeanSquareNormRunsOverAllHeadsAndPairsAreRotated) {
  const int64_t heads = 3;
  for (int64_t head_size : {2, 10, 64, 128}) {
    const int64_t width = heads * head_size;
    const at::Tensor x = Draw({kBatch, kTokens, width}, GetParam());
    const at::Tensor weight = Draw({width}, GetParam());
    const at::Tensor angle = Draw({kTokens, head_size / 2}, at::kFloat);
    const at::Tensor norm =
        Wide(x) / (Wide(x).square().mean(-1, true) + kEps).sqrt() * Wide(weight);
    ExpectClose(NormRms(x.to(at::kCUDA), weight.to(at::kCUDA), kEps), norm);
    const at::Tensor pairs = norm.view({kBatch, kTokens, heads, head_size / 2, 2});
    const at::Tensor c = Wide(angle).cos().unsqueeze(1), s = Wide(angle).sin().unsqueeze(1);
    const at::Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
    const RopeTables rope{angle.cos().to(at::kCUDA), angle.sin().to(at::kCUDA)};
    ExpectClose(NormRmsRotateCuda(x.to(at::kCUDA), weight.to(at::kCUDA), kEps, rope, heads),
                at::stack({a * c - b * s, a * s + b * c}, -1).flatten(-2));
  }
}

TEST_P(RowsOnCuda, AGatedSumIsRoundedOnceAndKeptTwice) {
  for (int64_t width : kWidths) {
    const at::Tensor h = Draw({kBatch, kTokens, width}, GetParam());
    const at::Tensor update = Draw({kBatch, kTokens, width}, GetParam());
    const Hidden hidden = Hidden::From(h.to(at::kCUDA));
    for (int64_t rows : {int64_t{1}, kTokens}) {
      const at::Tensor gate = Draw({kBatch, rows, width}, at::kFloat);
      const Hidden got = AddGated(hidden, update.to(at::kCUDA), gate.to(at::kCUDA));
      ExpectClose(got.value, Wide(h) + Wide(update) * Wide(gate));
      EXPECT_TRUE(got.wide.equal(got.value.to(at::kFloat)));
    }
    const Hidden sum = Add(hidden, update.to(at::kCUDA));
    EXPECT_TRUE(sum.value.cpu().equal(h + update));
    EXPECT_TRUE(sum.wide.equal(sum.value.to(at::kFloat)));
  }
}

INSTANTIATE_TEST_SUITE_P(Device, RowsOnCuda, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) {
                           return info.param == at::kFloat ? "float32" : "bfloat16";
                         });

}  // namespace
}  // namespace denoised
