// Latents as tokens, rows of patches, and back: copies, no arithmetic. Our own loops on a CPU,
// where ATen walks eight axes number by number. Any dtype of 2, 4 or 8 bytes; engine thread;
// parallel inside.
#ifndef DENOISED_RUNTIME_MODELS_PATCHES_H_
#define DENOISED_RUNTIME_MODELS_PATCHES_H_

#include <ATen/ATen.h>

#include <array>
#include <cstdint>

namespace denoised {

using PatchSize = std::array<int64_t, 3>;  // T, H, W

// x [B, C, F, H, W], its axes multiples of the patch, into out [B, S, C * volume] of the same
// dtype, both dense and on the CPU: the numbers of each token's patch, channel outermost.
void TokensFromLatents(const at::Tensor& x, const PatchSize& patch, const at::Tensor& out);

// rows [B, S, volume * C], the channel innermost, S tokens of `grid` (T, H, W): the latents
// [B, C, F, H, W]. On any device.
at::Tensor LatentsFromTokens(const at::Tensor& rows, const std::array<int64_t, 3>& grid,
                             const PatchSize& patch);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_PATCHES_H_
