// Jobs without a run go over to the models that serve by now; what has begun ends with the model
// that it began with, and shares it with nobody new. Engine thread.
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/refusals.h"
#include "runtime/request_check.h"

namespace denoised {
namespace {

JobPtr AskedOf(const JobWork& job, PipelinePtr pipeline) {
  const auto asked = std::make_shared<JobWork>();
  asked->pipeline = std::move(pipeline);
  asked->id = job.id;
  asked->tenant = job.tenant;
  asked->priority = job.priority;
  asked->order = job.order;
  asked->request = job.request;
  asked->parameters = job.parameters;
  return asked;
}

}  // namespace

void EngineImpl::NoteStale(const EngineWork& work) {
  follows_ = follows_ || !models_.Serves(*work.pipeline);
}

// What it was told stays: sizes, steps, seed.
bool AskAnew(JobWork* job) {
  const ResolvedParameters& defaults = job->pipeline->info().defaults;
  ResolvedParameters& now = job->parameters;
  const ResolvedParameters before = now;
  now.scheduler = defaults.scheduler;
  now.linear = job->request.numerics.linear.value_or(defaults.linear);
  if (!job->request.flow_shift) now.flow_shift = defaults.flow_shift;
  CheckGeometry(now.height, now.width, now.num_frames, job->pipeline->rules());
  job->pipeline->CheckRun(job->request, now);
  return before.scheduler != now.scheduler || before.linear != now.linear ||
         before.flow_shift != now.flow_shift;
}

// A job whose checkpoint is another model's begins again (GoOnFrom); one that was only put away for
// a while runs, and stays, where others do not wait for its model's memory. Where the server ends
// they are the next one's.
void EngineImpl::FollowModels() {
  std::vector<JobPtr> stale;
  {
    const std::lock_guard lock(mutex_);
    const bool follows = std::exchange(follows_, false);
    const bool away = std::exchange(away_follow_, false);
    if (!follows || ending_ || begins_no_more_) return;
    for (const JobPtr& job : table_.Jobs()) {
      const bool runs =
          job->begun || (job->put_away && !away && table_.InQueue(job->number) != nullptr);
      if (!runs && !job->closing && !models_.Serves(*job->pipeline)) stale.push_back(job);
    }
  }
  for (const JobPtr& job : stale) {
    if (const auto error = Caught([&] { Follow(job); })) EndUnserved(job, *error);
  }
  std::erase_if(colours_, [](const auto& known) { return known.first.expired(); });
}

void EngineImpl::Follow(const JobPtr& job) {
  const JobPtr asked = AskedOf(*job, models_.Find(job->parameters.model));
  const bool differs = AskAnew(asked.get());
  Estimate(asked.get());
  const ResolvedParameters& now = asked->parameters;
  PipelinePtr before;  // goes without the lock
  {
    const std::lock_guard lock(mutex_);
    before = std::exchange(job->pipeline, asked->pipeline);
    job->parameters = now;
    job->estimate = asked->estimate;
    job->left = asked->left;
    job->backend = asked->backend;
    job->put_away = false;
    Refresh(*job);
  }
  if (differs) store_->Update(job->id, [&](JobSnapshot& snapshot) { snapshot.parameters = now; });
}

// The model is gone, or another one that cannot do it.
void EngineImpl::EndUnserved(const JobPtr& job, const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (job->closing) return;
    Close(job);
  }
  const bool gone = error.reason() == "MODEL_NOT_FOUND";
  EndWaiting(job, gone ? Unloaded(job->parameters.model) : error);
}

}  // namespace denoised
