// Small pictures of latents by a linear map of their channels. Torch-free; any thread.
#ifndef DENOISED_RUNTIME_MEDIA_PREVIEW_H_
#define DENOISED_RUNTIME_MEDIA_PREVIEW_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/job.h"

namespace denoised {

// From the channels of a latent position to the mean colour of the pixels that it becomes, -1 to 1.
struct LatentColours {
  std::vector<std::array<float, 3>> of_channel;  // empty: a model without previews
  std::array<float, 3> constant = {};
};

// A PNG of the latents [1, C, f, h, w] float32, a pixel a position: their frames in a grid that is
// about square, made smaller where the whole would be wider or higher than `max_side` pixels, and
// fewer frames, evenly spread, where each would be too small to see. Numbers that are not finite
// are black. Throws INVALID_ARGUMENT where the latents are no such tensor or `colours` is for other
// channels.
std::string EncodePreview(const LatentColours& colours, const HostTensor& latents,
                          int64_t max_side);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MEDIA_PREVIEW_H_
