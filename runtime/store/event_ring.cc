#include "runtime/store/event_ring.h"

#include <algorithm>

namespace denoised {

void EventRing::Add(const JobSnapshot& job) {
  if (events_.size() == kEvents) events_.erase(events_.begin());
  events_.push_back({job.sequence, job.state, job.stage, job.step, job.attempt, job.eta_seconds,
                     job.stage_seconds.size(), job.artifacts.size(), job.started_at.has_value()});
}

std::optional<JobSnapshot> EventRing::After(uint64_t sequence, const JobSnapshot& last) const {
  for (const Event& event : events_) {
    if (event.sequence > sequence && event.sequence < last.sequence) return At(event, last);
  }
  return last.sequence > sequence ? std::optional(last) : std::nullopt;
}

JobSnapshot EventRing::At(const Event& event, const JobSnapshot& last) {
  JobSnapshot job = last;
  job.sequence = event.sequence;
  job.state = event.state;
  job.stage = event.stage;
  job.step = event.step;
  job.attempt = event.attempt;
  job.eta_seconds = event.eta_seconds;
  job.stage_seconds.resize(std::min(event.stages, job.stage_seconds.size()));
  job.artifacts.resize(std::min(event.artifacts, job.artifacts.size()));
  job.preview.reset();  // the newest one alone is kept
  if (!event.started) job.started_at.reset();
  if (!IsTerminal(event.state)) {  // what comes with the end
    job.finished_at.reset();
    job.error.reset();
    job.receipt = {};
  }
  return job;
}

}  // namespace denoised
