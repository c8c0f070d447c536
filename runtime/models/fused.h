// Elementwise steps of a DiT block, one pass over memory each.
//
// Every function gives the bits of the chain of ATen ops that its comment names: the same float32
// operations in the same order, one rounding to the tensor's dtype at the end. On a CPU they are
// AVX2 loops over rows, the sums on CUDA kernels, all else that very chain. Engine thread; parallel
// inside.
#ifndef DENOISED_RUNTIME_MODELS_FUSED_H_
#define DENOISED_RUNTIME_MODELS_FUSED_H_

#include <ATen/ATen.h>

namespace denoised {

// A block's hidden states, kept twice: in the model's dtype, and widened for the next norm.
struct Hidden {
  at::Tensor value;  // [B, S, D] in the model's dtype; undefined where only norms read it
  at::Tensor wide;   // the same numbers in float32; `value` itself where that is float32

  static Hidden From(const at::Tensor& value) { return {value, value.to(at::kFloat)}; }
};

// (x * (1 + scale) + shift).to(dtype). x [B, S, D] float32; scale_plus_one and shift float32
// [B, 1 or S, D].
at::Tensor Modulate(const at::Tensor& x, const at::Tensor& scale_plus_one, const at::Tensor& shift,
                    at::ScalarType dtype);

// (hidden.float() + update * gate).to(dtype). update [B, S, D] in the dtype of `hidden`; gate
// float32 [B, 1 or S, D].
Hidden AddGated(const Hidden& hidden, const at::Tensor& update, const at::Tensor& gate);

// hidden + update, in the dtype of `hidden`.
Hidden Add(const Hidden& hidden, const at::Tensor& update);

// Rotates the pairs (x0, x1), (x2, x3).. of x [B, S, H, D] by cos and sin [S, D / 2] (float32):
// (x0 * cos - x1 * sin, x0 * sin + x1 * cos), back in the dtype of x.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_FUSED_H_
