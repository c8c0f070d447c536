// Where jobs stand that wait: read from the order whenever somebody asks, told to those who watch.
#include <cmath>
#include <utility>

#include "runtime/engine/engine_impl.h"

namespace denoised {
namespace {

// What a watcher may be off by without being told.
constexpr double kNoticeableSeconds = 1;

bool Differs(const JobPlace& a, const JobPlace& b) {
  return a.position != b.position || std::abs(a.starts_in - b.starts_in) >= kNoticeableSeconds;
}

}  // namespace

// One that has begun and is not RUNNING yet is next.
std::optional<JobPlace> EngineImpl::PlaceOf(const JobWork& job) const {
  auto ahead = table_.queue.Ahead(job.number);
  if (!ahead) ahead = table_.HeldBehind(job.number);
  if (!ahead) return std::nullopt;
  if (job.begun) return JobPlace{};
  return JobPlace{ahead->count, ahead->seconds};
}

void EngineImpl::AddPlace(JobSnapshot* snapshot) const {
  snapshot->queue_position = 0;
  snapshot->starts_in_seconds.reset();
  if (snapshot->state != JobState::kQueued) return;
  snapshot->eta_seconds.reset();
  const std::lock_guard lock(mutex_);
  const JobPtr job = table_.Job(snapshot->id);
  const auto place = job ? PlaceOf(*job) : std::nullopt;
  if (!place) return;  // it goes on at the next start, or has ended meanwhile
  // Its watchers may have been shown different places: the next telling is for all.
  if (job->told_place && Differs(*job->told_place, *place)) job->told_place.reset();
  snapshot->queue_position = place->position;
  snapshot->starts_in_seconds = place->starts_in;
  if (job->begun) return;  // what is left of it is the engine thread's
  const auto own = KnownSecondsLeft(*job);
  if (own) snapshot->eta_seconds = place->starts_in + *own;
}

bool EngineImpl::HasMoved(const std::string& job_id) {
  const std::lock_guard lock(mutex_);
  const JobPtr job = table_.Job(job_id);
  const auto place = job ? PlaceOf(*job) : std::nullopt;
  if (!place || (job->told_place && !Differs(*job->told_place, *place))) return false;
  job->told_place = place;
  return true;
}

// A few at a time, one round through all that are watched after the other for as long as the order
// changes: however long the queue is and however many watch, it costs the engine next to nothing.
void EngineImpl::TellPlaces() {
  constexpr size_t kAtOnce = 64;
  if (places_told_up_to_.empty()) {
    const std::lock_guard lock(mutex_);
    const uint64_t changes = table_.changes();
    if (std::exchange(order_told_, changes) == changes) return;
  }
  const std::vector<std::string> ids = store_->WatchedWaiting(places_told_up_to_, kAtOnce);
  for (const std::string& id : ids) {
    if (HasMoved(id)) store_->Touch(id);
  }
  places_told_up_to_ = ids.size() < kAtOnce ? "" : ids.back();
}

}  // namespace denoised
