// The callers' side of the engine: what is cancelled, put aside, resumed, deleted, or too late. Any
// thread.
#include <algorithm>
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/refusals.h"

namespace denoised {

Engine::CancelResult EngineImpl::Cancel(const std::string& job_id) {
  const auto snapshot = store_->Get(job_id);
  if (!snapshot) return CancelResult::kNotFound;
  if (IsTerminal(snapshot->state)) return CancelResult::kAlreadyFinished;
  JobPtr job;
  bool begun = false;
  {
    const std::lock_guard lock(mutex_);
    job = table_.Job(job_id);
    if (job == nullptr || job->closing) return CancelResult::kAlreadyFinished;
    job->cancel->cancelled = true;
    begun = job->begun;
    if (begun) asked_.push_back(job->number);
    if (!begun) Close(job);
  }
  if (begun) {
    wake_.notify_one();
    const auto error = Caught([&] { Ask(job_id, JobState::kCancelled); });
    return error ? CancelResult::kNotKept : CancelResult::kCancelling;
  }
  EndJob(job, Cancelled(), {});
  const auto after = store_->Get(job_id);  // its end is seen once it is kept
  return after && !IsTerminal(after->state) ? CancelResult::kNotKept : CancelResult::kCancelling;
}

// A cancel is not taken back.
void EngineImpl::Ask(const std::string& job_id, std::optional<JobState> state) {
  store_->Update(job_id, [state](JobSnapshot& snapshot) {
    if (snapshot.asked != JobState::kCancelled) snapshot.asked = state;
  });
}

std::optional<Error> EngineImpl::Suspend(const std::string& job_id) {
  if (!store_->Get(job_id)) return UnknownJob(job_id);
  const std::lock_guard one_at_a_time(suspend_mutex_);
  JobPtr waits, runs;
  {
    const std::lock_guard lock(mutex_);
    const JobPtr job = table_.Job(job_id);
    if (job == nullptr || job->closing) return WrongState("the job has ended", "JOB_FINISHED");
    const bool queued = table_.InQueue(job->number) != nullptr;
    if (!queued && job->begun) {
      if (ending_) return Draining();
      return WrongState("the job is done with the device, its files are being written",
                        "JOB_ENCODING");
    }
    if (queued && !job->suspend) {
      if (const auto full = Caught([&] { RequirePlaceAside(); })) return full;
    }
    job->suspend = true;
    if (job->begun) {
      asked_.push_back(job->number);
      wake_.notify_one();
    } else if (queued) {
      table_.LeaveQueue(job.get());
      wake_.notify_one();
      job->started = false;
      NoteStale(*job);
    }
    (job->begun ? runs : waits) = job;
  }
  return runs ? SuspendLater(runs) : SuspendNow(waits);
}

// What waits for its turn, or for the next server; or it is put aside already.
std::optional<Error> EngineImpl::SuspendNow(const JobPtr& job) {
  const auto before = store_->Get(job->id);
  if (before && before->state == JobState::kSuspended) return std::nullopt;
  if (const auto error = Caught([&] { TellSuspended(job->id); })) {
    const std::lock_guard lock(mutex_);
    job->suspend = false;
    if (!job->closing && !begins_no_more_ && !ending_) Enter(job);
    wake_.notify_one();
    return error;
  }
  idle_.notify_all();
  return std::nullopt;
}

// What is put aside, or will be at its next boundary, holds no place of the queue, but its request.
void EngineImpl::RequirePlaceAside() const {
  int64_t aside = table_.jobs_aside();
  for (const WorkId number : table_.begun_works()) {
    const JobPtr job = JobOf(table_.InQueue(number));
    aside += job && job->suspend ? 1 : 0;
  }
  if (aside < options_.max_queued_jobs) return;
  throw Error(StatusCode::kResourceExhausted,
              "as many jobs are suspended as may be (" + std::to_string(aside) +
                  "): --max_queued_jobs bounds them too",
              "", "TOO_MANY_SUSPENDED");
}

// Under suspend_mutex_, which the engine's thread takes before it puts the job aside.
std::optional<Error> EngineImpl::SuspendLater(const JobPtr& job) {
  const auto error = Caught([&] { Ask(job->id, JobState::kSuspended); });
  const std::lock_guard lock(mutex_);
  if (error) job->suspend = false;
  return error;
}

std::optional<Error> EngineImpl::Resume(const std::string& job_id) {
  if (!store_->Get(job_id)) return UnknownJob(job_id);
  const std::lock_guard one_at_a_time(suspend_mutex_);
  JobPtr job;
  bool goes_on = false;
  {
    const std::lock_guard lock(mutex_);
    job = table_.Job(job_id);
    if (job == nullptr || job->closing) return WrongState("the job has ended", "JOB_FINISHED");
    if (draining_) return Draining();
    job->suspend = false;
    goes_on = job->begun || table_.InQueue(job->number) != nullptr;
  }
  const auto error = Caught([&] {
    if (!goes_on) {
      store_->Update(job_id, [](JobSnapshot& snapshot) { snapshot.state = JobState::kQueued; });
    } else if (const auto now = store_->Get(job_id); now && now->asked) {
      Ask(job_id, std::nullopt);
    }
  });
  if (error || goes_on) return error;
  const std::lock_guard lock(mutex_);
  if (job->closing) return WrongState("the job has ended", "JOB_FINISHED");
  if (!begins_no_more_ && !ending_) Enter(job);
  wake_.notify_one();
  return std::nullopt;
}

std::optional<Error> EngineImpl::Delete(const std::string& job_id) {
  return Caught([&] { store_->Delete(job_id); });
}

void EngineImpl::ExpireWaiting() {
  std::vector<WorkPtr> late;
  {
    const std::lock_guard lock(mutex_);
    for (WorkId number : table_.queue.Expired(clock_())) {
      const WorkPtr work = table_.InQueue(number);
      if (work->begun) continue;
      Close(work);
      late.push_back(work);
    }
    if (!begins_no_more_) {
      for (const JobPtr& job : table_.LateAside(clock_())) {
        Close(job);
        late.push_back(job);
      }
    }
  }
  for (const WorkPtr& work : late) EndWaiting(work, DeadlinePassed());
}

// The engine's thread may be in a unit for long; who waits is told in time all the same.
void EngineImpl::WatchDeadlines() {
  // Where the next one is no nearer, or has passed and its work runs: the engine's clock may jump.
  constexpr std::chrono::nanoseconds kLook = std::chrono::milliseconds(100);
  constexpr std::chrono::nanoseconds kPace = std::chrono::milliseconds(10);
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      deadlines_.wait(lock, [this] { return stopping_ || table_.NextDeadline(); });
      if (stopping_) return;
      const std::chrono::nanoseconds left = *table_.NextDeadline() - clock_();
      deadlines_.wait_for(lock, std::clamp(left, kPace, kLook));
      if (stopping_) return;
    }
    ExpireWaiting();
  }
}

// Whether a next server takes it up where this one ends.
bool EngineImpl::IsKept(const EngineWork& work) const {
  return work.is_job() && store_->durable() &&
         !static_cast<const JobWork&>(work).request.belongs_to_call;
}

// Under mutex_: nobody else ends it from here on.
void EngineImpl::Close(const WorkPtr& work) {
  table_.LeaveQueue(work.get());
  if (const JobPtr job = JobOf(work)) job->closing = true;
}

void EngineImpl::EndWaiting(const WorkPtr& work, const Error& error) {
  if (const JobPtr job = JobOf(work)) {
    EndJob(job, error, {});
  } else {
    EndCall(std::static_pointer_cast<CallWork>(work), error);
  }
}

// ---- why work stops ----------------------------------------------------------------------------

bool EngineImpl::Late(const EngineWork& work) const {
  return work.deadline && clock_() >= *work.deadline;
}

std::optional<Error> EngineImpl::WhyStop(const EngineWork& work) const {
  if (work.cancel && work.cancel->cancelled) return Cancelled();
  if (Late(work)) return DeadlinePassed();
  if (work.unloaded) return Unloaded(work.pipeline->info().name);
  if (!ending_) return std::nullopt;
  return work.is_job() && !IsKept(work) ? Cancelled() : Stopped();
}

// A shared step goes on while somebody needs it.
std::optional<Error> EngineImpl::WhyStopAll(const std::vector<WorkPtr>& works) const {
  std::optional<Error> why;
  for (const WorkPtr& work : works) {
    why = WhyStop(*work);
    if (!why) return std::nullopt;
  }
  return why;
}

// Only the engine's end stops it, and the store keeps it.
bool EngineImpl::GoesOnLater(const JobWork& job) const {
  return ending_ && IsKept(job) && !job.cancel->cancelled && !Late(job);
}

}  // namespace denoised
