// Previews of latents: the picture, pixel by pixel, and its bounds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "backends/error.h"
#include "runtime/media/preview.h"

namespace denoised {
namespace {

struct Picture {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> rgb;
  std::vector<int> At(int64_t y, int64_t x) const {
    const uint8_t* p = rgb.data() + 3 * (y * width + x);
    return {p[0], p[1], p[2]};
  }
};

uint32_t BigEndian(const std::string& bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

// The five filters of the PNG specification, undone in place.
void Unfilter(std::vector<uint8_t>* rows, int64_t height, int64_t stride) {
  for (int64_t y = 0; y < height; ++y) {
    uint8_t* row = rows->data() + y * (stride + 1);
    for (int64_t i = 1; i <= stride; ++i) {
      const int a = i > 3 ? row[i - 3] : 0, b = y > 0 ? row[i - stride - 1] : 0;
      const int c = i > 3 && y > 0 ? row[i - stride - 4] : 0, p = a + b - c;
      const int pa = std::abs(p - a), pb = std::abs(p - b), pc = std::abs(p - c);
      const int paeth = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
      const int predicted[] = {0, a, b, (a + b) / 2, paeth};
      row[i] = static_cast<uint8_t>(row[i] + predicted[row[0]]);
    }
  }
}

// Of an 8-bit RGB PNG; fails the test where it is none.
Picture Read(const std::string& png) {
  EXPECT_EQ(png.substr(0, 8), std::string("\x89PNG\r\n\x1a\n", 8));
  Picture picture;
  std::string data;
  bool ended = false;
  for (size_t at = 8; at < png.size();) {
    const uint32_t size = BigEndian(png, at);
    const std::string type = png.substr(at + 4, 4), chunk = png.substr(at + 8, size);
    const auto* covered = reinterpret_cast<const Bytef*>(png.data() + at + 4);
    EXPECT_EQ(crc32_z(0, covered, size + 4), BigEndian(png, at + 8 + size)) << type;
    if (type == "IHDR") {
      picture.width = BigEndian(chunk, 0);
      picture.height = BigEndian(chunk, 4);
    }
    if (type == "IDAT") data += chunk;
    ended = type == "IEND";
    at += 12 + size;
  }
  EXPECT_TRUE(ended);
  const int64_t stride = 3 * picture.width;
  std::vector<uint8_t> rows(static_cast<size_t>(picture.height * (stride + 1)));
  uLongf made = rows.size();
  EXPECT_EQ(
      uncompress(rows.data(), &made, reinterpret_cast<const Bytef*>(data.data()), data.size()),
      Z_OK);
  EXPECT_EQ(made, rows.size());
  Unfilter(&rows, picture.height, stride);
  for (int64_t y = 0; y < picture.height; ++y) {
    const auto row = rows.begin() + y * (stride + 1) + 1;
    picture.rgb.insert(picture.rgb.end(), row, row + stride);
  }
  return picture;
}

HostTensor Latents(const std::vector<int64_t>& shape, const std::vector<float>& values) {
  HostTensor tensor{DType::kFloat32, shape, ""};
  tensor.data.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  return tensor;
}

HostTensor Plain(int64_t f, int64_t h, int64_t w, float value = 0) {
  return Latents({1, 2, f, h, w}, std::vector<float>(static_cast<size_t>(2 * f * h * w), value));
}

// Red goes with the first channel, blue with the second, green is constant.
const LatentColours kColours{{{1, 0, 0}, {0, 0, 0.5F}}, {0, 0.2F, 0}};

TEST(Preview, MapsEachPositionOfAFrameToAPixel) {
  const auto picture =
      Read(EncodePreview(kColours, Latents({1, 2, 1, 1, 3}, {-1, 0, 1, 0, 1, 4}), 64));
  EXPECT_EQ(picture.height, 1);
  EXPECT_EQ(picture.width, 3);
  EXPECT_EQ(picture.At(0, 0), (std::vector{0, 153, 128}));
  EXPECT_EQ(picture.At(0, 1), (std::vector{128, 153, 191}));
  EXPECT_EQ(picture.At(0, 2), (std::vector{255, 153, 255}));
}

TEST(Preview, ShowsItsFramesInAGridFromLeftToRight) {
  std::vector<float> values(2 * 3 * 2 * 2, 0);
  for (size_t frame = 0; frame < 3; ++frame) {
    for (size_t i = 0; i < 4; ++i) values[4 * frame + i] = static_cast<float>(frame) - 1;
  }
  const auto picture = Read(EncodePreview(kColours, Latents({1, 2, 3, 2, 2}, values), 64));
  EXPECT_EQ(picture.height, 4);
  EXPECT_EQ(picture.width, 4);
  EXPECT_EQ(picture.At(0, 0)[0], 0);
  EXPECT_EQ(picture.At(0, 2)[0], 128);
  EXPECT_EQ(picture.At(2, 0)[0], 255);
}

TEST(Preview, ShrinksByMeansWhereItWouldBeTooLarge) {
  std::vector<float> values(2 * 4 * 6, 0);
  for (size_t i = 0; i < 4 * 6; ++i) values[i] = i % 2 == 0 ? 0.8F : -0.4F;
  const auto picture = Read(EncodePreview(kColours, Latents({1, 2, 1, 4, 6}, values), 3));
  EXPECT_EQ(picture.height, 2);
  EXPECT_EQ(picture.width, 3);
  for (int64_t x = 0; x < 3; ++x) EXPECT_EQ(picture.At(1, x)[0], std::lround(0.6 * 255));
}

TEST(Preview, IsNeverLargerThanItIsAllowedAndNeverEmpty) {
  for (const auto& [f, h, w] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {5, 16, 16}, {21, 60, 104}, {9, 1, 400}, {1, 500, 3}, {60, 8, 8}}) {
    for (int64_t side : {1, 2, 7, 16, 64, 200, 1000}) {
      const auto picture = Read(EncodePreview(kColours, Plain(f, h, w), side));
      EXPECT_GE(picture.rgb.size(), 3U);
      EXPECT_LE(std::max(picture.height, picture.width), side) << f << "x" << h << "x" << w;
    }
  }
}

TEST(Preview, RatherShowsFewerFramesThanNoneThatCanBeSeen) {
  // 21 frames of 60x104 within 64 pixels would be of 7x12 each.
  const auto picture = Read(EncodePreview(kColours, Plain(21, 60, 104), 64));
  EXPECT_EQ(picture.width, 64);
  EXPECT_GE(picture.height, 32);
}

TEST(Preview, NumbersThatAreNotFiniteAreBlack) {
  for (float value : {NAN, INFINITY, -INFINITY}) {
    const auto picture = Read(EncodePreview(kColours, Plain(1, 2, 2, value), 16));
    EXPECT_EQ(picture.At(0, 0)[0], 0);
  }
}

TEST(Preview, OtherTensorsAreRefusedByName) {
  HostTensor half = Plain(1, 2, 2);
  half.dtype = DType::kFloat16;
  half.data.resize(half.data.size() / 2);
  HostTensor cut = Plain(1, 2, 2);
  cut.data.pop_back();
  for (const HostTensor& latents :
       {half, cut, Latents({1, 1, 1, 1, 1}, {0}), Latents({1, 2, 0, 1, 1}, {}),
        Latents({2, 2, 1, 1, 1}, {0, 0, 0, 0}), Latents({2}, {0, 0})}) {
    try {
      EncodePreview(kColours, latents, 16);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.field().substr(0, 7), "latents");
    }
  }
  EXPECT_THROW(EncodePreview(kColours, Plain(1, 2, 2), 0), Error);
  EXPECT_THROW(EncodePreview({}, Plain(1, 2, 2), 16), Error);
}

}  // namespace
}  // namespace denoised
