#include "runtime/artifacts.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace denoised {
namespace {

DecodedVideo SmallVideo() {
  DecodedVideo video;
  video.frames = {2, 4, 6, 8, std::vector<uint8_t>(2 * 4 * 6 * 3, 100)};
  video.values.assign(2 * 4 * 6 * 3, 0.25f);
  return video;
}

HostTensor Latents() {
  return {DType::kFloat32, {1, 1, 1, 1, 2}, std::string("\0\0\x80?\0\0\0@", 8)};
}

std::string Encode(ArtifactFormat format) {
  return EncodeArtifact(format, SmallVideo(), Latents());
}

TEST(Artifacts, LatentsAreASafetensorsFileOfOneTensor) {
  const std::string bytes = Encode(ArtifactFormat::kSafetensors);
  const size_t header =
      static_cast<unsigned char>(bytes.at(0)) + 256u * static_cast<unsigned char>(bytes.at(1));
  const auto json = nlohmann::json::parse(bytes.substr(8, header));
  EXPECT_EQ(json.at("latents").at("dtype"), "F32");
  EXPECT_EQ(json.at("latents").at("shape"), (std::vector<int64_t>{1, 1, 1, 1, 2}));
  EXPECT_EQ(bytes.substr(8 + header), Latents().data);
}

TEST(Artifacts, OnlyFloat32LatentsAreWritten) {
  HostTensor latents = Latents();
  latents.dtype = DType::kInt32;
  EXPECT_THROW(EncodeArtifact(ArtifactFormat::kSafetensors, {}, latents), Error);
}

TEST(Artifacts, ValuesAreANumpyFileOfFramesHeightWidthAndColour) {
  const std::string bytes = Encode(ArtifactFormat::kNpy);
  EXPECT_EQ(bytes.substr(0, 6), "\x93NUMPY");
  EXPECT_NE(bytes.find("(2, 4, 6, 3)"), std::string::npos);
  EXPECT_EQ(bytes.size() % 4, 0u);
  EXPECT_EQ(bytes.substr(bytes.size() - 4), std::string("\0\0\x80\x3e", 4));
}

TEST(Artifacts, PicturesBeginAsTheirFormatsDo) {
  EXPECT_EQ(Encode(ArtifactFormat::kPng).substr(0, 8), "\x89PNG\r\n\x1a\n");
  EXPECT_EQ(Encode(ArtifactFormat::kGif).substr(0, 6), "GIF89a");
}

TEST(Artifacts, TheSameFramesGiveTheSameBytes) {
  for (ArtifactFormat format : {ArtifactFormat::kNpy, ArtifactFormat::kPng, ArtifactFormat::kGif,
                                ArtifactFormat::kSafetensors}) {
    EXPECT_EQ(Encode(format), Encode(format)) << ArtifactFormatName(format);
  }
}

TEST(Artifacts, ValuesThatWereNotKeptAreRefusedAndNotInvented) {
  DecodedVideo video = SmallVideo();
  video.values.clear();
  EXPECT_THROW(EncodeArtifact(ArtifactFormat::kNpy, video, {}), Error);
}

}  // namespace
}  // namespace denoised
