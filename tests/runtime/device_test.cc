// Which dtype a model is computed in where nobody names one.
#include "runtime/pipelines/device.h"

#include <gtest/gtest.h>

#include "backends/error.h"

namespace denoised {
namespace {

DeviceInfo Cuda(int major) {
  DeviceInfo device;
  device.type = DeviceInfo::Type::kCuda;
  device.major = major;
  return device;
}

DeviceInfo Cpu(bool bf16, bool amx) {
  DeviceInfo device;
  device.avx512_bf16 = bf16;
  device.amx_bf16 = amx;
  return device;
}

TEST(DType, AutoIsBFloat16WhereTheDeviceMultipliesIt) {
  EXPECT_EQ(ParseDType("auto", Cuda(8)), at::kBFloat16);
  EXPECT_EQ(ParseDType("auto", Cuda(9)), at::kBFloat16);
  EXPECT_EQ(ParseDType("auto", Cuda(7)), at::kFloat);
  EXPECT_EQ(ParseDType("auto", Cpu(true, false)), at::kBFloat16);
  EXPECT_EQ(ParseDType("auto", Cpu(false, true)), at::kBFloat16);
  EXPECT_EQ(ParseDType("auto", Cpu(false, false)), at::kFloat);
}

TEST(DType, AutoOfTheDecoderIsFloat32OnEveryCpu) {
  EXPECT_EQ(ParseVaeDType("auto", Cpu(true, true)), at::kFloat);
  EXPECT_EQ(ParseVaeDType("auto", Cuda(9)), at::kBFloat16);
  EXPECT_EQ(ParseVaeDType("auto", Cuda(7)), at::kFloat);
}

TEST(DType, ANameIsTakenAsItIs) {
  for (const DeviceInfo& device : {Cuda(9), Cpu(false, false)}) {
    EXPECT_EQ(ParseDType("float32", device), at::kFloat);
    EXPECT_EQ(ParseVaeDType("bfloat16", device), at::kBFloat16);
  }
}

TEST(DType, AnotherNameIsRefusedByItsField) {
  for (const auto& [parse, field] :
       {std::pair{&ParseDType, "dtype"}, std::pair{&ParseVaeDType, "vae_dtype"}}) {
    try {
      parse("float16", Cuda(9));
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), field);
    }
  }
}

}  // namespace
}  // namespace denoised
