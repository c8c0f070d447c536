// Works for a WorkQueue, and what runs them to their end on a clock of its own.
#ifndef DENOISED_TESTS_RUNTIME_QUEUE_RUNNER_H_
#define DENOISED_TESTS_RUNTIME_QUEUE_RUNNER_H_

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>
#include <vector>

#include "runtime/engine/work_queue.h"

namespace denoised {

inline TimePoint At(double seconds) {
  return TimePoint(std::chrono::nanoseconds(std::llround(seconds * 1e9)));
}

inline Work Arrives(WorkId id, double at, double seconds) {
  Work work;
  work.id = id;
  work.arrived = At(at);
  work.seconds_left = seconds;
  return work;
}

inline Work WithDeadline(Work work, double at) {
  work.deadline = At(at);
  return work;
}

inline Work Of(Work work, Priority priority) {
  work.priority = priority;
  return work;
}

// Runs a queue of works that are in it: units of `unit` seconds, until it is empty.
class Runner {
 public:
  explicit Runner(WorkQueue* queue, double unit = 0.5) : queue_(queue), unit_(unit) {}

  void Add(const Work& work) {
    queue_->Add(work);
    works_[work.id] = work;
  }
  // One unit of whose turn it is; false where nobody waits.
  bool RunUnit() {
    const auto lead = queue_->Lead(At(now), true);
    if (!lead) return false;
    if (last_ && *last_ != *lead && works_.count(*last_) > 0) ++switches;
    last_ = lead;
    Work& work = works_.at(*lead);
    began.try_emplace(*lead, now);
    const double seconds = std::min(unit_, work.seconds_left);
    now += seconds;
    work.seconds_left -= seconds;
    work.resident = true;
    queue_->Charge(work.tenant, seconds);
    if (work.seconds_left > 1e-9) {
      queue_->Update(*lead, work);
    } else {
      queue_->Remove(*lead);
      ended[*lead] = now;
      order.push_back(*lead);
      works_.erase(*lead);
    }
    return true;
  }
  void RunToEnd() {
    while (RunUnit()) {
    }
  }
  void RunUntil(double time) {
    while (now < time && RunUnit()) {
    }
  }

  double now = 0;
  int switches = 0;  // away from works that had not ended
  std::map<WorkId, double> began, ended;
  std::vector<WorkId> order;  // of their ends

 private:
  WorkQueue* const queue_;
  const double unit_;
  std::map<WorkId, Work> works_;
  std::optional<WorkId> last_;
};

inline WorkProgress Begun(double seconds_left) {
  WorkProgress progress;
  progress.seconds_left = seconds_left;
  progress.resident = true;
  return progress;
}

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_QUEUE_RUNNER_H_
