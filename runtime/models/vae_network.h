// The layers of the Wan VAE decoder, put together as a config says: the reference's operators in
// its order. Packed numerics have vae_packed.h.
#ifndef DENOISED_RUNTIME_MODELS_VAE_NETWORK_H_
#define DENOISED_RUNTIME_MODELS_VAE_NETWORK_H_

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "runtime/models/vae_layers.h"
#include "runtime/models/wan_vae.h"

namespace denoised {

// Immutable; a decode brings its own state.
class WanVaeNetwork {
 public:
  // Takes decoder.* and post_quant_conv.* from the weights.
  WanVaeNetwork(const WanVaeConfig& config, const LoadOptions& from);

  VaeState MakeState() const;

  // latents [T, h, w, z_dim] of the next chunk (the first chunk is one frame); returns video frames
  // [n, H, W, 3] as the last convolution gives them: not clamped yet.
  at::Tensor Run(const at::Tensor& latents, VaeState* state) const;

 private:
  struct UpBlock {
    std::vector<VaeResBlock> resnets;
    std::optional<VaeUpsample> upsample;
    bool shortcut = false;  // Wan 2.2
    bool temporal = false;
    int64_t out_channels = 0;
  };

  UpBlock TakeUpBlock(const WanVaeConfig& config, const LoadOptions& from, size_t index, int64_t in,
                      int64_t out);
  at::Tensor RunUpBlock(const UpBlock& block, const at::Tensor& x, VaeState* state) const;

  size_t slots_ = 0;
  int64_t patch_size_ = 1;
  Linear post_quant_;
  CausalConv3d conv_in_;
  VaeResBlock mid_first_, mid_last_;
  VaeAttention mid_attention_;
  std::vector<UpBlock> up_blocks_;
  at::Tensor gamma_out_;
  CausalConv3d conv_out_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_VAE_NETWORK_H_
