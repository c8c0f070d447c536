#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "backends/error.h"
#include "backends/stop_point.h"
#include "runtime/media/frames.h"
#include "runtime/media/video_writer.h"

namespace denoised {
namespace {

// Far below PNG's own limit of 2^31 - 1; bounds a sheet to a few gigabytes.
constexpr int64_t kMaxSide = 1 << 16;
constexpr int64_t kChannels = 3;
constexpr int kLevel = 6;

void PutBigEndian32(uint32_t value, std::string& out) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(value >> shift));
}

void PutChunk(const std::string& type, const std::string& data, std::string& out) {
  PutBigEndian32(static_cast<uint32_t>(data.size()), out);
  const size_t begin = out.size();
  out += type;
  out += data;
  const auto* covered = reinterpret_cast<const Bytef*>(out.data() + begin);
  PutBigEndian32(static_cast<uint32_t>(crc32_z(0, covered, out.size() - begin)), out);
}

uint8_t Paeth(int left, int above, int corner) {
  const int estimate = left + above - corner;
  const int by_left = std::abs(estimate - left), by_above = std::abs(estimate - above),
            by_corner = std::abs(estimate - corner);
  if (by_left <= by_above && by_left <= by_corner) return static_cast<uint8_t>(left);
  return static_cast<uint8_t>(by_above <= by_corner ? above : corner);
}

// The prediction of PNG's filter `type` (PNG specification, section 9).
uint8_t Predict(int type, uint8_t left, uint8_t above, uint8_t corner) {
  switch (type) {
    case 1:
      return left;
    case 2:
      return above;
    case 3:
      return static_cast<uint8_t>((left + above) / 2);
    case 4:
      return Paeth(left, above, corner);
    default:
      return 0;
  }
}

std::string FilterRow(int type, const uint8_t* row, const uint8_t* above, int64_t size) {
  std::string out(static_cast<size_t>(size) + 1, static_cast<char>(type));
  for (int64_t i = 0; i < size; ++i) {
    const bool first = i < kChannels;
    const uint8_t up = above == nullptr ? 0 : above[i];
    const uint8_t corner = above == nullptr || first ? 0 : above[i - kChannels];
    const uint8_t left = first ? 0 : row[i - kChannels];
    out[static_cast<size_t>(i) + 1] = static_cast<char>(row[i] - Predict(type, left, up, corner));
  }
  return out;
}

int64_t Roughness(const std::string& filtered) {
  int64_t sum = 0;
  for (size_t i = 1; i < filtered.size(); ++i) sum += std::abs(static_cast<int8_t>(filtered[i]));
  return sum;
}

// The filter whose residuals are smallest, as the specification advises (section 12.7).
std::string BestRow(const uint8_t* row, const uint8_t* above, int64_t size) {
  std::string best = FilterRow(0, row, above, size);
  int64_t least = Roughness(best);
  for (int type = 1; type <= 4; ++type) {
    std::string filtered = FilterRow(type, row, above, size);
    const int64_t roughness = Roughness(filtered);
    if (roughness >= least) continue;
    least = roughness;
    best = std::move(filtered);
  }
  return best;
}

// zlib's deflate over rows, into chunks of bounded size.
class Deflater {
 public:
  explicit Deflater(std::string& out) : out_(out) {
    if (deflateInit(&stream_, kLevel) != Z_OK) throw std::bad_alloc();
  }
  ~Deflater() { deflateEnd(&stream_); }
  Deflater(const Deflater&) = delete;
  Deflater& operator=(const Deflater&) = delete;

  void Add(const std::string& row, bool last) {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(row.data()));
    stream_.avail_in = static_cast<uInt>(row.size());
    do {
      stream_.next_out = buffer_.data();
      stream_.avail_out = static_cast<uInt>(buffer_.size());
      deflate(&stream_, last ? Z_FINISH : Z_NO_FLUSH);
      const size_t made = buffer_.size() - stream_.avail_out;
      if (made == 0) return;
      PutChunk("IDAT", std::string(reinterpret_cast<const char*>(buffer_.data()), made), out_);
    } while (stream_.avail_out == 0 || stream_.avail_in > 0);
  }

 private:
  std::string& out_;
  z_stream stream_{};
  std::vector<Bytef> buffer_ = std::vector<Bytef>(256 << 10);
};

std::string EncodePng(const uint8_t* rgb, int64_t height, int64_t width) {
  std::string out("\x89PNG\r\n\x1a\n", 8);
  std::string header;
  PutBigEndian32(static_cast<uint32_t>(width), header);
  PutBigEndian32(static_cast<uint32_t>(height), header);
  header += std::string("\x08\x02\x00\x00\x00", 5);  // 8 bits, RGB, deflate, filters, no interlace
  PutChunk("IHDR", header, out);
  {
    Deflater deflater(out);
    const int64_t stride = width * kChannels;
    for (int64_t y = 0; y < height; ++y) {
      StopPoint();
      const uint8_t* row = rgb + y * stride;
      deflater.Add(BestRow(row, y == 0 ? nullptr : row - stride, stride), y + 1 == height);
    }
  }
  PutChunk("IEND", "", out);
  return out;
}

}  // namespace

std::string EncodePngFrame(const VideoFrames& video, int64_t frame) {
  CheckFrames(video, kMaxSide, ".png");
  if (frame < 0 || frame >= video.frames) {
    throw Error(StatusCode::kInvalidArgument, ".png: there is no frame " + std::to_string(frame));
  }
  return EncodePng(FrameData(video, frame), video.height, video.width);
}

std::string EncodePngSheet(const VideoFrames& video) {
  CheckFrames(video, kMaxSide, ".png");
  if (video.frames == 1) return EncodePngFrame(video, 0);
  int64_t columns = 1;
  while (columns * columns < video.frames) ++columns;
  const int64_t rows = (video.frames + columns - 1) / columns;
  if (columns * video.width > kMaxSide || rows * video.height > kMaxSide) {
    throw Error(StatusCode::kInvalidArgument,
                ".png: a sheet of " + std::to_string(video.frames) + " such frames is too large");
  }
  const int64_t row_bytes = video.width * kChannels, stride = columns * row_bytes;
  std::vector<uint8_t> sheet(static_cast<size_t>(rows * video.height * stride), 0);
  for (int64_t frame = 0; frame < video.frames; ++frame) {
    const int64_t top = frame / columns * video.height, left = frame % columns * row_bytes;
    for (int64_t y = 0; y < video.height; ++y) {
      const uint8_t* from = FrameData(video, frame) + y * row_bytes;
      std::copy(from, from + row_bytes, sheet.begin() + (top + y) * stride + left);
    }
  }
  return EncodePng(sheet.data(), rows * video.height, columns * video.width);
}

}  // namespace denoised
