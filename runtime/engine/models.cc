#include "runtime/engine/models.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "runtime/caught.h"

namespace denoised {
namespace {

// Looks at layers that a force is for until one is found that it can serve.
class ForceCheck {
 public:
  explicit ForceCheck(const LeaseRequest& request) : request_(request) {}

  bool CanServe(const Pipeline& pipeline, const AttentionSpec& spec) {
    const std::optional<AttentionRole>& role = request_.scope.where.role;
    if (role && *role != spec.role) return false;
    if (IsBeyondLayers(pipeline, spec)) return false;
    const auto why_not = WhyUnusable(request_.backend, pipeline, spec);
    if (!why_not) return FitsParameters(pipeline, spec);
    Say(*why_not, "backend");
    for (AttnBackend other : spec.supported) {
      if (!WhyUnusable(other, pipeline, spec)) usable_.emplace(AttnBackendName(other));
    }
    return false;
  }

  // Where nothing was found.
  Error Refusal() const {
    if (unfit_) return *unfit_;
    std::string names;
    for (const std::string& name : usable_) names += " " + name;
    return Error(StatusCode::kFailedPrecondition,
                 std::string(AttnBackendName(request_.backend)) + " can serve no layer in scope (" +
                     ToText(request_.scope) +
                     "): " + (sentence_.empty() ? "no model has any" : sentence_) +
                     (names.empty() ? "" : ". Usable:" + names),
                 field_, "BACKEND_UNUSABLE");
  }

 private:
  static std::string Named(const Pipeline& pipeline, const AttentionSpec& spec) {
    return std::string(AttentionRoleName(spec.role)) + "-attention of " + pipeline.info().name;
  }

  static std::optional<std::string> WhyUnusable(AttnBackend backend, const Pipeline& pipeline,
                                                const AttentionSpec& spec) {
    if (!spec.Lists(backend)) {
      return Named(pipeline, spec) + " does not list it";
    }
    const PlannerSetting& setting = pipeline.planner_setting();
    return setting.registry->WhyNot(backend, spec, setting.device);
  }

  bool IsBeyondLayers(const Pipeline& pipeline, const AttentionSpec& spec) {
    const int64_t layers = pipeline.planner_setting().LayersOf(spec.role);
    const std::optional<Interval>& wanted = request_.scope.where.layers;
    if (!wanted || wanted->first < layers) return false;
    Say(Named(pipeline, spec) + " has " + std::to_string(layers) + " layers, which count from 0",
        "scope.layers");
    return true;
  }

  // As the request of a force names it: "parameters.<key>", where jobs have "attention.parameters".
  bool FitsParameters(const Pipeline& pipeline, const AttentionSpec& spec) {
    try {
      pipeline.planner_setting().registry->CanonicalParameters(request_.backend, spec,
                                                               request_.parameters);
      return true;
    } catch (const Error& error) {
      if (!unfit_) unfit_ = Renamed(error, "attention.", "");
      return false;
    }
  }

  // The first one counts.
  void Say(const std::string& sentence, const std::string& field) {
    if (!sentence_.empty()) return;
    sentence_ = sentence;
    field_ = field;
  }

  const LeaseRequest& request_;
  std::string sentence_, field_ = "scope";
  std::set<std::string> usable_;
  std::optional<Error> unfit_;  // the backend could serve, but not with these parameters
};

}  // namespace

Pipeline* Models::Find(const std::string& name) const {
  for (const auto& pipeline : all_) {
    if (pipeline->info().name == name || (name.empty() && pipeline->info().is_default)) {
      return pipeline.get();
    }
  }
  throw Error(StatusCode::kNotFound,
              "model: no model is called \"" + name + "\"; there is:" + Names(), "model",
              "MODEL_NOT_FOUND");
}

std::string Models::Names() const {
  std::string names;
  for (const auto& pipeline : all_) names += " " + pipeline->info().name;
  return names;
}

std::vector<ModelInfo> Models::List() const {
  std::vector<ModelInfo> models;
  for (const auto& pipeline : all_) models.push_back(pipeline->info());
  return models;
}

int64_t Models::MadeBytes() const {
  int64_t bytes = 0;
  for (const auto& pipeline : all_) bytes += pipeline->MadeBytes();
  return bytes;
}

std::optional<Error> Models::CheckForce(const LeaseRequest& request,
                                        const ResolvedParameters* job) const {
  const LeaseScope& scope = request.scope;
  if (auto error = Caught([&] { CheckScope(scope, "scope"); })) return error;
  const auto is_in_scope = [&](const auto& pipeline) {
    return !scope.model || pipeline->info().name == *scope.model;
  };
  if (std::ranges::none_of(all_, is_in_scope)) {
    return Error(StatusCode::kNotFound,
                 "scope.model: no model is called \"" + scope.model->substr(0, 64) +
                     "\"; there is:" + Names(),
                 "scope.model", "MODEL_NOT_FOUND");
  }
  ForceCheck check(request);
  for (const auto& pipeline : all_) {
    if (!is_in_scope(pipeline) || (job != nullptr && job->model != pipeline->info().name)) continue;
    const ResolvedParameters& sizes = job != nullptr ? *job : pipeline->info().defaults;
    for (const AttentionSpec& spec : pipeline->DenoiseSpecs(sizes)) {
      if (check.CanServe(*pipeline, spec)) return std::nullopt;
    }
  }
  return check.Refusal();
}

std::vector<BackendInfo> Models::ListBackends() const {
  const Pipeline& pipeline = *Find("");
  const PlannerSetting& setting = pipeline.planner_setting();
  AttentionSpec self;
  for (const AttentionSpec& spec : pipeline.DenoiseSpecs(pipeline.info().defaults)) {
    if (spec.role == AttentionRole::kSelf) self = spec;
  }
  const std::vector<BreakerInfo> breakers = Breakers();
  std::vector<BackendInfo> backends;
  for (const BackendRegistry::Entry& entry : setting.registry->entries()) {
    backends.push_back({entry.id,
                        std::string(setting.registry->Summary(entry.id)),
                        entry.automatic && entry.backend != nullptr,
                        setting.registry->WhyNot(entry.id, self, setting.device),
                        {}});
    std::ranges::copy_if(breakers, std::back_inserter(backends.back().breakers),
                         [&](const BreakerInfo& open) { return open.backend == entry.id; });
  }
  return backends;
}

std::vector<BreakerInfo> Models::Breakers() const {
  std::vector<BreakerInfo> open;
  for (const auto& pipeline : all_) {
    for (BreakerInfo breaker : pipeline->planner_setting().guard->breakers().List()) {
      breaker.model = pipeline->info().name;
      open.push_back(std::move(breaker));
    }
  }
  return open;
}

void Models::SetGuards(const Drills* drills, Shadows* shadows) const {
  for (const auto& pipeline : all_) {
    CallGuard& guard = *pipeline->planner_setting().guard;
    guard.set_drills(drills);
    guard.set_shadows(shadows);
  }
}

}  // namespace denoised
