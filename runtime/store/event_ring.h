// The recent states of one job, small enough to keep for every job. One thread at a time.
#ifndef DENOISED_RUNTIME_STORE_EVENT_RING_H_
#define DENOISED_RUNTIME_STORE_EVENT_RING_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/job.h"

namespace denoised {

class EventRing {
 public:
  static constexpr size_t kEvents = 32;

  // A state that is over: the job has a newer one by now.
  void Add(const JobSnapshot& job);
  // The oldest state after `sequence`. `last` is the newest one, whole; another is made from it and
  // from what changed since.
  std::optional<JobSnapshot> After(uint64_t sequence, const JobSnapshot& last) const;

 private:
  // What differs between two states of a job.
  struct Event {
    uint64_t sequence = 0;
    JobState state = JobState::kQueued;
    JobStage stage = JobStage::kNone;
    int64_t step = 0, attempt = 0;
    std::optional<double> eta_seconds;
    size_t stages = 0, artifacts = 0;  // how many of them there were
    bool started = false;
  };
  static JobSnapshot At(const Event& event, const JobSnapshot& last);

  std::vector<Event> events_;  // an empty deque is not small
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_EVENT_RING_H_
