#include "runtime/media/artifacts.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

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

// Noise, the worst that an encoder can be given.
DecodedVideo Noise() {
  DecodedVideo video;
  video.frames = {9, 96, 128, 8, {}};
  std::mt19937 random(1);
  for (int64_t i = 0; i < 9 * 96 * 128 * 3; ++i) {
    video.frames.rgb.push_back(static_cast<uint8_t>(random()));
    video.values.push_back(0);
  }
  return video;
}

TEST(Artifacts, WhatThisBuildWritesIsToldBeforeAndSoIsItsSizeEvenOfNoise) {
  const DecodedVideo noise = Noise();
  for (ArtifactFormat format : {ArtifactFormat::kMp4, ArtifactFormat::kGif, ArtifactFormat::kPng,
                                ArtifactFormat::kNpy, ArtifactFormat::kSafetensors}) {
    SCOPED_TRACE(ArtifactFormatName(format));
    if (WhyNotWritten(format)) {
      EXPECT_THROW(EncodeArtifact(format, noise, Latents()), Error);
      continue;
    }
    const auto size = static_cast<int64_t>(EncodeArtifact(format, noise, Latents()).size());
    constexpr int64_t kHeaders = 16 << 10;
    EXPECT_LE(size, EstimateArtifact(format, 9, 96, 128, 8).file + kHeaders);
  }
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
