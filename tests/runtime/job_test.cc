#include "runtime/job.h"

#include <gtest/gtest.h>

#include <limits>

namespace denoised {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// The field that the tensor is refused for; "" where it is accepted.
std::string RefusedField(DType dtype, std::vector<int64_t> shape, size_t bytes) {
  try {
    CheckHostTensor({dtype, std::move(shape), std::string(bytes, 'x')}, "latents");
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    return error.field();
  }
}

TEST(HostTensor, BytesMustBeWhatDtypeAndShapeSay) {
  EXPECT_EQ(RefusedField(DType::kFloat32, {2, 3}, 24), "");
  EXPECT_EQ(RefusedField(DType::kBFloat16, {2, 3}, 12), "");
  EXPECT_EQ(RefusedField(DType::kFloat64, {2, 3}, 48), "");
  EXPECT_EQ(RefusedField(DType::kUInt8, {2, 3}, 6), "");
  EXPECT_EQ(RefusedField(DType::kFloat32, {2, 3}, 23), "latents.data");
  EXPECT_EQ(RefusedField(DType::kFloat32, {2, 3}, 25), "latents.data");
  EXPECT_EQ(RefusedField(DType::kFloat32, {2, 3}, 0), "latents.data");
  EXPECT_EQ(RefusedField(DType::kBFloat16, {2, 3}, 24), "latents.data");
}

TEST(HostTensor, ScalarsAndEmptyTensorsAreFine) {
  EXPECT_EQ(RefusedField(DType::kFloat32, {}, 4), "");
  EXPECT_EQ(RefusedField(DType::kFloat32, {0}, 0), "");
  EXPECT_EQ(RefusedField(DType::kFloat32, {5, 0, 7}, 0), "");
  EXPECT_EQ(RefusedField(DType::kFloat32, {}, 0), "latents.data");
  EXPECT_EQ(RefusedField(DType::kFloat32, {0}, 4), "latents.data");
}

TEST(HostTensor, NegativeDimensionsAreRefused) {
  EXPECT_EQ(RefusedField(DType::kFloat32, {-1}, 4), "latents.shape");
  EXPECT_EQ(RefusedField(DType::kFloat32, {-2, -3}, 24), "latents.shape");
  EXPECT_EQ(RefusedField(DType::kFloat32, {0, -1}, 0), "latents.shape");
  EXPECT_EQ(RefusedField(DType::kFloat32, {std::numeric_limits<int64_t>::min()}, 0),
            "latents.shape");
}

TEST(HostTensor, ProductsThatWrapAreRefused) {
  const int64_t k32 = int64_t{1} << 32;
  EXPECT_EQ(RefusedField(DType::kFloat32, {k32, k32}, 0), "latents.shape");
  EXPECT_EQ(RefusedField(DType::kFloat32, {k32, k32 / 4}, 0), "latents.shape") << "2^64 bytes";
  EXPECT_EQ(RefusedField(DType::kFloat32, {k32 / 2, k32 / 4}, 0), "latents.shape") << "2^63 bytes";
  EXPECT_EQ(RefusedField(DType::kFloat32, {k32 / 4, k32 / 4}, 0), "latents.data") << "2^62 fit";
  EXPECT_EQ(RefusedField(DType::kUInt8, {kMost, 2}, 0), "latents.shape");
  EXPECT_EQ(RefusedField(DType::kUInt8, {kMost}, 0), "latents.data");
}

// No elements, but strides that wrap: refused wherever the zero stands.
TEST(HostTensor, AZeroHidesNoOverflow) {
  EXPECT_EQ(RefusedField(DType::kFloat32, {kMost, kMost, 0}, 0), "latents.shape");
  EXPECT_EQ(RefusedField(DType::kFloat32, {0, kMost, kMost}, 0), "latents.shape");
  EXPECT_EQ(RefusedField(DType::kUInt8, {0, kMost, 2}, 0), "latents.shape");
}

TEST(HostTensor, AtMostEightDimensions) {
  EXPECT_EQ(RefusedField(DType::kUInt8, std::vector<int64_t>(8, 1), 1), "");
  EXPECT_EQ(RefusedField(DType::kUInt8, std::vector<int64_t>(9, 1), 1), "latents.shape");
}

TEST(ArtifactFormat, NamesGoBothWaysAndAreExact) {
  for (ArtifactFormat format : {ArtifactFormat::kMp4, ArtifactFormat::kGif, ArtifactFormat::kPng,
                                ArtifactFormat::kNpy, ArtifactFormat::kSafetensors}) {
    EXPECT_EQ(ArtifactFormatFromName(ArtifactFormatName(format)), format);
    EXPECT_FALSE(ArtifactMediaType(format).empty());
  }
  EXPECT_EQ(ArtifactMediaType(ArtifactFormat::kMp4), "video/mp4");
  for (const char* name : {"", "MP4", "mp4 ", ".mp4", "mov"}) {
    EXPECT_FALSE(ArtifactFormatFromName(name)) << name;
  }
}

TEST(JobState, OnlyTheLastThreeAreTerminal) {
  EXPECT_FALSE(IsTerminal(JobState::kQueued));
  EXPECT_FALSE(IsTerminal(JobState::kRunning));
  for (JobState state : {JobState::kSucceeded, JobState::kFailed, JobState::kCancelled}) {
    EXPECT_TRUE(IsTerminal(state)) << JobStateName(state);
  }
  EXPECT_EQ(JobStateName(JobState::kCancelled), "CANCELLED");
  EXPECT_EQ(JobStageName(JobStage::kTextEncode), "text_encode");
}

}  // namespace
}  // namespace denoised
