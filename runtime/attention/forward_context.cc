#include "runtime/attention/forward_context.h"

#include <algorithm>
#include <exception>
#include <limits>

#include "backends/error.h"

namespace denoised {
namespace {

// Innermost scope of this thread; scopes chain to the one around them.
thread_local const ScopedForwardContext* innermost = nullptr;

}  // namespace

const AttentionSlot* RolePlan::Of(int64_t layer) const {
  for (const AttentionSlot& slot : slots) {
    if (layer <= slot.last_layer) return &slot;
  }
  return slots.empty() ? nullptr : &slots.back();
}

bool RolePlan::Equals(const RolePlan& other) const {
  return std::ranges::equal(slots, other.slots, [](const auto& a, const auto& b) {
    return a.backend == b.backend && a.metadata == b.metadata && a.last_layer == b.last_layer;
  });
}

AttnBackend RolePlan::MostCalled() const {
  std::array<uint64_t, kNumAttnBackends> calls{};
  for (const AttentionSlot& slot : slots) {
    if (slot.tally == nullptr) continue;
    for (size_t i = 0; i < calls.size(); ++i) calls[i] += slot.tally->counts[i].calls;
  }
  const auto most = std::ranges::max_element(calls);
  if (*most > 0) return static_cast<AttnBackend>(most - calls.begin());
  return slots.empty() ? AttnBackend::kReference : slots.front().id;
}

void AttentionTally::AddShare(const AttentionTally& shared, uint64_t passes, double share) {
  for (size_t i = 0; i < counts.size(); ++i) {
    counts[i].calls += shared.counts[i].calls * passes;
    counts[i].seconds += shared.counts[i].seconds * share;
  }
}

ForwardContext ContextOf(const ForwardBatch& batch) {
  ForwardContext context;
  context.forward_batch = &batch;
  if (batch.rows.empty()) return context;
  const double differs = std::numeric_limits<double>::quiet_NaN();
  const auto common = [&](auto member, auto otherwise) {
    const auto first = batch.rows.front().*member;
    const bool same = std::ranges::all_of(
        batch.rows, [&](const ForwardRow& row) { return row.*member == first; });
    return same ? first : otherwise;
  };
  context.current_timestep = common(&ForwardRow::step, ForwardContext::kMixedStep);
  context.timestep = common(&ForwardRow::timestep, differs);
  context.sigma = common(&ForwardRow::sigma, differs);
  context.branch = common(&ForwardRow::branch, Branch::kMixed);
  return context;
}

bool HasForwardContext() { return innermost != nullptr; }

const ForwardContext& GetForwardContext() {
  if (innermost == nullptr) {
    throw Error(StatusCode::kFailedPrecondition,
                "wanted a forward context on this thread; none is set "
                "(a ScopedForwardContext sets one)");
  }
  return innermost->context_;
}

ScopedForwardContext::ScopedForwardContext(ForwardContext context, Done done,
                                           std::function<void()> synchronize)
    : context_(std::move(context)),
      done_(std::move(done)),
      synchronize_(std::move(synchronize)),
      previous_(innermost),
      exceptions_at_entry_(std::uncaught_exceptions()),
      start_(std::chrono::steady_clock::now()) {
  innermost = this;
}

ScopedForwardContext::~ScopedForwardContext() {
  innermost = previous_;
  if (!done_ || std::uncaught_exceptions() > exceptions_at_entry_) return;
  try {
    if (synchronize_) synchronize_();
    done_(context_,
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count());
  } catch (...) {
    // A measurement that fails is lost; the forward it measured has succeeded.
  }
}

}  // namespace denoised
