// The fused CPU loops give the bits of the ATen chains that their headers name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backends/error.h"
#include "runtime/models/fused.h"
#include "runtime/models/rope.h"
#include "runtime/models/vae_layers.h"

namespace denoised {
namespace {

struct Case {
  at::ScalarType dtype;
  int64_t batch, tokens, width;
  bool per_token;
};

class FusedTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { at::manual_seed(5); }
  at::Tensor Hiddens() const {
    const Case& c = GetParam();
    return at::randn({c.batch, c.tokens, c.width}).to(c.dtype);
  }
  // A part of a modulation tensor: strided, one row a batch or one a token.
  at::Tensor Companion() const {
    const Case& c = GetParam();
    return at::randn({c.batch, c.per_token ? c.tokens : 1, 6, c.width}).select(2, 4);
  }
};

TEST_P(FusedTest, ModulateIsMultiplyAddRound) {
  const at::Tensor x = Hiddens().to(at::kFloat), scale = Companion() + 1, shift = Companion();
  EXPECT_TRUE(at::equal(Modulate(x, scale, shift, GetParam().dtype),
                        (x * scale + shift).to(GetParam().dtype)));
}

TEST_P(FusedTest, AddGatedIsMultiplyAddRound) {
  const at::Tensor x = Hiddens(), update = Hiddens(), gate = Companion();
  const Hidden out = AddGated(Hidden::From(x), update, gate);
  EXPECT_TRUE(at::equal(out.value, (x.to(at::kFloat) + update * gate).to(x.scalar_type())));
  EXPECT_TRUE(at::equal(out.wide, out.value.to(at::kFloat)));
}

TEST_P(FusedTest, AddIsAdd) {
  const at::Tensor x = Hiddens(), update = Hiddens();
  const Hidden out = Add(Hidden::From(x), update);
  EXPECT_TRUE(at::equal(out.value, x + update));
  EXPECT_TRUE(at::equal(out.wide, out.value.to(at::kFloat)));
}

TEST_P(FusedTest, NaNAndInfinityGoThrough) {
  at::Tensor x = Hiddens();
  x[0][0][0] = std::numeric_limits<float>::quiet_NaN();
  x[0][0][1] = std::numeric_limits<float>::infinity();
  const at::Tensor out = Add(Hidden::From(x), at::zeros_like(x)).value;
  EXPECT_TRUE(out[0][0][0].isnan().item<bool>());
  EXPECT_TRUE(out[0][0][1].isinf().item<bool>());
  EXPECT_EQ(out.isfinite().sum().item<int64_t>(), x.numel() - 2);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, FusedTest,
    ::testing::Values(Case{at::kFloat, 1, 3, 64, false}, Case{at::kBFloat16, 2, 5, 60, false},
                      Case{at::kBFloat16, 2, 33, 130, true}, Case{at::kFloat, 2, 7, 13, true},
                      Case{at::kBFloat16, 1, 600, 256, false}, Case{at::kHalf, 1, 3, 24, false},
                      Case{at::kBFloat16, 3, 1, 4, true}));

TEST(RotateTest, TurnsPairsAsTheChainDoes) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t d : {2, 20, 32, 70}) {
      const at::Tensor x = at::randn({2, 12, 3, d}).to(dtype);
      const RopeTables rope = RopeCache(d, 16, at::kCPU).Get({2, 3, 2});
      const at::Tensor c = rope.cos.unsqueeze(1), s = rope.sin.unsqueeze(1);
      const at::Tensor a = x.slice(-1, 0, c10::nullopt, 2), b = x.slice(-1, 1, c10::nullopt, 2);
      const at::Tensor pairs = at::stack({a * c - b * s, a * s + b * c}, -1);
      EXPECT_TRUE(at::equal(Rotate(x, rope.cos, rope.sin), pairs.flatten(-2).to(dtype)))
          << d << at::toString(dtype);
    }
  }
}

TEST(RopeTest, KeepsItsTablesAndRefusesPositionsBeyondTheCheckpoint) {
  const RopeCache cache(24, 8, at::kCPU);
  const RopeTables first = cache.Get({2, 4, 8});
  EXPECT_THAT(first.cos.sizes(), ::testing::ElementsAre(64, 12));
  EXPECT_TRUE(cache.Get({2, 4, 8}).cos.is_same(first.cos));
  for (int64_t t = 1; t <= 6; ++t) cache.Get({t, 1, 1});
  EXPECT_TRUE(at::equal(cache.Get({2, 4, 8}).cos, first.cos));
  EXPECT_THROW(cache.Get({9, 1, 1}), Error);
}

TEST(VaeNormTest, FollowsTheChainWithItsRoundings) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t channels : {3, 8, 20, 96}) {
      const at::Tensor x = (4 * at::randn({3, 5, 7, channels})).to(dtype);
      const at::Tensor gamma = at::randn({channels}).to(dtype).to(at::kFloat);
      const at::Tensor length = x.to(at::kFloat).norm(2, {-1}, true).clamp_min(1e-12);
      const at::Tensor n = (x.to(at::kFloat) / length).to(dtype);
      const at::Tensor want = at::silu(n * std::sqrt(channels) * gamma.to(dtype));
      const at::Tensor out = at::empty_like(x);
      RmsNormInto(x, gamma, /*silu=*/true, out);
      // One rounding of bfloat16, where the float32 sums differ in their last bit.
      const double tolerance = dtype == at::kFloat ? 2e-6 : 1.0 / 128;
      EXPECT_TRUE(at::allclose(out, want, tolerance, 1e-6)) << channels << at::toString(dtype);
    }
  }
}

TEST(VaeNormTest, SiluHoldsOnItsWholeRange) {
  // One channel: the norm makes every number +-1, so gamma is what SiLU sees.
  for (const float value : {-200.f, -88.f, -20.f, -1.f, -1e-3f, 0.f, 1e-3f, 1.f, 20.f, 200.f}) {
    const at::Tensor x = at::ones({1, 1, 1, 1}), out = at::empty_like(x);
    RmsNormInto(x, at::full({1}, value), /*silu=*/true, out);
    EXPECT_TRUE(at::allclose(out, at::silu(at::full_like(x, value)), 1e-6, 1e-30)) << value;
  }
}

}  // namespace
}  // namespace denoised
