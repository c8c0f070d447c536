// TORCH_SDPA and NO_ATTENTION.
#include <cmath>

#include "backends/attention_call.h"
#include "backends/dense_backends.h"
#include "backends/error.h"
#include "backends/intra_op.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

bool IsFloating(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16 ||
         dtype == DType::kFloat64;
}

// LibTorch wants an additive mask in the dtype of the query.
std::optional<at::Tensor> MaskFor(const AttentionInputs& inputs) {
  at::Tensor mask = NormaliseMask(inputs);
  if (!mask.defined()) return std::nullopt;
  return mask.is_floating_point() ? mask.to(inputs.query.scalar_type()) : mask;
}

// A call of more multiplications than this (seconds on two cores) goes to LibTorch head by head,
// with a stop point before each. A head's bits do not depend on the others.
constexpr double kMostProductsAtOnce = 1 << 30;

at::Tensor HeadByHead(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      bool causal, std::optional<double> scale) {
  at::Tensor out = at::empty_like(query);
  for (int64_t head = 0; head < query.size(1); ++head) {
    StopPoint();
    const auto one = [head](const at::Tensor& x) { return x.narrow(1, head, 1); };
    one(out).copy_(at::scaled_dot_product_attention(one(query), one(key), one(value), std::nullopt,
                                                    /*dropout_p=*/0.0, causal, scale));
  }
  return out;
}

bool GoesHeadByHead(const AttentionInputs& inputs) {
  const double products =
      static_cast<double>(inputs.query.numel()) * static_cast<double>(inputs.key.size(1));
  return inputs.query.is_cpu() && products > kMostProductsAtOnce;
}

// [S_q, S_kv], lower triangle, for calls that have a mask as well.
at::Tensor CausalMask(const AttentionInputs& inputs) {
  const auto options = at::TensorOptions().dtype(at::kBool).device(inputs.query.device());
  return at::ones({inputs.query.size(1), inputs.key.size(1)}, options).tril();
}

at::Tensor And(const at::Tensor& mask, const at::Tensor& causal) {
  if (mask.scalar_type() == at::kBool) return mask.logical_and(causal);
  return at::where(causal, mask, -std::numeric_limits<double>::infinity()).to(mask.scalar_type());
}

// LibTorch's CPU kernel for 16 bits forgets keys that are infinite (its float32 one gives NaN, as
// it should). A sum tells cheaply: it is not finite where one of them is not.
bool LosesKeys(const AttentionInputs& inputs) {
  const at::ScalarType dtype = inputs.key.scalar_type();
  if (!inputs.key.is_cpu() || (dtype != at::kBFloat16 && dtype != at::kHalf)) return false;
  return !std::isfinite(inputs.key.sum(at::kFloat).item<float>());
}

AttentionInputs Widened(AttentionInputs inputs) {
  for (at::Tensor* tensor : {&inputs.query, &inputs.key, &inputs.value}) {
    *tensor = tensor->to(at::kFloat);
  }
  inputs.gate = at::Tensor();
  return inputs;
}

}  // namespace

std::optional<std::string> TorchSdpaBackend::Supports(const AttentionSpec& spec,
                                                      const DeviceInfo& device) const {
  if (IsFloating(spec.dtype)) return std::nullopt;
  return "wanted a floating-point dtype; got " + std::string(DTypeName(spec.dtype));
}

AttentionCost TorchSdpaBackend::Estimate(const AttentionSpec& spec, const std::string&,
                                         int64_t rows) const {
  // A copy of the result, and what its kernel packs: in this build about what ours does.
  return {
      QueryBytes(spec, rows, static_cast<int64_t>(DTypeSize(spec.dtype))) + KernelBytes(spec, rows),
      DenseMultiplyAdds(spec, rows)};
}

at::Tensor TorchSdpaBackend::Forward(const AttentionInputs& inputs,
                                     const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  const ScopedLibTorchThreads threads;
  if (LosesKeys(inputs)) {
    return Forward(Widened(inputs), metadata).to(inputs.query.scalar_type());
  }
  std::optional<at::Tensor> mask = MaskFor(inputs);
  const bool both = mask.has_value() && inputs.causal;
  if (both) mask = And(*mask, CausalMask(inputs));
  // A default scale is left to LibTorch, as diffusers leaves it.
  std::optional<double> scale;
  if (!IsDefaultScale(inputs.scale, inputs.query.size(3))) scale = inputs.scale;
  const at::Tensor query = inputs.query.permute({0, 2, 1, 3});
  const at::Tensor key = inputs.key.permute({0, 2, 1, 3});
  const at::Tensor value = inputs.value.permute({0, 2, 1, 3});
  const bool causal = inputs.causal && !both;
  const at::Tensor out =
      !mask && GoesHeadByHead(inputs)
          ? HeadByHead(query, key, value, causal, scale)
          : at::scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale);
  return out.permute({0, 2, 1, 3}).contiguous();
}

std::optional<std::string> NoAttentionBackend::Supports(const AttentionSpec& spec,
                                                        const DeviceInfo& device) const {
  return "NO_ATTENTION is a name that no device serves; ask for another backend";
}

AttentionCost NoAttentionBackend::Estimate(const AttentionSpec&, const std::string&,
                                           int64_t) const {
  return {};
}

at::Tensor NoAttentionBackend::Forward(const AttentionInputs& inputs,
                                       const AttentionMetadata* metadata) const {
  throw Error(StatusCode::kFailedPrecondition, "NO_ATTENTION serves no layer");
}

}  // namespace denoised
