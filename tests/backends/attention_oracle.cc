#include "tests/backends/attention_oracle.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace denoised {

at::Tensor OracleAttention(const AttentionInputs& inputs) {
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  const auto heads_first = [](const at::Tensor& x) {
    return x.to(at::kDouble).permute({0, 2, 1, 3});
  };
  const at::Tensor q = heads_first(inputs.query), k = heads_first(inputs.key);
  const double scale =
      inputs.scale != 0 ? inputs.scale : 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  at::Tensor scores = at::matmul(q, k.transpose(2, 3)) * scale;
  if (inputs.mask.defined() && inputs.mask.scalar_type() == at::kBool) {
    scores = scores.masked_fill(inputs.mask.logical_not(), kMinusInfinity);
  } else if (inputs.mask.defined()) {
    scores = scores + inputs.mask.to(at::kDouble);
  }
  if (inputs.causal) {
    const at::Tensor visible = at::ones({scores.size(2), scores.size(3)}, at::kBool).tril();
    scores = scores.masked_fill(visible.logical_not(), kMinusInfinity);
  }
  return at::matmul(at::softmax(scores, -1), heads_first(inputs.value)).permute({0, 2, 1, 3});
}

double RelativeL2(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor want = b.to(at::kDouble);
  return (a.to(at::kDouble) - want).norm().item<double>() / want.norm().item<double>();
}

double CosineSimilarity(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.to(at::kDouble).flatten(), y = b.to(at::kDouble).flatten();
  return at::dot(x, y).item<double>() / (x.norm().item<double>() * y.norm().item<double>());
}

double ExactTolerance(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
      return 0.75 * 0x1p-8;
    case at::kHalf:
      return 0.75 * 0x1p-11;
    default:
      return 1e-5;
  }
}

bool SameBits(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

}  // namespace denoised
