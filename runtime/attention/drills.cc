#include "runtime/attention/drills.h"

#include <string>
#include <thread>

#include "backends/error.h"
#include "backends/stop_point.h"

namespace denoised {

void Drills::Begin(const DrillRequest& request) {
  if (request.ttl.count() <= 0 || request.ttl > DrillRequest::kMostTtl) {
    throw InvalidField("ttl", "wanted more than 0 and at most 10 minutes; got " +
                                  std::to_string(request.ttl.count()) + " ms");
  }
  const std::lock_guard lock(mutex_);
  drills_[static_cast<size_t>(request.backend)] = {request.fault, clock_() + request.ttl};
  any_ = true;
}

std::optional<Fault> Drills::Of(AttnBackend backend) const {
  if (!any_) return std::nullopt;
  const std::lock_guard lock(mutex_);
  const std::optional<Drill>& drill = drills_[static_cast<size_t>(backend)];
  if (!drill || clock_() >= drill->ends_at) return std::nullopt;
  return drill->fault;
}

void Drills::Before(AttnBackend backend) const {
  constexpr std::chrono::milliseconds kLook(1);
  if (Of(backend) == Fault::kThrow) {
    throw Error(StatusCode::kInternal,
                std::string(AttnBackendName(backend)) + " throws, as a drill told it to", "",
                "DRILL");
  }
  while (Of(backend) == Fault::kStall) {
    StopPoint();
    std::this_thread::sleep_for(kLook);
  }
}

}  // namespace denoised
