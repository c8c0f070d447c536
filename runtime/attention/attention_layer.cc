#include "runtime/attention/attention_layer.h"

#include <chrono>
#include <cmath>
#include <limits>

#include "backends/error.h"
#include "backends/stop_point.h"
#include "runtime/attention/call_guard.h"
#include "runtime/attention/shadows.h"

namespace denoised {
namespace {

const AttentionSlot& SlotFor(AttentionRole role, int layer) {
  const ForwardContext& context = GetForwardContext();
  if (context.attn_metadata != nullptr) {
    const AttentionSlot* slot = (*context.attn_metadata)[static_cast<size_t>(role)].Of(layer);
    if (slot != nullptr && slot->backend != nullptr) return *slot;
  }
  throw Error(StatusCode::kFailedPrecondition, "wanted an attention backend for role " +
                                                   std::string(AttentionRoleName(role)) +
                                                   "; the forward context names none");
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

at::Tensor AttentionLayer::Forward(const at::Tensor& query, const at::Tensor& key,
                                   const at::Tensor& value, const AttentionExtras& extras) const {
  StopPoint();
  const AttentionSlot& slot = SlotFor(role_, layer_index_);
  AttentionInputs inputs{query, key, value, extras.gate, extras.mask};
  inputs.projection = extras.projection;
  inputs.projection_bias = extras.projection_bias;
  inputs.alike_from = extras.alike_from;
  inputs.scale = scale_ > 0 ? scale_ : 1.0 / std::sqrt(static_cast<double>(query.size(-1)));
  inputs.causal = causal_;
  inputs.layer_index = layer_index_;
  const auto start = std::chrono::steady_clock::now();
  at::Tensor out =
      Guarded(slot, role_, [&] { return slot.backend->Forward(inputs, slot.metadata.get()); });
  if (GivesNan(slot)) out = at::full_like(out, std::numeric_limits<double>::quiet_NaN());
  const double seconds = SecondsSince(start);
  if (!slot.watched.empty()) {
    slot.guard->shadows()->After(slot, layer_index_, inputs, out, seconds);
  }
  if (slot.tally == nullptr) return out;
  AttentionCount& count = slot.tally->Of(slot.backend->Runs(inputs, slot.metadata.get()));
  count.calls += 1;
  if (query.is_cpu()) count.seconds += seconds;
  return out;
}

}  // namespace denoised
