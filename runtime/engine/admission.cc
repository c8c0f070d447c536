// What the engine asks of a request, of memory and of time before it takes work, and of memory
// again before it begins it. Any thread.
#include <algorithm>

#include "runtime/engine/engine_impl.h"
#include "runtime/engine/ids.h"
#include "runtime/media/artifacts.h"
#include "runtime/request_check.h"

namespace denoised {
namespace {

// With the backends that would serve now. A later force can only choose among plans that are
// bounded (backends/attention_cost.h).
template <typename W>
CostOfAttention CostOf(const W& work) {
  return CostNow(work.pipeline->planner_setting(), SubjectOf(work));
}

// The strongest wish of self-attention, to predict from.
template <typename W>
AttnBackend SelfBackendOf(const W& work, const AttentionSpec& self) {
  const PlannerSetting& setting = work.pipeline->planner_setting();
  return ChoicesNow(setting, SubjectOf(work), self, OpenBreakers(setting, self)).front().backend;
}

std::string SecondsText(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, seconds < 10 ? "%.1f s" : "%.0f s", seconds);
  return text;
}

std::string Described(const TrajectoryWork& work) {
  const ResolvedParameters& p = work.parameters;
  return std::string(work.is_session() ? "a session of " : "a job of ") + std::to_string(p.width) +
         "x" + std::to_string(p.height) + " pixels and " + std::to_string(p.num_frames) + " frames";
}

std::string Described(const DenoiseRequest& request) {
  std::string shape;
  for (int64_t size : request.latents.shape) {
    shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  }
  return "a step of latents [" + shape + "]";
}

void CheckFormats(const std::vector<ArtifactFormat>& formats) {
  for (ArtifactFormat format : formats) {
    const auto why_not = WhyNotWritten(format);
    if (!why_not) continue;
    throw Error(StatusCode::kUnimplemented, "formats: " + *why_not, "formats",
                "FORMAT_NOT_IN_BUILD");
  }
}

// What it adds beside others, one of which takes so much above what it keeps in its largest unit.
WorkEstimate Beside(WorkEstimate estimate, int64_t excess) {
  estimate.peak_bytes = std::max(estimate.peak_bytes, estimate.held_bytes + excess);
  return estimate;
}

}  // namespace

JobPtr EngineImpl::Admit(GenerationRequest request) {
  const auto job = std::make_shared<JobWork>();
  job->pipeline = models_.Find(request.model);
  const Pipeline& pipeline = *job->pipeline;
  job->id = NewId();
  job->parameters = ResolveRequest(request, pipeline.info().defaults, pipeline.rules());
  if (!request.seed) job->parameters.seed = DrawSeed();
  pipeline.CheckRun(request, job->parameters);
  CheckFormats(request.formats);
  job->request = std::move(request);
  FillIn(job.get());
  return job;
}

// What follows from a request, checked or taken from the store.
void EngineImpl::FillIn(JobWork* job) const {
  if (!job->pipeline) job->pipeline = models_.Find(job->parameters.model);
  job->tenant = job->request.tenant;
  job->priority = job->request.priority;
  job->deadline = job->request.deadline;
  job->cancel = std::make_shared<CancelToken>();
  job->queued_at = std::chrono::steady_clock::now();
  job->arrived = clock_();
  // First without attention, so that no plan is made for what is too large anyway.
  RequireMemoryLater(*job, EstimateOf(*job, Attention::kLeftOut, 0));
  Estimate(job);
  RequireMemoryLater(*job, *job->estimate);
}

void EngineImpl::Estimate(JobWork* job) const {
  CheckAttention(job);
  job->estimate = estimates_.Share(EstimateOf(*job, Attention::kIncluded, 0));
}

void EngineImpl::FillIn(CallWork* call) const {
  call->pipeline = models_.Find(call->request.model);
  call->pipeline->CheckDenoise(call->request);
  call->tenant = kCallsTenant;
  call->deadline = call->request.deadline;
  call->queued_at = std::chrono::steady_clock::now();
  call->arrived = clock_();
  call->estimate = estimates_.Share(call->pipeline->EstimateDenoise(
      call->request, [call, cost = CostOf(*call)](const AttentionSpec& spec, int64_t rows) {
        CheckSchedule(call->pipeline->planner_setting(), SubjectOf(*call), {spec});
        if (spec.role == AttentionRole::kSelf) call->backend = SelfBackendOf(*call, spec);
        return cost(spec, rows);
      }));
  RequireMemory(*call);
}

// Its estimate counts from its opening on.
void EngineImpl::FillIn(SessionWork* session) const {
  session->tenant = session->request.tenant;
  session->priority = session->request.priority;
  session->queued_at = std::chrono::steady_clock::now();
  session->used = clock_();
  RequireMemory(*session, EstimateOf(*session, Attention::kLeftOut, 0));
  CheckAttention(session);
  RequireMemory(*session, EstimateOf(*session, Attention::kIncluded, 0));
}

AttnBackend CheckedAttention(const Pipeline& pipeline, const ResolvedParameters& parameters,
                             const PlannerSubject& subject) {
  const PlannerSetting& setting = pipeline.planner_setting();
  const std::vector<AttentionSpec> specs = pipeline.DenoiseSpecs(parameters);
  CheckSchedule(setting, subject, specs);
  AttnBackend self = AttnBackend::kReference;
  for (const AttentionSpec& spec : specs) {
    const std::vector<Wish> granted =
        ChoicesNow(setting, subject, spec, OpenBreakers(setting, spec));
    if (spec.role == AttentionRole::kSelf) self = granted.front().backend;
  }
  return self;
}

void EngineImpl::CheckAttention(TrajectoryWork* work) const {
  work->backend = CheckedAttention(*work->pipeline, work->parameters, SubjectOf(*work));
}

// A deadline that by prediction cannot be met is refused, where there is anything to predict from.
void EngineImpl::RequireTime(const JobWork& job) {
  if (!job.deadline || job.request.best_effort_deadline || !Known(job)) return;
  const auto now = clock_();
  double predicted = table_.queue.PredictedFinish(Queued(job), now);
  // Those that are still being stored and will stand before it.
  for (const auto& [other, work] : entering_) {
    const bool before = options_.policy == EngineOptions::Policy::kFifo ||
                        (work.deadline && *work.deadline <= *job.deadline);
    if (before) predicted += work.seconds_left;
  }
  const double given = std::chrono::duration<double>(*job.deadline - now).count();
  if (predicted <= given) return;
  throw Error(StatusCode::kFailedPrecondition,
              "the job would end in about " + SecondsText(predicted) + ", and its deadline is in " +
                  SecondsText(given) + "; best_effort_deadline takes it all the same",
              "time_limit", "DEADLINE_UNREACHABLE");
}

// ---- memory ------------------------------------------------------------------------------------

// `beside` = what others hold then.
WorkEstimate EngineImpl::EstimateOf(const TrajectoryWork& work, Attention attention,
                                    int64_t beside) const {
  const auto nothing = [](const AttentionSpec&, int64_t) { return AttentionCost{}; };
  int64_t held = beside;
  {
    const std::lock_guard lock(mutex_);
    held += HeldLater();
  }
  WorkEstimate estimate = work.pipeline->EstimateRun(
      work.request, work.parameters, memory_.Available(held),
      attention == Attention::kLeftOut ? CostOfAttention(nothing) : CostOf(work));
  if (work.has_prompts) return estimate;
  std::erase_if(estimate.units, [](const PlannedUnits& planned) {
    return planned.unit.kind == UnitKind::kEncodePrompt;
  });
  return estimate;
}

// A job that waits may count on what is left of older results, and of models that go, by then.
void EngineImpl::RequireMemoryLater(const JobWork& job, const WorkEstimate& estimate) const {
  int64_t held = 0;
  {
    const std::lock_guard lock(mutex_);
    held = HeldLater();
  }
  memory_.Require(Described(job), estimate, held);
}

int64_t EngineImpl::HeldLater() const {
  return ResultsThatStay() + HeldBesideResults() - memory_.passing();
}

int64_t EngineImpl::ResultsThatStay() const {
  const size_t kept = store_->kept_bytes(), movable = store_->forgettable_bytes();
  return static_cast<int64_t>(kept - std::min(kept, movable));
}

// Engine thread. What the models and others hold by now may be other than when the work came: its
// estimate is made again.
void EngineImpl::RequireMemoryNow(TrajectoryWork* work) {
  int64_t beside = 0, excess = 0;
  {
    const std::lock_guard lock(mutex_);
    table_.ChangeEstimate(work, RecentEstimates::None());
    beside = table_.resident_bytes();
    excess = table_.largest_excess();
  }
  const EstimatePtr estimate = estimates_.Share(EstimateOf(*work, Attention::kIncluded, beside));
  int64_t held = 0;
  {
    const std::lock_guard lock(mutex_);
    table_.ChangeEstimate(work, estimate);
    held = HeldBesideResults() + beside;
  }
  RequireBesideResults(Described(*work), Beside(*estimate, excess), held);
}

// Calls and sessions run beside what others keep between their steps.
void EngineImpl::RequireMemory(const CallWork& call) const {
  RequireBesideResults(Described(call.request), *call.estimate,
                       HeldByAll() + BytesOf(call.request));
}

void EngineImpl::RequireMemory(const SessionWork& session, const WorkEstimate& estimate) const {
  RequireBesideResults(Described(session), estimate, HeldByAll() + session.bytes);
}

int64_t EngineImpl::HeldByAll() const {
  const std::lock_guard lock(mutex_);
  return HeldBesideResults() + table_.resident_bytes();
}

// Work goes before old results: as many as it takes are forgotten.
void EngineImpl::RequireBesideResults(const std::string& what, const WorkEstimate& estimate,
                                      int64_t held) const {
  const auto kept = [this] { return static_cast<int64_t>(store_->kept_bytes()); };
  const int64_t lacking = memory_.Lacking(estimate, held + kept());
  if (lacking > 0 && lacking <= static_cast<int64_t>(store_->forgettable_bytes())) {
    store_->MakeRoom(static_cast<size_t>(lacking));
  }
  memory_.Require(what, estimate, held + kept());
}

// From here on under mutex_. Requests, what models have made since loading, and what is kept or may
// be for comparisons.
int64_t EngineImpl::HeldBesideResults() const {
  return table_.request_bytes() + models_.MadeBytes() + HeldForShadows();
}

// Beside the largest unit of what has begun.
int64_t EngineImpl::BytesAtHand() const {
  int64_t held = static_cast<int64_t>(store_->kept_bytes());
  {
    const std::lock_guard lock(mutex_);
    held += HeldBesideResults() + table_.resident_bytes() + table_.largest_excess();
  }
  return memory_.Available(held);
}

// Whether it fits beside those that have begun, in its own largest unit and in theirs.
bool EngineImpl::FitsBesideResidents(const EngineWork& work) const {
  return memory_.Lacking(Beside(*work.estimate, table_.largest_excess()),
                         HeldBesideResults() + ResultsThatStay() + table_.resident_bytes()) == 0;
}

// Rows of a forward that the lead's peak leaves room for.
int64_t EngineImpl::RowsThatFit(const EngineWork& lead) const {
  const int64_t own = StepUnitOf(lead).rows, row = lead.estimate->row_bytes;
  if (row <= 0) return options_.max_batch_rows;
  const int64_t held = HeldBesideResults() + static_cast<int64_t>(store_->kept_bytes()) +
                       table_.resident_bytes() - lead.estimate->held_bytes +
                       lead.estimate->peak_bytes;
  return own + std::max<int64_t>(0, memory_.Available(held)) / row;
}

}  // namespace denoised
