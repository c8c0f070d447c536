#include "runtime/media/frames.h"

#include "backends/error.h"

namespace denoised {
namespace {

constexpr int64_t kMaxFrames = 1 << 20;
constexpr int kMaxFps = 1000;

}  // namespace

void CheckFrames(const VideoFrames& video, int64_t max_side, const std::string& format) {
  const std::string sizes = std::to_string(video.frames) + " frames of " +
                            std::to_string(video.height) + " x " + std::to_string(video.width) +
                            " at " + std::to_string(video.fps) + " fps";
  const auto in = [](int64_t value, int64_t max) { return value >= 1 && value <= max; };
  const bool sizes_fit = in(video.frames, kMaxFrames) && in(video.height, max_side) &&
                         in(video.width, max_side) && in(video.fps, kMaxFps);
  if (!sizes_fit) throw Error(StatusCode::kInvalidArgument, format + ": cannot hold " + sizes);
  // 2^20 frames of 2^16 x 2^16 x 3 bytes still fit 64 bits.
  const int64_t wanted = video.frames * video.height * video.width * 3;
  if (static_cast<int64_t>(video.rgb.size()) != wanted) {
    throw Error(StatusCode::kInvalidArgument, format + ": " + sizes + " need " +
                                                  std::to_string(wanted) + " bytes, came " +
                                                  std::to_string(video.rgb.size()));
  }
}

}  // namespace denoised
