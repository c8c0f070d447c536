#include "backends/attention_call.h"

#include <cmath>
#include <sstream>

#include "backends/error.h"

namespace denoised {
namespace {

std::string Shape(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.sizes() << " " << tensor.scalar_type();
  return text.str();
}

void CheckOne(const char* name, const at::Tensor& tensor, const AttentionInputs& in) {
  const bool defined = tensor.defined() && tensor.dim() == 4 && tensor.numel() > 0;
  if (!defined) {
    throw InvalidField(name, "wanted a [B, S, H, D] tensor with no empty axis; got " +
                                 (tensor.defined() ? Shape(tensor) : std::string("none")));
  }
  const at::Tensor& q = in.query;
  if (tensor.scalar_type() != q.scalar_type() || tensor.device() != q.device() ||
      tensor.size(0) != q.size(0) || tensor.size(2) != q.size(2) || tensor.size(3) != q.size(3)) {
    throw InvalidField(name, "wanted batch, heads, head size, dtype and device of query " +
                                 Shape(q) + "; got " + Shape(tensor));
  }
}

at::Tensor ToFourAxes(const at::Tensor& mask) {
  switch (mask.dim()) {
    case 2:
      return mask.unsqueeze(1).unsqueeze(1);  // [B, S_kv]
    case 3:
      return mask.unsqueeze(1);  // [B, S_q, S_kv]
    case 4:
      return mask;
    default:
      throw InvalidField("mask", "wanted 2, 3 or 4 axes; got " + Shape(mask));
  }
}

at::Tensor PadFront(const at::Tensor& mask, int64_t kv_len) {
  const int64_t missing = kv_len - mask.size(3);
  if (missing < 0) {
    throw InvalidField("mask", "wanted at most " + std::to_string(kv_len) +
                                   " keys on the last axis; got " + std::to_string(mask.size(3)));
  }
  if (missing == 0) return mask;
  std::vector<int64_t> shape = mask.sizes().vec();
  shape[3] = missing;
  const double attend = mask.scalar_type() == at::kBool ? 1.0 : 0.0;
  return at::cat({at::full(shape, attend, mask.options()), mask}, 3);
}

void CheckAlike(const AttentionInputs& inputs) {
  const std::vector<int64_t>& from = inputs.alike_from;
  if (from.empty()) return;
  if (static_cast<int64_t>(from.size()) != inputs.query.size(0)) {
    throw InvalidField("alike_from", "wanted one a batch row, " +
                                         std::to_string(inputs.query.size(0)) + "; got " +
                                         std::to_string(from.size()));
  }
  for (const int64_t key : from) {
    if (key >= 0 && key < inputs.key.size(1)) continue;
    throw InvalidField("alike_from", "wanted one of " + std::to_string(inputs.key.size(1)) +
                                         " keys; got " + std::to_string(key));
  }
}

}  // namespace

void CheckInputs(const AttentionInputs& inputs) {
  CheckOne("query", inputs.query, inputs);
  CheckOne("key", inputs.key, inputs);
  CheckOne("value", inputs.value, inputs);
  if (inputs.key.size(1) != inputs.value.size(1)) {
    throw InvalidField("value", "wanted as many tokens as key has, " +
                                    std::to_string(inputs.key.size(1)) + "; got " +
                                    std::to_string(inputs.value.size(1)));
  }
  if (!(std::isfinite(inputs.scale) && inputs.scale >= 0)) {
    throw InvalidField("scale", "wanted a positive number, or 0 for head_size^-0.5; got " +
                                    std::to_string(inputs.scale));
  }
  CheckAlike(inputs);
  if (!inputs.gate.defined()) return;
  CheckOne("gate", inputs.gate, inputs);
  if (inputs.gate.size(1) != inputs.query.size(1)) {
    throw InvalidField(
        "gate", "wanted the shape of query " + Shape(inputs.query) + "; got " + Shape(inputs.gate));
  }
}

at::Tensor HeadSizeInside(const at::Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : tensor.contiguous();
}

bool IsDefaultScale(double scale, int64_t head_size) {
  if (scale == 0) return true;
  return std::abs(scale * std::sqrt(static_cast<double>(head_size)) - 1.0) < 1e-6;
}

double SoftmaxScale(const AttentionInputs& inputs) {
  const int64_t head_size = inputs.query.size(3);
  return IsDefaultScale(inputs.scale, head_size) ? 1.0 / std::sqrt(static_cast<double>(head_size))
                                                 : inputs.scale;
}

at::Tensor NormaliseMask(const AttentionInputs& inputs) {
  if (!inputs.mask.defined()) return {};
  at::Tensor mask = inputs.mask.to(inputs.query.device());
  if (!mask.is_floating_point() && mask.scalar_type() != at::kBool) mask = mask.ne(0);
  mask = PadFront(ToFourAxes(mask), inputs.key.size(1));
  const std::array<int64_t, 4> wanted = {inputs.query.size(0), inputs.query.size(2),
                                         inputs.query.size(1), inputs.key.size(1)};
  for (int axis = 0; axis < 4; ++axis) {
    if (mask.size(axis) != 1 && mask.size(axis) != wanted[axis]) {
      throw InvalidField("mask", "wanted something broadcastable to [B, H, S_q, S_kv] = " +
                                     Shape(at::empty(wanted, at::device(at::kMeta))) + "; got " +
                                     Shape(inputs.mask));
    }
  }
  return mask;
}

}  // namespace denoised
