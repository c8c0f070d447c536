// Which part of the decoder's work is done at once: rows of frames and frames of a level. Shared by
// the decoder (vae_packed.h) and the formula of its memory (model_bytes.h). Pure.
#ifndef DENOISED_RUNTIME_MODELS_VAE_ROWS_H_
#define DENOISED_RUNTIME_MODELS_VAE_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

namespace denoised {

// Rows [first, last) of a frame.
struct RowRange {
  int64_t first = 0, last = 0;

  int64_t size() const { return last - first; }
  // With `by` more on both sides, as far as a frame of `height` has them.
  RowRange Grown(int64_t by, int64_t height) const {
    return {std::max<int64_t>(0, first - by), std::min(height, last + by)};
  }
  // The rows that make these where height doubles (nearest) before a kernel of three rows.
  RowRange BeforeDoubling(int64_t height) const {
    return {std::max<int64_t>(0, (first - 1) / 2), std::min(height, last / 2 + 1)};
  }
};

// Rows of band `index` of `bands` of a frame.
inline RowRange BandOf(int64_t height, int64_t index, int64_t bands) {
  return {height * index / bands, height * (index + 1) / bands};
}

// Rows around its result that a residual block sees.
inline constexpr int64_t kResBlockGrowth = 2;

// Back from the last convolution's `rows`: what each of `levels` up blocks, of `resnets` residual
// blocks each, must give so that those after it can. All but the last double the height.
inline std::vector<RowRange> RowsOfLevels(int64_t levels, int64_t resnets, int64_t latent_height,
                                          RowRange rows) {
  std::vector<RowRange> wanted(static_cast<size_t>(levels));
  RowRange next = rows.Grown(1, latent_height << (levels - 1));
  for (int64_t level = levels - 1; level >= 0; --level) {
    wanted[static_cast<size_t>(level)] = next;
    const int64_t height = latent_height << level;  // before it doubles
    const RowRange made = level + 1 < levels ? next.BeforeDoubling(height) : next;
    next = made.Grown(resnets * kResBlockGrowth, height);
  }
  return wanted;
}

// Frames that a level takes at once: enough to keep the threads busy, however small they are.
inline int64_t FramesAtOnce(int64_t positions_a_frame) {
  constexpr int64_t kPositions = 8192;
  return std::max<int64_t>(1, kPositions / positions_a_frame);
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_VAE_ROWS_H_
