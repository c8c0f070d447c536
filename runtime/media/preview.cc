#include "runtime/media/preview.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backends/error.h"
#include "runtime/media/video_writer.h"

namespace denoised {
namespace {

constexpr int64_t kLeastSide = 16;  // of a frame, where its latents have as many positions

// Frames in a grid, each of these pixels.
struct Layout {
  int64_t frames = 1, height = 1, width = 1;
  bool fits = true;
};

// Of `frames` frames at most `max_side` wide and high all together.
Layout LayoutOf(int64_t frames, int64_t height, int64_t width, int64_t max_side) {
  int64_t columns = 1;
  while (columns * columns < frames) ++columns;
  const int64_t rows = (frames + columns - 1) / columns;
  const double scale =
      std::min({1.0, static_cast<double>(max_side) / static_cast<double>(columns * width),
                static_cast<double>(max_side) / static_cast<double>(rows * height)});
  const auto scaled = [scale](int64_t side) {
    return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(side) * scale));
  };
  Layout layout{frames, scaled(height), scaled(width)};
  layout.fits = std::max(columns * layout.width, rows * layout.height) <= max_side;
  return layout;
}

Layout Choose(int64_t frames, int64_t height, int64_t width, int64_t max_side) {
  const int64_t least = std::min({kLeastSide, height, width});
  for (int64_t shown = frames; shown > 1; --shown) {
    const Layout layout = LayoutOf(shown, height, width, max_side);
    if (layout.fits && std::min(layout.height, layout.width) >= least) return layout;
  }
  return LayoutOf(1, height, width, max_side);
}

void Check(const LatentColours& colours, const HostTensor& latents, int64_t max_side) {
  CheckHostTensor(latents, "latents");
  const auto channels = static_cast<int64_t>(colours.of_channel.size());
  const bool fits = latents.dtype == DType::kFloat32 && latents.shape.size() == 5 &&
                    latents.shape[0] == 1 && latents.shape[1] == channels &&
                    std::ranges::all_of(latents.shape, [](int64_t size) { return size > 0; });
  if (fits && max_side > 0) return;
  throw InvalidField("latents", "a preview is of float32 latents [1, " + std::to_string(channels) +
                                    ", f, h, w], in at least one pixel");
}

uint8_t Byte(float value) {
  if (!std::isfinite(value)) return 0;
  return static_cast<uint8_t>(std::lround((std::clamp(value, -1.0F, 1.0F) * 0.5F + 0.5F) * 255));
}

// [h, w, 3] of a frame.
std::vector<float> ColoursOf(const LatentColours& colours, const HostTensor& latents,
                             int64_t frame) {
  const int64_t frames = latents.shape[2], positions = latents.shape[3] * latents.shape[4];
  std::vector<float> plane(static_cast<size_t>(positions)), rgb;
  for (int64_t i = 0; i < positions; ++i) {
    rgb.insert(rgb.end(), colours.constant.begin(), colours.constant.end());
  }
  for (size_t c = 0; c < colours.of_channel.size(); ++c) {
    const size_t bytes = plane.size() * sizeof(float);
    const size_t index = c * static_cast<size_t>(frames) + static_cast<size_t>(frame);
    std::memcpy(plane.data(), latents.data.data() + index * bytes, bytes);
    const std::array<float, 3>& colour = colours.of_channel[c];
    for (size_t i = 0; i < plane.size(); ++i) {
      for (size_t k = 0; k < 3; ++k) rgb[3 * i + k] += plane[i] * colour[k];
    }
  }
  return rgb;
}

// Means of the rectangles that become a pixel each.
void Shrink(const std::vector<float>& rgb, int64_t height, int64_t width, const Layout& to,
            std::vector<uint8_t>* out) {
  for (int64_t pixel = 0; pixel < to.height * to.width; ++pixel) {
    const int64_t y = pixel / to.width, x = pixel % to.width;
    const int64_t top = y * height / to.height, bottom = (y + 1) * height / to.height;
    const int64_t left = x * width / to.width, right = (x + 1) * width / to.width;
    std::array<float, 3> sum = {};
    for (int64_t row = top; row < bottom; ++row) {
      for (int64_t i = row * width + left; i < row * width + right; ++i) {
        for (size_t k = 0; k < 3; ++k) sum[k] += rgb[static_cast<size_t>(3 * i) + k];
      }
    }
    const auto count = static_cast<float>((bottom - top) * (right - left));
    for (float value : sum) out->push_back(Byte(value / count));
  }
}

}  // namespace

std::string EncodePreview(const LatentColours& colours, const HostTensor& latents,
                          int64_t max_side) {
  Check(colours, latents, max_side);
  const int64_t frames = latents.shape[2], height = latents.shape[3], width = latents.shape[4];
  const Layout layout = Choose(frames, height, width, max_side);
  VideoFrames sheet;
  sheet.frames = layout.frames;
  sheet.height = layout.height;
  sheet.width = layout.width;
  for (int64_t n = 0; n < layout.frames; ++n) {
    const int64_t frame = layout.frames == 1 ? 0 : n * (frames - 1) / (layout.frames - 1);
    Shrink(ColoursOf(colours, latents, frame), height, width, layout, &sheet.rgb);
  }
  return EncodePngSheet(sheet);
}

}  // namespace denoised
