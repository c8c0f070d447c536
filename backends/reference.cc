// REFERENCE: attention as the formula says, in float64.
#include <algorithm>
#include <limits>

#include "backends/attention_call.h"
#include "backends/dense_backends.h"
#include "backends/intra_op.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

// Scores held at once: 32 MB of float64.
constexpr int64_t kMaxScores = int64_t{1} << 22;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Rows [first, first + rows) of a mask [1 or S_q, 1 or S_kv].
at::Tensor MaskRows(const at::Tensor& mask, int64_t first, int64_t rows) {
  return mask.size(0) == 1 ? mask : mask.narrow(0, first, rows);
}

// Key j is visible to query i where j <= i, both counted from the start, as LibTorch counts.
at::Tensor HiddenByOrder(const at::Tensor& scores, int64_t first) {
  const auto options = at::TensorOptions().device(scores.device()).dtype(at::kLong);
  const at::Tensor rows = at::arange(first, first + scores.size(0), options).unsqueeze(1);
  return at::arange(scores.size(1), options).unsqueeze(0).gt(rows);
}

// Which pairs of these rows are hidden, bool [rows, S_kv]; undefined where none can be.
at::Tensor HiddenPairs(const at::Tensor& scores, const at::Tensor& mask, bool causal,
                       int64_t first) {
  at::Tensor hidden;
  if (mask.defined()) {
    hidden = mask.scalar_type() == at::kBool ? mask.logical_not() : mask.eq(-kInfinity);
  }
  if (causal) {
    const at::Tensor later = HiddenByOrder(scores, first);
    hidden = hidden.defined() ? hidden.logical_or(later) : later;
  }
  return hidden.defined() ? hidden.expand(scores.sizes()) : hidden;
}

// Scratch of a call in float64, made once: what came and went with every head would leave gaps in
// the heap.
struct Scratch {
  explicit Scratch(const AttentionInputs& inputs)
      : options(inputs.query.options().dtype(at::kDouble)),
        queries(at::empty({inputs.query.size(1), inputs.query.size(3)}, options)),
        keys(at::empty({inputs.key.size(1), inputs.key.size(3)}, options)),
        values(at::empty_like(keys)),
        block(std::clamp<int64_t>(kMaxScores / keys.size(0), 1, queries.size(0))),
        scores(at::empty({block, keys.size(0)}, options)),
        weights(at::empty_like(scores)),
        results(at::empty_like(queries)) {}

  const at::TensorOptions options;
  const at::Tensor queries, keys, values;  // [S_q, D], [S_kv, D], [S_kv, D]
  const int64_t block;                     // queries at once
  const at::Tensor scores, weights;        // [block, S_kv]
  const at::Tensor results;                // [S_q, D]
};

// softmax over the last axis of scores whose hidden pairs are -inf; a row of which all are hidden
// becomes zeros, one of which all others are -inf becomes NaN.
void SoftmaxRows(at::Tensor weights, const at::Tensor& scores, const at::Tensor& hidden) {
  if (!hidden.defined()) {
    at::softmax_out(weights, scores, -1);
    return;
  }
  const at::Tensor top = scores.amax(-1, /*keepdim=*/true);
  const at::Tensor nothing = hidden.all(-1, /*keepdim=*/true);
  at::sub_out(weights, scores, top.masked_fill(nothing, 0.0)).exp_();
  weights.div_(weights.sum(-1, /*keepdim=*/true).masked_fill_(nothing, 1.0));
}

// Adds what is not finite in `values` to the rows that attend it.
void AddOddValues(const at::Tensor& values, const at::Tensor& hidden, const at::Tensor& results) {
  const at::Tensor attended = hidden.logical_not().to(at::kDouble);
  const auto add = [&](double odd, const at::Tensor& where) {
    const at::Tensor reached = at::mm(attended, where.to(at::kDouble)).gt(0);
    results.add_(at::zeros_like(results).masked_fill_(reached, odd));
  };
  add(std::numeric_limits<double>::quiet_NaN(), values.isnan());
  add(kInfinity, values.eq(kInfinity));
  add(-kInfinity, values.eq(-kInfinity));
}

// Values that are not finite are in no product with a weight of 0, which would be NaN.
void SumValues(const at::Tensor& weights, const at::Tensor& values, const at::Tensor& hidden,
               at::Tensor results) {
  const at::Tensor odd = hidden.defined() ? values.isfinite().logical_not() : at::Tensor();
  if (!odd.defined() || !odd.any().item<bool>()) {
    at::mm_out(results, weights, values);
    return;
  }
  at::mm_out(results, weights, values.masked_fill(odd, 0.0));
  AddOddValues(values, hidden, results);
}

// One head, its queries, keys and values in the scratch; mask undefined or [1 or S_q, 1 or S_kv].
void AttendHead(const Scratch& scratch, const at::Tensor& mask, double scale, bool causal) {
  const at::Tensor keys = scratch.keys.t();
  for (int64_t first = 0; first < scratch.queries.size(0); first += scratch.block) {
    StopPoint();
    const int64_t rows = std::min(scratch.block, scratch.queries.size(0) - first);
    at::Tensor scores = scratch.scores.narrow(0, 0, rows);
    at::mm_out(scores, scratch.queries.narrow(0, first, rows), keys).mul_(scale);
    const at::Tensor some = mask.defined() ? MaskRows(mask, first, rows) : mask;
    if (some.defined() && some.is_floating_point()) scores.add_(some.to(at::kDouble));
    const at::Tensor hidden = HiddenPairs(scores, some, causal, first);
    if (hidden.defined()) scores.masked_fill_(hidden, -kInfinity);  // also where it is no number
    const at::Tensor weights = scratch.weights.narrow(0, 0, rows);
    SoftmaxRows(weights, scores, hidden);
    SumValues(weights, scratch.values, hidden, scratch.results.narrow(0, first, rows));
  }
}

}  // namespace

std::optional<std::string> ReferenceBackend::Supports(const AttentionSpec& spec,
                                                      const DeviceInfo& device) const {
  return std::nullopt;
}

AttentionCost ReferenceBackend::Estimate(const AttentionSpec& spec, const std::string&,
                                         int64_t rows) const {
  // Of one head in float64: keys, values, queries, results; scores, weights and a mask's copies.
  const int64_t scores = std::min(std::max(kMaxScores, spec.kv_len), spec.q_len * spec.kv_len);
  const int64_t numbers = 4 * scores + (2 * spec.kv_len + 2 * spec.q_len) * spec.head_size;
  return {numbers * 8, DenseMultiplyAdds(spec, rows)};
}

at::Tensor ReferenceBackend::Forward(const AttentionInputs& inputs,
                                     const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  const at::Tensor mask = NormaliseMask(inputs);
  const at::Tensor& q = inputs.query;
  at::Tensor out = at::empty(q.sizes(), q.options(), at::MemoryFormat::Contiguous);
  const ScopedLibTorchThreads threads;
  const Scratch scratch(inputs);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(2); ++h) {
      const auto head = [&](const at::Tensor& x) { return x.select(0, b).select(1, h); };
      at::Tensor head_mask;
      if (mask.defined()) {
        head_mask = mask.select(0, mask.size(0) == 1 ? 0 : b).select(0, mask.size(1) == 1 ? 0 : h);
      }
      scratch.queries.copy_(head(q));
      scratch.keys.copy_(head(inputs.key));
      scratch.values.copy_(head(inputs.value));
      AttendHead(scratch, head_mask, SoftmaxScale(inputs), inputs.causal);
      head(out).copy_(scratch.results);
    }
  }
  return out;
}

}  // namespace denoised
