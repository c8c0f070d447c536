// CUDNN_ATTN's parameters, and on the first device of compute capability 9.0 its fp8 path against
// float64. Skipped with the reason where there is none.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backends/cuda/cudnn_attn.h"
#include "backends/error.h"
#include "tests/backends/attention_oracle.h"

namespace denoised {
namespace {

constexpr char kFp8[] = R"({"fp8": true})";

std::shared_ptr<const AttentionMetadata> Read(const AttentionBackend& backend,
                                              const std::string& json, int64_t head_size = 128) {
  MetadataRequest request;
  request.spec.head_size = head_size;
  request.parameters_json = json;
  return backend.MakeBuilder()->Build(request);
}

std::string Refusal(const std::string& json, int64_t head_size = 128) {
  try {
    Read(*MakeCudnnBackend(Admission::kUnmeasured), json, head_size);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CudnnParameters, Fp8IsAFlagAndNothingElseIsRead) {
  EXPECT_EQ(Refusal(""), "");
  EXPECT_EQ(Refusal(R"({"fp8": false})", 40), "");
  EXPECT_EQ(Refusal(kFp8), "");
  EXPECT_NE(Refusal(R"({"fp8": 1})"), "");
  EXPECT_NE(Refusal(R"({"fp16": true})"), "");
  EXPECT_NE(Refusal(kFp8, 40).find("multiple of 16; got 40"), std::string::npos);
}

class CudnnFp8 : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      const DeviceInfo device = QueryCuda(0);
      if (device.major != 9) GTEST_SKIP() << device.name << " is not of compute capability 9.0";
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }

  static AttentionInputs Draw(int64_t batch, int64_t length, at::ScalarType dtype) {
    at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(3);
    AttentionInputs inputs;
    for (at::Tensor* x : {&inputs.query, &inputs.key, &inputs.value}) {
      *x = at::randn({batch, length, 3, 128}, generator, at::kFloat).to(dtype);
    }
    inputs.scale = 1.0 / std::sqrt(128.0);
    return inputs;
  }

  at::Tensor OnDevice(const AttentionInputs& inputs) const {
    AttentionInputs device = inputs;
    for (at::Tensor* x : {&device.query, &device.key, &device.value}) *x = x->to(at::kCUDA);
    return backend_->Forward(device, Read(*backend_, kFp8).get()).cpu();
  }

  const std::unique_ptr<AttentionBackend> backend_ = MakeCudnnBackend(Admission::kUnmeasured);
};

TEST_F(CudnnFp8, EqualsFloat64InTheInputsDtype) {
  for (at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    for (int64_t length : {333, 1024}) {
      const AttentionInputs inputs = Draw(2, length, dtype);
      const at::Tensor got = OnDevice(inputs);
      EXPECT_EQ(got.scalar_type(), dtype);
      EXPECT_GE(CosineSimilarity(got, OracleAttention(inputs)), 0.99) << length;
    }
  }
}

TEST_F(CudnnFp8, ARowIsTheSameBitsWhateverElseIsInTheBatch) {
  const AttentionInputs inputs = Draw(3, 256, at::kBFloat16);
  AttentionInputs alone = inputs;
  for (at::Tensor* x : {&alone.query, &alone.key, &alone.value}) *x = x->narrow(0, 2, 1);
  EXPECT_TRUE(SameBits(OnDevice(alone), OnDevice(inputs).narrow(0, 2, 1)));
}

}  // namespace
}  // namespace denoised
