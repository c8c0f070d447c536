// The packed matrix product: close to float64, and the same bits however its rows are called.
#include "backends/kernels/gemm.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "backends/error.h"
#include "backends/stop_point.h"
#include "tests/backends/gemm_calls.h"

namespace denoised::kernels {
namespace {

class GemmTest : public testing::TestWithParam<GemmCase> {
 protected:
  void SetUp() override {
    if (!Runs(GetParam().isa)) GTEST_SKIP() << "this CPU has no " << GemmIsaName(GetParam().isa);
    at::manual_seed(7);
  }
  Element element() const { return GetParam().element; }
  at::Tensor Random(int64_t rows, int64_t columns) const {
    return at::randn({rows, columns}).to(TypeOf(element()));
  }
  WeightPanels Pack(const at::Tensor& weight) const { return kernels::Pack(weight, GetParam()); }
};
// Those that round nothing but what they store.
class ExactGemmTest : public GemmTest {};

TEST_P(ExactGemmTest, IsCloseToFloat64AtEveryRaggedSize) {
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

// Rows whose last one ends where memory does.
TEST_P(GemmTest, NothingIsReadPastTheEndOfRows) {
  const int64_t page = sysconf(_SC_PAGESIZE), rows = 13;
  const size_t bytes = static_cast<size_t>(2 * page);
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  char* const end = static_cast<char*>(memory) + page;
  ASSERT_EQ(mprotect(end, static_cast<size_t>(page), PROT_NONE), 0);
  for (const int64_t k : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65}) {
    const at::Tensor x = Random(rows, k), bias = at::randn({40});
    const WeightPanels weight = Pack(Random(40, k));
    const at::Tensor at_the_end = at::from_blob(end - x.nbytes(), x.sizes(), x.options()).copy_(x);
    EXPECT_TRUE(at::equal(Multiply(at_the_end, weight, bias), Multiply(x, weight, bias))) << k;
  }
  munmap(memory, bytes);
}

// Rows of a matrix, as a file would give them: from several threads, in any order.
RowReader ReaderOf(const at::Tensor& weight) {
  return [weight](int64_t first, int64_t count, void* out) {
    const at::Tensor rows = weight.narrow(0, first, count);
    std::memcpy(out, rows.const_data_ptr(), rows.nbytes());
  };
}

TEST_P(GemmTest, WeightsThatAreReadAsTheyArePackedAreTheSame) {
  for (const auto& [n, k] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {34, 70}, {47, 70}, {333, 2049}}) {
    const at::Tensor x = Random(13, k), weight = Random(n, k);
    const at::Tensor want = Multiply(x, Pack(weight), {});
    for (const int threads : {1, 3}) {
      const WeightPanels read(ReaderOf(weight), element(), n, k, GetParam().isa,
                              OnThreads(threads));
      EXPECT_TRUE(at::equal(Multiply(x, read, {}), want)) << n << " x " << k;
    }
  }
}

TEST_P(GemmTest, WhatReadingThrowsIsThrown) {
  const RowReader zeros = ReaderOf(at::zeros({320, 64}, TypeOf(element())));
  const RowReader broken = [&](int64_t first, int64_t count, void* out) {
    if (first == 288) throw Error(StatusCode::kDataLoss, "shorter");
    zeros(first, count, out);
  };
  EXPECT_THROW(WeightPanels(broken, element(), 320, 64, GetParam().isa, OnOwnTeam()), Error);
  const ScopedStopCheck stopped([] { return Error(StatusCode::kCancelled, "enough"); });
  std::atomic<int> reads = 0;
  const RowReader counted = [&](int64_t, int64_t, void*) { ++reads; };
  EXPECT_THROW(WeightPanels(counted, element(), 320, 64, GetParam().isa), Error);
  EXPECT_EQ(reads, 0);
}

TEST_P(GemmTest, SeveralProductsOfTheSameRowsHaveTheBitsOfOneEach) {
  const int64_t rows = 101, k = 300;
  const at::Tensor x = Random(rows, k), bias = at::randn({200});
  const int64_t widths[] = {200, 33, 1, 96};
  std::vector<WeightPanels> weights;
  std::vector<at::Tensor> results;
  weights.reserve(4);
  for (const int64_t n : widths) {
    weights.push_back(Pack(Random(n, k)));
    results.push_back(at::full({rows, n}, 7, x.options()));
  }
  for (const int threads : {1, 2, 3}) {
    std::vector<GemmProduct> products;
    for (size_t i = 0; i < weights.size(); ++i) {
      GemmCall call{rows, x.const_data_ptr(), k, results[i].mutable_data_ptr(), widths[i]};
      if (i == 0) call.bias = bias.const_data_ptr<float>();
      products.push_back({call, &weights[i]});
    }
    MultiplyMany(products, OnThreads(threads));
    for (size_t i = 0; i < weights.size(); ++i) {
      const at::Tensor alone = Multiply(x, weights[i], i == 0 ? bias : at::Tensor());
      EXPECT_TRUE(at::equal(results[i], alone)) << i << ", " << threads << " threads";
    }
  }
}

TEST_P(ExactGemmTest, TheEndOfABranchIsGatedAndAddedInFloat32) {
  const int64_t rows = 30, k = 90;  // with 96 columns more than is left to one thread
  // Rows a gate, 0: no gate; and whether gates are named by an index.
  const std::vector<std::pair<int64_t, bool>> kinds = {{1, false}, {7, false},  {10, false},
                                                       {10, true}, {30, false}, {0, false}};
  for (const int64_t n : {96, 45}) {
    for (const auto& [rows_a_gate, by_index] : kinds) {
      const at::Tensor x = Random(rows, k), w = Random(n, k), bias = at::randn({n});
      const at::Tensor gates = at::randn({rows, 3, n}), before = at::randn({rows, n});
      const WeightPanels weight = Pack(w);
      at::Tensor sum = before.clone();
      GemmCall call{rows, x.const_data_ptr(), k, nullptr, n, bias.const_data_ptr<float>()};
      call.add_to = sum.mutable_data_ptr<float>();
      at::Tensor gate = at::ones({rows, n}, at::kDouble), index;
      if (rows_a_gate > 0) {
        call.gate = gates.const_data_ptr<float>() + n;  // the middle one of three
        call.gate_stride = 3 * n;
        call.rows_a_gate = rows_a_gate;
        index = at::arange((rows + rows_a_gate - 1) / rows_a_gate, at::kInt);
        if (by_index) index = index.flip(0).mul_(2).contiguous();
        if (by_index) call.gate_index = index.const_data_ptr<int32_t>();
        gate = gates.select(1, 1)
                   .index_select(0, index)
                   .repeat_interleave(rows_a_gate, 0)
                   .narrow(0, 0, rows)
                   .to(at::kDouble);
      }
      const GemmProduct product{call, &weight};
      MultiplyMany({&product, 1}, OnThreads(2));
      const at::Tensor a = x.to(at::kDouble), b = w.to(at::kDouble).t(), c = bias.to(at::kDouble);
      const at::Tensor magnitudes = before.abs() + gate.abs() * (a.abs().matmul(b.abs()) + c.abs());
      EXPECT_LE(ErrorShare(sum, before + gate * (a.matmul(b) + c), magnitudes), 1)
          << n << ", " << rows_a_gate;
    }
  }
}

// Rows, K and N that are cut into low blocks on near panels, of long rows too, tall ones on far
// panels, many shares of few rows.
const std::vector<std::array<int64_t, 3>> kCuts = {
    {1300, 70, 40}, {1040, 1100, 40}, {230, 2100, 400}, {50, 2100, 300}};

TEST_P(GemmTest, HowACallIsCutIntoTasksChangesNothing) {
  for (const auto& [rows, k, n] : kCuts) {
    const at::Tensor x = Random(rows, k), bias = at::randn({n});
    const WeightPanels weight = Pack(Random(n, k));
    const at::Tensor whole = Multiply(x, weight, bias, {3});
    for (const int64_t first : {int64_t{0}, rows / 5, rows - 40}) {
      EXPECT_TRUE(at::equal(Multiply(x.narrow(0, first, 40).contiguous(), weight, bias),
                            whole.narrow(0, first, 40)))
          << rows << " x " << k << " x " << n << " from " << first;
    }
  }
}

TEST_P(GemmTest, RowsThatAreMadeAsTheyArePackedAreTheSame) {
  for (const auto& [rows, k, n] : kCuts) {
    const at::Tensor x = Random(rows, k), bias = at::randn({n});
    const WeightPanels weight = Pack(Random(n, k));
    const at::Tensor wanted = Multiply(x, weight, bias);
    const RowReader reader = ReaderOf(x);
    for (const int threads : {1, 2, 3}) {
      at::Tensor y = at::full({rows, n}, 7, x.options());
      GemmCall call{rows, nullptr, k, y.mutable_data_ptr(), n, bias.const_data_ptr<float>()};
      call.read = &reader;
      const GemmProduct product{call, &weight};
      MultiplyMany({&product, 1}, OnThreads(threads));
      EXPECT_TRUE(at::equal(y, wanted)) << rows << " x " << k << " x " << n;
    }
  }
}

TEST_P(GemmTest, WhatMakingRowsOrHearingOfThemThrowsIsThrown) {
  const int64_t rows = 300, k = 64, n = 40;
  const at::Tensor x = Random(rows, k), y = at::empty({rows, n}, x.options());
  const WeightPanels weight = Pack(Random(n, k));
  const RowReader reader = ReaderOf(x);
  const RowReader broken = [&](int64_t first, int64_t count, void* out) {
    if (first + count > 200) throw Error(StatusCode::kDataLoss, "shorter");
    reader(first, count, out);
  };
  const RowsDone refuses = [](int64_t first, int64_t count) {
    if (first + count > 200) throw Error(StatusCode::kDataLoss, "unheard of");
  };
  const auto multiply = [&](const RowReader& read, const RowsDone& done) {
    GemmCall call{rows, nullptr, k, y.mutable_data_ptr(), n};
    call.read = &read;
    const GemmProduct product{call, &weight};
    MultiplyMany({&product, 1}, OnOwnTeam(), done);
  };
  EXPECT_THROW(multiply(broken, {}), Error);
  EXPECT_THROW(multiply(reader, refuses), Error);
  EXPECT_NO_THROW(multiply(reader, {}));
}

// What it sees of the rows must be all of them, in every product, and once: it doubles them.
TEST_P(GemmTest, WhoHearsOfRowsHearsOfAllOnceAndWhenTheyAreComplete) {
  for (const auto& [rows, k, n] : kCuts) {
    const at::Tensor x = Random(rows, k);
    const std::array<int64_t, 2> widths = {n, 45};
    std::vector<WeightPanels> weights;
    std::vector<at::Tensor> wanted;
    for (const int64_t width : widths) {
      weights.push_back(Pack(Random(width, k)));
      wanted.push_back(Multiply(x, weights.back(), {}) * 2);
    }
    for (const int threads : {1, 2, 3}) {
      std::vector<at::Tensor> results;
      std::vector<GemmProduct> products;
      for (size_t i = 0; i < widths.size(); ++i) {
        results.push_back(at::full({rows, widths[i]}, 7, x.options()));
        products.push_back(
            {{rows, x.const_data_ptr(), k, results[i].mutable_data_ptr(), widths[i]}, &weights[i]});
      }
      std::atomic<int64_t> heard = 0;
      MultiplyMany(products, OnThreads(threads), [&](int64_t first, int64_t count) {
        heard += count;
        for (const at::Tensor& result : results) result.narrow(0, first, count).mul_(2);
      });
      EXPECT_EQ(heard, rows);
      for (size_t i = 0; i < widths.size(); ++i) {
        EXPECT_TRUE(at::equal(results[i], wanted[i]))
            << rows << " x " << k << " x " << widths[i] << ", " << threads << " threads";
      }
    }
  }
}

// Far weights are streamed again for it, but not for a few rows.
TEST(RowsDoneTest, EndsOfRowsAreSharedOutThoughWeightsAreFar) {
  const int64_t k = 2100, n = 400;
  const WeightPanels weight = Pack(at::randn({n, k}), {GemmIsa::kAvx2, Element::kFloat32});
  for (const auto& [rows, blocks] :
       std::vector<std::pair<int64_t, int64_t>>{{24, 1}, {96, 2}, {300, 4}}) {
    const at::Tensor x = at::randn({rows, k});
    at::Tensor y = at::empty({rows, n});
    std::atomic<int64_t> calls = 0;
    const GemmProduct product{{rows, x.const_data_ptr(), k, y.mutable_data_ptr(), n}, &weight};
    GemmMany({&product, 1}, RunHere, nullptr, [&](int64_t, int64_t) { ++calls; });
    EXPECT_EQ(calls, blocks) << rows;
  }
}

TEST_P(ExactGemmTest, PanelsGiveTheirWeightsBack) {
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {33, 7}, {130, 64}}) {
    const at::Tensor weight = Random(n, k);
    at::Tensor back = at::zeros_like(weight);
    Pack(weight).Unpack(back.mutable_data_ptr(), RunHere);
    EXPECT_TRUE(at::equal(back, weight)) << n << " x " << k;
  }
}

TEST_P(ExactGemmTest, NaNAndInfinityStayInTheirRowAndColumn) {
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

TEST_P(ExactGemmTest, ActivationsAreThoseOfTheUnroundedSum) {
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
  const at::Tensor far =
      at::tensor({-3e38f, -1e30f, -90.0f, -12.0f, 0.0f, 90.0f, 1e30f, NAN}).unsqueeze(1);
  const at::Tensor one = at::ones({1, 1}).to(TypeOf(element()));
  const at::Tensor z = Multiply(far.to(one.scalar_type()), Pack(one), {}, how).to(at::kFloat);
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(z[i][0].item<float>(), 0, 1e-6) << i;
  EXPECT_TRUE(
      at::equal(z.narrow(0, 5, 2), far.to(one.scalar_type()).narrow(0, 5, 2).to(at::kFloat)));
  EXPECT_TRUE(std::isnan(z[7][0].item<float>()));
}

// Against x / (1 + 2^t) in float64. Each rounding on the way to t costs the power a unit of t's
// last place times log 2, beside four of its own; far out zeros of x's sign stand for next to
// nothing.
TEST(ActivationsTest, HoldOnTheirWholeRange) {
  at::manual_seed(9);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const at::Tensor odd = at::tensor({NAN, kInfinity, FLT_MAX, -FLT_MAX, -kInfinity});
  const at::Tensor x = at::cat({at::arange(-100, 100, 0x1p-7, at::kFloat), at::randn({20000}) * 9,
                                at::randn({20000}), at::tensor({-1e-30f, 0.0f, 1e-30f}), odd})
                           .unsqueeze(1);
  const int64_t even = x.size(0) - odd.size(0);
  const at::Tensor one = at::ones({1, 1}), a = x.narrow(0, 0, even).to(at::kDouble);
  const at::Tensor t = a * -std::numbers::log2e;
  const double slope = std::sqrt(8 / std::numbers::pi);
  struct Case {
    Activation activation;
    at::Tensor t;
    int roundings;  // constants' too
  };
  for (const Case& c : {Case{Activation::kGeluTanh, t * slope * (1 + 0.044715 * a * a), 5},
                        Case{Activation::kSilu, t, 2}}) {
    const at::Tensor wanted = a / (1 + at::exp2(c.t));
    const at::Tensor ulps = 4 + c.roundings * std::numbers::ln2 * c.t.abs().clamp_max(130);
    const at::Tensor limit = wanted.abs() * ulps * 0x1p-24 + 1e-35;
    for (const GemmIsa isa : {GemmIsa::kAvx2, GemmIsa::kAvx512}) {
      if (!Runs(isa)) continue;
      const at::Tensor y =
          Multiply(x, Pack(one, {isa, Element::kFloat32}), {}, {1, 0, 0, c.activation});
      const at::Tensor share = (y.narrow(0, 0, even).to(at::kDouble) - wanted).abs() / limit;
      EXPECT_LE(share.max().item<double>(), 1)
          << GemmIsaName(isa) << " at " << x[share.argmax().item<int64_t>()].item<float>();
      const auto ends = y.narrow(0, even, odd.size(0)).contiguous();
      const float* const end = ends.const_data_ptr<float>();
      EXPECT_TRUE(std::isnan(end[0]));
      EXPECT_EQ(end[1], kInfinity);
      EXPECT_EQ(end[2], FLT_MAX);
      for (int i = 3; i < 5; ++i) EXPECT_TRUE(end[i] == 0 && std::signbit(end[i])) << i;
    }
  }
}

std::vector<GemmCase> Cases(bool int8_too) {
  std::vector<GemmCase> cases;
  for (const GemmIsa isa : kAllGemmIsas) {
    for (const Element element : {Element::kFloat32, Element::kBFloat16}) {
      if (Takes(isa, element) && (int8_too || !IsInt8(isa))) cases.push_back({isa, element});
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, GemmTest, testing::ValuesIn(Cases(true)),
                         testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(All, ExactGemmTest, testing::ValuesIn(Cases(false)),
                         testing::PrintToStringParamName());

TEST(GemmLevelsTest, FloatsHaveTheSameBitsOnAvx2AndAvx512) {
  if (!Runs(GemmIsa::kAvx512)) GTEST_SKIP() << "this CPU has no AVX-512";
  at::manual_seed(3);
  for (const Element element : {Element::kFloat32, Element::kBFloat16}) {
    const at::Tensor x = at::randn({29, 777}).to(TypeOf(element));
    const at::Tensor w = at::randn({45, 777}).to(TypeOf(element)), bias = at::randn({45});
    for (const Activation activation :
         {Activation::kNone, Activation::kGeluTanh, Activation::kSilu}) {
      const auto on = [&](GemmIsa isa) {
        return Multiply(x, Pack(w, {isa, element}), bias, {1, 0, 0, activation});
      };
      EXPECT_TRUE(at::equal(on(GemmIsa::kAvx2), on(GemmIsa::kAvx512)));
    }
  }
}

// Of whole numbers the sums are exact on every level, so that only their ends can differ: bias,
// activation and the rounding to bfloat16, of whole panels and of a part.
TEST(GemmLevelsTest, EndsInBfloat16HaveTheSameBitsOnEveryLevel) {
  at::manual_seed(5);
  const Element element = Element::kBFloat16;
  for (const int64_t n : {32, 45, 96}) {
    const at::Tensor x = at::randint(-8, 9, {29, 70}).to(at::kBFloat16);
    const at::Tensor w = at::randint(-8, 9, {n, 70}).to(at::kBFloat16), bias = at::randn({n}) * 99;
    for (const Activation activation :
         {Activation::kNone, Activation::kGeluTanh, Activation::kSilu}) {
      const auto on = [&](GemmIsa isa) {
        return Multiply(x, Pack(w, {isa, element}), bias, {1, 0, 0, activation});
      };
      const at::Tensor wanted = on(GemmIsa::kAvx2);
      for (const GemmIsa isa : {GemmIsa::kAvx512, GemmIsa::kAvx512Bf16}) {
        if (!Runs(isa)) continue;
        EXPECT_TRUE(at::equal(on(isa), wanted)) << n << " " << GemmIsaName(isa);
      }
    }
  }
}

TEST(GemmLevelsTest, EndsOfBranchesHaveTheSameBitsOnAvx2AndAvx512) {
  if (!Runs(GemmIsa::kAvx512)) GTEST_SKIP() << "this CPU has no AVX-512";
  at::manual_seed(4);
  const int64_t rows = 29, k = 300, n = 45;
  const at::Tensor x = at::randn({rows, k}), w = at::randn({n, k}), bias = at::randn({n});
  const at::Tensor gates = at::randn({rows, n}), before = at::randn({rows, n});
  const auto on = [&](GemmIsa isa) {
    const WeightPanels weight = Pack(w, {isa, Element::kFloat32});
    at::Tensor sum = before.clone();
    GemmCall call{rows, x.const_data_ptr(), k, nullptr, n, bias.const_data_ptr<float>()};
    call.add_to = sum.mutable_data_ptr<float>();
    call.gate = gates.const_data_ptr<float>();
    call.gate_stride = n;
    Gemm(call, weight, RunHere);
    return sum;
  };
  EXPECT_TRUE(at::equal(on(GemmIsa::kAvx2), on(GemmIsa::kAvx512)));
}

TEST(BestGemmIsaTest, IsTheWidestThatTheCpuHas) {
  DeviceInfo cpu;
  cpu.avx2 = true;
  const auto best = [&](Element element) { return BestGemmIsa(element, cpu); };
  EXPECT_EQ(best(Element::kBFloat16), GemmIsa::kAvx2);
  EXPECT_EQ(Int8GemmIsa(cpu), GemmIsa::kAvx2Int8);
  cpu.avx512 = true;
  EXPECT_EQ(best(Element::kBFloat16), GemmIsa::kAvx512);
  EXPECT_EQ(Int8GemmIsa(cpu), GemmIsa::kAvx512Int8);
  cpu.avx512_vnni = true;
  EXPECT_EQ(best(Element::kBFloat16), GemmIsa::kAvx512);
  EXPECT_EQ(Int8GemmIsa(cpu), GemmIsa::kVnniInt8);
  cpu.avx512_bf16 = true;
  EXPECT_EQ(best(Element::kBFloat16), GemmIsa::kAvx512Bf16);
  EXPECT_EQ(best(Element::kFloat32), GemmIsa::kAvx512);
  cpu.amx_bf16 = cpu.amx_int8 = true;
  EXPECT_EQ(BestConvolutionIsa(Element::kBFloat16, cpu), GemmIsa::kAvx512Bf16);
  EXPECT_EQ(BestConvolutionIsa(Element::kFloat32, cpu), GemmIsa::kAvx512);
  EXPECT_EQ(best(Element::kBFloat16), GemmIsa::kAmxBf16);
  EXPECT_EQ(best(Element::kFloat32), GemmIsa::kAvx512);
  EXPECT_EQ(Int8GemmIsa(cpu), GemmIsa::kAmxInt8);
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
