#include "server/job_watches.h"

#include <atomic>
#include <map>
#include <utility>
#include <vector>

#include "server/job_stream.h"

namespace denoised {

// Of one job; there while it has any.
struct JobWatches::Followers {
  void PumpAll() {
    due = false;  // what changes from here on is posted again
    std::vector<std::shared_ptr<PulledStream>> still_there;
    {
      const std::lock_guard lock(mutex);
      still_there.reserve(streams.size());
      for (const auto& [number, weak] : streams) {
        if (auto stream = weak.lock()) still_there.push_back(std::move(stream));
      }
    }
    for (const auto& stream : still_there) stream->Pump();
  }

  std::atomic<bool> due = false;  // posted, and not yet begun
  std::mutex mutex;
  uint64_t last = 0;                                        // guarded by mutex
  std::map<uint64_t, std::weak_ptr<PulledStream>> streams;  // guarded by mutex
  std::shared_ptr<void> watch;
};

std::shared_ptr<void> JobWatches::Follow(JobStore& jobs, const std::string& job_id,
                                         const std::weak_ptr<PulledStream>& stream) {
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<Followers> followers = Of(jobs, job_id);
  const std::lock_guard enter(followers->mutex);
  const uint64_t number = ++followers->last;
  followers->streams[number] = stream;
  return {nullptr,
          [this, job_id, followers, number](void*) { Leave(job_id, followers.get(), number); }};
}

std::shared_ptr<JobWatches::Followers> JobWatches::Of(JobStore& jobs, const std::string& job_id) {
  if (const auto found = of_job_.find(job_id); found != of_job_.end()) return found->second;
  const auto followers = std::make_shared<Followers>();
  const std::weak_ptr<Followers> weak = followers;
  followers->watch = jobs.Watch(job_id, [weak, dispatcher = dispatcher_] {
    const auto woken = weak.lock();
    if (!woken || woken->due.exchange(true)) return;
    dispatcher->Post([woken] { woken->PumpAll(); });
  });
  return of_job_[job_id] = followers;
}

void JobWatches::Leave(const std::string& job_id, Followers* followers, uint64_t number) {
  const std::lock_guard lock(mutex_);
  const std::lock_guard leave(followers->mutex);
  followers->streams.erase(number);
  if (followers->streams.empty()) of_job_.erase(job_id);
}

}  // namespace denoised
