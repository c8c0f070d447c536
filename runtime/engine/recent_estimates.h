// Estimates of works, of which equal ones are one: most jobs that wait are like others.
#ifndef DENOISED_RUNTIME_ENGINE_RECENT_ESTIMATES_H_
#define DENOISED_RUNTIME_ENGINE_RECENT_ESTIMATES_H_

#include <array>
#include <memory>
#include <mutex>

#include "runtime/pipelines/estimate.h"

namespace denoised {

using EstimatePtr = std::shared_ptr<const WorkEstimate>;

// Any thread.
class RecentEstimates {
 public:
  // One that is equal, where it is among the last that were asked for and somebody has it still.
  EstimatePtr Share(WorkEstimate estimate);
  static const EstimatePtr& None();

 private:
  std::mutex mutex_;
  std::array<std::weak_ptr<const WorkEstimate>, 16> recent_;  // the last used first
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_RECENT_ESTIMATES_H_
