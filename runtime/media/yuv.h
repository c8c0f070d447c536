// RGB to the planar 4:2:0 that video encoders take. Torch-free.
#ifndef DENOISED_RUNTIME_MEDIA_YUV_H_
#define DENOISED_RUNTIME_MEDIA_YUV_H_

#include <cstdint>

namespace denoised {

// Where to write; strides in bytes. Y has the size of the picture rounded up to even, U and V half
// of that.
struct YuvPlanes {
  uint8_t* y;
  uint8_t* u;
  uint8_t* v;
  int y_stride;
  int u_stride;
  int v_stride;
};

// BT.709 with limited range (16 to 235, 16 to 240), chroma sited left as H.264 has it by default:
// averaged over two rows, and 1-2-1 over the columns around an even one. Odd sizes repeat the last
// row or column. Rounded from fixed point, so every machine gives the same bytes.
void RgbToYuv420(const uint8_t* rgb, int64_t height, int64_t width, const YuvPlanes& out);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MEDIA_YUV_H_
