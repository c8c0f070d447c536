// Linear layers in int8 against float64: rows and weights are rounded here by the rule that gemm.h
// states, in LibTorch's operators, and their products summed exactly.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "backends/kernels/gemm.h"
#include "tests/backends/gemm_calls.h"

namespace denoised::kernels {
namespace {

struct Rounded {
  at::Tensor bytes;   // float64, whole numbers
  at::Tensor scales;  // float64 [rows, 1]
};

Rounded Round(const at::Tensor& rows) {
  const at::Tensor x = rows.to(at::kFloat);
  const at::Tensor scales = x.abs().amax({1}, true) / 127.0f;
  return {at::round(x * (1.0f / scales)).to(at::kDouble), scales.to(at::kDouble)};
}

// x W^T of the rounded.
at::Tensor Oracle(const at::Tensor& x, const at::Tensor& w) {
  const Rounded a = Round(x), b = Round(w);
  return a.bytes.matmul(b.bytes.t()) * a.scales * b.scales.t();
}

std::vector<GemmCase> Cases() {
  std::vector<GemmCase> cases;
  for (const GemmIsa isa : kAllGemmIsas) {
    if (!IsInt8(isa)) continue;
    cases.push_back({isa, Element::kFloat32});
    cases.push_back({isa, Element::kBFloat16});
  }
  return cases;
}

class Int8GemmTest : public testing::TestWithParam<GemmCase> {
 protected:
  void SetUp() override {
    if (!Runs(GetParam().isa)) GTEST_SKIP() << "this CPU has no " << GemmIsaName(GetParam().isa);
    at::manual_seed(11);
  }
  at::Tensor Random(int64_t rows, int64_t columns) const {
    return at::randn({rows, columns}).to(TypeOf(GetParam().element));
  }
  at::Tensor Product(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias = {},
                     const How& how = {}) const {
    const at::ScalarType type = TypeOf(GetParam().element);
    return Multiply(x.to(type), Pack(w.to(type), GetParam()), bias, how);
  }
};

// Of what is summed here nothing is lost: three products and a sum are rounded, then the result.
constexpr double kRounding = 3 * 0x1p-24;

TEST_P(Int8GemmTest, HasTheExactSumsOfTheRoundedAtEveryRaggedSize) {
  for (const int64_t k : {1, 2, 3, 7, 16, 63, 64, 65, 255, 1030, 2051}) {
    for (const int64_t n : {1, 31, 32, 33, 130}) {
      for (const int64_t m : {1, 3, 5, 13, 32, 47}) {
        const at::Tensor x =
            Random(m, k) * at::exp(at::randn({m, 1})).to(TypeOf(GetParam().element));
        const at::Tensor w = Random(n, k), bias = at::randn({n});
        const at::Tensor product = Oracle(x, w), wanted = product + bias.to(at::kDouble);
        const at::Tensor sizes = product.abs() + bias.to(at::kDouble).abs() + 1e-30;
        EXPECT_LE(ErrorShare(Product(x, w, bias), wanted, sizes, kRounding), 1)
            << m << " x " << k << " x " << n;
      }
    }
  }
}

TEST_P(Int8GemmTest, ActivationsAreThoseOfTheScaledSum) {
  const at::Tensor x = Random(21, 200), w = Random(70, 200), bias = at::randn({70});
  const at::Tensor sum = Oracle(x, w) / 8 + bias.to(at::kDouble);
  How how;
  how.activation = Activation::kGeluTanh;
  EXPECT_LE(ErrorShare(Product(x / 8, w, bias, how), at::gelu(sum, "tanh"), sum.abs() + 1), 1);
  how.activation = Activation::kSilu;
  EXPECT_LE(ErrorShare(Product(x / 8, w, bias, how), at::silu(sum), sum.abs() + 1), 1);
}

TEST_P(Int8GemmTest, WhatIsNotFiniteTakesItsWholeRowOrColumnAndNoOther) {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    for (const int64_t at : {0, 77, 130}) {  // among the first eights, and behind the last one
      at::Tensor x = Random(45, 131), w = Random(70, 131);
      const at::Tensor clean = Product(x, w);
      x[13][at] = bad;
      w[33][at] = bad;
      const at::Tensor y = Product(x, w), lost = at::zeros({45, 70}, at::kBool);
      lost[13].fill_(true);
      lost.select(1, 33).fill_(true);
      EXPECT_TRUE(at::equal(y.isnan(), lost)) << bad << " at " << at;
      EXPECT_TRUE(at::equal(y.masked_select(~lost), clean.masked_select(~lost)));
    }
  }
}

TEST_P(Int8GemmTest, HalvesGoToTheEvenByte) {
  // 127 sets the scale of a row to 1; each weight row picks one number, by 127 times 1 / 127.
  const at::Tensor x =
      at::tensor({127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 63.5f, -126.5f}).unsqueeze(0);
  const at::Tensor y = Product(x, at::eye(9)).to(at::kFloat) * 1;
  const at::Tensor wanted =
      at::tensor({127.0f, 0.0f, 2.0f, 2.0f, 0.0f, -2.0f, -2.0f, 64.0f, -126.0f});
  EXPECT_LE((y[0] - wanted).abs().max().item<float>(), 1e-4) << y;
}

TEST_P(Int8GemmTest, RowsOfNothingAndOfNextToNothingAreTheBias) {
  const at::Tensor bias = at::randn({40}), w = Random(40, 96);
  at::Tensor x = Random(6, 96);
  x[1].fill_(0);
  x[3].fill_(1e-40f);
  x[4].mul_(1e-39f);
  at::Tensor weight = w.clone();
  weight[7].fill_(0);
  const at::Tensor y = Product(x, weight, bias);
  for (const int64_t row : {1, 3, 4}) {
    EXPECT_TRUE(at::equal(y[row], bias.to(y.scalar_type()))) << row;
  }
  EXPECT_TRUE(at::equal(y.select(1, 7), bias[7].expand({6}).to(y.scalar_type())));
}

TEST_P(Int8GemmTest, TheLongestRowOverflowsNothing) {
  for (const float sign : {1.0f, -1.0f}) {
    const at::Tensor x = at::full({2, kMostInt8K}, sign), w = at::ones({33, kMostInt8K});
    const at::Tensor y = Product(x, w).to(at::kDouble) * sign / static_cast<double>(kMostInt8K);
    EXPECT_LE((y - 1).abs().max().item<double>(), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Int8GemmTest, testing::ValuesIn(Cases()),
                         testing::PrintToStringParamName());

TEST(Int8GemmLevelsTest, EveryInstructionSetHasTheSameBits) {
  at::manual_seed(5);
  for (const Element element : {Element::kFloat32, Element::kBFloat16}) {
    for (const auto& [k, n] : std::vector<std::pair<int64_t, int64_t>>{{777, 45}, {1536, 64}}) {
      const at::Tensor x = at::randn({50, k}).to(TypeOf(element));
      const at::Tensor w = at::randn({n, k}).to(TypeOf(element)), bias = at::randn({n});
      const at::Tensor wanted = Multiply(x, Pack(w, {GemmIsa::kAvx2Int8, element}), bias);
      for (const GemmCase& c : Cases()) {
        if (c.element != element || !Runs(c.isa)) continue;
        EXPECT_TRUE(at::equal(Multiply(x, Pack(w, c), bias, {2}), wanted)) << GemmIsaName(c.isa);
      }
    }
  }
}

TEST(Int8PanelsTest, TakeAByteAWeightAndEightAColumn) {
  const std::vector<float> weight(64 * 128);
  for (const GemmIsa isa : {GemmIsa::kAvx2Int8, GemmIsa::kVnniInt8}) {
    EXPECT_EQ(WeightPanels(weight.data(), Element::kFloat32, 64, 128, isa).bytes(),
              64 * 128 + 64 * 8);
  }
}

}  // namespace
}  // namespace denoised::kernels
