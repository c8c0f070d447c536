#include "runtime/pipelines/tensor_convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace denoised {
namespace {

TEST(TensorConvert, EveryDtypeSurvivesTheRoundTripBitByBit) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64,
                      DType::kInt64, DType::kInt32, DType::kUInt8}) {
    HostTensor host{dtype, {2, 3}, ""};
    for (size_t i = 0; i < 6 * DTypeSize(dtype); ++i) {
      host.data += static_cast<char>(i * 37 + 0xf0);  // NaN payloads too
    }
    const at::Tensor tensor = ToTensor(host, "latents");
    EXPECT_EQ(tensor.sizes(), at::IntArrayRef({2, 3}));
    EXPECT_EQ(tensor.element_size(), static_cast<int64_t>(DTypeSize(dtype)));
    const HostTensor back = FromTensor(tensor);
    EXPECT_EQ(back.dtype, dtype);
    EXPECT_EQ(back.shape, host.shape);
    EXPECT_EQ(back.data, host.data) << DTypeName(dtype);
  }
}

TEST(TensorConvert, ValuesMeanTheSameOnBothSides) {
  const float values[] = {1.5f, -2.0f};
  HostTensor host{DType::kFloat32, {2}, std::string(reinterpret_cast<const char*>(values), 8)};
  const at::Tensor tensor = ToTensor(host, "latents");
  EXPECT_EQ(tensor[0].item<float>(), 1.5f);
  EXPECT_EQ(tensor[1].item<float>(), -2.0f);
}

TEST(TensorConvert, TheTensorIsACopy) {
  HostTensor host{DType::kUInt8, {1}, "a"};
  const at::Tensor tensor = ToTensor(host, "latents");
  host.data[0] = 'b';
  EXPECT_EQ(tensor[0].item<uint8_t>(), 'a');
}

TEST(TensorConvert, ScalarsAndEmptyTensorsSurviveToo) {
  EXPECT_EQ(ToTensor({DType::kFloat32, {}, "abcd"}, "x").dim(), 0);
  const HostTensor empty = FromTensor(ToTensor({DType::kFloat32, {3, 0}, ""}, "x"));
  EXPECT_EQ(empty.shape, (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(empty.data, "");
}

TEST(TensorConvert, ViewsAreWrittenInTheirOwnOrder) {
  const at::Tensor columns = at::arange(6, at::kInt).reshape({2, 3}).t();
  const HostTensor host = FromTensor(columns);
  EXPECT_EQ(host.shape, (std::vector<int64_t>{3, 2}));
  EXPECT_TRUE(at::equal(ToTensor(host, "x"), columns.contiguous()));
}

TEST(TensorConvert, BytesThatDoNotFitAreRefusedByField) {
  try {
    ToTensor({DType::kFloat32, {2}, "abc"}, "latents");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "latents.data");
  }
}

TEST(TensorConvert, ADtypeWithoutAWireNameIsRefused) {
  EXPECT_THROW(FromTensor(at::zeros({1}, at::kComplexFloat)), Error);
}

TEST(TensorConvert, NanAndInfinityAreFoundAnywhere) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (float bad : {std::nanf(""), infinity, -infinity}) {
      at::Tensor tensor = at::zeros({3, 5}, type);
      CheckFinite(tensor, "latents");
      tensor[2][4] = bad;
      try {
        CheckFinite(tensor, "latents");
        ADD_FAILURE() << bad;
      } catch (const Error& error) {
        EXPECT_EQ(error.field(), "latents");
        EXPECT_EQ(error.reason(), "NON_FINITE");
      }
    }
  }
  CheckFinite(at::zeros({2}, at::kLong), "timestep");
}

}  // namespace
}  // namespace denoised
