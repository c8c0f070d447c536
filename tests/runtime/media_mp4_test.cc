// Decodes with libav what EncodeMp4 wrote.
extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
}

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "backends/error.h"
#include "runtime/media/video_writer.h"

namespace denoised {
namespace {

struct Decoded {
  int width = 0;
  int height = 0;
  AVRational frame_rate{};
  AVColorSpace colorspace = AVCOL_SPC_UNSPECIFIED;
  AVColorRange range = AVCOL_RANGE_UNSPECIFIED;
  int key_frames = 0;
  std::vector<std::vector<uint8_t>> luma;  // a frame each, [height, width]
  std::vector<int64_t> ms;                 // when each is shown
};

void Receive(AVCodecContext* decoder, AVRational time_base, Decoded& out) {
  AVFrame* frame = av_frame_alloc();
  while (avcodec_receive_frame(decoder, frame) == 0) {
    out.key_frames += frame->key_frame;
    out.colorspace = frame->colorspace;
    out.range = frame->color_range;
    out.ms.push_back(av_rescale_q(frame->pts, time_base, {1, 1000}));
    std::vector<uint8_t> luma;
    for (int y = 0; y < frame->height; ++y) {
      const uint8_t* row = frame->data[0] + y * frame->linesize[0];
      luma.insert(luma.end(), row, row + frame->width);
    }
    out.luma.push_back(std::move(luma));
    av_frame_unref(frame);
  }
  av_frame_free(&frame);
}

Decoded Decode(const std::string& bytes) {
  const std::string path =
      std::filesystem::path(testing::TempDir()) / ("decode." + std::to_string(getpid()) + ".mp4");
  std::ofstream(path, std::ios::binary) << bytes;
  AVFormatContext* demuxer = nullptr;
  Decoded out;
  if (avformat_open_input(&demuxer, path.c_str(), nullptr, nullptr) != 0) {
    ADD_FAILURE() << "libav does not open the file";
    return out;
  }
  EXPECT_GE(avformat_find_stream_info(demuxer, nullptr), 0);
  const AVStream* stream = demuxer->streams[0];
  AVCodecContext* decoder =
      avcodec_alloc_context3(avcodec_find_decoder(stream->codecpar->codec_id));
  avcodec_parameters_to_context(decoder, stream->codecpar);
  EXPECT_EQ(avcodec_open2(decoder, nullptr, nullptr), 0);
  out.width = decoder->width;
  out.height = decoder->height;
  out.frame_rate = stream->avg_frame_rate;
  AVPacket* packet = av_packet_alloc();
  while (av_read_frame(demuxer, packet) == 0) {
    avcodec_send_packet(decoder, packet);
    Receive(decoder, stream->time_base, out);
    av_packet_unref(packet);
  }
  avcodec_send_packet(decoder, nullptr);
  Receive(decoder, stream->time_base, out);
  av_packet_free(&packet);
  avcodec_free_context(&decoder);
  avformat_close_input(&demuxer);
  std::filesystem::remove(path);
  return out;
}

// A soft disc that moves over a gradient.
VideoFrames Scene(int64_t frames, int64_t height, int64_t width, int fps) {
  VideoFrames video{frames, height, width, fps, {}};
  for (int64_t f = 0; f < frames; ++f) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const double dx = static_cast<double>(x - width / 4 - f * 2),
                     dy = static_cast<double>(y - height / 2);
        const double disc = 1 / (1 + std::exp((std::hypot(dx, dy) - 9) / 1.5));
        const double back = 40.0 + 60.0 * static_cast<double>(x) / static_cast<double>(width);
        for (double colour : {230.0, 120.0, 40.0}) {
          video.rgb.push_back(static_cast<uint8_t>(back + (colour - back) * disc));
        }
      }
    }
  }
  return video;
}

double LumaOf(const VideoFrames& video, int64_t f, int64_t y, int64_t x) {
  const uint8_t* p = video.rgb.data() + ((f * video.height + y) * video.width + x) * 3;
  return 16 + 219.0 / 255 * (0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2]);
}

double LumaPsnr(const VideoFrames& video, const Decoded& decoded) {
  double squares = 0;
  for (int64_t f = 0; f < video.frames; ++f) {
    for (int64_t y = 0; y < video.height; ++y) {
      for (int64_t x = 0; x < video.width; ++x) {
        const double d =
            LumaOf(video, f, y, x) -
            decoded.luma[static_cast<size_t>(f)][static_cast<size_t>(y * decoded.width + x)];
        squares += d * d;
      }
    }
  }
  const double mean = squares / static_cast<double>(video.frames * video.height * video.width);
  return 10 * std::log10(255 * 255 / mean);
}

TEST(Mp4, DecodesToTheSameFramesAtTheSameTimes) {
  const VideoFrames video = Scene(33, 64, 96, 16);
  const Decoded decoded = Decode(EncodeMp4(video));
  EXPECT_EQ(decoded.width, 96);
  EXPECT_EQ(decoded.height, 64);
  EXPECT_EQ(decoded.frame_rate.num, 16 * decoded.frame_rate.den);
  EXPECT_EQ(decoded.colorspace, AVCOL_SPC_BT709);
  EXPECT_EQ(decoded.range, AVCOL_RANGE_MPEG);
  ASSERT_EQ(decoded.luma.size(), 33u);
  for (int64_t f = 0; f < 33; ++f) {
    EXPECT_NEAR(static_cast<double>(decoded.ms[static_cast<size_t>(f)]),
                static_cast<double>(f) * 62.5, 1.0);
  }
  EXPECT_GE(decoded.key_frames, 3);  // one a second
  EXPECT_GT(LumaPsnr(video, decoded), 36);
}

TEST(Mp4, OddSizesGetACopyOfTheLastRowAndColumn) {
  const VideoFrames video = Scene(5, 31, 45, 24);
  const Decoded decoded = Decode(EncodeMp4(video));
  EXPECT_EQ(decoded.width, 46);
  EXPECT_EQ(decoded.height, 32);
  ASSERT_EQ(decoded.luma.size(), 5u);
  EXPECT_GT(LumaPsnr(video, decoded), 36);
  const auto& last = decoded.luma.back();
  EXPECT_NEAR(last[45], last[44], 6);
  EXPECT_NEAR(last[31 * 46], last[30 * 46], 6);
}

TEST(Mp4, SingleAndSmallestFramesWork) {
  for (int64_t side : {1, 2, 16}) {
    const Decoded decoded = Decode(EncodeMp4(Scene(1, side, side, 16)));
    EXPECT_EQ(decoded.luma.size(), 1u) << side;
  }
}

TEST(Mp4, IndexComesBeforeTheData) {
  for (int64_t frames : {1, 7, 400}) {
    const std::string bytes = EncodeMp4(Scene(frames, 16, 16, 25));
    EXPECT_EQ(bytes.substr(4, 4), "ftyp");
    EXPECT_NE(bytes.find("moov"), std::string::npos);
    EXPECT_LT(bytes.find("moov"), bytes.find("mdat"));
  }
}

TEST(Mp4, TheSameFramesGiveTheSameBytes) {
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{48, 64}, {33, 51}, {96, 160}}) {
    const VideoFrames video = Scene(20, height, width, 16);
    const std::string first = EncodeMp4(video);
    for (int i = 0; i < 15; ++i) ASSERT_EQ(EncodeMp4(video) == first, true) << height;
  }
}

TEST(Mp4, RefusesFramesThatDoNotFitTheirSizes) {
  VideoFrames video = Scene(2, 4, 4, 16);
  video.rgb.pop_back();
  EXPECT_THAT([&] { EncodeMp4(video); },
              testing::ThrowsMessage<Error>(testing::HasSubstr(".mp4: 2 frames of 4 x 4")));
  video.width = 100'000;
  EXPECT_THAT([&] { EncodeMp4(video); },
              testing::ThrowsMessage<Error>(testing::HasSubstr(".mp4: cannot hold")));
}

}  // namespace
}  // namespace denoised
