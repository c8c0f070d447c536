// Work comes: jobs on their way to the store and into the order, jobs of an earlier server, Denoise
// calls. Any thread.
#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/receipt.h"
#include "runtime/engine/refusals.h"

namespace denoised {
namespace {

// A job that was running when so many servers died takes no further one down.
constexpr int64_t kMostCrashes = 2;

// What was asked for, each format once; mp4 where nothing was.
std::vector<ArtifactFormat> DistinctFormats(const std::vector<ArtifactFormat>& asked) {
  if (asked.empty()) return {ArtifactFormat::kMp4};
  std::vector<ArtifactFormat> formats;
  for (ArtifactFormat format : asked) {
    if (std::find(formats.begin(), formats.end(), format) == formats.end()) {
      formats.push_back(format);
    }
  }
  return formats;
}

JobSnapshot FirstSnapshot(const JobWork& job) {
  JobSnapshot snapshot;
  snapshot.id = job.id;
  snapshot.prompt = job.request.prompt;
  snapshot.parameters = job.parameters;
  snapshot.num_steps = job.parameters.num_inference_steps;
  snapshot.priority = job.priority;
  snapshot.tenant = job.tenant;
  snapshot.created_at = std::chrono::system_clock::now();
  snapshot.sequence = 1;
  return snapshot;
}

}  // namespace

void EngineImpl::Submit(GenerationRequest request, std::function<void(SubmitResult)> done) {
  JobPtr job;
  std::optional<JobSnapshot> before;
  const auto error = Caught([&] {
    request.formats = DistinctFormats(request.formats);
    before = store_->MadeBefore(request);  // a retry is answered whatever stands against a new job
    if (!before) job = Admit(std::move(request));
  });
  if (error) return done(*error);
  if (before) {
    AddPlace(&*before);
    return done(*std::move(before));
  }
  const JobSnapshot snapshot = FirstSnapshot(*job);
  if (const auto refusal = TakePlace(job)) return done(*refusal);
  store_->Accept(snapshot, job->request,
                 [this, job, done = std::move(done)](JobStore::Added added) {
                   Answer(job, std::move(added), done);
                 });
}

// Late jobs hold no place, and what is refused is not stored.
std::optional<Error> EngineImpl::TakePlace(const JobPtr& job) {
  bool full = false;
  {
    const std::lock_guard lock(mutex_);
    full = Full();
  }
  if (full) ExpireWaiting();
  const std::lock_guard lock(mutex_);
  if (draining_) return Draining();
  if (Full()) return QueueFull();
  const auto refusal = Caught([&] {
    models_.Find(job->parameters.model);  // throws where it was unloaded meanwhile
    RequireNoPressure();
    RequireTime(*job);
    entering_[job.get()] = Queued(*job);
  });
  if (refusal) return refusal;
  table_.HoldRequest(job->request_bytes());
  ++unanswered_;
  return std::nullopt;
}

// The store's thread, or the caller's. What is thrown here would end the process.
void EngineImpl::Answer(const JobPtr& job, JobStore::Added outcome,
                        const std::function<void(SubmitResult)>& done) {
  SubmitResult result;
  if (const auto error = Caught([&] { result = Accepted(job, std::move(outcome)); })) {
    result = *error;
  }
  done(std::move(result));
  const std::lock_guard lock(mutex_);
  --unanswered_;
  // Only now, so that the first unit of what came does not take the processors from the answer.
  // Under the lock: the engine may be gone after it.
  wake_.notify_one();
  idle_.notify_all();
}

// The place that it took is its own now, or free.
Engine::SubmitResult EngineImpl::Accepted(const JobPtr& job, JobStore::Added outcome) {
  auto* kept = std::get_if<std::pair<JobSnapshot, bool>>(&outcome);
  const bool added = kept != nullptr && kept->second;
  bool entered = false;
  {
    const std::lock_guard lock(mutex_);
    entering_.erase(job.get());
    table_.ReleaseRequest(job->request_bytes());
    if (added) table_.KnowById(job);
    entered = added && !begins_no_more_ && !ending_;
    if (entered) Enter(job);
    if (added && !entered && !store_->durable()) job->closing = true;
  }
  idle_.notify_all();
  if (kept == nullptr) return std::get<Error>(std::move(outcome));
  if (added && !entered && !store_->durable()) EndJob(job, Cancelled(), {});
  AddPlace(&kept->first);
  return std::move(kept->first);
}

// Jobs that hold a place of the queue: not those that are put aside.
int64_t EngineImpl::Waiting() const { return table_.waiting_jobs() + std::ssize(entering_); }

bool EngineImpl::Full() const { return Waiting() >= options_.max_queued_jobs; }

Error EngineImpl::QueueFull() {
  return Error(StatusCode::kResourceExhausted,
               "the queue is full (" + std::to_string(Waiting()) + " jobs wait)", "", "QUEUE_FULL")
      .RetryAfter(TimeToPlace());
}

void EngineImpl::Enter(const JobPtr& job) {
  NoteStale(*job);
  table_.KnowById(job);
  table_.Enter(job, Queued(*job));
  if (job->deadline) deadlines_.notify_one();
}

// What an earlier server accepted and did not end.
void EngineImpl::Readmit(AcceptedJob accepted) {
  const auto job = std::make_shared<JobWork>();
  job->id = accepted.snapshot.id;
  job->request = std::move(accepted.request);
  job->parameters = accepted.snapshot.parameters;
  job->attempt = accepted.snapshot.attempt;
  job->told_start = job->attempt > 0;
  job->suspect = accepted.crashes > 0;
  bool differs = false;
  const auto error = Caught([&] {
    if (accepted.snapshot.asked == JobState::kCancelled) throw Cancelled();
    if (job->request.belongs_to_call) throw CallIsGone();
    if (accepted.crashes >= kMostCrashes) {
      throw Error(StatusCode::kAborted,
                  "the server ended unexpectedly in each of its " +
                      std::to_string(accepted.crashes) + " attempts",
                  "", "POISON");
    }
    job->pipeline = models_.Find(job->parameters.model);
    differs = AskAnew(job.get());
    FillIn(job.get());
    job->queued_at = job->arrived = accepted.queued_at;
    LeaveSteps(accepted.checkpoint_step, job.get());
  });
  if (error) return EndJob(job, error, {});
  if (differs) {
    store_->Update(job->id, [&](JobSnapshot& snapshot) { snapshot.parameters = job->parameters; });
  }
  const std::lock_guard lock(mutex_);
  if (accepted.snapshot.state == JobState::kSuspended) return table_.KnowById(job);
  Enter(job);
}

void EngineImpl::RequireCallPlace() {
  if (draining_) throw Draining();
  RequireNoPressure();
  if (table_.waiting_calls() >= options_.max_queued_denoise_calls) {
    throw Error(StatusCode::kResourceExhausted, "too many Denoise calls wait", "", "QUEUE_FULL")
        .RetryAfter(TimeToCallPlace());
  }
}

void EngineImpl::Denoise(DenoiseRequest request, std::shared_ptr<CancelToken> cancel,
                         std::function<void(DenoiseOutcome)> done) {
  const auto call = std::make_shared<CallWork>();
  call->request = std::move(request);
  call->cancel = std::move(cancel);
  call->done = std::move(done);
  const auto refusal = Caught([&] {
    FillIn(call.get());
    {
      const std::lock_guard lock(mutex_);
      RequireCallPlace();
    }  // a refusal digests nothing
    call->fields = DenoiseFields(call->request);
    const std::lock_guard lock(mutex_);
    models_.Find(call->request.model);  // as for jobs
    RequireCallPlace();
    table_.Enter(call, Queued(*call));
    if (call->deadline) deadlines_.notify_one();
  });
  if (refusal) return call->done(*refusal);
  wake_.notify_one();
}

}  // namespace denoised
