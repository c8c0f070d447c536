// What the engine asks of memory before it takes work, and again before it begins it.
#include <algorithm>

#include "runtime/engine/engine_impl.h"

namespace denoised {
namespace {

// With the backends that would serve now. A later force can only choose among plans that are
// bounded (backends/attention_cost.h).
CostOfAttention CostNow(const Pipeline& pipeline, const AttentionOptions& options) {
  return [&pipeline, &options](const AttentionSpec& spec, int64_t rows) {
    const PlannerSetting& setting = pipeline.planner_setting();
    const Wish granted = ChooseNow(setting, options, spec).granted;
    return setting.registry->Find(granted.backend)
        ->backend->Estimate(spec, granted.parameters, rows);
  };
}

std::string Described(const ResolvedParameters& p) {
  return "a job of " + std::to_string(p.width) + "x" + std::to_string(p.height) + " pixels and " +
         std::to_string(p.num_frames) + " frames";
}

std::string Described(const DenoiseRequest& request) {
  std::string shape;
  for (int64_t size : request.latents.shape) {
    shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  }
  return "a step of latents [" + shape + "]";
}

}  // namespace

WorkEstimate EngineImpl::EstimateOf(const QueuedJob& job, Attention attention) const {
  const auto nothing = [](const AttentionSpec&, int64_t) { return AttentionCost{}; };
  return job.pipeline->EstimateRun(job.request, job.parameters, memory_.Available(HeldLater()),
                                   attention == Attention::kLeftOut
                                       ? CostOfAttention(nothing)
                                       : CostNow(*job.pipeline, job.request.attention));
}

// A job that waits may count on what is left of older results then.
void EngineImpl::RequireMemoryLater(const QueuedJob& job) const {
  memory_.Require(Described(job.parameters), job.estimate, HeldLater());
}

int64_t EngineImpl::HeldLater() const {
  const size_t kept = store_->artifact_bytes(), movable = store_->forgettable_bytes();
  return static_cast<int64_t>(kept - std::min(kept, movable)) + HeldBesideResults();
}

// What the models hold by now may be other than when the job came: its estimate is made again.
void EngineImpl::RequireMemoryNow(QueuedJob* job) const {
  const WorkEstimate estimate = EstimateOf(*job, Attention::kIncluded);
  {
    const std::lock_guard lock(mutex_);
    job->estimate = estimate;
  }
  RequireBesideResults(Described(job->parameters), job->estimate, HeldBesideResults());
}

// Denoise calls run between a job's steps, beside what it keeps.
void EngineImpl::RequireMemory(const DenoiseCall& call) const {
  const WorkEstimate estimate =
      call.pipeline->EstimateDenoise(call.request, CostNow(*call.pipeline, call.request.attention));
  int64_t held = HeldBesideResults() + BytesOf(call.request);
  {
    const std::lock_guard lock(mutex_);
    held += running_ ? running_->estimate.held_bytes : 0;
  }
  RequireBesideResults(Described(call.request), estimate, held);
}

// Work goes before old results: as many as it takes are forgotten.
void EngineImpl::RequireBesideResults(const std::string& what, const WorkEstimate& estimate,
                                      int64_t held) const {
  const auto kept = [this] { return static_cast<int64_t>(store_->artifact_bytes()); };
  const int64_t lacking = memory_.Lacking(estimate, held + kept());
  if (lacking > 0 && lacking <= static_cast<int64_t>(store_->forgettable_bytes())) {
    store_->MakeRoom(static_cast<size_t>(lacking));
  }
  memory_.Require(what, estimate, held + kept());
}

int64_t EngineImpl::HeldBesideResults() const {
  const std::lock_guard lock(mutex_);
  int64_t bytes = running_ ? BytesOf(running_->request) : 0;
  for (const auto& pipeline : pipelines_) bytes += pipeline->MadeBytes();
  for (const QueuedJob& job : jobs_) bytes += BytesOf(job.request);
  for (const DenoiseCall& call : calls_) bytes += BytesOf(call.request);
  return bytes;
}

}  // namespace denoised
