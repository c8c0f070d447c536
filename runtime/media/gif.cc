#include <algorithm>

#include "backends/stop_point.h"
#include "runtime/media/frames.h"
#include "runtime/media/palette.h"
#include "runtime/media/video_writer.h"

namespace denoised {
namespace {

constexpr int64_t kMaxSide = 65'535;
constexpr int kColourBits = 8;

void PutLittleEndian16(int64_t value, std::string& out) {
  out.push_back(static_cast<char>(value & 0xFF));
  out.push_back(static_cast<char>(value >> 8 & 0xFF));
}

// Variable-width codes, least significant bit first, in sub-blocks of at most 255 bytes.
class CodeWriter {
 public:
  explicit CodeWriter(std::string& out) : out_(out) {}

  void Put(int code, int width) {
    bits_ |= static_cast<uint32_t>(code) << filled_;
    for (filled_ += width; filled_ >= 8; filled_ -= 8) PutByte();
  }

  void Finish() {
    if (filled_ > 0) PutByte();
    FlushBlock();
    out_.push_back('\0');
  }

 private:
  void PutByte() {
    block_.push_back(static_cast<char>(bits_ & 0xFF));
    bits_ >>= 8;
    if (block_.size() == 255) FlushBlock();
  }

  void FlushBlock() {
    if (block_.empty()) return;
    out_.push_back(static_cast<char>(block_.size()));
    out_ += block_;
    block_.clear();
  }

  std::string& out_;
  std::string block_;
  uint32_t bits_ = 0;
  int filled_ = 0;
};

// LZW of GIF89a, appendix F.
void PutLzw(const std::vector<uint8_t>& indices, std::string& out) {
  constexpr int kClear = 1 << kColourBits, kEnd = kClear + 1, kMaxCodes = 4096;
  std::vector<int16_t> next(kMaxCodes << kColourBits);  // [prefix, byte] -> code, 0: none
  int codes = 0, width = 0;
  out.push_back(kColourBits);
  CodeWriter writer(out);
  const auto reset = [&] {
    std::fill(next.begin(), next.end(), int16_t{0});
    codes = kEnd + 1;
    width = kColourBits + 1;
  };
  reset();
  writer.Put(kClear, width);
  int prefix = indices.front();
  for (size_t i = 1; i < indices.size(); ++i) {
    int16_t& known = next[static_cast<size_t>(prefix << kColourBits | indices[i])];
    if (known != 0) {
      prefix = known;
      continue;
    }
    writer.Put(prefix, width);
    prefix = indices[i];
    if (codes < kMaxCodes) {
      if (codes == 1 << width) ++width;
      known = static_cast<int16_t>(codes++);
    } else {
      writer.Put(kClear, width);
      reset();
    }
  }
  writer.Put(prefix, width);
  // The decoder has learnt one code more by now, which may have made its codes wider.
  if (codes < kMaxCodes && codes == 1 << width) ++width;
  writer.Put(kEnd, width);
  writer.Finish();
}

// When frame `i` begins, in the 1/100 s that GIF counts in.
int64_t StartOf(int64_t i, int fps) { return (i * 200 + fps) / (2 * fps); }

void PutFrame(const VideoFrames& video, int64_t frame, std::string& out) {
  out += std::string("\x21\xF9\x04\x04", 4);  // graphic control: keep the frame, no transparency
  PutLittleEndian16(StartOf(frame + 1, video.fps) - StartOf(frame, video.fps), out);
  out += std::string("\x00\x00", 2);
  out.push_back('\x2C');  // image descriptor at 0, 0 with a colour table of 256
  PutLittleEndian16(0, out);
  PutLittleEndian16(0, out);
  PutLittleEndian16(video.width, out);
  PutLittleEndian16(video.height, out);
  out.push_back(static_cast<char>(0x80 | (kColourBits - 1)));
  PalettedFrame paletted = MakePaletted(FrameData(video, frame), video.height, video.width);
  paletted.palette.resize(size_t{1} << kColourBits);
  for (const Rgb& colour : paletted.palette) out.append(colour.begin(), colour.end());
  PutLzw(paletted.indices, out);
}

}  // namespace

std::string EncodeGif(const VideoFrames& video) {
  CheckFrames(video, kMaxSide, ".gif");
  std::string out = "GIF89a";
  PutLittleEndian16(video.width, out);
  PutLittleEndian16(video.height, out);
  out += std::string("\x70\x00\x00", 3);  // no colour table for all frames
  out += std::string("\x21\xFF\x0BNETSCAPE2.0\x03\x01\x00\x00\x00", 19);  // loop for ever
  for (int64_t frame = 0; frame < video.frames; ++frame) {
    StopPoint();
    PutFrame(video, frame, out);
  }
  out.push_back('\x3B');
  return out;
}

}  // namespace denoised
