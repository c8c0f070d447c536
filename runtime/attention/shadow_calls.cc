#include "runtime/attention/shadow_calls.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/attention/call_guard.h"

namespace denoised {
namespace {

// Every tensor that has the call's rows.
template <typename Change>
void Each(AttentionInputs* inputs, const Change& change) {
  for (at::Tensor* tensor : {&inputs->query, &inputs->key, &inputs->value, &inputs->gate}) {
    if (tensor->defined()) *tensor = change(*tensor);
  }
}

at::Tensor OutOf(const ComparedBackend& side, const ShadowCall& call) {
  if (side.backend == nullptr) return call.out;
  const Drills* drills = call.watched->guard->drills();
  if (drills != nullptr) drills->Before(side.id);
  at::Tensor out = side.backend->Forward(call.inputs, side.metadata.get());
  if (drills != nullptr && drills->GivesNan(side.id)) {
    out = at::full_like(out, std::numeric_limits<double>::quiet_NaN());
  }
  return out;
}

// Sums over the numbers of two outputs.
struct Sums {
  double aa = 0, bb = 0, ab = 0, apart = 0, most = 0;

  void Add(const at::Tensor& a, const at::Tensor& b) {
    const at::Tensor difference = a - b;
    aa += at::dot(a, a).item<double>();
    bb += at::dot(b, b).item<double>();
    ab += at::dot(a, b).item<double>();
    apart += at::dot(difference, difference).item<double>();
    most = std::max(most, difference.abs().max().item<double>());
  }
};

}  // namespace

int64_t ShadowCall::Bytes() const {
  auto bytes = static_cast<int64_t>(out.nbytes());
  for (const at::Tensor* tensor :
       {&inputs.query, &inputs.key, &inputs.value, &inputs.gate, &inputs.mask}) {
    if (tensor->defined()) bytes += static_cast<int64_t>(tensor->nbytes());
  }
  return bytes;
}

void ShadowCall::Keep() {
  Each(&inputs, [](const at::Tensor& tensor) { return tensor.clone(); });
  // The text encoder writes the next layer's over it.
  if (inputs.mask.defined()) inputs.mask = inputs.mask.clone();
  out = out.clone();
}

double PairsOf(const AttentionInputs& inputs) {
  const at::Tensor& query = inputs.query;
  return static_cast<double>(query.size(0) * query.size(2)) * static_cast<double>(query.size(1)) *
         static_cast<double>(inputs.key.size(1));
}

AttentionInputs RowsOf(const AttentionInputs& inputs, int64_t first, int64_t rows) {
  AttentionInputs part = inputs;
  const int64_t all = inputs.query.size(0);
  if (rows < 0 || rows == all) return part;
  const auto narrowed = [&](const at::Tensor& tensor) { return tensor.narrow(0, first, rows); };
  Each(&part, narrowed);
  const at::Tensor& mask = part.mask;
  if (mask.defined() && mask.dim() == 4 && mask.size(0) == all) part.mask = narrowed(mask);
  if (!part.alike_from.empty()) {
    const auto begin = inputs.alike_from.begin() + first;
    part.alike_from.assign(begin, begin + rows);
  }
  return part;
}

CallError Compare(const ShadowCall& call) {
  const Comparison& comparison = *call.comparison;
  return ErrorBetween(OutOf(comparison.candidate, call), OutOf(comparison.baseline, call));
}

CallError ErrorBetween(const at::Tensor& candidate, const at::Tensor& baseline) {
  constexpr int64_t kPiece = int64_t{1} << 18;  // of numbers, as float64
  constexpr double kFar = std::numeric_limits<double>::infinity();
  const at::Tensor flat = candidate.reshape(-1), other = baseline.reshape(-1);
  Sums sums;
  for (int64_t first = 0; first < flat.size(0); first += kPiece) {
    const int64_t count = std::min(kPiece, flat.size(0) - first);
    sums.Add(flat.narrow(0, first, count).to(at::kDouble),
             other.narrow(0, first, count).to(at::kDouble));
  }
  if (!std::isfinite(sums.aa) || !std::isfinite(sums.bb)) return {kFar, kFar, kFar};
  if (sums.apart == 0) return {};
  CallError error;
  error.relative_l2 = sums.bb == 0 ? kFar : std::sqrt(sums.apart / sums.bb);
  error.max_abs = sums.most;
  const double lengths = std::sqrt(sums.aa) * std::sqrt(sums.bb);
  error.cosine_distance = lengths == 0 ? 1 : std::max(0.0, 1 - sums.ab / lengths);
  return error;
}

void WaitFor(at::Device device) {
  if (device.is_cpu()) return;
  c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

}  // namespace denoised
