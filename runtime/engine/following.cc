// Jobs without a run go over to the models that serve by now; what has begun ends with the model
// that it began with, and shares it with nobody new. Engine thread.
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/request_check.h"

namespace denoised {
namespace {

// The job as if it came now, for that model. What it was told stays: sizes, steps, seed.
JobPtr AskedOf(const JobWork& job, PipelinePtr pipeline) {
  const auto asked = std::make_shared<JobWork>();
  asked->pipeline = std::move(pipeline);
  asked->id = job.id;
  asked->tenant = job.tenant;
  asked->priority = job.priority;
  asked->order = job.order;
  asked->request = job.request;
  asked->parameters = job.parameters;
  const ModelInfo& model = asked->pipeline->info();
  asked->parameters.scheduler = model.defaults.scheduler;
  asked->parameters.linear = job.request.numerics.linear.value_or(model.defaults.linear);
  return asked;
}

void Check(const JobWork& asked) {
  const ResolvedParameters& sizes = asked.parameters;
  CheckGeometry(sizes.height, sizes.width, sizes.num_frames, asked.pipeline->rules());
  asked.pipeline->CheckRun(asked.request, sizes);
}

}  // namespace

void EngineImpl::NoteStale(const EngineWork& work) {
  follows_ = follows_ || !models_.Serves(*work.pipeline);
}

// A job whose checkpoint is another model's begins again (GoOnFrom); one that was only put away for
// a while runs, and stays.
void EngineImpl::FollowModels() {
  std::vector<JobPtr> stale;
  {
    const std::lock_guard lock(mutex_);
    if (!std::exchange(follows_, false)) return;
    for (const JobPtr& job : table_.Jobs()) {
      const bool runs = job->begun || (job->put_away && table_.InQueue(job->number) != nullptr);
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
  Check(*asked);
  Estimate(asked.get());
  const ResolvedParameters& now = asked->parameters;
  const bool differs =
      job->parameters.scheduler != now.scheduler || job->parameters.linear != now.linear;
  PipelinePtr before;  // goes without the lock
  {
    const std::lock_guard lock(mutex_);
    before = std::exchange(job->pipeline, asked->pipeline);
    job->parameters.scheduler = now.scheduler;
    job->parameters.linear = now.linear;
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
  EndWaiting(job, error);
}

}  // namespace denoised
