#include "runtime/media/yuv.h"

#include <algorithm>

namespace denoised {
namespace {

// ITU-R BT.709-6, items 3.2 to 3.5, in 1/65536.
constexpr double kRed = 0.2126, kBlue = 0.0722, kGreen = 1 - kRed - kBlue;
constexpr double kLumaScale = 219.0 / 255.0, kChromaScale = 224.0 / 255.0;
constexpr int kShift = 16;

constexpr int Fixed(double value) {
  return static_cast<int>(value * (1 << kShift) + (value < 0 ? -0.5 : 0.5));
}

struct Weights {
  int r, g, b;
};
constexpr Weights kY = {Fixed(kRed * kLumaScale), Fixed(kGreen* kLumaScale),
                        Fixed(kBlue* kLumaScale)};
constexpr double kUScale = kChromaScale / (2 * (1 - kBlue)),
                 kVScale = kChromaScale / (2 * (1 - kRed));
constexpr Weights kU = {Fixed(-kRed * kUScale), Fixed(-kGreen* kUScale),
                        Fixed((1 - kBlue) * kUScale)};
constexpr Weights kV = {Fixed((1 - kRed) * kVScale), Fixed(-kGreen* kVScale),
                        Fixed(-kBlue* kVScale)};

// `pixels` is a sum over 2^extra pixels.
uint8_t Weigh(const Weights& w, const int64_t* pixels, int offset, int extra) {
  const int64_t sum = w.r * pixels[0] + w.g * pixels[1] + w.b * pixels[2];
  const int shift = kShift + extra;
  const int64_t rounded = ((sum + (int64_t{1} << (shift - 1))) >> shift) + offset;
  return static_cast<uint8_t>(std::clamp<int64_t>(rounded, 0, 255));
}

// A picture whose last row and column go on for ever.
struct Picture {
  const uint8_t* rgb;
  int64_t height;
  int64_t width;

  const uint8_t* At(int64_t y, int64_t x) const {
    y = std::min(y, height - 1);
    x = std::clamp<int64_t>(x, 0, width - 1);
    return rgb + (y * width + x) * 3;
  }
};

void LumaRow(const Picture& picture, int64_t y, int64_t even_width, uint8_t* out) {
  for (int64_t x = 0; x < even_width; ++x) {
    const uint8_t* p = picture.At(y, x);
    const int64_t pixel[3] = {p[0], p[1], p[2]};
    out[x] = Weigh(kY, pixel, 16, 0);
  }
}

void ChromaRow(const Picture& picture, int64_t y, int64_t even_width, uint8_t* u, uint8_t* v) {
  for (int64_t x = 0; x < even_width; x += 2) {
    int64_t sum[3] = {0, 0, 0};
    for (int64_t dy = 0; dy < 2; ++dy) {
      const uint8_t *left = picture.At(y + dy, x - 1), *middle = picture.At(y + dy, x),
                    *right = picture.At(y + dy, x + 1);
      for (int c = 0; c < 3; ++c) sum[c] += left[c] + 2 * middle[c] + right[c];
    }
    u[x / 2] = Weigh(kU, sum, 128, 3);
    v[x / 2] = Weigh(kV, sum, 128, 3);
  }
}

}  // namespace

void RgbToYuv420(const uint8_t* rgb, int64_t height, int64_t width, const YuvPlanes& out) {
  const Picture picture{rgb, height, width};
  const int64_t even_width = (width + 1) / 2 * 2, even_height = (height + 1) / 2 * 2;
  for (int64_t y = 0; y < even_height; ++y) {
    LumaRow(picture, y, even_width, out.y + y * out.y_stride);
    if (y % 2 != 0) continue;
    ChromaRow(picture, y, even_width, out.u + y / 2 * out.u_stride, out.v + y / 2 * out.v_stride);
  }
}

}  // namespace denoised
