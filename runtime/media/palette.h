// A palette of at most 256 colours for one frame, and the frame in it. Torch-free.
#ifndef DENOISED_RUNTIME_MEDIA_PALETTE_H_
#define DENOISED_RUNTIME_MEDIA_PALETTE_H_

#include <array>
#include <cstdint>
#include <vector>

namespace denoised {

using Rgb = std::array<uint8_t, 3>;

struct PalettedFrame {
  std::vector<Rgb> palette;      // 1 to 256 colours
  std::vector<uint8_t> indices;  // [height, width]
};

// Exact where the frame has at most 256 colours. Else a median cut (Heckbert 1982) over 6 bits a
// channel, and Floyd-Steinberg error diffusion.
PalettedFrame MakePaletted(const uint8_t* rgb, int64_t height, int64_t width);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MEDIA_PALETTE_H_
