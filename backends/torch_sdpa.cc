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

// Whether all are numbers: the least and the largest pass on what is not. So does a sum, which is
// quicker in 16 bits, but may also be infinite by itself.
bool IsFinite(const at::Tensor& x) {
  if (x.element_size() == 2 && std::isfinite(x.sum(at::kFloat).item<float>())) return true;
  const auto [least, most] = at::aminmax(x);
  return std::isfinite(least.item<double>()) && std::isfinite(most.item<double>());
}

// Whether LibTorch's CPU kernels would lose or spread what is not finite in these inputs: where
// pairs are hidden, they multiply it by a weight of 0; in 16 bits they forget keys.
bool GoesAstray(const AttentionInputs& inputs) {
  const at::ScalarType dtype = inputs.key.scalar_type();
  const bool hides = inputs.mask.defined() || inputs.causal;
  if (!hides && dtype != at::kBFloat16 && dtype != at::kHalf) return false;
  if (!IsFinite(inputs.key)) return true;
  return hides && !(IsFinite(inputs.query) && IsFinite(inputs.value));
}

// One row of the batch; the mask has four axes or none.
AttentionInputs RowOf(const AttentionInputs& inputs, int64_t row) {
  AttentionInputs one = inputs;
  one.gate = at::Tensor();
  one.alike_from.clear();
  for (at::Tensor* x : {&one.query, &one.key, &one.value}) *x = x->narrow(0, row, 1);
  if (one.mask.defined() && one.mask.size(0) > 1) one.mask = one.mask.narrow(0, row, 1);
  return one;
}

at::Tensor Call(const AttentionInputs& inputs) {
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

AttentionInputs Widened(AttentionInputs inputs) {
  for (at::Tensor* x : {&inputs.query, &inputs.key, &inputs.value}) *x = x->to(at::kFloat);
  return inputs;
}

// A row that would go astray. Where nothing is hidden LibTorch's float32 kernel does it right, and
// as fast as any.
at::Tensor CallAstray(const AttentionInputs& inputs) {
  if (inputs.mask.defined() || inputs.causal) return ReferenceBackend().Forward(inputs, nullptr);
  return Call(Widened(inputs)).to(inputs.query.scalar_type());
}

// Each row of the batch by itself.
at::Tensor RowByRow(AttentionInputs inputs) {
  inputs.mask = NormaliseMask(inputs);
  std::vector<at::Tensor> out;
  for (int64_t row = 0; row < inputs.query.size(0); ++row) {
    const AttentionInputs one = RowOf(inputs, row);
    out.push_back(GoesAstray(one) ? CallAstray(one) : Call(one));
  }
  return out.size() == 1 ? out.front() : at::cat(out);
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
  return inputs.query.is_cpu() && GoesAstray(inputs) ? RowByRow(inputs) : Call(inputs);
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
