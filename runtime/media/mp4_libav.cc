extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
}

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "backends/error.h"
#include "backends/stop_point.h"
#include "runtime/media/frames.h"
#include "runtime/media/video_writer.h"
#include "runtime/media/yuv.h"

namespace denoised {
namespace {

constexpr int64_t kMaxSide = 16'384;  // of H.264 level 6.2
constexpr int kBufferBytes = 64 << 10;
constexpr const char* kEncoder = "libx264";
constexpr const char* kCrf = "20";
// The count is part of what the encoder's output depends on, so it is not the machine's.
constexpr int kThreads = 2;

void Check(int result, const char* what) {
  if (result >= 0) return;
  char reason[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(result, reason, sizeof(reason));
  throw Error(StatusCode::kInternal, std::string(".mp4: ") + what + ": " + reason);
}

template <typename T>
T* NotNull(T* pointer, const char* what) {
  if (pointer == nullptr) throw Error(StatusCode::kInternal, std::string(".mp4: ") + what);
  return pointer;
}

// A file in memory, as libavformat wants to see one.
struct MemoryFile {
  std::string bytes;
  size_t at = 0;

  static int Write(void* opaque, uint8_t* data, int size) {
    auto* file = static_cast<MemoryFile*>(opaque);
    const size_t end = file->at + static_cast<size_t>(size);
    if (end > file->bytes.size()) file->bytes.resize(end);
    std::memcpy(file->bytes.data() + file->at, data, static_cast<size_t>(size));
    file->at = end;
    return size;
  }

  static int64_t Seek(void* opaque, int64_t offset, int whence) {
    auto* file = static_cast<MemoryFile*>(opaque);
    if (whence == AVSEEK_SIZE) return static_cast<int64_t>(file->bytes.size());
    if (whence == SEEK_CUR) offset += static_cast<int64_t>(file->at);
    if (whence == SEEK_END) offset += static_cast<int64_t>(file->bytes.size());
    if (offset < 0) return AVERROR(EINVAL);
    file->at = static_cast<size_t>(offset);
    return offset;
  }
};

struct Free {
  void operator()(AVCodecContext* context) const { avcodec_free_context(&context); }
  void operator()(AVFormatContext* context) const { avformat_free_context(context); }
  void operator()(AVFrame* frame) const { av_frame_free(&frame); }
  void operator()(AVPacket* packet) const { av_packet_free(&packet); }
  void operator()(AVDictionary* dictionary) const { av_dict_free(&dictionary); }
  void operator()(AVIOContext* io) const {
    av_freep(&io->buffer);
    avio_context_free(&io);
  }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

void TagColours(AVCodecContext& encoder) {
  encoder.color_primaries = AVCOL_PRI_BT709;
  encoder.color_trc = AVCOL_TRC_BT709;
  encoder.colorspace = AVCOL_SPC_BT709;
  encoder.color_range = AVCOL_RANGE_MPEG;
  encoder.chroma_sample_location = AVCHROMA_LOC_LEFT;
}

Owned<AVCodecContext> OpenEncoder(int width, int height, int fps) {
  const AVCodec* codec = avcodec_find_encoder_by_name(kEncoder);
  if (codec == nullptr) throw Error(StatusCode::kUnimplemented, *WhyNoMp4(), "", "NO_LIBX264");
  Owned<AVCodecContext> encoder(NotNull(avcodec_alloc_context3(codec), "no encoder"));
  encoder->width = width;
  encoder->height = height;
  encoder->pix_fmt = AV_PIX_FMT_YUV420P;
  encoder->time_base = {1, fps};
  encoder->framerate = {fps, 1};
  encoder->gop_size = fps;
  encoder->thread_count = kThreads;
  encoder->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  TagColours(*encoder);
  Check(av_opt_set(encoder->priv_data, "preset", "medium", 0), "preset");
  Check(av_opt_set(encoder->priv_data, "crf", kCrf, 0), "crf");
  // With its macroblock tree x264 164 gives other bytes now and then for the same small frames.
  Check(av_opt_set_int(encoder->priv_data, "mbtree", 0, 0), "mbtree");
  Check(avcodec_open2(encoder.get(), codec, nullptr), "the encoder does not open");
  return encoder;
}

// One encode: frames go in, the file comes out.
class Mp4Writer {
 public:
  Mp4Writer(int width, int height, int fps, int64_t frames)
      : encoder_(OpenEncoder(width, height, fps)) {
    auto* buffer = static_cast<uint8_t*>(NotNull(av_malloc(kBufferBytes), "no memory"));
    io_.reset(NotNull(avio_alloc_context(buffer, kBufferBytes, 1, &file_, nullptr,
                                         &MemoryFile::Write, &MemoryFile::Seek),
                      "no memory"));
    AVFormatContext* muxer = nullptr;
    Check(avformat_alloc_output_context2(&muxer, nullptr, "mp4", nullptr), "no muxer");
    muxer_.reset(muxer);
    muxer_->pb = io_.get();
    muxer_->flags |= AVFMT_FLAG_BITEXACT;  // no library versions in the file
    stream_ = NotNull(avformat_new_stream(muxer, nullptr), "no stream");
    stream_->time_base = encoder_->time_base;
    stream_->avg_frame_rate = encoder_->framerate;
    Check(avcodec_parameters_from_context(stream_->codecpar, encoder_.get()), "parameters");
    WriteHeader(frames);
    PrepareFrame();
  }

  void Add(const uint8_t* rgb, int64_t height, int64_t width, int64_t index) {
    Check(av_frame_make_writable(frame_.get()), "no memory");
    const YuvPlanes planes{frame_->data[0],     frame_->data[1],     frame_->data[2],
                           frame_->linesize[0], frame_->linesize[1], frame_->linesize[2]};
    RgbToYuv420(rgb, height, width, planes);
    frame_->pts = index;
    Encode(frame_.get());
  }

  std::string Finish() {
    Encode(nullptr);
    Check(av_write_trailer(muxer_.get()), "the index does not write");
    avio_flush(io_.get());
    return std::move(file_.bytes);
  }

 private:
  // Room for the index in front of the data, so that players start before they have the whole file.
  // It needs at most some 24 bytes a frame; what is left over becomes a free box.
  void WriteHeader(int64_t frames) {
    AVDictionary* options = nullptr;
    av_dict_set_int(&options, "moov_size", 4096 + 32 * frames, 0);
    const int result = avformat_write_header(muxer_.get(), &options);
    const Owned<AVDictionary> unused(options);
    Check(result, "the header does not write");
  }

  void PrepareFrame() {
    frame_.reset(NotNull(av_frame_alloc(), "no memory"));
    frame_->format = encoder_->pix_fmt;
    frame_->width = encoder_->width;
    frame_->height = encoder_->height;
    Check(av_frame_get_buffer(frame_.get(), 0), "no memory");
    packet_.reset(NotNull(av_packet_alloc(), "no memory"));
  }

  // A null frame drains the encoder.
  void Encode(const AVFrame* frame) {
    Check(avcodec_send_frame(encoder_.get(), frame), "the encoder refuses a frame");
    while (true) {
      const int result = avcodec_receive_packet(encoder_.get(), packet_.get());
      if (result == AVERROR(EAGAIN) || result == AVERROR_EOF) return;
      StopPoint();
      Check(result, "the encoder fails");
      packet_->duration = 1;
      packet_->stream_index = stream_->index;
      av_packet_rescale_ts(packet_.get(), encoder_->time_base, stream_->time_base);
      Check(av_interleaved_write_frame(muxer_.get(), packet_.get()), "the muxer fails");
    }
  }

  MemoryFile file_;
  Owned<AVCodecContext> encoder_;
  Owned<AVIOContext> io_;
  Owned<AVFormatContext> muxer_;
  AVStream* stream_ = nullptr;  // the muxer's
  Owned<AVFrame> frame_;
  Owned<AVPacket> packet_;
};

}  // namespace

std::optional<std::string> WhyNoMp4() {
  if (avcodec_find_encoder_by_name(kEncoder) != nullptr) return std::nullopt;
  return ".mp4: the installed libavcodec has no libx264 encoder; ask for .gif, .png or .npy";
}

std::string EncodeMp4(const VideoFrames& video) {
  CheckFrames(video, kMaxSide, ".mp4");
  // Errors only: statistics of the encoder have no place in a server's log. The level is the
  // library's own global; every call sets it to the same value.
  av_log_set_level(AV_LOG_ERROR);
  const auto even = [](int64_t size) { return static_cast<int>((size + 1) / 2 * 2); };
  Mp4Writer writer(even(video.width), even(video.height), video.fps, video.frames);
  for (int64_t i = 0; i < video.frames; ++i) {
    StopPoint();
    writer.Add(FrameData(video, i), video.height, video.width, i);
  }
  return writer.Finish();
}

}  // namespace denoised
