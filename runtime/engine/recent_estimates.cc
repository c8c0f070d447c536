#include "runtime/engine/recent_estimates.h"

#include <algorithm>
#include <utility>

namespace denoised {

const EstimatePtr& RecentEstimates::None() {
  static const EstimatePtr none = std::make_shared<const WorkEstimate>();
  return none;
}

EstimatePtr RecentEstimates::Share(WorkEstimate estimate) {
  const std::lock_guard lock(mutex_);
  const auto is_same = [&](const auto& known) {
    const EstimatePtr one = known.lock();
    return one && *one == estimate;
  };
  const auto found = std::ranges::find_if(recent_, is_same);
  EstimatePtr shared = found == recent_.end() ? nullptr : found->lock();
  if (!shared) shared = std::make_shared<const WorkEstimate>(std::move(estimate));
  const auto last = found == recent_.end() ? recent_.end() - 1 : found;
  std::rotate(recent_.begin(), last, last + 1);
  recent_.front() = shared;
  return shared;
}

}  // namespace denoised
