// The Wan VAE decoder on our packed convolutions: the same layers as vae_network.h puts together,
// computed depth first and, where it is asked to, band by band.
//
// Depth first: what a level makes of a chunk goes through the levels after it a few frames at a
// time, so that of the widest layers only those are alive; each causal convolution keeps the frames
// that it will see again. Bands: rows of the picture, each with as many rows around it as its
// layers see (fewer from layer to layer), decoded through all of time before the next; so the past
// is that of a band. The middle block, whose attention sees whole frames, is computed anew for
// each. Neither changes a bit. CPU, float32 and bfloat16; engine thread.
#ifndef DENOISED_RUNTIME_MODELS_VAE_PACKED_H_
#define DENOISED_RUNTIME_MODELS_VAE_PACKED_H_

#include <ATen/ATen.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/models/vae_conv.h"
#include "runtime/models/vae_layers.h"
#include "runtime/models/wan_vae.h"

namespace denoised {

class PackedResBlock {
 public:
  static PackedResBlock Take(const LoadOptions& from, const std::string& name, int64_t in,
                             int64_t out, size_t* slots);

  // The rows of x are those that `rows` are made of; x.normed is made where it is missing.
  Layered Run(const Layered& x, RowRange rows, const Layering& layering, VaePast* past) const;
  const at::Tensor& gamma() const { return gamma1_; }  // of the norm that x.normed has gone through

 private:
  at::Tensor gamma1_, gamma2_;  // float32 [C]
  VaeCausal conv1_, conv2_;
  std::optional<VaeConvolution> shortcut_;
};

class PackedVaeNetwork {
 public:
  // Takes decoder.* and post_quant_conv.* from the weights.
  PackedVaeNetwork(const WanVaeConfig& config, const LoadOptions& from);

  // Video frames of the next chunk of latents [T, h, w, z_dim], in order; the first chunk is one
  // frame. `rows` are of the last layer's positions, of patch_size pixels each. A decode of other
  // rows has a past of its own.
  using Sink = std::function<void(const at::Tensor& frame)>;  // [pixels, W, 3], not clamped
  void Run(const at::Tensor& latents, RowRange rows, bool first_chunk, VaePast* past,
           const Sink& sink) const;

  VaePast NewPast() const { return VaePast(slots_); }
  // Positions of the last layer to one of the latents.
  int64_t scale() const { return int64_t{1} << (up_blocks_.size() - 1); }

 private:
  struct UpBlock {
    std::vector<PackedResBlock> resnets;
    std::optional<VaeUpsampling> upsampling;
    std::optional<VaeCausal> time_conv;  // doubles the frames
    bool shortcut = false;               // Wan 2.2
    int64_t out_channels = 0;
  };
  // One chunk on its way up.
  struct Ascent {
    bool first_chunk;
    VaePast* past;
    const Sink* sink;
    std::vector<RowRange> wanted;  // of what each block gives
    RowRange rows;                 // of the last convolution
  };

  UpBlock TakeUpBlock(const WanVaeConfig& config, const LoadOptions& from, size_t index, int64_t in,
                      int64_t out);
  Layered RunMiddle(const at::Tensor& latents, VaePast* past) const;
  void RunFrom(size_t level, const Layered& x, const Ascent& ascent) const;
  Layered RunUpBlock(size_t level, const Layered& x, const Ascent& ascent) const;
  Layered Enlarge(const UpBlock& block, const Volume& x, const Volume& source, RowRange rows,
                  const Layering& layering, const Ascent& ascent) const;
  void RunOut(const Layered& x, const Ascent& ascent) const;
  const at::Tensor& GammaAfter(size_t level) const;

  size_t slots_ = 0;
  int64_t patch_size_ = 1;
  Linear post_quant_;
  VaeCausal conv_in_;
  PackedResBlock mid_first_, mid_last_;
  VaeAttention mid_attention_;
  std::vector<UpBlock> up_blocks_;
  at::Tensor gamma_out_;
  VaeCausal conv_out_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_VAE_PACKED_H_
