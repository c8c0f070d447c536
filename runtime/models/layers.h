// The two layers that every model here shares, and the checks on what comes in. ATen; engine
// thread.
#ifndef DENOISED_RUNTIME_MODELS_LAYERS_H_
#define DENOISED_RUNTIME_MODELS_LAYERS_H_

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <string>

#include "backends/attention_spec.h"
#include "runtime/loaders/weights.h"

namespace denoised {

// Where and how the tensors of a component are taken from its files.
struct LoadOptions {
  Weights* weights;
  at::ScalarType dtype;  // of every tensor that a model does not keep in float32
  at::Device device;

  at::Tensor Take(const std::string& name, at::IntArrayRef shape) const {
    return weights->Take(name, shape, dtype, device);
  }
  at::Tensor TakeFloat(const std::string& name, at::IntArrayRef shape) const {
    return weights->Take(name, shape, at::kFloat, device);
  }
};

// y = x W^T + b over the last axis. Cheap to copy (tensors are handles).
struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out], or undefined

  // Takes `name`.weight and, with `with_bias`, `name`.bias.
  static Linear Take(const LoadOptions& from, const std::string& name, int64_t in, int64_t out,
                     bool with_bias = true);
  // time_embedder and the like: float32 whatever the model's dtype is.
  static Linear TakeFloat(const LoadOptions& from, const std::string& name, int64_t in,
                          int64_t out);

  at::Tensor operator()(const at::Tensor& x) const { return at::linear(x, weight, bias); }
};

// The torch-free name of a floating dtype. INVALID_ARGUMENT for others than float32, bfloat16,
// float16 and float64.
DType SpecDType(at::ScalarType dtype);

// INVALID_ARGUMENT "`what`: wanted a 5-axis tensor, came [..]" unless x has `dims` axes.
void RequireDim(const at::Tensor& x, int64_t dims, const std::string& what);
// INVALID_ARGUMENT unless x.size(axis) == size.
void RequireSize(const at::Tensor& x, int64_t axis, int64_t size, const std::string& what);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_LAYERS_H_
