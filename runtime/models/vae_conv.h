// The convolutions of the packed Wan VAE decoder (backends/kernels/conv.h), on rows of frames.
//
// A frame is [rows, W, C]; each is memory of its own, so that the past of a causal convolution is a
// list of frames and no copy. Every convolution computes the rows that it is asked for: a decoder
// that makes a band of a picture asks each layer for what the next one sees, and the bits of a row
// are those of the whole picture's. CPU, float32 and bfloat16; engine thread.
#ifndef DENOISED_RUNTIME_MODELS_VAE_CONV_H_
#define DENOISED_RUNTIME_MODELS_VAE_CONV_H_

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backends/kernels/conv.h"
#include "backends/kernels/conv_winograd.h"
#include "runtime/models/layers.h"
#include "runtime/models/vae_rows.h"

namespace denoised {

// The same rows of consecutive frames of one layer, each [rows, W, C]; a row's positions lie one
// after the other, `stride(1)` apart.
struct Volume {
  std::vector<at::Tensor> frames;  // undefined: a frame of zeros
  RowRange rows;
  int64_t height = 0;  // of a whole frame
};

// What is kept of a layer's result: the numbers themselves, and those that the next layer's norm
// and SiLU make of them.
struct Layered {
  Volume plain, normed;  // without frames where not wished for
};
struct Layering {
  bool plain = true;
  at::Tensor gamma;  // float32 [C] of the norm; undefined: none
};

class VaeConvolution {
 public:
  VaeConvolution() = default;
  // weight [out, in, kt, kh, kw] of the numbers' dtype, bias [out].
  VaeConvolution(const at::Tensor& weight, const at::Tensor& bias);

  // The last frames.size() - kt + 1 frames, zeros around in space. `added` (or null) has the
  // result's channels, and its rows among others.
  Layered Run(const Volume& in, RowRange rows, const Layering& layering, const Volume* added) const;
  // What it holds beside a weight of this shape.
  static int64_t PointBytes(at::IntArrayRef weight, at::ScalarType dtype);
  // The weight that it was made from.
  at::Tensor Weight() const;

 private:
  friend class VaeUpsampling;
  struct Target;
  void Into(const Volume& in, RowRange rows, int64_t first_row, int64_t first_column,
            const Target& target) const;

  std::shared_ptr<const kernels::WeightPanels> panels_;
  std::shared_ptr<const kernels::WinogradWeight> winograd_;  // where it suits, what Run takes
  at::Tensor bias_;                                          // float32, whole panels
  kernels::Taps taps_;
  int64_t in_channels_ = 0;
};

// The past of the causal convolutions of one decode, one slot each: at most kt - 1 frames.
using VaePast = std::vector<std::vector<at::Tensor>>;

// A convolution whose time axis sees only the past: frames of the call before, zeros at first.
class VaeCausal {
 public:
  VaeCausal() = default;
  // Takes `name`.weight, `name`.bias and a slot of the past (`*slots` grows).
  static VaeCausal Take(const LoadOptions& from, const std::string& name, int64_t in, int64_t out,
                        std::array<int64_t, 3> kernel, size_t* slots);

  Layered Run(const Volume& in, RowRange rows, const Layering& layering, VaePast* past,
              const Volume* added = nullptr) const;

 private:
  VaeConvolution convolution_;
  size_t history_ = 0, slot_ = 0;
};

// Nearest doubling of height and width and the 3x3 convolution after it in one: a result at an even
// or odd row and column sees 2x2 positions, by kernels whose taps are sums of the 3x3 one's.
class VaeUpsampling {
 public:
  VaeUpsampling() = default;
  // weight [out, in, 3, 3], bias [out].
  VaeUpsampling(const at::Tensor& weight, const at::Tensor& bias);

  // `rows` are of the doubled frame.
  Layered Run(const Volume& in, RowRange rows, const Layering& layering, const Volume* added) const;

 private:
  std::array<VaeConvolution, 4> phases_;  // row, then column: even, odd
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_VAE_CONV_H_
