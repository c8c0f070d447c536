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
  EstimatePtr shared;
  auto place = std::ranges::find_if(recent_, [&](const auto& known) {
    shared = known.lock();
    return shared && *shared == estimate;
  });
  if (place == recent_.end()) {
    shared = std::make_shared<const WorkEstimate>(std::move(estimate));
    --place;  // of the one that was not used for longest
  }
  std::rotate(recent_.begin(), place, place + 1);
  recent_.front() = shared;
  return shared;
}

}  // namespace denoised
