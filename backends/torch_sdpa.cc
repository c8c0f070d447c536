// TORCH_SDPA and NO_ATTENTION.
#include "backends/attention_call.h"
#include "backends/dense_backends.h"
#include "backends/error.h"

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

// [S_q, S_kv], lower triangle, for calls that have a mask as well.
at::Tensor CausalMask(const AttentionInputs& inputs) {
  const auto options = at::TensorOptions().dtype(at::kBool).device(inputs.query.device());
  return at::ones({inputs.query.size(1), inputs.key.size(1)}, options).tril();
}

at::Tensor And(const at::Tensor& mask, const at::Tensor& causal) {
  if (mask.scalar_type() == at::kBool) return mask.logical_and(causal);
  return at::where(causal, mask, -std::numeric_limits<double>::infinity()).to(mask.scalar_type());
}

}  // namespace

std::optional<std::string> TorchSdpaBackend::Supports(const AttentionSpec& spec,
                                                      const DeviceInfo& device) const {
  if (IsFloating(spec.dtype)) return std::nullopt;
  return "wanted a floating-point dtype; got " + std::string(DTypeName(spec.dtype));
}

at::Tensor TorchSdpaBackend::Forward(const AttentionInputs& inputs,
                                     const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  std::optional<at::Tensor> mask = MaskFor(inputs);
  const bool both = mask.has_value() && inputs.causal;
  if (both) mask = And(*mask, CausalMask(inputs));
  // A default scale is left to LibTorch, as diffusers leaves it.
  std::optional<double> scale;
  if (!IsDefaultScale(inputs.scale, inputs.query.size(3))) scale = inputs.scale;
  const at::Tensor out = at::scaled_dot_product_attention(
      inputs.query.permute({0, 2, 1, 3}), inputs.key.permute({0, 2, 1, 3}),
      inputs.value.permute({0, 2, 1, 3}), mask, /*dropout_p=*/0.0, inputs.causal && !both, scale);
  return out.permute({0, 2, 1, 3}).contiguous();
}

std::optional<std::string> NoAttentionBackend::Supports(const AttentionSpec& spec,
                                                        const DeviceInfo& device) const {
  return "NO_ATTENTION is a name that no device serves; ask for another backend";
}

at::Tensor NoAttentionBackend::Forward(const AttentionInputs& inputs,
                                       const AttentionMetadata* metadata) const {
  throw Error(StatusCode::kFailedPrecondition, "NO_ATTENTION serves no layer");
}

}  // namespace denoised
