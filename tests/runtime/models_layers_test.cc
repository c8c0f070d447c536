// Packed layers give the numbers of the plain ATen ops; bad inputs are refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>

#include "backends/error.h"
#include "runtime/models/layers.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

TEST(LinearTest, HasTheBitsOfThePlainProduct) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t rows : {1, 3, 16, 97}) {
      const at::Tensor weight = at::randn({36, 60}).to(dtype), bias = at::randn({36}).to(dtype);
      const at::Tensor x = at::randn({2, rows, 60}).to(dtype);
      const Linear with_bias(weight, bias, LinearNumerics::kExact),
          without(weight, {}, LinearNumerics::kExact);
      EXPECT_EQ(with_bias.dtype(), dtype);
      EXPECT_TRUE(at::equal(with_bias(x), at::linear(x, weight, bias))) << rows;
      EXPECT_TRUE(at::equal(without(x), at::linear(x, weight))) << rows;
    }
  }
}

TEST(LinearTest, ComputesWhatIsAskedForHoweverTheWeightsAreKept) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = at::randn({45, 61}).to(dtype), bias = at::randn({45}).to(dtype);
    const at::Tensor x = at::randn({2, 19, 61}).to(dtype);
    const Linear packed(weight, bias, LinearNumerics::kPacked);
    const Linear exact(weight, bias, LinearNumerics::kExact);
    const at::Tensor as_packed = packed(x), as_exact = exact(x);
    {
      const ScopedLinearNumerics scope(LinearNumerics::kExact);
      EXPECT_TRUE(at::equal(packed(x), as_exact));
      const ScopedLinearNumerics inner(LinearNumerics::kPacked);
      EXPECT_TRUE(at::equal(exact(x), as_packed));
      EXPECT_TRUE(at::equal(exact(x, Activation::kSilu), packed(x, Activation::kSilu)));
    }
    EXPECT_TRUE(at::equal(packed(x), as_packed));
    EXPECT_TRUE(at::equal(exact(x), at::linear(x, weight, bias)));
  }
}

// What the layer that bears int8 computes there, at whatever level this process is pinned to.
at::Tensor InInt8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const auto element =
      x.scalar_type() == at::kFloat ? kernels::Element::kFloat32 : kernels::Element::kBFloat16;
  const kernels::WeightPanels panels(weight.const_data_ptr(), element, weight.size(0),
                                     weight.size(1), kernels::GemmIsa::kAvx2Int8);
  const at::Tensor wide = bias.to(at::kFloat);
  at::Tensor out = at::empty({x.size(0), weight.size(0)}, x.options());
  kernels::GemmCall call;
  call.rows = x.size(0);
  call.x = x.const_data_ptr();
  call.x_stride = x.size(1);
  call.y = out.mutable_data_ptr();
  call.y_stride = weight.size(0);
  call.bias = wide.const_data_ptr<float>();
  kernels::Gemm(call, panels, kernels::RunHere);
  return out;
}

TEST(LinearTest, Int8HasTheSameBitsHoweverTheWeightsAreKeptAndAtEveryLevel) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = at::randn({45, 130}).to(dtype), bias = at::randn({45}).to(dtype);
    const at::Tensor x = at::randn({19, 130}).to(dtype), wanted = InInt8(x, weight, bias);
    const ScopedLinearNumerics scope(LinearNumerics::kInt8);
    for (const LinearNumerics kept : AllLinearNumerics()) {
      const Linear layer(weight, bias, kept, true);
      EXPECT_TRUE(layer.defined());
      EXPECT_TRUE(at::equal(layer(x), wanted)) << LinearNumericsName(kept);
      EXPECT_TRUE(at::equal(layer(x), wanted)) << "again, " << LinearNumericsName(kept);
      EXPECT_TRUE(at::equal(layer(x.narrow(0, 7, 1)), wanted.narrow(0, 7, 1)));
    }
  }
}

TEST(LinearTest, LayersThatDoNotBearInt8ArePackedWhereItIsAskedFor) {
  const at::Tensor x = at::randn({5, 130}), weight = at::randn({45, 130}), bias = at::randn({45});
  const at::Tensor narrow = weight.narrow(1, 0, 63).contiguous();
  const at::Tensor short_rows = x.narrow(1, 0, 63).contiguous();
  const at::Tensor packed = Linear(weight, bias, LinearNumerics::kPacked)(x);
  const at::Tensor packed_short = Linear(narrow, bias, LinearNumerics::kPacked)(short_rows);
  const ScopedLinearNumerics scope(LinearNumerics::kInt8);
  for (const LinearNumerics kept : AllLinearNumerics()) {
    EXPECT_TRUE(at::equal(Linear(weight, bias, kept)(x), packed));
    EXPECT_TRUE(at::equal(Linear(narrow, bias, kept, true)(short_rows), packed_short));
  }
}

TEST(LinearTest, WhatIsKeptInInt8GivesNothingElse) {
  const Linear layer(at::randn({8, 64}), {}, LinearNumerics::kInt8, true);
  const ScopedLinearNumerics scope(LinearNumerics::kPacked);
  EXPECT_THROW(layer(at::randn({1, 64})), c10::Error);
}

TEST(LinearTest, SeveralAtOnceAreEachAlone) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randn({2, 19, 64}).to(dtype);
    const auto layer = [&](int64_t out, bool tolerant) {
      return Linear(at::randn({out, 64}).to(dtype), at::randn({out}).to(dtype),
                    LinearNumerics::kPacked, tolerant);
    };
    const Linear a = layer(45, true), b = layer(96, true), c = layer(7, false);
    for (const LinearNumerics how : AllLinearNumerics()) {
      const ScopedLinearNumerics scope(how);
      const std::vector<at::Tensor> all = Linear::RunAll({&a, &b, &c}, x);
      EXPECT_TRUE(at::equal(all[0], a(x))) << LinearNumericsName(how);
      EXPECT_TRUE(at::equal(all[1], b(x))) << LinearNumericsName(how);
      EXPECT_TRUE(at::equal(all[2], c(x))) << LinearNumericsName(how);
    }
  }
}

// However the layer computes: rows that are made when they are packed are those of a tensor, and
// whoever hears of results hears of all rows once.
TEST(LinearTest, TakesRowsThatAreMadeWhenTheyArePacked) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = at::randn({45, 130}).to(dtype), bias = at::randn({45}).to(dtype);
    const at::Tensor x = at::randn({2, 190, 130}).to(dtype);
    const int64_t bytes = 130 * x.element_size();
    const LinearInput made(x.sizes(), dtype, [&](int64_t first, int64_t count, void* out) {
      std::memcpy(out, static_cast<const char*>(x.const_data_ptr()) + first * bytes, count * bytes);
    });
    EXPECT_TRUE(at::equal(made.Whole(), x));
    for (const LinearNumerics kept : AllLinearNumerics()) {
      const Linear layer(weight, bias, kept, true), other(weight, {}, kept);
      EXPECT_TRUE(at::equal(layer(made), layer(x))) << LinearNumericsName(kept);
      at::Tensor sum = at::ones({2, 190, 45}), wanted = sum.clone();
      if (kept != LinearNumerics::kExact) {
        layer.AddTo(sum, made, {});
        layer.AddTo(wanted, x, {});
      }
      EXPECT_TRUE(at::equal(sum, wanted));
      std::atomic<int64_t> heard = 0;
      const auto doubled = [&](const std::vector<at::Tensor>& results, int64_t first,
                               int64_t count) {
        heard += count;
        for (const at::Tensor& y : results) y.view({-1, 45}).narrow(0, first, count).mul_(2);
      };
      const std::vector<at::Tensor> both = Linear::RunAll({&layer, &other}, made, {}, doubled);
      EXPECT_EQ(heard, 380);
      EXPECT_TRUE(at::equal(both[0], layer(x) * 2)) << LinearNumericsName(kept);
      EXPECT_TRUE(at::equal(both[1], other(x) * 2)) << LinearNumericsName(kept);
    }
  }
}

// Widths that are no multiple of a vector, so that parts lie anywhere.
TEST(LinearTest, WithExactNumericsEachPartHasItsOwnBits) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (const auto& [in, out] : {std::pair{25, 40}, {25, 43}, {80, 96}, {130, 520}}) {
      for (const bool with_bias : {true, false}) {
        const at::Tensor bias = with_bias ? at::randn({out}, dtype) : at::Tensor();
        const Linear layer(at::randn({out, in}, dtype), bias, LinearNumerics::kExact);
        for (const int64_t tokens : {1, 7, 35}) {
          const std::vector<int64_t> parts = {1, 2, 1, 3};
          const at::Tensor x = at::randn({7, tokens, in}, dtype);
          const at::Tensor all = layer(x, Activation::kGeluTanh, parts);
          int64_t first = 0;
          for (const int64_t rows : parts) {
            const at::Tensor alone = layer(x.narrow(0, first, rows).clone(), Activation::kGeluTanh);
            EXPECT_TRUE(at::equal(all.narrow(0, first, rows), alone))
                << dtype << " " << in << " x " << out << ", " << tokens << " tokens, from "
                << first;
            first += rows;
          }
        }
      }
    }
  }
}

TEST(LinearTest, EndsABranchInFloat32) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = at::randn({40, 64}).to(dtype), bias = at::randn({40}).to(dtype);
    const at::Tensor x = at::randn({3, 5, 64}).to(dtype), hidden = at::randn({3, 5, 40});
    const Linear layer(weight, bias, LinearNumerics::kPacked);
    const at::Tensor product =
        at::linear(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble));
    for (const int64_t gates : {0, 1, 5}) {
      const at::Tensor table = at::randn({3, gates, 6, 40});
      const at::Tensor gate = gates == 0 ? at::Tensor() : table.select(2, 4);
      const at::Tensor sum = hidden.clone();
      layer.AddTo(sum, x, gate);
      const at::Tensor wanted = hidden + (gates == 0 ? product : product * gate);
      EXPECT_TRUE(at::allclose(sum.to(at::kDouble), wanted, 1e-5, 1e-5)) << gates;
      const at::Tensor alone = hidden.narrow(0, 1, 1).clone();
      layer.AddTo(alone, x.narrow(0, 1, 1), gates == 0 ? gate : gate.narrow(0, 1, 1));
      EXPECT_TRUE(at::equal(alone, sum.narrow(0, 1, 1))) << gates;
    }
  }
}

TEST(ConvolutionTest, AgreesWithThePlainOneAndKeepsChannelsLast) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = (0.1 * at::randn({20, 12, 3, 3, 3})).to(dtype);
    const at::Tensor bias = at::randn({20}).to(dtype);
    const at::Tensor x =
        at::randn({1, 12, 5, 7, 9}).to(dtype).contiguous(at::MemoryFormat::ChannelsLast3d);
    const at::Tensor want = at::conv3d(x.to(at::kFloat), weight.to(at::kFloat), bias.to(at::kFloat),
                                       /*stride=*/1, {0, 1, 1});
    const at::Tensor out = Convolution(weight, bias, {0, 1, 1})(x);
    EXPECT_EQ(out.scalar_type(), dtype);
    EXPECT_TRUE(out.is_contiguous(at::MemoryFormat::ChannelsLast3d));
    const double tolerance = dtype == at::kFloat ? 1e-5 : 1.0 / 128;
    EXPECT_TRUE(at::allclose(out.to(at::kFloat), want, tolerance, tolerance));
  }
}

TEST(ConvolutionTest, TakesPicturesToo) {
  const at::Tensor weight = at::randn({6, 4, 3, 3}), bias = at::randn({6});
  const at::Tensor x = at::randn({2, 4, 8, 10}).contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor want = at::conv2d(x, weight, bias, /*stride=*/1, /*padding=*/1);
  EXPECT_TRUE(at::allclose(Convolution(weight, bias, {1, 1})(x), want, 1e-5, 1e-5));
}

TEST(RequireTest, NamesWhatWasWantedAndWhatCame) {
  const auto refusal = [](const at::Tensor& x) -> std::string {
    try {
      RequireDim(x, 3, "latents");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), StatusCode::kInvalidArgument);
      EXPECT_EQ(e.field(), "latents");
      return e.what();
    }
    return "accepted";
  };
  EXPECT_EQ(refusal(at::ones({1, 2, 3})), "accepted");
  EXPECT_THAT(refusal(at::ones({4, 5})), HasSubstr("[4, 5]"));
  EXPECT_THAT(refusal(at::ones({4, 0, 5})), HasSubstr("[4, 0, 5]"));
  EXPECT_THAT(refusal({}), HasSubstr("none"));
  EXPECT_THROW(RequireSize(at::ones({1, 2}), 1, 3, "x"), Error);
  EXPECT_THROW(SpecDType(at::kInt), Error);
}

}  // namespace
}  // namespace denoised
