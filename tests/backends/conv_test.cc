// Implicit convolutions on the packed product, and those of Winograd's patches: close to float64,
// and the same bits whichever part of a volume a call computes, alone or with other frames, on any
// number of threads.
#include "backends/kernels/conv.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "backends/cpu_isa.h"
#include "backends/kernels/conv_winograd.h"
#include "tests/backends/gemm_calls.h"

namespace denoised::kernels {
namespace {

at::Tensor WholePanels(const at::Tensor& x) {
  at::Tensor padded = at::zeros({(x.numel() + 31) / 32 * 32});
  padded.narrow(0, 0, x.numel()).copy_(x);
  return padded;
}

// A convolution [N, C, kt, kh, kw] whose time axis sees only the past, zeros around in space.
struct Layer {
  at::Tensor weight;       // of the element's dtype
  at::Tensor bias, gamma;  // float32 [N]
};

// What must not change a bit.
struct HowConvolved {
  int threads = 1;
  int64_t first_row = 0, rows = 0;  // of the output; 0 rows: all of them
  int64_t gap = 0;                  // elements between positions, of input and output
  bool added = false, normed = false;
  bool winograd = false;
};

class ConvTest : public testing::TestWithParam<GemmCase> {
 protected:
  void SetUp() override {
    if (!HasGemmIsa(isa(), QueryMachine()))
      GTEST_SKIP() << "this CPU has no " << GemmIsaName(isa());
    at::manual_seed(11);
  }
  GemmIsa isa() const { return GetParam().isa; }
  Element element() const { return GetParam().element; }
  at::Tensor Random(at::IntArrayRef shape) const { return at::randn(shape).to(TypeOf(element())); }

  Layer MakeLayer(int64_t n, int64_t c, at::IntArrayRef kernel) const {
    const double size = std::sqrt(static_cast<double>(c * c10::multiply_integers(kernel)));
    return {Random({n, c, kernel[0], kernel[1], kernel[2]}).div(size), at::randn({n}),
            at::rand({n}) + 0.5};
  }

  at::Tensor TapsOf(const at::Tensor& weight) const {
    const int64_t c = weight.size(1), padded = TapChannels(c, isa());
    at::Tensor taps = at::zeros({weight.size(0), weight[0][0].numel(), padded}, weight.options());
    taps.narrow(2, 0, c).copy_(weight.flatten(2).transpose(1, 2));
    return taps;
  }

  void Run(const ConvolutionCall& call, const at::Tensor& weight, const HowConvolved& how) const {
    const at::Tensor taps = TapsOf(weight);
    if (!how.winograd) {
      const WeightPanels panels(taps.const_data_ptr(), element(), taps.size(0), taps[0].numel(),
                                isa());
      return Convolve(call, panels, OnThreads(how.threads));
    }
    ASSERT_TRUE(WinogradWeight::Suits(call.taps, call.channels, taps.size(0), element(), isa()));
    const WinogradWeight points(taps.const_data_ptr<float>(), call.taps, call.channels,
                                taps.size(0), isa(), OnThreads(how.threads));
    ConvolveWinograd(call, points, OnThreads(how.threads));
  }

  // x [T, H, W, C], the first kt - 1 frames of which are the past. Gives [T - kt + 1, rows, W, N].
  at::Tensor Convolved(const at::Tensor& x, const Layer& layer,
                       const HowConvolved& how = {}) const {
    const at::Tensor& w = layer.weight;
    const int64_t n = w.size(0), c = w.size(1), rows = how.rows > 0 ? how.rows : x.size(1);
    at::Tensor in = at::full({x.size(0), x.size(1), x.size(2), c + how.gap}, NAN, x.options());
    in.narrow(3, 0, c).copy_(x);
    const double untouched = 7;
    const int64_t frames = x.size(0) - w.size(2) + 1;
    at::Tensor out = at::full({frames, rows, x.size(2), n + how.gap}, untouched, x.options());
    if (how.added) out.narrow(3, 0, n).copy_(Residual(frames, x, n, how.first_row, rows));
    std::vector<const void*> inputs, added;
    std::vector<void*> outputs;
    for (int64_t t = 0; t < x.size(0); ++t) {
      inputs.push_back(x[t].abs().max().item<double>() == 0 ? nullptr : in[t].const_data_ptr());
    }
    for (int64_t t = 0; t < frames; ++t) outputs.push_back(out[t].mutable_data_ptr());
    added.assign(outputs.begin(), outputs.end());
    const at::Tensor bias = WholePanels(layer.bias), gamma = WholePanels(layer.gamma);
    ConvolutionCall call;
    call.taps = {w.size(2), w.size(3), w.size(4)};
    call.channels = c;
    call.in = inputs.data();
    call.in_rows = x.size(1);
    call.in_columns = x.size(2);
    call.in_step = c + how.gap;
    call.first_row = how.first_row - w.size(3) / 2;
    call.first_column = -w.size(4) / 2;
    call.frames = frames;
    call.rows = rows;
    call.origin_row = how.first_row;
    call.columns = x.size(2);
    call.bias = bias.const_data_ptr<float>();
    if (how.added) call.added = added.data();
    call.out_row_step = out.stride(1);
    call.out_step = out.stride(2);
    if (how.normed) {
      call.gamma = gamma.const_data_ptr<float>();
      call.silu = true;
      call.normed = outputs.data();
    } else {
      call.out = outputs.data();
    }
    Run(call, w, how);
    EXPECT_TRUE(out.narrow(3, n, how.gap).eq(untouched).all().item<bool>());
    return out.narrow(3, 0, n).contiguous();
  }

  void ExpectAPartHasTheBitsOfTheWhole(bool winograd) const {
    for (const auto& [c, n] :
         std::vector<std::pair<int64_t, int64_t>>{{5, 7}, {96, 40}, {300, 70}}) {
      const Layer layer = MakeLayer(n, c, {3, 3, 3});
      const at::Tensor x = Random({6, 11, 29, c});
      for (const bool normed : {false, true}) {
        HowConvolved how;
        how.winograd = winograd;
        how.added = true;
        how.normed = normed;
        const at::Tensor whole = Convolved(x, layer, how);
        HowConvolved other = how;
        for (const int threads : {2, 3}) {
          other.threads = threads;
          EXPECT_TRUE(at::equal(Convolved(x, layer, other), whole)) << threads;
        }
        other.gap = 3;
        EXPECT_TRUE(at::equal(Convolved(x, layer, other), whole));
        for (const auto& [first, rows] :
             std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {3, 5}, {10, 1}}) {
          other.first_row = first;
          other.rows = rows;
          EXPECT_TRUE(at::equal(Convolved(x, layer, other), whole.narrow(1, first, rows)));
        }
      }
      HowConvolved how;
      how.winograd = winograd;
      const at::Tensor whole = Convolved(x, layer, how);
      for (int64_t t = 0; t < 4; ++t) {
        EXPECT_TRUE(at::equal(Convolved(x.narrow(0, t, 3), layer, how), whole.narrow(0, t, 1)))
            << t;
      }
    }
  }

  // Numbers that follow from their position, so that a part has those of the whole.
  static at::Tensor Residual(int64_t frames, const at::Tensor& x, int64_t n, int64_t first_row,
                             int64_t rows) {
    return at::linspace(-2, 3, frames * x.size(1) * x.size(2) * n, at::kFloat)
        .view({frames, x.size(1), x.size(2), n})
        .narrow(1, first_row, rows)
        .to(x.scalar_type());
  }

  static at::Tensor InFloat64(const at::Tensor& x, const at::Tensor& weight,
                              const at::Tensor& bias) {
    return at::conv3d(x.to(at::kDouble).permute({3, 0, 1, 2}).unsqueeze(0), weight.to(at::kDouble),
                      bias.to(at::kDouble), /*stride=*/1,
                      {0, weight.size(3) / 2, weight.size(4) / 2})
        .squeeze(0)
        .permute({1, 2, 3, 0});
  }
};

TEST_P(ConvTest, IsCloseToFloat64AtEveryRaggedSize) {
  const std::vector<std::vector<int64_t>> kernels = {
      {3, 3, 3}, {1, 3, 3}, {3, 1, 1}, {1, 1, 1}, {2, 5, 5}};
  for (const auto& kernel : kernels) {
    for (const int64_t c : {1, 3, 16, 97, 300}) {
      for (const int64_t n : {3, 33, 96}) {
        for (const int64_t width : {1, 5, 12, 27}) {
          const Layer layer = MakeLayer(n, c, kernel);
          const at::Tensor x = Random({kernel[0] + 1, 4, width, c});
          EXPECT_LE(ErrorShare(Convolved(x, layer), InFloat64(x, layer.weight, layer.bias),
                               InFloat64(x.abs(), layer.weight.abs(), layer.bias.abs())),
                    1)
              << kernel[0] << kernel[1] << kernel[2] << " of " << c << " to " << n << ", " << width;
        }
      }
    }
  }
}

TEST_P(ConvTest, APartHasTheBitsOfTheWhole) { ExpectAPartHasTheBitsOfTheWhole(false); }

TEST_P(ConvTest, FramesOfZerosMayBeLeftOut) {
  const Layer layer = MakeLayer(33, 20, {3, 3, 3});
  at::Tensor x = Random({4, 5, 9, 20});
  x.narrow(0, 0, 2).zero_();  // Convolved passes null for those
  EXPECT_LE(ErrorShare(Convolved(x, layer), InFloat64(x, layer.weight, layer.bias),
                       InFloat64(x.abs(), layer.weight.abs(), layer.bias.abs())),
            1);
}

// What a sum of products of Winograd's patches can be as large as, in each term: a result of three
// taps of a line has terms of no more than twice all taps times each position that it sees.
at::Tensor WinogradMagnitudes(const at::Tensor& weight) {
  return (4 * weight.abs().sum({3, 4}, /*keepdim=*/true)).expand(weight.sizes());
}

double RelativeError(const at::Tensor& y, const at::Tensor& wanted) {
  return ((y.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

// Those that have panels of float32.
class WinogradTest : public ConvTest {
 protected:
  static HowConvolved How() {
    HowConvolved how;
    how.winograd = true;
    return how;
  }
  void ExpectClose(const Layer& layer, const at::Tensor& x) const {
    const at::Tensor y = Convolved(x, layer, How());
    const at::Tensor wanted = InFloat64(x, layer.weight, layer.bias);
    EXPECT_LE(ErrorShare(y, wanted,
                         InFloat64(x.abs(), WinogradMagnitudes(layer.weight), layer.bias.abs())),
              1)
        << x.sizes() << layer.weight.sizes();
    EXPECT_LE(RelativeError(y, wanted), 1e-6) << x.sizes() << layer.weight.sizes();
  }
};

TEST_P(WinogradTest, IsCloseToFloat64AtEveryRaggedSize) {
  for (const int64_t frames : {1, 3}) {
    for (const int64_t c : {1, 3, 16, 97, 300}) {
      for (const int64_t n : {3, 33, 96}) {
        for (const auto& [height, width] :
             std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {4, 5}, {3, 12}, {8, 27}}) {
          const Layer layer = MakeLayer(n, c, {frames, 3, 3});
          ExpectClose(layer, Random({frames + 1, height, width, c}));
        }
      }
    }
  }
}

TEST_P(WinogradTest, APartHasTheBitsOfTheWhole) { ExpectAPartHasTheBitsOfTheWhole(true); }

TEST_P(WinogradTest, FramesOfZerosMayBeLeftOut) {
  const Layer layer = MakeLayer(33, 20, {3, 3, 3});
  at::Tensor x = Random({4, 5, 9, 20});
  x.narrow(0, 0, 2).zero_();
  ExpectClose(layer, x);
}

TEST_P(WinogradTest, NothingButFramesOfZerosGivesTheBias) {
  const Layer layer = MakeLayer(33, 20, {3, 3, 3});
  const at::Tensor y = Convolved(at::zeros({4, 5, 9, 20}), layer, How());
  EXPECT_TRUE(at::equal(y, layer.bias.expand(y.sizes())));
}

TEST_P(WinogradTest, WhatIsNotFiniteReachesItsNeighboursOnly) {
  const Layer layer = MakeLayer(10, 8, {1, 3, 3});
  for (const float value : {NAN, INFINITY}) {
    for (const int64_t row : {0, 3, 4, 8}) {
      for (const int64_t column : {0, 12, 13, 29}) {
        at::Tensor x = Random({1, 9, 30, 8});
        x[0][row][column][2] = value;
        const at::Tensor bad =
            Convolved(x, layer, How()).isfinite().logical_not().any(3).squeeze(0);
        at::Tensor wanted = at::zeros({9, 30}, at::kBool);
        for (int64_t i = row - 1; i <= row + 1; ++i) {
          for (int64_t j = column - 1; j <= column + 1; ++j) {
            if (i >= 0 && i < 9 && j >= 0 && j < 30) wanted[i][j] = true;
          }
        }
        EXPECT_TRUE(at::equal(bad, wanted)) << row << ", " << column << ", " << value;
      }
    }
  }
}

TEST(WinogradWeightTest, SuitsSmallKernelsOfThreeByThreeInFloat32) {
  const auto suits = [](const Taps& taps, int64_t channels, Element element, GemmIsa isa) {
    return WinogradWeight::Suits(taps, channels, channels, element, isa);
  };
  EXPECT_TRUE(suits({3, 3, 3}, 192, Element::kFloat32, GemmIsa::kAvx2));
  EXPECT_FALSE(suits({3, 3, 3}, 384, Element::kFloat32, GemmIsa::kAvx512)) << "28 MB";
  EXPECT_FALSE(suits({3, 1, 1}, 96, Element::kFloat32, GemmIsa::kAvx512));
  EXPECT_FALSE(suits({1, 2, 2}, 96, Element::kFloat32, GemmIsa::kAvx512));
  EXPECT_FALSE(suits({3, 3, 3}, 96, Element::kBFloat16, GemmIsa::kAvx512));
  EXPECT_FALSE(suits({3, 3, 3}, 96, Element::kBFloat16, GemmIsa::kAvx512Bf16));
}

TEST_P(ConvTest, TheNormIsThatOfTheUnroundedSum) {
  for (const int64_t n : {3, 32, 100}) {
    const Layer layer = MakeLayer(n, 24, {3, 3, 3});
    const at::Tensor x = Random({3, 6, 14, 24});
    HowConvolved how;
    how.normed = how.added = true;
    const at::Tensor y =
        InFloat64(x, layer.weight, layer.bias) + Residual(1, x, n, 0, x.size(1)).to(at::kDouble);
    const at::Tensor scaled = y / at::linalg_vector_norm(y, 2, {-1}, /*keepdim=*/true) *
                              std::sqrt(static_cast<double>(n)) * layer.gamma.to(at::kDouble);
    const at::Tensor wanted = at::silu(scaled);
    EXPECT_LE(ErrorShare(Convolved(x, layer, how), wanted, at::full_like(wanted, 10)), 1) << n;
  }
}

TEST_P(ConvTest, WhatIsNotFiniteReachesItsNeighboursOnly) {
  const Layer layer = MakeLayer(10, 8, {1, 3, 3});
  at::Tensor x = Random({1, 9, 30, 8});
  x[0][4][13][2] = NAN;
  const at::Tensor bad = Convolved(x, layer).isnan().any(3).squeeze(0);  // [9, 30]
  EXPECT_EQ(bad.sum().item<int64_t>(), 9);
  EXPECT_TRUE(bad.narrow(0, 3, 3).narrow(1, 12, 3).all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(All, WinogradTest,
                         testing::Values(GemmCase{GemmIsa::kAvx2, Element::kFloat32},
                                         GemmCase{GemmIsa::kAvx512, Element::kFloat32}),
                         testing::PrintToStringParamName());

INSTANTIATE_TEST_SUITE_P(All, ConvTest,
                         testing::Values(GemmCase{GemmIsa::kAvx2, Element::kFloat32},
                                         GemmCase{GemmIsa::kAvx2, Element::kBFloat16},
                                         GemmCase{GemmIsa::kAvx512, Element::kFloat32},
                                         GemmCase{GemmIsa::kAvx512, Element::kBFloat16},
                                         GemmCase{GemmIsa::kAvx512Bf16, Element::kBFloat16}),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace denoised::kernels
