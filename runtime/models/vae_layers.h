// The building blocks of the Wan VAE decoder.
//
// Activations are [T, H, W, C], contiguous: one frame is one block of memory, a pixel's channels
// lie together. So the causal cache is two frames copied in front, a norm is a row, a 1x1x1
// convolution is a matrix product, and oneDNN gets the layout that it is fastest in. Batch is 1.
#ifndef DENOISED_RUNTIME_MODELS_VAE_LAYERS_H_
#define DENOISED_RUNTIME_MODELS_VAE_LAYERS_H_

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/attention/attention_layer.h"
#include "runtime/models/layers.h"

namespace denoised {

// `name`.gamma [channels, 1, ..] with so many axes of 1, as float32 [channels].
at::Tensor TakeGamma(const LoadOptions& from, const std::string& name, int64_t channels,
                     int trailing_axes);

// What a decode carries from chunk to chunk: one slot per causal convolution, in the order in which
// the network was loaded.
struct VaeState {
  std::vector<at::Tensor> tails;  // the last input frames of a convolution; undefined at first
  at::Tensor scratch;             // what MakeInput hands out
  bool first_chunk = true;        // the chunk that holds latent frame 0, alone
};

// A convolution over [T, H, W, C] whose time axis sees only the past: k_t - 1 frames of zeros (or
// of the previous chunk) in front, zeros around in space.
class CausalConv3d {
 public:
  CausalConv3d() = default;
  // Takes a slot of the state (`*slots` grows) where the kernel is longer than one frame.
  static CausalConv3d Take(const LoadOptions& from, const std::string& name, int64_t in,
                           int64_t out, std::array<int64_t, 3> kernel, size_t* slots);

  int64_t history() const { return frames_of_kernel_ - 1; }

  // Input with room: [history() + T, H, W, C], the caller fills the last T frames. In the state's
  // one scratch buffer: good until the next MakeInput.
  at::Tensor MakeInput(int64_t frames, int64_t height, int64_t width, VaeState* state,
                       const at::TensorOptions& options) const;
  // Runs on such an input: fills in the history, keeps the new tail. Returns [T, H, W, out].
  at::Tensor RunFilled(const at::Tensor& input, VaeState* state) const;
  // The same for a plain [T, H, W, C].
  at::Tensor Run(const at::Tensor& x, VaeState* state) const;

 private:
  int64_t frames_of_kernel_ = 1;
  size_t slot_ = 0;
  int64_t in_channels_ = 0;
  Convolution whole_;
  Convolution last_tap_;  // the kernel's last frame: all that a video's first meets but zeros
};

// x / |x| * sqrt(C) * gamma over the channels, then SiLU where `silu` is set. x and `out` [.., C],
// contiguous, of one dtype; gamma [C] float32. Rounds to the dtype after each step, as the
// reference does; the sum over channels and the exponential may differ in their last float32 bit.
void RmsNormInto(const at::Tensor& x, const at::Tensor& gamma, bool silu, const at::Tensor& out);

class VaeResBlock {
 public:
  static VaeResBlock Take(const LoadOptions& from, const std::string& name, int64_t in, int64_t out,
                          size_t* slots);
  at::Tensor Run(const at::Tensor& x, VaeState* state) const;

 private:
  at::Tensor gamma1_, gamma2_;  // [C]
  CausalConv3d conv1_, conv2_;
  Linear shortcut_;  // undefined: identity
};

// Self-attention over the pixels of each frame, one head.
class VaeAttention {
 public:
  static VaeAttention Take(const LoadOptions& from, const std::string& name, int64_t channels);
  at::Tensor Run(const at::Tensor& x) const;

 private:
  at::Tensor gamma_;
  Linear q_, k_, v_, proj_;
};

// Twice the height and width, and with `temporal` twice the frames (all but the video's first).
class VaeUpsample {
 public:
  static VaeUpsample Take(const LoadOptions& from, const std::string& name, int64_t in, int64_t out,
                          bool temporal, size_t* slots);
  at::Tensor Run(const at::Tensor& x, VaeState* state) const;

 private:
  bool temporal_ = false;
  CausalConv3d time_conv_;
  Convolution per_frame_;  // 3x3
};

// Wan 2.2's parameter-free shortcut: channels become pixels and frames.
at::Tensor DuplicateUp(const at::Tensor& x, int64_t out_channels, bool temporal, bool first_chunk);

// Channels (c, x, y) of a position become its patch of pixels; the reference puts x before y. x
// [T, H, W, C * patch_size^2].
at::Tensor Unpatchify(const at::Tensor& x, int64_t patch_size);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_VAE_LAYERS_H_
