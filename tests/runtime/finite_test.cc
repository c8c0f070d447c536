#include "runtime/models/finite.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

namespace denoised {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// As ATen's, whatever the place of the one, the length and the strides.
TEST(AllFinite, FindsTheOneNumberThatIsNot) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (const int64_t count : {1, 2, 15, 16, 17, 100, 70'000, 200'001}) {
      for (const double odd : {kInfinity, -kInfinity, std::nan(""), -std::nan("")}) {
        at::Tensor x = at::randn({count}).to(dtype);
        EXPECT_TRUE(AllFinite(x)) << dtype << " " << count;
        for (const int64_t at : {int64_t{0}, count / 2, count - 1}) {
          const at::Tensor was = x[at].clone();
          x[at] = odd;
          EXPECT_FALSE(AllFinite(x)) << dtype << " " << count << " " << at << " " << odd;
          x[at] = was;
        }
      }
    }
  }
}

TEST(AllFinite, LargestAndSmallestNumbersAre) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const double most = dtype == at::kHalf       ? 65504
                        : dtype == at::kBFloat16 ? 3.3895313892515355e38
                                                 : std::numeric_limits<float>::max();
    EXPECT_TRUE(AllFinite(at::tensor({most, -most, 0.0, -0.0, 1e-45}).to(dtype))) << dtype;
  }
  EXPECT_TRUE(AllFinite(at::empty({0})));
}

TEST(AllFinite, OfAViewOnlyWhatIsInIt) {
  at::Tensor x = at::randn({8, 6});
  x.narrow(1, 5, 1).fill_(kInfinity);
  EXPECT_TRUE(AllFinite(x.narrow(1, 0, 5)));
  EXPECT_FALSE(AllFinite(x.narrow(1, 1, 5)));
  EXPECT_FALSE(AllFinite(x.t()));
}

}  // namespace
}  // namespace denoised
