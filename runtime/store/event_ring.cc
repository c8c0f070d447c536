#include "runtime/store/event_ring.h"

#include <algorithm>

namespace denoised {

void EventRing::Add(const JobSnapshot& job) {
  if (events_.size() == kEvents) events_.erase(events_.begin());
  events_.push_back({job.sequence, job.state, job.stage, job.step, job.queue_position, job.attempt,
                     job.eta_seconds, job.starts_in_seconds, job.stage_seconds.size(),
                     job.artifacts.size(), job.started_at.has_value()});
}

std::vector<JobSnapshot> EventRing::After(uint64_t sequence, const JobSnapshot& last) const {
  std::vector<JobSnapshot> states;
  for (const Event& event : events_) {
    if (event.sequence > sequence && event.sequence < last.sequence) {
      states.push_back(At(event, last));
    }
  }
  if (last.sequence > sequence) states.push_back(last);
  return states;
}

JobSnapshot EventRing::At(const Event& event, const JobSnapshot& last) {
  JobSnapshot job = last;
  job.sequence = event.sequence;
  job.state = event.state;
  job.stage = event.stage;
  job.step = event.step;
  job.queue_position = event.queue_position;
  job.attempt = event.attempt;
  job.eta_seconds = event.eta_seconds;
  job.starts_in_seconds = event.starts_in_seconds;
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
