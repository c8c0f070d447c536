// What the engine is asked about selection: whether a force can serve anything, and why a backend
// runs or does not. Any thread.
#include "runtime/attention/explain.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/request_check.h"

namespace denoised {
namespace {

constexpr char kWhatIf[] = "what-if";

// Whose selection is explained, and where.
struct Question {
  PipelinePtr pipeline;
  ResolvedParameters parameters;
  PlannerSubject subject;
  StepPlace step;
  std::shared_ptr<const LeaseList> leases;
};

// What a job or a session has that a query may leave unsaid.
struct KnownWork {
  PipelinePtr pipeline;
  AttentionOptions attention;
  std::string tenant;
  ResolvedParameters parameters;
  int64_t steps_done = 0;
  std::shared_ptr<const LeaseList> pinned;
  std::shared_ptr<AutomaticOrder> order;
};

bool SaysNothing(const AttentionOptions& options) {
  return !options.backend && options.schedule.empty() && options.parameters_json.empty() &&
         options.mode == SelectionMode::kPrefer;
}

ResolvedParameters ParametersOf(const ExplainQuery& query, const KnownWork* work,
                                const Pipeline& pipeline) {
  GenerationRequest request;
  if (work != nullptr) {
    const ResolvedParameters& own = work->parameters;
    request.height = own.height;
    request.width = own.width;
    request.num_frames = own.num_frames;
    request.num_inference_steps = own.num_inference_steps;
  }
  if (query.height) request.height = query.height;
  if (query.width) request.width = query.width;
  if (query.num_frames) request.num_frames = query.num_frames;
  return ResolveRequest(request, pipeline.info().defaults, pipeline.rules());
}

void CheckPlace(const ExplainQuery& query, const PlannerSetting& setting,
                const PlannerSubject& subject) {
  const int64_t layers = setting.LayersOf(query.role.value_or(AttentionRole::kSelf));
  if (query.layer && (*query.layer < 0 || *query.layer >= layers)) {
    throw InvalidField("layer", "wanted 0 to " + std::to_string(layers - 1) + "; got " +
                                    std::to_string(*query.layer));
  }
  if (query.step && (*query.step < 0 || *query.step >= subject.num_steps)) {
    throw InvalidField("step", "wanted 0 to " + std::to_string(subject.num_steps - 1) + "; got " +
                                   std::to_string(*query.step));
  }
  if (query.sigma && !(*query.sigma >= 0 && std::isfinite(*query.sigma))) {
    throw InvalidField("sigma", "wanted a finite number, 0 or more");
  }
}

Question QuestionOf(const ExplainQuery& query, const KnownWork* work, const Models& models,
                    const SelectionPolicy& policy) {
  Question question;
  const bool own_model =
      work != nullptr && (query.model.empty() || query.model == work->parameters.model);
  question.pipeline = own_model ? work->pipeline : models.Find(query.model);
  question.parameters = ParametersOf(query, work, *question.pipeline);
  PlannerSubject& subject = question.subject;
  subject.attention = query.attention;
  subject.tenant = query.tenant.value_or(work != nullptr ? work->tenant : "");
  subject.id = query.job_id;
  // Without a job nobody says how many steps there are.
  subject.num_steps =
      work != nullptr ? work->parameters.num_inference_steps : std::numeric_limits<int64_t>::max();
  if (work != nullptr && SaysNothing(query.attention)) subject.attention = work->attention;
  const int64_t reached =
      work != nullptr ? std::min(work->steps_done, subject.num_steps - 1) : int64_t{0};
  question.step = {query.step.value_or(reached), query.sigma};
  const ResolvedParameters& guided = work != nullptr ? work->parameters : question.parameters;
  subject.rows = PassesInACall(guided.guidance_scale, *question.pipeline);
  if (work != nullptr) subject.order = work->order;
  question.leases = work != nullptr && work->pinned ? work->pinned : policy.leases();
  CheckPlace(query, question.pipeline->planner_setting(), subject);
  return question;
}

// As the policy would order it: newest among those that are as narrow.
LeaseList WithLease(const LeaseList& leases, const LeaseRequest& request) {
  Lease lease;
  lease.id = kWhatIf;
  lease.backend = request.backend;
  lease.parameters = request.parameters;
  lease.scope = request.scope;
  lease.mode = request.mode;
  LeaseList all = leases;
  const auto place = std::ranges::find_if(
      all, [&](const Lease& other) { return CompareNarrowness(lease.scope, other.scope) <= 0; });
  all.insert(place, std::move(lease));
  return all;
}

Explanation ExplainIn(const Question& question, const AttentionSpec& spec, const LeaseList& leases,
                      std::optional<int64_t> layer) {
  return ExplainRole(question.pipeline->planner_setting(), question.subject, spec, leases,
                     {layer, question.step});
}

}  // namespace

std::optional<Error> EngineImpl::CheckForce(const LeaseRequest& request) const {
  if (auto error = WhyNotJudged(request)) return error;
  if (!request.scope.job) return models_.CheckForce(request, nullptr);
  const std::string& id = *request.scope.job;
  if (const auto snapshot = store_->Get(id); snapshot && IsTerminal(snapshot->state)) {
    return Error(
        StatusCode::kFailedPrecondition,
        "scope.job_id: job " + id + " has ended as " + std::string(JobStateName(snapshot->state)),
        "scope.job_id", "JOB_FINISHED");
  }
  std::optional<Models::Subject> subject;
  {
    const std::lock_guard lock(mutex_);
    if (const auto work = table_.Trajectory(id)) subject = {work->pipeline, work->parameters};
  }
  if (subject) return models_.CheckForce(request, &*subject);
  return Error(StatusCode::kNotFound, "scope.job_id: no job or session '" + id.substr(0, 64) + "'",
               "scope.job_id", "JOB_NOT_FOUND");
}

std::vector<Explanation> EngineImpl::Explain(const ExplainQuery& query) const {
  std::optional<KnownWork> work;
  if (!query.job_id.empty()) {
    const auto snapshot = store_->Get(query.job_id);
    const std::lock_guard lock(mutex_);
    if (const auto known = table_.Trajectory(query.job_id)) {
      work = {known->pipeline,   known->request.attention,      known->tenant,
              known->parameters, snapshot ? snapshot->step : 0, known->pinned,
              known->order};
    }
  }
  const Question question = QuestionOf(query, work ? &*work : nullptr, models_, *policy_);
  std::optional<Error> refused;  // the lease of the question
  if (query.what_if) refused = CheckForce(*query.what_if);
  if (refused && refused->code() == StatusCode::kInvalidArgument) {
    throw Renamed(*refused, "", "what_if.");
  }
  std::vector<Explanation> explanations;
  for (const AttentionSpec& spec : question.pipeline->DenoiseSpecs(question.parameters)) {
    if (query.role && *query.role != spec.role) continue;
    Explanation now = ExplainIn(question, spec, *question.leases, query.layer);
    if (refused) now.what_if = "the force would be refused: " + std::string(refused->what());
    if (query.what_if && !refused) {
      Explanation with =
          ExplainIn(question, spec, WithLease(*question.leases, *query.what_if), query.layer);
      with.what_if = WhatChanges(now, with, kWhatIf);
      now = std::move(with);
    }
    explanations.push_back(std::move(now));
  }
  return explanations;
}

}  // namespace denoised
