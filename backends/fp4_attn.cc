// SAGE_ATTN_THREE and ATTN_QAT_INFER: FP4 numerics, emulated.
#include <algorithm>

#include "backends/attention_call.h"
#include "backends/quantised_backends.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

constexpr int64_t kScaleGroup = 16;
constexpr int64_t kQueryBlock = 128;  // SageAttention3 smooths queries by this many
constexpr double kLargestE2m1 = 6.0;
constexpr double kLargestE4m3 = 448.0;

// Magnitudes 0, .5, 1, 1.5, 2, 3, 4, 6.
at::Tensor RoundToE2m1(const at::Tensor& x) {
  const at::Tensor size = x.abs();
  at::Tensor step = at::full_like(size, 0.5);
  step.masked_fill_(size.ge(2), 1.0).masked_fill_(size.ge(4), 2.0);
  return size.div(step).round().mul(step).clamp_max(kLargestE2m1) * x.sign();
}

at::Tensor RoundToE4m3(const at::Tensor& x) {
  return x.clamp_max(kLargestE4m3).to(at::kFloat).to(at::kFloat8_e4m3fn).to(at::kDouble);
}

// softmax numerator of one block of queries, times values, over its sum. All float64.
struct HeadOperands {
  at::Tensor query;   // [S_q, D]
  at::Tensor key;     // [S_kv, D], smoothed or not
  at::Tensor key4;    // the same in FP4
  at::Tensor value4;  // [S_kv, D] in FP4, groups along the keys that a product sums over
};

at::Tensor Scores(const HeadOperands& head, int64_t first, int64_t rows, bool smooth) {
  const at::Tensor query = head.query.narrow(0, first, rows);
  if (!smooth) return at::mm(RoundToNvfp4(query), head.key4.t());
  const at::Tensor mean = query.mean(0, /*keepdim=*/true);
  return at::mm(RoundToNvfp4(query - mean), head.key4.t()) + at::mm(mean, head.key.t());
}

// Probabilities in FP4; two levels: each row is stretched to the widest range a group can have.
at::Tensor RoundProbabilities(const at::Tensor& p, bool two_levels) {
  if (!two_levels) return RoundToNvfp4(p);
  const at::Tensor level = p.amax(-1, /*keepdim=*/true) / (kLargestE4m3 * kLargestE2m1);
  return RoundToNvfp4(p / level) * level;
}

void AttendHead(const HeadOperands& head, double scale, bool smooth, at::Tensor out) {
  for (int64_t first = 0; first < head.query.size(0); first += kQueryBlock) {
    StopPoint();
    const int64_t rows = std::min(kQueryBlock, head.query.size(0) - first);
    const at::Tensor scores = Scores(head, first, rows, smooth) * scale;
    const at::Tensor p = at::exp(scores - scores.amax(-1, /*keepdim=*/true));
    const at::Tensor sums = p.sum(-1, /*keepdim=*/true);
    out.narrow(0, first, rows).copy_(at::mm(RoundProbabilities(p, smooth), head.value4) / sums);
  }
}

}  // namespace

at::Tensor RoundToNvfp4(const at::Tensor& x) {
  const int64_t length = x.size(-1), padding = (kScaleGroup - length % kScaleGroup) % kScaleGroup;
  std::vector<int64_t> grouped = x.sizes().vec();
  grouped.back() = (length + padding) / kScaleGroup;
  grouped.push_back(kScaleGroup);
  const at::Tensor groups = at::constant_pad_nd(x.to(at::kDouble), {0, padding}).reshape(grouped);
  const at::Tensor scale = RoundToE4m3(groups.abs().amax(-1, /*keepdim=*/true) / kLargestE2m1);
  const at::Tensor divisor = scale.masked_fill(scale.eq(0), 1.0);
  const at::Tensor rounded = RoundToE2m1(groups / divisor) * scale;
  return rounded.flatten(-2).narrow(-1, 0, length);
}

std::optional<std::string> Fp4Backend::Supports(const AttentionSpec& spec,
                                                const DeviceInfo& device) const {
  if (device.type != DeviceInfo::Type::kCpu) {
    return "its FP4 numerics are emulated on the CPU only; no kernel for Blackwell in this build";
  }
  if (spec.has_mask) return "it takes no attention mask";
  if (spec.causal) return "it is not causal";
  return std::nullopt;
}

at::Tensor Fp4Backend::Forward(const AttentionInputs& inputs,
                               const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  const at::Tensor& q = inputs.query;
  at::Tensor out = at::empty(q.sizes(), q.options(), at::MemoryFormat::Contiguous);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(2); ++h) {
      const auto rows = [&](const at::Tensor& x) {
        return x.select(0, b).select(1, h).to(at::kDouble);
      };
      HeadOperands head{rows(q), rows(inputs.key), {}, {}};
      if (Smooths()) head.key = head.key - head.key.mean(0, /*keepdim=*/true);
      head.key4 = RoundToNvfp4(head.key);
      head.value4 = RoundToNvfp4(rows(inputs.value).t()).t();
      AttendHead(head, SoftmaxScale(inputs), Smooths(), out.select(0, b).select(1, h));
    }
  }
  return out;
}

}  // namespace denoised
