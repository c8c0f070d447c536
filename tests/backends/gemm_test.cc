// The packed matrix product: close to float64, and the same bits however its rows are called.
#include "backends/kernels/gemm.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

namespace denoised::kernels {
namespace {

RunWorkers OnThreads(int threads) {
  return [threads](int64_t tasks, const std::function<void()>& worker) {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < std::min<int64_t>(tasks, threads); ++i) others.emplace_back(worker);
    worker();
    for (std::thread& thread : others) thread.join();
  };
}

bool Runs(GemmIsa isa) {
  const DeviceInfo cpu = QueryCpu();
  if (isa == GemmIsa::kAvx512) return cpu.avx512;
  return isa == GemmIsa::kAvx2 || cpu.avx512_bf16;
}

at::ScalarType TypeOf(Element element) {
  return element == Element::kFloat32 ? at::kFloat : at::kBFloat16;
}

// How rows are multiplied: what must not change a bit.
struct How {
  int threads = 1;
  int64_t x_gap = 0, y_gap = 0;  // elements between rows
  Activation activation = Activation::kNone;
};

at::Tensor Multiply(const at::Tensor& x, const WeightPanels& weight, const at::Tensor& bias,
                    const How& how = {}) {
  at::Tensor spaced = at::zeros({x.size(0), x.size(1) + how.x_gap}, x.options());
  spaced.narrow(1, 0, x.size(1)).copy_(x);
  const double untouched = 7;
  at::Tensor y = at::full({x.size(0), weight.n() + how.y_gap}, untouched, x.options());
  GemmCall call;
  call.rows = x.size(0);
  call.x = spaced.const_data_ptr();
  call.x_stride = spaced.stride(0);
  call.y = y.mutable_data_ptr();
  call.y_stride = y.stride(0);
  call.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  call.activation = how.activation;
  Gemm(call, weight, OnThreads(how.threads));
  EXPECT_TRUE(y.narrow(1, weight.n(), how.y_gap).eq(untouched).all().item<bool>());
  return y.narrow(1, 0, weight.n()).contiguous();
}

struct Case {
  GemmIsa isa;
  Element element;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << GemmIsaName(c.isa) << (c.element == Element::kFloat32 ? "_float32" : "_bfloat16");
}

class GemmTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!Runs(isa())) GTEST_SKIP() << "this CPU has no " << GemmIsaName(isa());
    at::manual_seed(7);
  }
  GemmIsa isa() const { return GetParam().isa; }
  Element element() const { return GetParam().element; }
  at::Tensor Random(int64_t rows, int64_t columns) const {
    return at::randn({rows, columns}).to(TypeOf(element()));
  }
  WeightPanels Pack(const at::Tensor& weight) const {
    return WeightPanels(weight.const_data_ptr(), element(), weight.size(0), weight.size(1), isa());
  }
};

// The largest error in units of what it may be: half a step of the result's dtype, and of the sum
// 4e-7 of the magnitudes that went into it.
double ErrorShare(const at::Tensor& y, const at::Tensor& wanted, const at::Tensor& magnitudes) {
  const double half_step = y.scalar_type() == at::kFloat ? 0x1p-24 : 0x1p-8;
  const at::Tensor allowed = wanted.abs() * half_step + magnitudes * 4e-7;
  return ((y.to(at::kDouble) - wanted).abs() / allowed).max().item<double>();
}

TEST_P(GemmTest, IsCloseToFloat64AtEveryRaggedSize) {
  for (const int64_t k : {1, 2, 3, 7, 64, 255, 256, 513, 1027}) {
    for (const int64_t n : {1, 5, 31, 32, 33, 96, 130}) {
      for (const int64_t m : {1, 3, 4, 12, 13, 40}) {
        const at::Tensor x = Random(m, k), w = Random(n, k), bias = at::randn({n});
        const at::Tensor a = x.to(at::kDouble), b = w.to(at::kDouble).t(), c = bias.to(at::kDouble);
        EXPECT_LE(ErrorShare(Multiply(x, Pack(w), bias), a.matmul(b) + c,
                             a.abs().matmul(b.abs()) + c.abs()),
                  1)
            << m << " x " << k << " x " << n;
      }
    }
  }
}

TEST_P(GemmTest, RowsHaveTheirBitsAloneInAnyCompanyAndOnAnyNumberOfThreads) {
  for (const auto& [k, n] : std::vector<std::pair<int64_t, int64_t>>{
           {192, 768}, {768, 192}, {1536, 96}, {8960, 64}, {259, 333}}) {
    const int64_t rows = 101;
    const at::Tensor x = Random(rows, k), bias = at::randn({n});
    const WeightPanels weight = Pack(Random(n, k));
    const at::Tensor whole = Multiply(x, weight, bias);
    for (const How& how : {How{2}, How{3, 5}, How{1, 0, 9}}) {
      EXPECT_TRUE(at::equal(Multiply(x, weight, bias, how), whole)) << k << " x " << n;
    }
    for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 1}, {100, 1}, {11, 2}, {1, 12}, {3, 40}, {0, 97}}) {
      EXPECT_TRUE(at::equal(Multiply(x.narrow(0, first, count).contiguous(), weight, bias, {2}),
                            whole.narrow(0, first, count)))
          << k << " x " << n << " rows " << first << " + " << count;
    }
  }
}

TEST_P(GemmTest, TurnsOfPackedRowsChangeNothing) {
  // More rows than are packed at once.
  const int64_t k = 8960, rows = 1200;
  const at::Tensor x = Random(rows, k);
  const WeightPanels weight = Pack(Random(33, k));
  const at::Tensor whole = Multiply(x, weight, {}, {2});
  EXPECT_TRUE(at::equal(Multiply(x.narrow(0, 1100, 100).contiguous(), weight, {}),
                        whole.narrow(0, 1100, 100)));
}

TEST_P(GemmTest, NaNAndInfinityStayInTheirRowAndColumn) {
  const int64_t m = 17, k = 300, n = 70;
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    at::Tensor x = Random(m, k), w = Random(n, k);
    x[5][299] = bad;
    w[69][0] = bad;
    const at::Tensor y = Multiply(x, Pack(w), {}).to(at::kDouble);
    const at::Tensor wanted = x.to(at::kDouble).matmul(w.to(at::kDouble).t());
    EXPECT_TRUE(at::equal(y.isnan(), wanted.isnan()));
    EXPECT_TRUE(at::equal(y.isinf(), wanted.isinf()));
  }
}

TEST_P(GemmTest, ActivationsAreThoseOfTheUnroundedSum) {
  const int64_t k = 64, n = 100;
  const at::Tensor x = Random(40, k) * 4, w = Random(n, k), bias = at::randn({n});
  const at::Tensor a = x.to(at::kDouble), b = w.to(at::kDouble).t(), c = bias.to(at::kDouble);
  How how;
  how.activation = Activation::kGeluTanh;
  const at::Tensor y = Multiply(x, Pack(w), bias, how);
  EXPECT_LE(ErrorShare(y, at::gelu(a.matmul(b) + c, "tanh"), a.abs().matmul(b.abs()) + c.abs()), 1);
  how.activation = Activation::kSilu;
  EXPECT_LE(ErrorShare(Multiply(x, Pack(w), bias, how), at::silu(a.matmul(b) + c),
                       a.abs().matmul(b.abs()) + c.abs()),
            1);
  how.activation = Activation::kGeluTanh;
  // Far out on both sides, and what is no number.
  const at::Tensor far = at::tensor({-1e30f, -90.0f, -12.0f, 0.0f, 90.0f, 1e30f, NAN}).unsqueeze(1);
  const at::Tensor one = at::ones({1, 1}).to(TypeOf(element()));
  const at::Tensor z = Multiply(far.to(one.scalar_type()), Pack(one), {}, how).to(at::kFloat);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(z[i][0].item<float>(), 0, 1e-6) << i;
  EXPECT_TRUE(
      at::equal(z.narrow(0, 4, 2), far.to(one.scalar_type()).narrow(0, 4, 2).to(at::kFloat)));
  EXPECT_TRUE(std::isnan(z[6][0].item<float>()));
}

INSTANTIATE_TEST_SUITE_P(All, GemmTest,
                         testing::Values(Case{GemmIsa::kAvx2, Element::kFloat32},
                                         Case{GemmIsa::kAvx2, Element::kBFloat16},
                                         Case{GemmIsa::kAvx512, Element::kFloat32},
                                         Case{GemmIsa::kAvx512, Element::kBFloat16},
                                         Case{GemmIsa::kAvx512Bf16, Element::kBFloat16}),
                         testing::PrintToStringParamName());

TEST(GemmLevelsTest, FloatsHaveTheSameBitsOnAvx2AndAvx512) {
  if (!Runs(GemmIsa::kAvx512)) GTEST_SKIP() << "this CPU has no AVX-512";
  at::manual_seed(3);
  for (const Element element : {Element::kFloat32, Element::kBFloat16}) {
    const at::Tensor x = at::randn({29, 777}).to(TypeOf(element));
    const at::Tensor w = at::randn({45, 777}).to(TypeOf(element)), bias = at::randn({45});
    const auto on = [&](GemmIsa isa) {
      return Multiply(x, WeightPanels(w.const_data_ptr(), element, 45, 777, isa), bias);
    };
    EXPECT_TRUE(at::equal(on(GemmIsa::kAvx2), on(GemmIsa::kAvx512)));
  }
}

TEST(WeightPanelsTest, HalfWeightsTakeHalfTheMemory) {
  const std::vector<uint16_t> half(64 * 128);
  const std::vector<float> whole(64 * 128);
  EXPECT_EQ(WeightPanels(half.data(), Element::kBFloat16, 64, 128, GemmIsa::kAvx2).bytes(),
            64 * 128 * 2);
  EXPECT_EQ(WeightPanels(whole.data(), Element::kFloat32, 64, 128, GemmIsa::kAvx2).bytes(),
            64 * 128 * 4);
}

}  // namespace
}  // namespace denoised::kernels
