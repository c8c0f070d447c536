// Frames to files in memory: .mp4, .gif, .png, .npy. Torch-free; any thread.
//
// Every encoder is deterministic: the same frames give the same bytes from the same libraries. Each
// has stop points (backends/stop_point.h) between frames or rows.
#ifndef DENOISED_RUNTIME_MEDIA_VIDEO_WRITER_H_
#define DENOISED_RUNTIME_MEDIA_VIDEO_WRITER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace denoised {

// 8-bit RGB, [frames, height, width, 3] in C order.
struct VideoFrames {
  int64_t frames = 0;
  int64_t height = 0;
  int64_t width = 0;
  int fps = 16;
  std::vector<uint8_t> rgb;
};

// Every function throws INVALID_ARGUMENT where the sizes are not positive or do not match the
// bytes, or exceed what the format can hold.

// H.264 in MP4 for the web: crf 20, yuv420p, BT.709, a key frame every second, index in front. Odd
// sizes get one more row or column, a copy of the last one, since 4:2:0 needs even sizes.
// UNIMPLEMENTED, saying how to get it, in builds without libav.
std::string EncodeMp4(const VideoFrames& video);
// Why EncodeMp4 cannot serve in this build; empty where it can.
std::optional<std::string> WhyNoMp4();

// Looping GIF; a palette of its own for every frame. GIF counts time in 1/100 s, so frames are held
// for rounded times that add up to the right length.
std::string EncodeGif(const VideoFrames& video);

// All frames in a grid that is about square, left to right, then down; one frame is just that
// frame.
std::string EncodePngSheet(const VideoFrames& video);
std::string EncodePngFrame(const VideoFrames& video, int64_t frame);

// NumPy format 1.0, little-endian float32, C order: `values` is [frames, height, width, 3], in
// [0, 1] as diffusers gives it with output_type="np".
std::string EncodeNpy(const std::vector<float>& values, const std::vector<int64_t>& shape);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MEDIA_VIDEO_WRITER_H_
