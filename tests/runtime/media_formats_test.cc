#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "backends/error.h"
#include "runtime/media/palette.h"
#include "runtime/media/video_writer.h"
#include "runtime/media/yuv.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

VideoFrames Flat(int64_t frames, int64_t height, int64_t width, uint8_t value = 7) {
  return {frames, height, width, 16,
          std::vector<uint8_t>(static_cast<size_t>(frames * height * width * 3), value)};
}

std::string ErrorOf(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    return error.what();
  }
  return "no error";
}

TEST(VideoWriter, RefusesFramesThatDoNotFitTheirSizes) {
  VideoFrames bad_bytes = Flat(2, 4, 4);
  bad_bytes.rgb.pop_back();
  VideoFrames overflow = Flat(1, 1, 1);
  overflow.height = overflow.width = INT64_MAX;
  VideoFrames negative = Flat(1, 1, 1);
  negative.frames = -1;
  VideoFrames still = Flat(1, 1, 1);
  still.fps = 0;
  const std::pair<std::string, std::function<std::string(const VideoFrames&)>> formats[] = {
      {".gif", EncodeGif}, {".png", EncodePngSheet}};
  for (const auto& [name, encode] : formats) {
    EXPECT_THAT(ErrorOf([&] { encode(bad_bytes); }), HasSubstr(name + ": 2 frames of 4 x 4"));
    EXPECT_THAT(ErrorOf([&] { encode(overflow); }), HasSubstr(name + ": cannot hold"));
    EXPECT_THAT(ErrorOf([&] { encode(negative); }), HasSubstr(name + ": cannot hold -1 frames"));
    EXPECT_THAT(ErrorOf([&] { encode(still); }), HasSubstr("at 0 fps"));
    EXPECT_THAT(ErrorOf([&] { encode(VideoFrames{}); }), HasSubstr("cannot hold 0 frames"));
  }
}

TEST(VideoWriter, EveryFormatIsDeterministic) {
  VideoFrames video = Flat(3, 18, 34);
  for (size_t i = 0; i < video.rgb.size(); ++i) video.rgb[i] = static_cast<uint8_t>(i * i / 7);
  EXPECT_EQ(EncodeGif(video), EncodeGif(video));
  EXPECT_EQ(EncodePngSheet(video), EncodePngSheet(video));
}

TEST(Png, AFrameThatIsNotThereIsRefused) {
  EXPECT_THAT(ErrorOf([] { EncodePngFrame(Flat(2, 2, 2), 2); }), HasSubstr("no frame 2"));
  EXPECT_THAT(ErrorOf([] { EncodePngFrame(Flat(2, 2, 2), -1); }), HasSubstr("no frame -1"));
}

TEST(Png, ASheetOfOneIsTheFrame) {
  EXPECT_EQ(EncodePngSheet(Flat(1, 5, 3)), EncodePngFrame(Flat(1, 5, 3), 0));
}

TEST(Npy, HeaderIsAsNumpyWritesIt) {
  const std::string bytes = EncodeNpy({0.0f, 0.5f, 1.0f}, {1, 1, 1, 3});
  ASSERT_EQ(bytes.size(), 128u + 12u);
  EXPECT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_THAT(bytes,
              HasSubstr("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 3), }"));
  EXPECT_EQ(bytes[127], '\n');
  float last = 0;
  std::memcpy(&last, bytes.data() + 136, sizeof(last));
  EXPECT_EQ(last, 1.0f);
}

TEST(Npy, RefusesAShapeThatDoesNotFit) {
  EXPECT_THAT(ErrorOf([] { EncodeNpy({1, 2}, {3}); }), HasSubstr("shape (3,) does not fit 2"));
  EXPECT_THAT(ErrorOf([] { EncodeNpy({}, {int64_t{1} << 62, 8}); }), HasSubstr("does not fit"));
  EXPECT_THAT(ErrorOf([] { EncodeNpy({1}, {-1}); }), HasSubstr("does not fit"));
}

TEST(Palette, IsExactForFewColours) {
  std::vector<uint8_t> rgb;
  for (int i = 0; i < 256; ++i) {
    for (int c = 0; c < 3; ++c) rgb.push_back(static_cast<uint8_t>(i * (c + 1)));
  }
  const PalettedFrame frame = MakePaletted(rgb.data(), 16, 16);
  ASSERT_EQ(frame.palette.size(), 256u);
  for (size_t i = 0; i < 256; ++i) {
    const Rgb& colour = frame.palette[frame.indices[i]];
    EXPECT_TRUE(std::equal(colour.begin(), colour.end(), rgb.begin() + static_cast<int>(3 * i)));
  }
}

TEST(Palette, KeepsTheMeanOfAGradient) {
  constexpr int64_t kSide = 64;
  std::vector<uint8_t> rgb;
  for (int64_t i = 0; i < kSide * kSide; ++i) {
    rgb.push_back(static_cast<uint8_t>(i % kSide * 4));
    rgb.push_back(static_cast<uint8_t>(i / kSide * 4));
    rgb.push_back(static_cast<uint8_t>((i % kSide + i / kSide) * 2));
  }
  const PalettedFrame frame = MakePaletted(rgb.data(), kSide, kSide);
  EXPECT_EQ(frame.palette.size(), 256u);
  double squares = 0, wanted = 0, came = 0;
  for (size_t i = 0; i < frame.indices.size(); ++i) {
    for (size_t c = 0; c < 3; ++c) {
      const double a = rgb[3 * i + c], b = frame.palette[frame.indices[i]][c];
      squares += (a - b) * (a - b);
      wanted += a;
      came += b;
    }
  }
  const double pixels = static_cast<double>(rgb.size());
  EXPECT_LT(squares / pixels, 120);
  EXPECT_NEAR(came / pixels, wanted / pixels, 1.0);
}

TEST(Yuv, PrimaryColoursAreThoseOfTheStandard) {
  struct Case {
    uint8_t r, g, b, y, u, v;
  };
  // ITU-R BT.709 in 8 bits, limited range.
  const Case cases[] = {{0, 0, 0, 16, 128, 128},   {255, 255, 255, 235, 128, 128},
                        {255, 0, 0, 63, 102, 240}, {0, 255, 0, 173, 42, 26},
                        {0, 0, 255, 32, 240, 118}, {128, 128, 128, 126, 128, 128}};
  for (const Case& c : cases) {
    std::vector<uint8_t> rgb;
    for (int i = 0; i < 9; ++i) rgb.insert(rgb.end(), {c.r, c.g, c.b});
    uint8_t y[16], u[4], v[4];
    RgbToYuv420(rgb.data(), 3, 3, {y, u, v, 4, 2, 2});
    for (uint8_t value : y) EXPECT_EQ(value, c.y);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(u[i], c.u);
      EXPECT_EQ(v[i], c.v);
    }
  }
}

}  // namespace
}  // namespace denoised
