#include "backends/attention_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/error.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

AttentionInputs Inputs(int64_t q_len = 5, int64_t kv_len = 7) {
  AttentionInputs inputs;
  inputs.query = at::ones({2, q_len, 3, 8});
  inputs.key = at::ones({2, kv_len, 3, 8});
  inputs.value = at::ones({2, kv_len, 3, 8});
  return inputs;
}

void ExpectRefused(const AttentionInputs& inputs, const std::string& field) {
  try {
    CheckInputs(inputs);
    NormaliseMask(inputs);
    ADD_FAILURE() << field << " was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(error.field(), field);
  }
}

TEST(CheckInputs, RefusesByTheNameOfTheTensor) {
  EXPECT_NO_THROW(CheckInputs(Inputs()));
  AttentionInputs inputs = Inputs();
  inputs.key = at::ones({2, 7, 3, 9});
  ExpectRefused(inputs, "key");
  inputs = Inputs();
  inputs.value = at::ones({2, 6, 3, 8});
  ExpectRefused(inputs, "value");
  inputs = Inputs();
  inputs.value = inputs.value.to(at::kBFloat16);
  ExpectRefused(inputs, "value");
  inputs = Inputs();
  inputs.query = at::Tensor();
  ExpectRefused(inputs, "query");
  inputs = Inputs();
  inputs.query = at::ones({2, 0, 3, 8});
  ExpectRefused(inputs, "query");
  inputs = Inputs();
  inputs.gate = at::ones({2, 4, 3, 8});
  ExpectRefused(inputs, "gate");
  const int64_t keys = Inputs().key.size(1);
  for (const std::vector<int64_t>& from :
       {std::vector<int64_t>{0}, {0, keys}, {-1, 0}, {0, 0, 0}}) {
    inputs = Inputs();
    inputs.alike_from = from;
    ExpectRefused(inputs, "alike_from");
  }
}

TEST(Mask, IntegersBecomeBooleans) {
  AttentionInputs inputs = Inputs();
  inputs.mask = at::full({2, 7}, 3, at::kLong);
  const at::Tensor mask = NormaliseMask(inputs);
  EXPECT_EQ(mask.scalar_type(), at::kBool);
  EXPECT_EQ(mask.sizes(), (std::vector<int64_t>{2, 1, 1, 7}));
  EXPECT_TRUE(mask.all().item<bool>());
}

TEST(Mask, AMaskThatIsTooShortIsPaddedInFrontWithAttend) {
  AttentionInputs inputs = Inputs();
  inputs.mask = at::zeros({2, 4}, at::kBool);
  const at::Tensor mask = NormaliseMask(inputs).select(0, 0).flatten();
  EXPECT_TRUE(mask.narrow(0, 0, 3).all().item<bool>());
  EXPECT_FALSE(mask.narrow(0, 3, 4).any().item<bool>());
  inputs.mask = at::full({2, 4}, -5.0);
  EXPECT_EQ(NormaliseMask(inputs).sum().item<float>(), -40.0f);
}

TEST(Mask, ThreeAxesGetAHeadAxisAndFourStay) {
  AttentionInputs inputs = Inputs();
  inputs.mask = at::ones({2, 5, 7}, at::kBool);
  EXPECT_EQ(NormaliseMask(inputs).sizes(), (std::vector<int64_t>{2, 1, 5, 7}));
  inputs.mask = at::ones({1, 3, 1, 7});
  EXPECT_EQ(NormaliseMask(inputs).sizes(), (std::vector<int64_t>{1, 3, 1, 7}));
}

TEST(Mask, TooManyKeysAreRefusedWithBothLengths) {
  AttentionInputs inputs = Inputs();
  inputs.mask = at::ones({2, 9});
  try {
    NormaliseMask(inputs);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("7"));
    EXPECT_THAT(error.what(), HasSubstr("9"));
  }
}

TEST(Mask, RanksAndShapesThatDoNotFitAreRefused) {
  for (const auto& shape :
       std::vector<std::vector<int64_t>>{{7}, {3, 7}, {2, 4, 7}, {2, 2, 5, 7}}) {
    AttentionInputs inputs = Inputs();
    inputs.mask = at::ones(shape);
    ExpectRefused(inputs, "mask");
  }
}

TEST(Scale, ZeroAndTheDefaultMeanTheSame) {
  AttentionInputs inputs = Inputs();
  EXPECT_DOUBLE_EQ(SoftmaxScale(inputs), 1.0 / std::sqrt(8.0));
  inputs.scale = 0.25;
  EXPECT_EQ(SoftmaxScale(inputs), 0.25);
  EXPECT_TRUE(IsDefaultScale(0, 8));
  EXPECT_TRUE(IsDefaultScale(std::pow(80.0, -0.5), 80));
  EXPECT_FALSE(IsDefaultScale(0.25, 8));
}

}  // namespace
}  // namespace denoised
