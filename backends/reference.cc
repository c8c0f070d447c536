// REFERENCE: attention as the formula says, in float64.
#include <algorithm>
#include <limits>

#include "backends/attention_call.h"
#include "backends/dense_backends.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

// Scores held at once: 32 MB of float64.
constexpr int64_t kMaxScores = int64_t{1} << 22;

// Rows [first, first + rows) of a mask [1 or S_q, 1 or S_kv].
at::Tensor MaskRows(const at::Tensor& mask, int64_t first, int64_t rows) {
  return mask.size(0) == 1 ? mask : mask.narrow(0, first, rows);
}

void ApplyMask(at::Tensor& scores, const at::Tensor& mask) {
  if (mask.scalar_type() == at::kBool) {
    scores.masked_fill_(mask.logical_not(), -std::numeric_limits<double>::infinity());
  } else {
    scores.add_(mask.to(at::kDouble));
  }
}

// Key j is visible to query i where j <= i, both counted from the start, as LibTorch counts.
void ApplyCausal(at::Tensor& scores, int64_t first) {
  const auto options = at::TensorOptions().device(scores.device()).dtype(at::kLong);
  const at::Tensor rows = at::arange(first, first + scores.size(0), options).unsqueeze(1);
  const at::Tensor columns = at::arange(scores.size(1), options).unsqueeze(0);
  scores.masked_fill_(columns.gt(rows), -std::numeric_limits<double>::infinity());
}

// softmax over the last axis; a row whose scores are all hidden becomes zeros.
at::Tensor SoftmaxRows(const at::Tensor& scores, bool may_hide) {
  if (!may_hide) return at::softmax(scores, -1);
  const at::Tensor top = scores.amax(-1, /*keepdim=*/true);
  const at::Tensor nothing = top.eq(-std::numeric_limits<double>::infinity());
  const at::Tensor weights = scores.sub(top.masked_fill(nothing, 0.0)).exp_();
  return weights.div(weights.sum(-1, /*keepdim=*/true).masked_fill_(nothing, 1.0));
}

// One head: q [S_q, D], k and v [S_kv, D], mask undefined or [1 or S_q, 1 or S_kv].
void AttendHead(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const at::Tensor& mask, double scale, bool causal, at::Tensor out) {
  const at::Tensor keys = k.to(at::kDouble).t(), values = v.to(at::kDouble);
  const int64_t block = std::max<int64_t>(1, kMaxScores / k.size(0));
  for (int64_t first = 0; first < q.size(0); first += block) {
    StopPoint();
    const int64_t rows = std::min(block, q.size(0) - first);
    at::Tensor scores = at::mm(q.narrow(0, first, rows).to(at::kDouble), keys).mul_(scale);
    if (mask.defined()) ApplyMask(scores, MaskRows(mask, first, rows));
    if (causal) ApplyCausal(scores, first);
    out.narrow(0, first, rows).copy_(at::mm(SoftmaxRows(scores, mask.defined() || causal), values));
  }
}

}  // namespace

std::optional<std::string> ReferenceBackend::Supports(const AttentionSpec& spec,
                                                      const DeviceInfo& device) const {
  return std::nullopt;
}

AttentionCost ReferenceBackend::Estimate(const AttentionSpec& spec, const std::string&,
                                         int64_t rows) const {
  // Of one head in float64: keys, values and their source's copies; four copies of the scores.
  const int64_t scores = std::min(std::max(kMaxScores, spec.kv_len), spec.q_len * spec.kv_len);
  const int64_t numbers = 4 * scores + (3 * spec.kv_len + 2 * spec.q_len) * spec.head_size;
  return {numbers * 8, DenseMultiplyAdds(spec, rows)};
}

at::Tensor ReferenceBackend::Forward(const AttentionInputs& inputs,
                                     const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  const at::Tensor mask = NormaliseMask(inputs);
  const at::Tensor& q = inputs.query;
  at::Tensor out = at::empty(q.sizes(), q.options(), at::MemoryFormat::Contiguous);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(2); ++h) {
      const auto head = [&](const at::Tensor& x) { return x.select(0, b).select(1, h); };
      at::Tensor head_mask;
      if (mask.defined()) {
        head_mask = mask.select(0, mask.size(0) == 1 ? 0 : b).select(0, mask.size(1) == 1 ? 0 : h);
      }
      AttendHead(head(q), head(inputs.key), head(inputs.value), head_mask, SoftmaxScale(inputs),
                 inputs.causal, head(out));
    }
  }
  return out;
}

}  // namespace denoised
