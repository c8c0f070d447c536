#include "server/watchers.h"

#include <vector>

#include "server/convert_status.h"

namespace denoised {

Error ComeBackToWatch() {
  return Error(StatusCode::kUnavailable,
               "memory is short on the server: watch again later, after the last sequence number "
               "that was seen",
               "", "MEMORY")
      .RetryAfter(std::chrono::seconds(5));
}

std::shared_ptr<void> Watchers::Enter(const std::shared_ptr<PulledStream>& stream) {
  const std::lock_guard lock(mutex_);
  const uint64_t age = ++last_;
  by_age_[age] = stream;
  return {nullptr, [this, age](void*) {
            const std::lock_guard leave(mutex_);
            by_age_.erase(age);
          }};
}

int64_t Watchers::ShedOldest() {
  std::vector<std::shared_ptr<PulledStream>> oldest;
  {
    const std::lock_guard lock(mutex_);
    const size_t most = (by_age_.size() + 7) / 8;
    for (auto& [age, stream] : by_age_) {
      if (oldest.size() == most) break;
      if (auto still_there = stream.lock()) oldest.push_back(std::move(still_there));
    }
  }
  int64_t sent_away = 0;
  for (const auto& stream : oldest) sent_away += stream->Leave(ToStatus(ComeBackToWatch())) ? 1 : 0;
  return sent_away;
}

}  // namespace denoised
